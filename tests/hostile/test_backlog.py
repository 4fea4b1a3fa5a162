"""What many slow readers cost the loop, counted in work and not in sockets."""

from __future__ import annotations

import asyncio
import time

import pytest

from qgstream.delivery.fanout import Fanout
from qgstream.delivery.feed import Feed
from qgstream.delivery.slices import Slices
from qgstream.delivery.subscriber import Subscriber
from qgstream.events.subscription import Subscription
from qgstream.limits import LimitSettings
from qgstream.metrics import Metrics


class Reader(Subscriber):
    """Its socket takes `room` bytes and then no more, until it is given more."""

    __slots__ = ("room", "got")

    def __init__(self, feed: Feed[Subscriber], *, room: int) -> None:
        super().__init__(feed, self._take)
        self.room = room
        self.got = b""
        self.join()

    def _take(self, data: bytes) -> int:
        taken = min(self.room, len(data))
        self.room -= taken
        self.got += data[:taken]
        if not taken:
            raise BlockingIOError
        return taken

    def write_rest(self, rest: bytes | memoryview) -> None:
        """The rest goes out when the socket has room: `Crowd.make_room`."""

    def fail(self, error: OSError) -> None:
        raise AssertionError(error)


class Crowd:
    """A fan-out over feeds of readers. Whoever is dropped leaves."""

    def __init__(self, **limits: float) -> None:
        self.dropped: list[Subscriber] = []
        settings = LimitSettings.model_validate({"backlog_grace_seconds": 0} | limits)
        self.slices = Slices(slice_seconds=0, busy_slice_seconds=0)
        self.fanout = Fanout(self.slices, Metrics(), lambda: settings, self.drop)

    def drop(self, subscriber: Subscriber) -> None:
        self.dropped.append(subscriber)
        self.leave(subscriber)

    def leave(self, subscriber: Subscriber) -> None:
        subscriber.leave()
        self.fanout.settle(subscriber.feed)

    def feed(self, name: str) -> Feed[Subscriber]:
        return Feed(Subscription(patterns=frozenset({name})))

    def make_room(self, reader: Reader) -> None:
        reader.room = 1 << 60
        self.fanout.has_room(reader)

    async def rounds(self) -> None:
        """Until nothing is left to do."""
        while len(self.slices):  # noqa: ASYNC110  # turns of the loop are what it needs
            await asyncio.sleep(0)


@pytest.mark.gen_test
async def test_room_for_everybody_at_once() -> None:
    """When a stalled uplink clears, thousands have room in one turn: each may cost only its own part."""

    async def seconds(readers: int) -> float:
        crowd = Crowd()
        feed = crowd.feed("a")
        everybody = [Reader(feed, room=1) for _ in range(readers)]
        crowd.fanout.append(feed, b"x" * 100)
        crowd.fanout.append(feed, b"y" * 100)
        await crowd.rounds()
        assert len(feed.parked) == readers
        began = time.process_time()
        for reader in everybody:
            crowd.make_room(reader)
        await crowd.rounds()
        took = time.process_time() - began
        assert not feed.parked
        assert feed.held_bytes == 0
        return took

    assert await seconds(8000) < 0.5  # 0.016 where each looked at everybody took 8.1


@pytest.mark.gen_test
async def test_a_slow_reader_on_each_of_many_feeds() -> None:
    """A publish to all of them costs each feed once, and not each feed for each."""

    async def seconds(feeds: int) -> float:
        crowd = Crowd()
        everybody = [Reader(crowd.feed(f"t{number}"), room=1).feed for number in range(feeds)]
        for feed in everybody:
            crowd.fanout.append(feed, b"x" * 100)
        await crowd.rounds()
        began = time.process_time()
        for feed in everybody:
            crowd.fanout.append(feed, b"y" * 100)
        await crowd.rounds()
        return time.process_time() - began

    assert await seconds(4000) < 0.5  # 0.016 where each added up all took 1.5


@pytest.mark.gen_test
async def test_the_last_slow_reader_of_a_feed_leaves_during_its_round() -> None:
    """Nobody is left to shed on the feed that holds most: the others' rounds must go on all the same."""
    crowd = Crowd(max_total_backlog_bytes=64 * 1024)
    big, small = crowd.feed("big"), crowd.feed("small")
    slow = Reader(big, room=1)
    crowd.fanout.append(big, b"x" * 100)  # on its way to the slow one; what is behind it is held
    crowd.fanout.append(big, b"x" * 60_000)
    await crowd.rounds()
    assert big.held_bytes == 60_000
    # A round over many, which will be interrupted, begins on the feed of the slow one; and one on another feed.
    quick = [Reader(big, room=1 << 60) for _ in range(200)]
    stalled = Reader(small, room=1)
    crowd.fanout.append(big, b"y" * 1000)
    crowd.fanout.append(small, b"z" * 100)
    crowd.fanout.append(small, b"z" * 30_000)
    crowd.leave(slow)
    await crowd.rounds()
    assert all(reader.got == b"y" * 1000 for reader in quick)
    assert crowd.dropped in ([], [stalled])
    # Both feeds still work.
    other = Reader(small, room=1 << 60)
    crowd.fanout.append(small, b"w")
    crowd.fanout.append(big, b"w")
    await crowd.rounds()
    assert other.got == b"w"
    assert all(reader.got.endswith(b"w") for reader in quick)


@pytest.mark.gen_test
async def test_the_furthest_behind_go_until_the_rest_fits() -> None:
    crowd = Crowd(max_total_backlog_bytes=64 * 1024, max_backlog_bytes=1024 * 1024)
    readers = {size: Reader(crowd.feed(f"{size}"), room=1) for size in (10_000, 40_000, 20_000, 30_000)}
    for size, reader in readers.items():
        crowd.fanout.append(reader.feed, b"x" * size)
        crowd.fanout.append(reader.feed, b"x")  # the first chunk is on its way; what is behind it is held
        crowd.fanout.append(reader.feed, b"x" * size)
    await crowd.rounds()
    kept = sum(reader.feed.held_bytes for reader in readers.values() if reader.is_live)
    assert kept <= 64 * 1024
    assert crowd.dropped[0] is readers[40_000]
    assert readers[10_000] not in crowd.dropped


@pytest.mark.gen_test
async def test_on_one_feed_too() -> None:
    crowd = Crowd(max_total_backlog_bytes=64 * 1024, max_backlog_bytes=1024 * 1024)
    feed = crowd.feed("a")
    early = Reader(feed, room=1)
    for _ in range(2):
        crowd.fanout.append(feed, b"x" * 30_000)
    await crowd.rounds()
    late = Reader(feed, room=1)
    for _ in range(2):
        crowd.fanout.append(feed, b"x" * 30_000)
        await crowd.rounds()
    assert crowd.dropped == [early]
    assert late.is_live
    assert feed.held_bytes == 30_000
