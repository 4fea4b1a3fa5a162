"""What was read from before the window is shared, and bounded in pages, bytes and time, also in a storm."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import cast

import pytest
from tornado.iostream import IOStream

import qgstream.replay.log_reader
import qgstream.replay.runner
from qgstream.brokers.base import Opened, Selection, Sink
from qgstream.brokers.memory import MemoryBroker
from qgstream.delivery.connection import Connection
from qgstream.events.history import HistorySettings, Window
from qgstream.events.publication import Position, Publication
from qgstream.events.subscription import Subscription
from qgstream.events.topics import matches_any
from qgstream.hub import Hub
from qgstream.replay.log_reader import CACHED_BYTES, CACHED_PAGES, MAX_READS, SELECTED_BYTES, SELECTED_PAGES, LogReader
from qgstream.replay.pages import PAGE_PUBLICATIONS
from qgstream.wire.framing import Framing
from tests.fakes import ENDLESS, FakeStream, ManualSlices, turns

A = frozenset(["a"])
EVENTS = 200 * PAGE_PUBLICATIONS


class Log(MemoryBroker):
    """So many events from before this process, each of `size` bytes, and how it was asked."""

    def __init__(self, size: int = 10) -> None:
        super().__init__()
        self.size = size
        self.reads: list[int] = []
        self.at_once = self.most_at_once = 0

    async def open(self, sink: Sink, history: HistorySettings) -> Opened:
        await super().open(sink, history)
        self._newest = EVENTS
        return Opened(Position("log", EVENTS), (), EVENTS)

    async def read(self, after: int, limit: int, topics: Collection[str] = ()) -> Sequence[Publication]:
        self.reads.append(after)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        end = min(EVENTS, after + min(limit, max(1, 1024 * 1024 // self.size)))
        return [Publication(("a",), b"x" * self.size, is_json=False, offset=n) for n in range(after + 1, end + 1)]


def reader_of(log: Log) -> tuple[LogReader, Window]:
    return LogReader(log), Window(HistorySettings(), Position("log", EVENTS))


@pytest.mark.gen_test
async def test_those_who_ask_for_the_same_share_a_read() -> None:
    log = Log()
    reader, window = reader_of(log)
    pages = await asyncio.gather(*[reader.after(offset, A, window) for offset in range(PAGE_PUBLICATIONS)])
    assert [len(page.publications) for page in pages] == list(range(PAGE_PUBLICATIONS, 0, -1))
    await reader.after(5, A, window)
    assert log.reads == [0]
    await reader.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("size", [10, 3000])
async def test_a_storm_of_ids_leaves_no_more_than_the_cache_takes(size: int) -> None:
    log = Log(size)
    reader, window = reader_of(log)
    await asyncio.gather(*[reader.after(page * PAGE_PUBLICATIONS, A, window) for page in range(200)])
    assert len(set(log.reads)) == 200
    assert log.most_at_once == MAX_READS
    assert not reader._reads
    assert not reader._at_broker
    assert 0 < len(reader._pages) <= CACHED_PAGES
    assert sum(page.size_bytes for page in reader._pages.values()) <= CACHED_BYTES
    await reader.close()


@pytest.mark.gen_test
async def test_a_page_larger_than_the_cache_is_answered_and_not_kept() -> None:
    reader, window = reader_of(Log(CACHED_BYTES))
    assert len((await reader.after(0, A, window)).publications) == 1
    assert not reader._pages
    await reader.close()


@pytest.mark.gen_test
async def test_nothing_is_kept_for_long_also_when_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qgstream.replay.log_reader, "CACHE_SECONDS", 0.05)
    reader, window = reader_of(Log())
    await reader.after(0, A, window)
    assert reader._pages
    while reader._expiry is not None:  # noqa: ASYNC110  # the test's own time limit ends a wait in vain
        await asyncio.sleep(0.01)
    assert not reader._pages
    await reader.close()


@pytest.mark.gen_test
async def test_a_failed_read_is_for_those_who_waited() -> None:
    class Away(Log):
        async def read(self, after: int, limit: int, topics: Collection[str] = ()) -> Sequence[Publication]:
            await super().read(after, limit, topics)
            if len(self.reads) == 1:
                raise ConnectionError
            return await super().read(after, limit, topics)

    reader, window = reader_of(Away())
    answers = await asyncio.gather(*[reader.after(0, A, window)] * 2, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ConnectionError] * 2
    assert len((await reader.after(0, A, window)).publications) == PAGE_PUBLICATIONS
    await reader.close()


class Users(Log):
    """Each event is for a user, of 1000; number 7 has one event only, far behind."""

    async def read(self, after: int, limit: int, topics: Collection[str] = ()) -> Sequence[Publication]:
        found = await super().read(after, limit, topics)
        return [Publication((self.topic(p.offset),), p.data, is_json=False, offset=p.offset) for p in found]

    @staticmethod
    def topic(offset: int) -> str:
        number = offset % 1000
        return f"user/{number}" if number != 7 or offset == 20_007 else "user/8"


@pytest.mark.gen_test
@pytest.mark.parametrize("patterns", [["user/7"], ["user/7", "nobody*"], ["user/7*"]])
async def test_readers_of_different_topics_share_reads_and_look_at_their_own_events(patterns: list[str]) -> None:
    log = Users()
    reader, window = reader_of(log)
    asked, found = frozenset(patterns), list[int]()
    offset, calls = 0, 0
    while offset < 25_000:
        part = await reader.after(offset, asked, window)
        assert part.end is not None
        found += [publication.offset for publication in part.publications]
        offset, calls = part.end, calls + 1
    expected = [n for n in range(1, offset + 1) if matches_any(patterns, Users.topic(n))]
    assert found == expected
    assert calls < 10 or len(expected) > 10
    reads = len(log.reads)
    assert reads == offset // PAGE_PUBLICATIONS
    other = await reader.after(offset - 1000, frozenset(["user/500"]), window)
    assert [p.offset % 1000 for p in other.publications] == [500]
    assert len(log.reads) == reads
    await reader.close()


class Selecting(Users):
    """Has an index by topic."""

    def __init__(self) -> None:
        super().__init__()
        self.selects_asked: list[tuple[int, frozenset[str]]] = []

    @property
    def selects(self) -> bool:
        return True

    async def select(self, after: int, limit: int, topics: Collection[str]) -> Selection | None:
        self.selects_asked.append((after, frozenset(topics)))
        await asyncio.sleep(0)
        if "many*" in topics:
            return None
        users = [int(name.removeprefix("user/")) for name in topics if name != "other"]
        numbers = sorted(n for user in users for n in range(user or 1000, EVENTS + 1, 1000) if n > after)[:limit]
        end = numbers[-1] if len(numbers) == limit else EVENTS
        return Selection([Publication((self.topic(n),), b"x", offset=n) for n in numbers], end if end > after else None)


@pytest.mark.gen_test
async def test_an_engine_that_selects_is_asked_for_the_topics_alone() -> None:
    log = Selecting()
    reader, window = reader_of(log)
    parts = await asyncio.gather(*[reader.after(5 + n % 3, frozenset([f"user/{n % 50}"]), window) for n in range(150)])
    assert all(p.topics == (f"user/{n % 50}",) for n, part in enumerate(parts) for p in part.publications)
    assert [p.offset for p in parts[21].publications] == list(range(21, EVENTS, 1000))
    assert all(part.end == EVENTS for part in parts)
    assert log.reads == []
    assert len(log.selects_asked) == 50  # the same for all who ask for the same
    assert (await reader.after(EVENTS, frozenset(["user/1"]), window)).end is None
    assert len(reader._selected) == 50
    await reader.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("patterns", [[], ["*"], ["user/1", "many*"]])
async def test_the_log_is_read_where_nothing_can_be_selected(patterns: list[str]) -> None:
    log = Selecting()
    reader, window = reader_of(log)
    part = await reader.after(0, frozenset(patterns), window)
    assert log.reads == [0]
    assert part.publications
    await reader.close()


@pytest.mark.gen_test
async def test_a_storm_of_topics_leaves_no_more_than_the_cache_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Selecting()
    reader, window = reader_of(log)
    await asyncio.gather(*[reader.after(0, frozenset([f"user/{n}", "other"]), window) for n in range(300)])
    assert not reader._reads
    assert 0 < len(reader._selected) <= SELECTED_PAGES
    assert sum(page.size_bytes for page in reader._selected.values()) <= SELECTED_BYTES
    await reader.close()


# What replays hold of it.


def replaying(hub: Hub, offset: int, room: int) -> tuple[Connection, FakeStream]:
    subscription, stream = Subscription(frozenset(["a"]), framing=Framing.RAW), FakeStream(room)
    start = hub.open(subscription, f"log-{offset}", older=Position("log", offset))
    adopted = hub.adopt(
        cast(IOStream, stream), subscription, start, ip="192.0.2.1", client_key="192.0.2.1", user_agent="fake"
    )
    return adopted, stream


async def rest(hub: Hub) -> None:
    """Until nothing goes on by itself."""
    assert isinstance(hub.slices, ManualSlices)
    for _ in range(3000):
        hub.slices.run()
        await turns()
        if not hub.slices and not hub._replay_runner._fetching:
            return
    raise AssertionError("it does not come to rest")


@pytest.mark.gen_test
async def test_stalled_replays_hold_no_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = 4 * 1024 * 1024
    monkeypatch.setattr(qgstream.replay.runner, "MAX_HELD_BYTES", bound)
    hub = Hub(broker=Log(3000), slices=ManualSlices())
    await hub.start()
    streams = [replaying(hub, number * 3 * PAGE_PUBLICATIONS, room=100) for number in range(20)]
    await rest(hub)
    held = [sum(p.size_bytes for p in connection.replay._first) for connection, _ in streams]
    assert 0 < sum(held) <= bound
    assert held.count(0) > 10
    # They go on where they stopped, all the same.
    connection, stream = streams[0]
    assert held[0] == 0
    stream.give_room(ENDLESS)
    await rest(hub)
    assert connection.is_live
    ids = [line for line in stream.socket.received.decode().split("\n") if line.startswith("id: ")]
    assert ids == [f"id: log-{offset}" for offset in range(1, EVENTS + 1)]
    for connection, _ in streams:
        connection.close("client")
    assert (len(hub._replay_runner._holders), hub._replay_runner._held_bytes) == (0, 0)
    await hub.stop()
