"""The pass: whoever is behind gets everything new in one send, and who is slow hurts nobody else."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qgstream.delivery.fanout
from qgstream.delivery.fanout import DROPS_PER_LOOK, FEEDS_PER_JOB, FEW, SENDS_PER_LOOK, TELL_SECONDS, Fanout
from qgstream.delivery.feed import Feed
from qgstream.delivery.slices import Slices
from qgstream.delivery.subscriber import Subscriber
from qgstream.events.subscription import Subscription
from qgstream.limits import LimitSettings
from qgstream.metrics import Metrics
from tests.fakes import ENDLESS, Clock, ManualSlices, counter, turns

KIB = 1024


class Peer(Subscriber):
    """A subscriber whose socket has `room` bytes; what is left of a chunk waits in `rest`."""

    def __init__(self, rig: Rig, feed: Feed[Subscriber], room: int = ENDLESS) -> None:
        super().__init__(feed, self.take)
        self.rig = rig
        self.room = room
        self.error: Exception | None = None
        self.sends: list[bytes] = []
        self.received = b""
        self.rest = b""
        self.join()

    def take(self, data: bytes) -> int:
        assert not self.rest
        if self.error is not None:
            raise self.error
        if not self.room:
            raise BlockingIOError
        taken = min(self.room, len(data))
        self.sends.append(data)
        self.received += data[:taken]
        self.room -= taken
        return taken

    def write_rest(self, rest: bytes | memoryview) -> None:
        self.rest = bytes(rest)

    def give_room(self, room: int) -> None:
        self.room += room
        taken, self.rest = self.rest[: self.room], self.rest[self.room :]
        self.received += taken
        self.room -= len(taken)
        if taken and not self.rest:
            self.rig.fanout.has_room(self)

    def fail(self, error: OSError) -> None:
        self.rig.failed.append((self, error))
        self.leave()


class Rig:
    """A fan-out with its clock, its slices and what became of its subscribers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch | None = None, **limits: float) -> None:
        self.clock = Clock()
        if monkeypatch is not None:
            monkeypatch.setattr(qgstream.delivery.fanout, "perf_counter", self.clock.monotonic)
        self.limits = LimitSettings.model_validate({"backlog_grace_seconds": 0, **limits})
        self.slices = ManualSlices()
        self.metrics = Metrics()
        self.failed: list[tuple[Subscriber, OSError]] = []
        self.dropped: list[Subscriber] = []
        self.faulty: list[Subscriber] = []
        self.fanout = Fanout(
            self.slices, self.metrics, lambda: self.limits, self.gone(self.dropped), self.gone(self.faulty)
        )

    def gone(self, where: list[Subscriber]) -> Callable[[Subscriber], None]:
        def leave(subscriber: Subscriber) -> None:
            where.append(subscriber)
            subscriber.leave()
            self.fanout.settle(subscriber.feed)

        return leave

    def feed(self, name: str = "a") -> Feed[Subscriber]:
        return Feed(Subscription(frozenset([name])))

    def peers(self, feed: Feed[Subscriber], *rooms: int) -> list[Peer]:
        return [Peer(self, feed, room) for room in rooms]

    def publish(self, feed: Feed[Subscriber], *chunks: bytes) -> None:
        for chunk in chunks:
            self.fanout.append(feed, chunk)

    def sent(self) -> tuple[float, float]:
        """Events and bytes, as metrics have them."""
        return (
            counter(self.metrics, "qgstream_events_delivered_total"), counter(self.metrics, "qgstream_bytes_sent_total")
        )  # fmt: skip


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(qgstream.delivery.fanout, "SENDS_PER_LOOK", 1)
    monkeypatch.setattr(qgstream.delivery.fanout, "FEW", 0)  # each round is a job of its own
    return Rig(monkeypatch)


def send_at_most(monkeypatch: pytest.MonkeyPatch, max_bytes: int) -> None:
    join = Feed.join
    monkeypatch.setattr(Feed, "join", lambda feed, cursor: join(feed, cursor, max_bytes))


def test_everything_new_is_one_send_of_the_same_bytes(rig: Rig) -> None:
    feed = rig.feed()
    peers = rig.peers(feed, ENDLESS, ENDLESS)
    rig.publish(feed, b"one")
    rig.publish(feed, b"two", b"three")
    rig.slices.step()
    rig.slices.run()
    assert [peer.sends for peer in peers] == [[b"onetwothree"]] * 2
    assert feed.held_bytes == 0
    assert rig.sent() == (6, 22)


def test_one_event_is_not_even_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    feed = rig.feed()
    peers = rig.peers(feed, *[ENDLESS] * 3)
    rig.publish(feed, chunk := b"x" * 100)
    rig.slices.run()
    assert all(peer.sends[0] is chunk for peer in peers)


def test_rounds_of_feeds_with_few_subscribers_are_few_jobs_that_yield(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job for each of 4 000 feeds of one stream took longer than the sends, and its memory stayed."""
    rig = Rig(monkeypatch)
    peers = [rig.peers(rig.feed(str(number)), *[ENDLESS] * (1 + number % FEW)) for number in range(200)]
    for one, *_ in peers:
        rig.publish(one.feed, b"one")
    assert len(rig.slices) == math.ceil(200 / FEEDS_PER_JOB)
    everybody, heard = [peer for some in peers for peer in some], 0
    while rig.slices:
        rig.slices.step()
        before, heard = heard, sum(map(len, [peer.sends for peer in everybody]))
        assert heard - before < SENDS_PER_LOOK + FEW
    assert [peer.received for peer in everybody] == [b"one"] * len(everybody)
    assert rig.sent() == (len(everybody), 3 * len(everybody))
    assert all(one.feed.behind_since is None and not one.feed.held_bytes for one, *_ in peers)


def test_what_is_published_while_such_a_job_is_under_way_comes_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qgstream.delivery.fanout, "SENDS_PER_LOOK", 1)
    rig = Rig(monkeypatch)
    (first,), (second,) = rig.peers(rig.feed("a"), ENDLESS), rig.peers(rig.feed("b"), ENDLESS)
    for peer in (first, second):
        rig.publish(peer.feed, b"one")
    rig.slices.step()
    rig.publish(first.feed, b"two")
    rig.publish(second.feed, b"two")
    rig.slices.run()
    assert (first.sends, second.sends) == ([b"one", b"two"], [b"onetwo"])


def test_a_fault_in_one_of_many_rounds_is_one_feeds(
    monkeypatch: pytest.MonkeyPatch, expect_log: Callable[[str], None]
) -> None:
    expect_log("fanout.round_failed")
    rig = Rig(monkeypatch)
    peers = [peer for number in range(5) for peer in rig.peers(rig.feed(str(number)), ENDLESS)]
    peers[2].error = ZeroDivisionError()
    for peer in peers:
        rig.publish(peer.feed, b"one")
    rig.slices.run()
    assert rig.faulty == [peers[2]]
    assert [peer.received for peer in peers] == [b"one", b"one", b"", b"one", b"one"]
    assert rig.fanout._due == 0


def test_what_is_published_during_a_round_goes_along(rig: Rig) -> None:
    feed = rig.feed()
    first, second = rig.peers(feed, ENDLESS, ENDLESS)
    rig.publish(feed, b"one")
    rig.slices.step()
    rig.publish(feed, b"two")
    rig.slices.run()
    assert (first.sends, second.sends) == ([b"one", b"two"], [b"onetwo"])


def test_who_joins_during_a_round_gets_what_follows(rig: Rig) -> None:
    feed = rig.feed()
    rig.peers(feed, ENDLESS, ENDLESS)
    rig.publish(feed, b"one")
    rig.slices.step()
    (late,) = rig.peers(feed, ENDLESS)
    rig.publish(feed, b"two")
    rig.slices.run()
    assert late.received == b"two"


def test_those_at_each_place_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    feed = rig.feed()
    peers = []
    for chunk, joining in ((b"one", 2), (b"two", 1), (b"three", 3)):
        peers += rig.peers(feed, *[ENDLESS] * joining)
        rig.publish(feed, chunk)
    rig.slices.run()
    assert [peer.sends for peer in peers] == [[b"onetwothree"]] * 2 + [[b"twothree"]] + [[b"three"]] * 3
    assert rig.sent() == (2 * 3 + 2 + 3, 2 * 11 + 8 + 3 * 5)


def test_a_feed_that_nobody_follows_holds_nothing(rig: Rig) -> None:
    feed = rig.feed()
    rig.publish(feed, b"one")
    assert (feed.end, len(rig.slices)) == (0, 0)


def test_a_peer_that_has_gone_is_left_out_and_nobody_else(rig: Rig) -> None:
    feed = rig.feed()
    first, gone, last = rig.peers(feed, ENDLESS, ENDLESS, ENDLESS)
    gone.error = error = ConnectionResetError()
    rig.publish(feed, b"one")
    rig.slices.run()
    assert (first.received, last.received) == (b"one", b"one")
    assert rig.failed == [(gone, error)]
    assert rig.sent() == (2, 6)


@pytest.mark.parametrize("during", [(), (b"more",)])
def test_all_may_go_during_a_round(rig: Rig, during: tuple[bytes, ...]) -> None:
    feed = rig.feed()
    peers = rig.peers(feed, ENDLESS, ENDLESS)
    rig.publish(feed, b"one")
    rig.slices.step()
    rig.publish(feed, *during)
    for peer in peers:
        peer.leave()
    rig.publish(feed, b"two")
    rig.slices.run()
    assert feed.behind_since is None
    assert feed.held_bytes == 0


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.lists(st.integers(0, 90), min_size=1, max_size=6))
def test_whatever_sockets_take_arrives_once_and_is_counted_once(sizes: list[int], rooms: list[int]) -> None:
    rig = Rig()
    feed = rig.feed()
    peers = rig.peers(feed, *rooms)
    chunks = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    for chunk in chunks:
        rig.publish(feed, chunk)
        rig.slices.run()
    for peer in peers:
        assert b"".join(chunks).startswith(peer.received)
        assert peer.backlog_bytes == sum(sizes) - len(peer.received)
    for _ in range(3):
        for peer in peers:
            peer.give_room(40)
    for peer in peers:
        peer.give_room(ENDLESS)
    rig.slices.run()
    assert [peer.received for peer in peers] == [b"".join(chunks)] * len(peers)
    assert feed.held_bytes == 0
    assert not list(rig.fanout.slow)
    rig.publish(feed, b"!")  # the end of a round tells what is left to tell
    rig.slices.run()
    assert rig.sent() == (len(peers) * (len(sizes) + 1), len(peers) * (sum(sizes) + 1))


def test_metrics_hear_at_the_end_and_every_so_often(rig: Rig) -> None:
    first, second = rig.feed("a"), rig.feed("b")
    rig.peers(first, ENDLESS)
    rig.peers(second, ENDLESS)
    rig.clock.now = 1.0  # wherever it began: the first news are told
    rig.publish(first, b"one")
    rig.publish(second, b"two")
    rig.slices.step()
    rig.slices.step()
    rig.slices.step()  # the end of the first round: the first news for a second
    assert rig.sent() == (1, 3)
    rig.publish(first, b"one")
    rig.clock.now += 0.03
    rig.slices.step()  # the end of the second round, soon after
    assert rig.sent() == (1, 3)
    rig.slices.run()
    assert rig.sent() == (3, 9)
    longest = counter(rig.metrics, "qgstream_publish_to_write_seconds_sum")
    assert longest == pytest.approx(0.03)
    assert TELL_SECONDS > 0.03


def test_the_lag_has_the_wait_for_the_round_and_the_round_has_not(rig: Rig) -> None:
    feed = rig.feed()
    rig.peers(feed, ENDLESS, ENDLESS)
    rig.publish(feed, b"one")
    rig.clock.now += 0.5  # the loop is busy with something else
    rig.slices.step()
    rig.clock.now += 0.25
    rig.slices.run()
    assert counter(rig.metrics, "qgstream_fanout_seconds_sum") == pytest.approx(0.25)
    assert counter(rig.metrics, "qgstream_publish_to_write_seconds_sum") == pytest.approx(0.75)
    rig.publish(feed, b"two")
    rig.slices.run()  # in no time: nothing is left of what was the longest before
    assert counter(rig.metrics, "qgstream_fanout_seconds_sum") == pytest.approx(0.25)
    assert counter(rig.metrics, "qgstream_publish_to_write_seconds_sum") == pytest.approx(0.75)


# Those who are slow.


def test_who_is_over_the_limit_is_ended_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, max_backlog_bytes=4 * KIB)
    feed = rig.feed()
    fast, slow, stalled = rig.peers(feed, ENDLESS, 4000, 0)
    rig.publish(feed, b"x" * 4096)
    rig.slices.run()
    assert rig.dropped == []  # exactly at the limit
    assert list(rig.fanout.slow) != []
    rig.publish(feed, b"y")
    rig.slices.run()
    assert rig.dropped == [stalled]
    assert len(fast.received) == 4097
    assert slow.backlog_bytes == 97
    assert feed.held_bytes == 1


def test_a_burst_is_no_slow_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, max_backlog_bytes=4 * KIB, backlog_grace_seconds=1)
    feed = rig.feed()
    quick, stalled = rig.peers(feed, 100, 100)
    rig.fanout.check_slow()
    rig.publish(feed, b"x" * 20_000)
    rig.slices.run()
    rig.clock.now += 0.9
    quick.give_room(ENDLESS)
    rig.fanout.check_slow()
    rig.slices.run()
    assert rig.dropped == []
    rig.clock.now += 0.1
    rig.fanout.check_slow()  # by a timer: who stalls makes no event
    rig.slices.run()
    assert rig.dropped == [stalled]
    assert len(quick.received) == 20_000
    rig.fanout.check_slow()
    assert rig.fanout._over == {}


def test_who_was_over_and_comes_back_has_its_grace_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, max_backlog_bytes=4 * KIB, backlog_grace_seconds=1)
    feed = rig.feed()
    (peer,) = rig.peers(feed, 0)
    rig.publish(feed, b"x" * 3000, b"y" * 3000)
    rig.slices.run()
    rig.clock.now += 0.9
    peer.give_room(3000)  # 3000 are left, and within the limit
    rig.slices.run()
    rig.publish(feed, b"z" * 3000)
    rig.slices.run()
    rig.clock.now += 0.9
    rig.fanout.check_slow()
    rig.slices.run()
    assert rig.dropped == []
    rig.clock.now += 0.1
    rig.fanout.check_slow()
    rig.slices.run()
    assert rig.dropped == [peer]


def test_over_the_total_the_furthest_behind_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, max_total_backlog_bytes=64 * KIB)
    large, small = rig.feed("large"), rig.feed("small")
    furthest, nearer = rig.peers(large, 0, 30_000)
    (other,) = rig.peers(small, 0)
    rig.publish(large, b"x" * 30_000, b"y" * 20_000)
    rig.slices.run()
    rig.publish(small, b"z" * 15_000)
    rig.slices.run()
    assert rig.dropped == []
    rig.publish(small, b"z" * 536)
    rig.slices.run()
    assert rig.dropped == []  # exactly at the limit
    rig.publish(small, b"z")
    rig.slices.run()
    assert rig.dropped == [furthest]
    assert (nearer.backlog_bytes, other.backlog_bytes) == (20_000, 15_537)


def test_what_sockets_have_in_part_counts_once_for_all_who_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, max_total_backlog_bytes=64 * KIB)
    feeds = [rig.feed(str(number)) for number in range(4)]
    for feed in feeds:
        rig.peers(feed, *[10] * 100)
        rig.publish(feed, b"x" * 20_000)
        rig.slices.run()
    assert sum(feed.held_bytes for feed in feeds) == 0  # it is all with the sockets
    assert len(rig.dropped) == 100
    assert len({id(subscriber.feed) for subscriber in rig.dropped}) == 1


def test_shedding_many_takes_no_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, max_total_backlog_bytes=64 * KIB)
    large, small = rig.feed("large"), rig.feed("small")
    stalled = rig.peers(large, *[0] * 3000)
    (other,) = rig.peers(small, 0)
    rig.publish(large, b"x" * 40_000)
    rig.slices.run()
    rig.publish(small, b"x" * 39_000)
    rig.slices.run()
    assert set(rig.dropped) == set(stalled)
    assert other.is_live


def dropped_at_once(rig: Rig) -> int:
    """Run until there is nothing to do. The most that were dropped without a look at the clock."""
    most = 0
    while rig.slices:
        before = len(rig.dropped)
        rig.slices.step()
        most = max(most, len(rig.dropped) - before)
    return most


def test_many_slow_readers_are_dropped_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, max_backlog_bytes=4 * KIB)
    feed = rig.feed()
    stalled = rig.peers(feed, *[0] * 100)
    rig.publish(feed, b"x", b"x" * 5000)
    assert dropped_at_once(rig) == 1
    assert len(rig.dropped) == len(set(rig.dropped)) == len(stalled)


def test_those_who_weigh_most_are_dropped_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, max_total_backlog_bytes=64 * KIB)
    feed = rig.feed()
    stalled = rig.peers(feed, *[0] * 100)
    rig.publish(feed, b"x", b"x" * 70_000)
    assert dropped_at_once(rig) == DROPS_PER_LOOK
    assert len(rig.dropped) == len(set(rig.dropped)) == len(stalled)


def test_slow_readers_are_ended_also_while_rounds_never_end(rig: Rig) -> None:
    """A feed that is published to all the time is in a round all the time."""
    rig.limits = LimitSettings(max_backlog_bytes=4 * KIB, backlog_grace_seconds=0)
    feed = rig.feed()
    slow, fast = rig.peers(feed, 0, ENDLESS)
    for _ in range(100):
        rig.publish(feed, b"x" * 1000)
        rig.slices.step()
        assert feed.behind_since is not None
        if rig.dropped:
            break
    assert rig.dropped == [slow]
    assert fast.is_live


@pytest.mark.parametrize("size", [20_000, 60_000])
def test_nobody_is_ended_for_what_was_caught_up_meanwhile(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    rig = Rig(monkeypatch, max_total_backlog_bytes=64 * KIB)
    large, small = rig.feed("large"), rig.feed("small")
    reading, behind = rig.peers(large, 0, 0)
    rig.peers(small, 0)
    rig.publish(large, b"x" * 30_000, b"y" * 20_000, b"z")
    rig.slices.run()
    reading.give_room(ENDLESS)
    behind.give_room(50_000)
    rig.publish(small, b"z" * size)  # settled before the feed of those who have read
    rig.slices._jobs.rotate(1)
    rig.slices.run()
    assert rig.dropped == []
    assert large.held_bytes == 0


def test_the_shedding_goes_on_with_what_has_become_heavier(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server itself says parks a subscriber between two settlings, when its socket takes only a part."""
    rig = Rig(monkeypatch, max_total_backlog_bytes=64 * KIB)
    large, small = rig.feed("large"), rig.feed("small")
    stalled, spoken_to = rig.peers(large, 0, ENDLESS)
    rig.peers(small, 0)
    rig.publish(large, b"x" * 40_000)
    rig.slices.run()
    spoken_to.park(large.end, b"y" * 40_001)
    rig.publish(small, b"z" * 30_000)
    rig.slices.run()
    assert set(rig.dropped) == {stalled, spoken_to}


def test_what_is_for_the_next_round_weighs_nothing_more(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has a part of it yet."""
    send_at_most(monkeypatch, 10_000)
    rig.limits = LimitSettings(max_total_backlog_bytes=64 * KIB)
    large, small = rig.feed("large"), rig.feed("small")
    waiting, reader = rig.peers(large, ENDLESS, ENDLESS)
    (other,) = rig.peers(small, 0)
    rig.publish(large, *[b"x" * 10_000] * 3)
    waiting.park(large.end, b"")
    rig.publish(small, b"z" * (64 * KIB - 20_000))
    rig.slices.run()
    assert (rig.dropped, len(reader.received)) == ([], 30_000)  # exactly at the limit, after the first round
    assert other.backlog_bytes == 64 * KIB - 20_000


def test_nobody_is_ended_for_what_others_have_in_part_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, max_total_backlog_bytes=64 * KIB)
    large, small = rig.feed("large"), rig.feed("small")
    (reading,) = rig.peers(large, 0)
    rig.peers(small, 0)
    rig.publish(large, b"x" * 30_000, b"y" * 20_000, b"z")
    rig.slices.run()
    reading.give_room(50_000)
    rig.publish(small, b"z" * 46_000)  # settled before the feed of the one who has read
    rig.slices._jobs.rotate(1)
    rig.slices.run()
    assert rig.dropped == []
    assert reading.backlog_bytes == 1


def test_a_round_under_way_frees_what_it_holds_itself(rig: Rig) -> None:
    rig.limits = LimitSettings(max_total_backlog_bytes=64 * KIB)
    large, small = rig.feed("large"), rig.feed("small")
    waiting, *_ = rig.peers(large, 0, ENDLESS, ENDLESS, ENDLESS, ENDLESS, ENDLESS)
    (other,) = rig.peers(small, 0)
    rig.publish(large, b"x")
    rig.slices.run()  # `waiting` is parked
    rig.publish(large, b"x" * 60_000)
    rig.slices.step()
    waiting.give_room(ENDLESS)
    waiting.park(large.end, b"more")  # waits again, for nothing of the feed's
    large.forget(large.first)
    rig.fanout._weigh(large)
    rig.publish(small, b"y" * 10_000)
    rig.slices.run()
    assert rig.dropped == []
    assert (large.held_bytes, small.held_bytes) == (0, 0 if not other.rest else small.held_bytes)


def burst(rig: Rig, monkeypatch: pytest.MonkeyPatch, events: int) -> tuple[Feed[Subscriber], Peer, Peer]:
    """So many events of 10 000 bytes, and two for whom they are; one send takes one of them."""
    send_at_most(monkeypatch, 10_000)
    rig.limits = LimitSettings(max_total_backlog_bytes=64 * KIB)
    feed = rig.feed()
    first, second = rig.peers(feed, ENDLESS, ENDLESS)
    rig.publish(feed, *[b"x" * 10_000] * events)
    return feed, first, second


def test_who_waits_for_nothing_is_not_ended_for_those_who_come_next(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst longer than one send keeps a feed full for some rounds: that is nobody's fault."""
    feed, waiting, reader = burst(rig, monkeypatch, 10)
    waiting.park(feed.end, b"rest")
    rig.slices.run()
    assert rig.dropped == []
    assert len(reader.received) == 100_000


def test_who_waits_at_the_place_that_all_have_reached_is_not_ended(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    feed, waiting, reader = burst(rig, monkeypatch, 20)
    waiting.park(5, b"")
    while feed.first < 5:
        rig.slices.step()
    assert rig.dropped == []
    waiting.unpark()
    rig.slices.run()
    assert (rig.dropped, len(reader.received)) == ([], 200_000)


def test_who_stays_when_another_feed_is_full_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, max_total_backlog_bytes=64 * KIB)
    large, small = rig.feed("large"), rig.feed("small")
    stalled, slow = rig.peers(large, 5, 39_006)
    rig.peers(small, 0)
    for chunk in (*[b"-"] * 5, b"a", b"b" * 40_000):
        rig.publish(large, chunk)
        rig.slices.run()
    rig.publish(small, b"z" * 30_000)
    rig.slices.run()
    assert rig.dropped == [stalled]
    slow.give_room(ENDLESS)
    rig.slices.run()
    assert slow.received == b"-----a" + b"b" * 40_000


# Faults.


def test_a_faulty_round_ends_its_streams_and_nobody_elses(rig: Rig, expect_log: Callable[[str], None]) -> None:
    expect_log(r"^fanout\.round_failed$")
    broken, sound = rig.feed("broken"), rig.feed("sound")
    served, faulty = rig.peers(broken, ENDLESS, ENDLESS)
    (other,) = rig.peers(sound, ENDLESS)
    faulty.error = ZeroDivisionError()
    rig.publish(broken, b"one")
    rig.publish(sound, b"one")
    rig.slices.run()
    assert rig.faulty == [served, faulty]
    assert other.received == b"one"
    (again,) = rig.peers(broken, ENDLESS)
    rig.publish(broken, b"two")
    rig.slices.run()
    assert again.received == b"two"
    assert rig.fanout._due == 0


def test_without_a_way_for_faults_they_are_slow_consumers(rig: Rig, expect_log: Callable[[str], None]) -> None:
    expect_log(r"^fanout\.round_failed$")
    rig.fanout = Fanout(rig.slices, rig.metrics, lambda: rig.limits, rig.gone(rig.dropped))
    feed = rig.feed()
    (peer,) = rig.peers(feed, ENDLESS)
    peer.error = ZeroDivisionError()
    rig.publish(feed, b"one")
    rig.slices.run()
    assert rig.dropped == [peer]


# Publishers wait for rounds, not for slow readers.


@pytest.mark.gen_test
async def test_publishers_wait_while_too_much_is_not_served() -> None:
    rig = Rig(max_total_backlog_bytes=64 * KIB, max_backlog_bytes=1024 * KIB)
    feed = rig.feed()
    fast, stalled = rig.peers(feed, ENDLESS, 0)
    await rig.fanout.room()
    rig.publish(feed, b"x" * 64 * KIB)
    await rig.fanout.room()  # at the bound
    rig.publish(feed, b"x")
    waiting = [asyncio.ensure_future(rig.fanout.room()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, False, False]
    rig.slices.run()
    await asyncio.wait_for(asyncio.gather(*waiting[1:]), 5)
    assert len(fast.received) == 64 * KIB + 1
    assert (stalled.received, rig.dropped) == (b"", [stalled])
    rig.publish(feed, b"x" * 64 * KIB)  # nothing is left of what was before
    await asyncio.wait_for(rig.fanout.room(), 5)
    rig.publish(feed, b"x")
    waiting = [asyncio.ensure_future(rig.fanout.room())]
    await asyncio.sleep(0)
    assert not waiting[0].done()
    rig.slices.run()
    await asyncio.wait_for(waiting[0], 5)


@pytest.mark.gen_test
async def test_publishers_wait_for_the_last_round_of_a_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    send_at_most(monkeypatch, 30_000)
    rig = Rig(max_total_backlog_bytes=64 * KIB)
    feed = rig.feed()
    (peer,) = rig.peers(feed, ENDLESS)
    rig.publish(feed, *[b"x" * 30_000] * 3)
    waiting = asyncio.ensure_future(rig.fanout.room())
    for sends in (1, 2):
        rig.slices.step()
        await turns()
        assert (len(peer.sends), waiting.done()) == (sends, False)
    rig.slices.run()
    await asyncio.wait_for(waiting, 5)
    assert len(peer.received) == 90_000


@pytest.mark.gen_test
async def test_a_round_starts_on_the_turn_after_the_publish() -> None:
    rig = Rig()
    slices = Slices()
    rig.fanout = Fanout(slices, rig.metrics, lambda: rig.limits, rig.gone(rig.dropped))
    feed = rig.feed()
    peers = rig.peers(feed, *[ENDLESS] * 100)
    rig.publish(feed, b"one")
    rig.publish(feed, b"two")
    assert peers[0].sends == []
    await turns(200)
    assert all(peer.sends == [b"onetwo"] for peer in peers)


def test_a_look_at_the_clock_comes_every_few_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qgstream.delivery.fanout, "SENDS_PER_LOOK", 10)
    rig = Rig(monkeypatch)
    feed = rig.feed()
    peers = rig.peers(feed, *[ENDLESS] * 25)
    rig.publish(feed, b"one")

    def served() -> Iterator[int]:
        while len(rig.slices):
            rig.slices.step()
            yield sum(bool(peer.received) for peer in peers)

    assert list(served()) == [10, 20, 25]
