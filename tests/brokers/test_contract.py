"""What every engine promises: one log, in order, nothing twice, nothing lost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest

from qgstream.brokers.base import MAX_READ_BYTES, Broker, Forgotten, open_broker
from qgstream.errors import Unavailable
from qgstream.events.draft import parse_json
from qgstream.events.history import HistorySettings
from qgstream.events.namespaces import namespace
from qgstream.events.publication import Publication
from tests.brokers.conftest import Tails
from tests.brokers.engines import Engine

TOPICS = ("orders/1", "Bücher/€", "日本/東京", "a.b-c_d~e", "x y", "a?b", "#", ">", "a..b", ".a.")


def event(data: str | bytes = "{}", *topics: str, key: str | None = None, is_json: bool | None = None) -> Publication:
    """An event as drafts make them: said to be JSON only if it is."""
    raw = data.encode() if isinstance(data, str) else data
    if is_json is None:
        try:
            json.loads(raw)
        except ValueError:
            is_json = False
        else:
            is_json = True
    return Publication(topics or ("orders/1",), raw, is_json=is_json, idempotency_key=key)


def content(publication: Publication) -> tuple[object, ...]:
    """What must arrive as it was."""
    p = publication
    return p.topics, p.data, p.is_json, p.event, p.retry_ms, p.private


async def read_all(broker: Broker, after: int, limit: int = 100) -> list[Publication]:
    found: list[Publication] = []
    while page := await broker.read(found[-1].offset if found else after, limit):
        assert len(page) <= limit
        found += page
    return found


def is_rising(offsets: Sequence[int]) -> bool:
    return all(before < after for before, after in pairwise(offsets))


# Appending.


@pytest.mark.gen_test
async def test_what_is_appended_is_delivered_once_in_order_before_it_is_acknowledged(tails: Tails) -> None:
    tail = await tails.open()
    assert tail.broker.is_up
    offsets: list[int] = []
    for batch in ([event("1")], [event("2"), event("3"), event("4")], [event("5")]):
        got = await tail.broker.append(batch)
        assert [publication.offset for publication in batch] == list(got)
        offsets += got
        assert tail.offsets == offsets
    assert is_rising([tail.opened.position.offset, *offsets])
    assert offsets[-1] < 10**19
    assert [p.data for p in tail.delivered] == [b"1", b"2", b"3", b"4", b"5"]
    assert all(abs(p.published_at - time.time()) < 60 for p in tail.delivered)


def odd_events() -> list[Publication]:
    return [
        *(event('{"n": 1}', topic) for topic in TOPICS),
        event("", is_json=False),
        event("two\nlines\r\nand \u2028 \u0085 \0 more", is_json=False),
        event('"text"'),
        event('{"deep": [1, 2.50, 12345678901234567890, "\\u0000"]}'),
        event("x", *(f"topic/{n}" for n in range(64)), is_json=False),
        Publication(("a", "b"), b"1", event="Änderung of type: 1", retry_ms=86_400_000, private=True),
        event(b"x" * 262_144, is_json=False),
        event("[" + ",".join(map(str, range(50_000))) + "]"),
    ]


@pytest.mark.gen_test
async def test_everything_of_an_event_arrives_as_it_was(tails: Tails) -> None:
    tail = await tails.open()
    for publication in odd_events():
        await tail.broker.append([publication])
    assert list(map(content, tail.delivered)) == list(map(content, odd_events()))


@pytest.mark.gen_test
async def test_everything_of_an_event_is_read_as_it_was(tails: Tails, durable: Engine) -> None:
    tail = await tails.open()
    await tail.broker.append(odd_events())
    assert list(map(content, await read_all(tail.broker, 0))) == list(map(content, odd_events()))


@pytest.mark.gen_test
async def test_concurrent_publishers_share_one_order(tails: Tails) -> None:
    tail = await tails.open()

    async def publish(number: int) -> list[int]:
        offsets: list[int] = []
        for turn in range(25):
            batch = [event(f'"{number}.{turn}.{n}"') for n in range(1 + turn % 3)]
            offsets += await tail.broker.append(batch)
        return offsets

    told = await asyncio.gather(*(publish(number) for number in range(16)))
    assert is_rising(tail.offsets)
    assert sorted(offset for offsets in told for offset in offsets) == tail.offsets
    at = {publication.data: publication.offset for publication in tail.delivered}
    assert len(at) == len(tail.delivered)
    for number, offsets in enumerate(told):
        mine = [offset for data, offset in at.items() if data.startswith(b'"%d.' % number)]
        assert mine == offsets
        assert is_rising(mine)


# Idempotency.


@pytest.mark.gen_test
async def test_a_key_is_appended_once(tails: Tails) -> None:
    tail = await tails.open()
    (first,) = await tail.broker.append([event("1", key="a")])
    again = event("2", key="a")
    assert list(await tail.broker.append([again])) == [first]
    assert again.offset == 0, "what was not appended was touched"
    mixed = await tail.broker.append([event("3", key="b"), event("4", key="a"), event("5"), event("6", key="b")])
    assert mixed[1] == first
    assert mixed[3] == mixed[0]
    assert [publication.data for publication in tail.delivered] == [b"1", b"3", b"5"]
    assert tail.offsets == [first, mixed[0], mixed[2]]


@pytest.mark.gen_test
async def test_of_many_who_publish_a_key_at_once_one_does(tails: Tails) -> None:
    tail = await tails.open()
    told = await asyncio.gather(*(tail.broker.append([event(str(n), key="Schlüssel")]) for n in range(20)))
    assert len({tuple(offsets) for offsets in told}) == 1
    await tail.broker.append([event("end")])
    assert len(tail.delivered) == 2


PUBLISHERS = (
    ("publish_key", "a"),
    ("publish_key", "b"),
    ("publish_key", "a:b"),
    ("token", "https://issuer", "a"),
    ("token", "", "a"),
    ("source", "a"),
    ("application",),
)
KEYS = ("order-7", "a:order-7", '"a"]order-7', "Schlüssel/" + "日" * 246, "k" * 256)


def keyed(publisher: tuple[str, ...], key: str) -> Publication:
    body = json.dumps({"topic": "a", "data": [publisher, key], "idempotency_key": key})
    return parse_json(body.encode(), 10_000, namespace=namespace(*publisher))


@pytest.mark.gen_test
async def test_a_key_belongs_to_the_publisher_that_sent_it(tails: Tails, engine: Engine) -> None:
    first_tail = await tails.open()
    tail = await tails.open() if engine.machine is not None else first_tail  # another process
    pairs = [(publisher, key) for key in KEYS for publisher in PUBLISHERS]
    offsets = list(await first_tail.broker.append([keyed(*pair) for pair in pairs]))
    assert is_rising(offsets)
    assert len(offsets) == len(pairs)
    assert list(await tail.broker.append([keyed(*pair) for pair in pairs])) == offsets
    (end,) = await tail.broker.append([event("end")])
    await tail.until(lambda: tail.offsets[-1] == end)
    assert tail.offsets == [*offsets, end]


@pytest.mark.gen_test
async def test_a_key_still_belongs_to_its_publisher_after_a_restart(tails: Tails, durable: Engine) -> None:
    tail = await tails.open()
    offsets = await tail.broker.append([keyed(publisher, "order-7") for publisher in PUBLISHERS])
    await tails.close()
    tail = await tails.open()
    assert list(await tail.broker.append([keyed(publisher, "order-7") for publisher in PUBLISHERS])) == list(offsets)
    (other,) = await tail.broker.append([keyed(("publish_key", "c"), "order-7")])
    assert other not in offsets
    assert tail.offsets == [other]


# Reading.


@pytest.mark.gen_test
async def test_reading_gives_everything_after_an_offset_page_by_page(tails: Tails, durable: Engine) -> None:
    tail = await tails.open()
    offsets: list[int] = []
    for n in range(10):
        offsets += await tail.broker.append([event(f'"{n}.{m}"') for m in range(30)])
    for after in (0, offsets[0], offsets[137], offsets[-2]):
        found = await read_all(tail.broker, after, limit=37)
        assert [p.offset for p in found] == [offset for offset in offsets if offset > after]
    assert list(await tail.broker.read(offsets[-1], 10)) == []
    assert len(await tail.broker.read(0, 1)) == 1
    assert [content(p) for p in await read_all(tail.broker, 0)] == [content(p) for p in tail.delivered]


@pytest.mark.gen_test
async def test_a_page_is_bounded_in_bytes_and_holds_at_least_one(tails: Tails, durable: Engine) -> None:
    tail = await tails.open()
    await tail.broker.append([event(b"x" * 400_000) for _ in range(6)])
    page = await tail.broker.read(0, 100)
    assert 0 < sum(len(publication.data) for publication in page) <= 2 * MAX_READ_BYTES
    assert len(await read_all(tail.broker, 0)) == 6


@pytest.mark.gen_test
async def test_reading_beside_publishers_has_no_hole(tails: Tails, durable: Engine) -> None:
    tail = await tails.open()
    done = asyncio.Event()

    async def publish() -> None:
        while not done.is_set():
            await tail.broker.append([event("x", is_json=False) for _ in range(3)])

    publishers = [asyncio.create_task(publish()) for _ in range(4)]
    found: list[int] = []
    while len(found) < 600:
        await asyncio.sleep(0)  # reading nothing need not wait for anything
        found += [p.offset for p in await tail.broker.read(found[-1] if found else 0, 50)]
        await asyncio.sleep(0)  # a broker that knows that there is no more need not ask anybody
    done.set()
    await asyncio.gather(*publishers)
    assert found == tail.offsets[: len(found)]


# What is gone.


@pytest.mark.gen_test
async def test_what_is_trimmed_is_told_and_the_rest_is_whole(tails: Tails, engine: Engine) -> None:
    tail = await tails.open(HistorySettings(max_events=50), broker=open_broker(engine.shorter_url or engine.url))
    offsets: list[int] = []
    for _ in range(30):
        offsets += await tail.broker.append([event(b"x" * 500) for _ in range(40)])
    deadline = time.monotonic() + 60
    while True:
        try:
            await tail.broker.read(0, 1)
        except Forgotten as forgotten:
            after = forgotten.after
            if after >= offsets[-500]:
                break
        assert time.monotonic() < deadline, "nothing was trimmed"
        await asyncio.sleep(0.05)
    while True:  # it may go on while we read
        try:
            found = [p.offset for p in await read_all(tail.broker, after)]
        except Forgotten as forgotten:
            after = forgotten.after
        else:
            break
    assert found == [offset for offset in offsets if offset > after]


# Opening again.


@pytest.mark.gen_test
async def test_a_log_is_found_as_it_was_left(tails: Tails, durable: Engine) -> None:
    tail = await tails.open()
    epoch = tail.opened.position.epoch
    assert 0 < len(epoch) <= 40
    assert list(tail.opened.recent) == []
    await tail.broker.append([event(str(n)) for n in range(20)])
    (keyed,) = await tail.broker.append([event("with a key", key="k")])
    before = [(p.offset, p.published_at, *content(p)) for p in tail.delivered]
    await tails.close()
    tail = await tails.open()
    assert tail.opened.position == (epoch, keyed)
    assert tail.opened.forgotten == 0
    assert [(p.offset, p.published_at, *content(p)) for p in tail.opened.recent] == before
    assert list(await tail.broker.append([event("again", key="k")])) == [keyed]
    assert tail.delivered == []
    (next_one,) = await tail.broker.append([event("more")])
    assert next_one > keyed
    assert tail.offsets == [next_one]


@pytest.mark.gen_test
@pytest.mark.parametrize("window", [{"max_events": 7}, {"max_bytes": 7 * (2 * 1000 + 400)}])
async def test_a_window_gets_the_newest_and_is_told_where_they_begin(
    tails: Tails, durable: Engine, window: dict[str, int]
) -> None:
    tail = await tails.open()
    offsets = await tail.broker.append([event(b"x" * 1000) for _ in range(20)])
    await tails.close()
    tail = await tails.open(HistorySettings.model_validate(window))
    recent = [publication.offset for publication in tail.opened.recent]
    assert len(recent) >= 7
    assert recent == [offset for offset in offsets if offset > tail.opened.forgotten]


@pytest.mark.gen_test
async def test_a_closed_broker_takes_nothing(tails: Tails) -> None:
    tail = await tails.open()
    await tail.broker.append([event()])
    await tails.close()
    assert not tail.broker.is_up
    with pytest.raises(Unavailable) as refused:
        await tail.broker.append([event()])
    assert (refused.value.status, refused.value.code) == (503, "broker_down")
    assert len(tail.delivered) == 1


@pytest.mark.gen_test
async def test_closing_answers_what_was_taken(tails: Tails) -> None:
    tail = await tails.open()
    appends = [asyncio.create_task(tail.broker.append([event(str(n))])) for n in range(10)]
    await asyncio.sleep(0)  # they have begun
    await tails.close()
    for append in appends:
        await append
    assert len(tail.delivered) == 10
