"""Who asks for how much: seen within two seconds, and in bounded memory whatever comes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sized

import pytest

from qgstream.auth.authenticator import ANONYMOUS, Principal
from qgstream.talkers import MAX_NAME_CHARACTERS, MAX_ROWS, Asker, Name, Recent, Talkers, Tally

MANY = 100_000


@pytest.mark.parametrize("begins_at", [0.0, 0.1, 0.25, 0.5, 0.75, 0.9])
def test_a_flood_is_seen_within_two_seconds(begins_at: float) -> None:
    recent = Recent(100)
    assert recent.per_second(100 + begins_at) == 0
    # Whatever part of its first second it had.
    seen = {}
    for tick in range(3000):
        now = 100 + begins_at + tick / 1000
        recent.add(1, int(now))
        seen[tick + 1] = recent.per_second(now)
    assert 430 < seen[1000] <= 501
    assert 870 < seen[2000] <= 1001
    assert seen[3000] == pytest.approx(1000, rel=0.01)


def test_a_flood_that_has_ended_is_no_rate_after_three_seconds() -> None:
    recent = Recent(100)
    recent.add(1000, 100)
    assert [recent.per_second(at) for at in (100.5, 101.9, 102.25, 102.5, 103.0, 1e6)] == [500, 500, 375, 250, 0, 0]


def test_a_steady_rate_is_told_at_every_moment() -> None:
    recent = Recent(0)
    for tick in range(1, 400):
        now = tick / 20
        recent.add(3, int(now))
        if now > 2:
            assert recent.per_second(now) == pytest.approx(60, rel=0.06)


def test_the_rank_forgets_half_in_a_minute() -> None:
    recent = Recent(0)
    recent.add(1000, 0)
    assert recent.rank(60) == pytest.approx(500)
    assert recent.rank(120) == pytest.approx(250)


def test_the_busiest_stay_and_come_first() -> None:
    tally = Tally[str]()
    for tick in range(60):
        tally.row("regular", float(tick)).requests.add(1, tick)
    now = 60.0
    for number in range(MANY):
        now += 0.0005
        tally.row(f"once/{number}", now).requests.add(1, int(now))
        if number % 200 == 0:
            tally.row("loud", now).requests.add(1, int(now))
    assert len(tally) <= 2 * MAX_ROWS
    assert tally.row("regular", now).first_at == 0  # it was never dropped
    assert tally.row("loud", now).first_at == 60.0005
    (name, row), *_ = tally.most(3, now)
    assert name == "loud"
    assert row.requests.per_second(now) == pytest.approx(10, rel=0.1)


def test_a_flood_of_names_takes_bounded_memory() -> None:
    talkers = Talkers()
    long = "x" * (MAX_NAME_CHARACTERS - 6)

    def flood(start: int, names: int) -> None:
        for number in range(start, start + names):
            user = Name(f"{long}{number}", f"{long}{number}")
            asker = Asker(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", f"{long}{number}", user=user)
            talkers.refused_publish(asker, "forbidden", number / 1000)
            key = Asker(asker.address, asker.agent, f"{long}{number}")
            talkers.published(key, 1, 10, number / 1000)

    tallies: list[Sized] = [talkers.publishers, *talkers.by.values()]
    for start in range(0, MANY, MANY // 10):
        flood(start, MANY // 10)
        assert [len(tally) <= 2 * MAX_ROWS for tally in tallies] == [True] * 5
    tracemalloc.start()
    flood(MANY, MANY // 10)  # replaces every row
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes < 8 * 2**20


def test_by_events_those_with_the_most_events_come_first() -> None:
    talkers = Talkers()
    talkers.published(Asker("192.0.2.1", "a", "many-requests"), 1, 10, 1.0)
    talkers.published(Asker("192.0.2.1", "a", "many-requests"), 1, 10, 1.0)
    talkers.published(Asker("192.0.2.2", "b", "many-events"), 500, 5000, 1.0)
    assert [name for (_, name), _ in talkers.publishers.most(9, 1.0, by_events=True)] == [
        Name("many-events"), Name("many-requests"),
    ]  # fmt: skip
    assert [name for name, _ in talkers.by["key"].most(1, 1.0)] == [Name("many-requests")]


def test_an_address_of_ipv6_counts_with_its_network() -> None:
    talkers = Talkers()
    for last in range(100):
        talkers.opened(Asker(f"2001:db8::{last:x}", ""), 1.0)
    ((name, row),) = talkers.by["address"].most(9, 1.0)
    assert (name, row.streams) == (Name("2001:db8::/64"), 100)


def test_who_asks() -> None:
    key = Principal("shop", "publish_key")
    assert Asker.of("a", "b", key) == ("a", "b", "shop", None)
    assert Asker.of("a", "b", key).fields == {"key": "shop"}
    assert Asker.of("a", "b", Principal("shop", "admin_key")).fields == {"key": "admin:shop"}
    assert Asker.of("a", "b", ANONYMOUS).fields == {}


def test_a_subject_is_cut_and_escaped() -> None:
    hostile = "\x1b[2J\u202ecod\x85\r\n" + "x" * 300
    token = Principal(hostile, "token", identity=("token", hostile, hostile))
    user = Asker.of("a", "b", token).user
    assert user is not None
    assert user.name == user.issuer
    assert user.name == (r"\x1b[2J\u202ecod\x85\r\n" + "x" * 300)[:MAX_NAME_CHARACTERS]
    without = Principal("token", "token", identity=("token", "", "", "digest"))
    assert Asker.of("a", "b", without).fields == {"sub": None}
