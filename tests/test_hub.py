"""The hub in one process: what publishers are answered, what streams hear, and what operators read of both."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random
from typing import Any, NoReturn, cast

import pytest
from tornado.iostream import IOStream

import qgstream.brokers.memory
import qgstream.delivery.fanout
import qgstream.hub
from qgstream.brokers.base import Forgotten, Opened, Sink
from qgstream.brokers.memory import MemoryBroker
from qgstream.delivery.connection import Connection
from qgstream.delivery.ingest import LOOKS_AT_ONCE, TOPICS_PER_LOOK
from qgstream.delivery.slices import Slices
from qgstream.errors import TooLarge
from qgstream.events.draft import draft
from qgstream.events.history import HistorySettings, TopicHistory
from qgstream.events.namespaces import APPLICATION, scoped
from qgstream.events.publication import Position, Publication
from qgstream.events.subscription import Subscription
from qgstream.hub import CLOSING_SECONDS, Hub
from qgstream.limits import LimitSettings
from qgstream.logs import Formatter
from qgstream.metrics import Live, Metrics
from qgstream.reasons import CloseReason
from qgstream.replay.resume import StreamStart
from qgstream.wire.framing import Framing
from tests.conftest import ExpectLog
from tests.fakes import Clock, FakeStream, ManualSlices, connect, counter, turns

KIB = 1024
CHATTER = TopicHistory(pattern="chat*", max_age_seconds=60)


class Engine(MemoryBroker):
    """A memory broker whose log is older than this process, and which remembers what it was asked."""

    def __init__(
        self, newest: int = 0, *, older: Sequence[Publication] = (), recent: Sequence[Publication] = (),
        forgotten: int = 0, forgotten_of: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._newest = newest
        self.opened = Opened(Position("log", newest), recent, forgotten, forgotten_of or {})
        self.older = older
        self.trimmed: int | None = None  # what lies after it is still there; None is as memory has it
        self.histories: list[HistorySettings] = []
        self.asked: list[object] = []
        self.catches_up: Callable[[], bool] = bool

    async def open(self, sink: Sink, history: HistorySettings) -> Opened:
        await super().open(sink, history)
        self.histories.append(history)
        return self.opened

    def keep(self, history: HistorySettings) -> None:
        self.histories.append(history)

    async def read(self, after: int, limit: int, topics: Collection[str] = ()) -> Sequence[Publication]:
        if self.trimmed is None:
            return await super().read(after, limit, topics)
        self.asked.append((after, set(topics)))
        if after < self.trimmed:
            raise Forgotten(after, self.trimmed)
        return [publication for publication in self.older if publication.offset > after]

    async def reach(self, offset: int) -> bool:
        self.asked.append(offset)
        return self.catches_up()


class Half(Random):
    """Chance, in the middle."""

    def random(self) -> float:
        return 0.5


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (qgstream.hub, qgstream.brokers.memory):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(qgstream.delivery.fanout, "perf_counter", clock.monotonic)
    return clock


Lines = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """The log's lines about an event, as operators read them, without those fields that every line has."""
    caplog.set_level(logging.INFO, logger="qgstream")

    def about(event: str) -> list[dict[str, Any]]:
        found = [json.loads(Formatter("tests").format(record)) for record in caplog.records]
        return [{k: line[k] for k in line.keys() - {"timestamp", "env"}} for line in found if line["event"] == event]

    return about


async def started(broker: MemoryBroker | None = None, *, history: HistorySettings | None = None, **limits: Any) -> Hub:
    hub = Hub(
        broker=broker or Engine(), slices=ManualSlices(), history=history, limits=LimitSettings.model_validate(limits)
    )
    hub.random = Half()
    await hub.start()
    return hub


def run(hub: Hub) -> None:
    """Every round and every replay, as far as sockets let them."""
    assert isinstance(hub.slices, ManualSlices)
    hub.slices.run()


def raw(*patterns: str) -> Subscription:
    return Subscription(frozenset(patterns), framing=Framing.RAW)


def event(offset: int, data: str = "x", topic: str = "a", at: float = Clock().now) -> Publication:
    return Publication((topic,), data.encode(), offset=offset, published_at=at)


def adopt(hub: Hub, stream: FakeStream, subscription: Subscription, start: StreamStart) -> Connection:
    return hub.adopt(
        cast(IOStream, stream), subscription, start, ip="192.0.2.7", client_key="192.0.2.0/24", user_agent="Gecko"
    )


def heard(stream: FakeStream) -> list[str]:
    """What its client has got since it was asked last, event by event. The time is left out of the server's words."""
    text = stream.socket.received.decode()
    stream.socket.received.clear()
    return re.sub(r'"timestamp": "2027-01-15T08:0\d:\d\d\.\d{6}\+00:00", ', "", text).split("\n\n")[:-1]


def connected(id: str, replay: str = "none", topics: str = "*") -> str:
    return f'retry: 3300\nid: {id}\ndata: {{"event": "connected", "replay": "{replay}", "topics": ["{topics}"]}}'


def reset(id: str, reason: str) -> str:
    return f'id: {id}\ndata: {{"event": "reset", "reason": "{reason}"}}'


def closing(reason: str, retry_ms: int) -> str:
    return f'retry: {retry_ms}\ndata: {{"event": "closing", "reason": "{reason}"}}'


# Its parts, and its life.


@pytest.mark.gen_test
async def test_what_it_is_not_given_it_makes() -> None:
    hub = Hub()
    assert isinstance(hub.broker, MemoryBroker)
    assert isinstance(hub.metrics, Metrics)
    assert (type(hub.slices), hub.limits) == (Slices, LimitSettings())
    await hub.start()
    assert hub.window.settings == HistorySettings()


@pytest.mark.gen_test
async def test_what_it_is_given_it_takes() -> None:
    slices, metrics, broker = ManualSlices(), Metrics(), Engine()
    limits, history = LimitSettings(max_connections=7), HistorySettings(max_events=3)
    hub = Hub(broker=broker, limits=limits, history=history, metrics=metrics, slices=slices)
    assert (hub.broker, hub.limits, hub.metrics, hub.slices) == (broker, limits, metrics, slices)
    await hub.start()
    assert (hub.window.settings, broker.histories) == (history, [history])


@pytest.mark.gen_test
async def test_before_its_start_it_says_so() -> None:
    hub = Hub()
    for early in (hub.publish("a", 1), hub.publish_all([])):
        with pytest.raises(RuntimeError, match=r"^the hub is not started: await hub\.start\(\) first$"):
            await early
    with pytest.raises(RuntimeError, match=r"^the hub is not started: await hub\.start\(\) first$"):
        hub.window  # noqa: B018


@pytest.mark.gen_test
async def test_it_starts_once() -> None:
    broker = Engine()
    hub = await started(broker)
    receipt = await hub.publish("a", 1)
    await hub.start()
    assert len(broker.histories) == 1
    assert str(hub.window.position) == receipt.id == "log-1"


@pytest.mark.gen_test
async def test_it_begins_with_what_the_log_holds(clock: Clock) -> None:
    old = event(5, topic="chat", at=clock.now - 61)  # which this topic's history does not reach back to
    recent = [old, event(6, "six"), event(7, "hello", "chat"), event(8, "eight")]
    hub = await started(
        Engine(9, recent=recent, forgotten=4, forgotten_of={"chat*": 6}), history=HistorySettings(topics=(CHATTER,))
    )
    assert [p.offset for p in hub.window.newest_first()] == [8, 7, 6]
    assert str(hub.window.position) == "log-9"
    answers = [hub.open(raw(topic), id).result for topic in ("a", "chat") for id in ("log-3", "log-4")]
    assert answers == ["too_old", "complete", "too_old", "too_old"]
    assert [hub.open(raw("chat"), id).result for id in ("log-5", "log-6")] == ["too_old", "complete"]
    _, stream = connect(hub, raw("a"), "log-6")
    run(hub)
    assert heard(stream) == [connected("log-6", "complete", "a"), "id: log-8\ndata: eight"]


@pytest.mark.gen_test
async def test_it_stops_with_all_its_streams(lines: Lines) -> None:
    hub = await started()
    streams = [connect(hub)[1] for _ in range(2)]
    await hub.stop()
    assert [line["reason"] for line in lines("events.disconnected")] == ["drain", "drain"]
    assert all(stream.closed() for stream in streams)
    assert not hub.broker.is_up


@pytest.mark.gen_test
async def test_it_stops_with_what_it_waits_for() -> None:
    class Silent(Engine):
        async def read(self, after: int, limit: int, topics: Collection[str] = ()) -> Sequence[Publication]:
            await asyncio.Event().wait()
            return ()

    hub = await started(Silent(5, forgotten=5))
    before = asyncio.all_tasks()
    adopt(hub, FakeStream(), raw("a"), hub.open(raw("a"), "log-2", older=Position("log", 2)))
    run(hub)
    await turns()
    assert asyncio.all_tasks() > before
    await hub.stop()
    assert asyncio.all_tasks() == before


@pytest.mark.gen_test
async def test_a_reload_holds_from_now_on() -> None:
    broker = Engine()
    hub = await started(broker)
    _, stream = connect(hub)
    await hub.publish("a", "x")
    await hub.publish("a", "y")
    limits, history = LimitSettings(max_event_bytes=10, retry_seconds=2.5), HistorySettings(max_events=1)
    hub.reload(limits=limits, history=history)
    assert (hub.limits, hub.window.settings, broker.histories[1:]) == (limits, history, [history])
    assert [p.data for p in hub.window.newest_first()] == [b"y"]
    assert hub.open(raw(), None).first[0].retry_ms == 2750
    with pytest.raises(TooLarge):
        await hub.publish("a", "12345678901")
    await hub.publish("a", "1234567890")
    run(hub)
    assert heard(stream)[1:] == ["id: log-1\ndata: x", "id: log-2\ndata: y", "id: log-3\ndata: 1234567890"]


@pytest.mark.gen_test
async def test_a_reload_forgets_what_is_too_old_by_now(clock: Clock) -> None:
    hub = await started()
    await hub.publish("a", "x")
    clock.now += 3601
    hub.reload(limits=hub.limits, history=hub.window.settings)
    assert len(hub.window) == 0


@pytest.mark.gen_test
async def test_a_reload_before_the_start_is_for_the_start() -> None:
    broker = Engine()
    hub = Hub(broker=broker)
    history = HistorySettings(max_events=1)
    hub.reload(limits=LimitSettings(max_connections=3), history=history)
    await hub.start()
    assert (hub.window.settings, broker.histories) == (history, [history, history])


# Publishing.


@pytest.mark.gen_test
async def test_what_is_published_is_in_the_log_as_it_was_said(clock: Clock) -> None:
    hub = await started()
    receipt = await hub.publish(["a", "b"], "text", event="note", retry_ms=70, private=True, idempotency_key="k")
    (one,) = hub.window.newest_first()
    assert (one.topics, one.data, one.is_json, one.event) == (("a", "b"), b"text", False, "note")
    assert (one.retry_ms, one.private, one.idempotency_key) == (70, True, scoped(APPLICATION, "k"))
    assert (receipt.id, receipt.ids, receipt.subscribers) == ("log-1", ("log-1",), 0)
    await hub.publish("a", {"n": 1})
    two = next(hub.window.newest_first())
    assert (two.topics, two.data, two.is_json, two.event) == (("a",), b'{"n":1}', True, None)
    assert (two.retry_ms, two.private, two.idempotency_key) == (None, False, None)
    assert two.published_at == clock.now


@pytest.mark.gen_test
async def test_a_receipt_counts_each_stream_once() -> None:
    hub = await started()
    for patterns in (("a",), ("a",), ("a", "b"), ("c*",), ("d",)):
        connect(hub, raw(*patterns))
    await hub.publish("c/1", "x")
    connect(hub, raw("b"), "log-0", room=0)  # still replaying, and one of them all the same
    drafts = [draft(topic, "x", max_event_bytes=10) for topic in ("a", "b", "c/1", "nobody")]
    receipt = await hub.publish_all(drafts)
    assert receipt.ids == ("log-2", "log-3", "log-4", "log-5")
    assert (receipt.id, receipt.subscribers) == ("log-5", 5)
    assert counter(hub.metrics, "qgstream_events_published_total") == 5
    audience = hub._dispatch.audience
    assert [await audience(drafts[:1]), await audience(drafts[3:]), await audience(drafts[:2])] == [3, 0, 4]


@pytest.mark.gen_test
async def test_a_repeated_key_is_answered_and_goes_to_nobody_again() -> None:
    hub = await started()
    _, stream = connect(hub)
    first = await hub.publish("a", "once", idempotency_key="k")
    again = await hub.publish("a", "once", idempotency_key="k")
    assert (first.id, first.subscribers) == ("log-1", 1)
    assert (again.id, again.subscribers) == ("log-1", 0)
    assert counter(hub.metrics, "qgstream_events_published_total") == 1
    run(hub)
    assert heard(stream) == [connected("log-0"), "id: log-1\ndata: once"]


@pytest.mark.gen_test
async def test_a_broker_that_answers_for_fewer_than_it_was_given_is_not_believed() -> None:
    class Forgetful(Engine):
        async def append(self, publications: Sequence[Publication]) -> Sequence[int]:
            return (await super().append(publications))[1:]

    hub = await started(Forgetful())
    with pytest.raises(ValueError, match="shorter"):
        await hub.publish("a", 1)


@pytest.mark.gen_test
async def test_publishers_wait_for_the_rounds() -> None:
    hub = await started(max_total_backlog_bytes=64 * KIB)
    _, stream = connect(hub)
    await hub.publish("a", "x" * 70_000)
    next_one = asyncio.ensure_future(hub.publish("a", "y"))
    await turns()
    assert not next_one.done()
    run(hub)
    assert (await asyncio.wait_for(next_one, 5)).id == "log-2"
    run(hub)
    assert [len(said) for said in heard(stream)][1:] == [len("id: log-1\ndata: ") + 70_000, len("id: log-2\ndata: y")]


@pytest.mark.gen_test
async def test_each_stream_gets_what_it_asked_for_in_its_own_framing() -> None:
    hub = await started()
    _, plain = connect(hub, raw("a"))
    _, chunked = connect(hub, Subscription(frozenset({"a", "b"})))
    _, socket = connect(hub, Subscription(framing=Framing.WEBSOCKET))
    _, other = connect(hub, raw("other"))
    for stream in (plain, chunked, socket, other):
        stream.socket.received.clear()
    await hub.publish(["a", "b"], "x")
    await hub.publish("b", "y")
    run(hub)
    assert bytes(plain.socket.received) == b"id: log-1\ndata: x\n\n"
    assert bytes(chunked.socket.received) == b"13\r\nid: log-1\ndata: x\n\n\r\n13\r\nid: log-2\ndata: y\n\n\r\n"
    assert socket.socket.received.count(b'"data": "') == 2
    assert b'{"id": "log-2", "topic": "b", "event": null, "data": "y"}' in socket.socket.received
    assert not other.socket.received


@pytest.mark.gen_test
async def test_it_knows_the_rate_of_each_topic(clock: Clock) -> None:
    hub = await started()
    clock.now += 10
    for _ in range(20):
        await hub.publish(["a", "b"], "x")
    await hub.publish("b", "x")
    assert hub.rates.per_second(clock.now) == {"a": 2.0, "b": 2.1}


# A part of the log that is gone.


@pytest.mark.gen_test
async def test_every_stream_is_told_what_was_lost(lines: Lines, expect_log: ExpectLog) -> None:
    expect_log(r"^broker\.lost$")
    hub = await started()
    for n in range(3):
        await hub.publish("a", str(n))
    _, live = connect(hub)
    _, elsewhere = connect(hub, raw("b"))
    replaying, behind = connect(hub, raw("a"), "log-0")
    behind.socket.room = 5
    run(hub)
    hub.lost(Position("next", 3), "epoch_changed")
    assert lines("broker.lost") == [
        {"event": "broker.lost", "level": "warning", "reason": "epoch_changed", "id": "next-3"}
    ]
    assert (str(hub.window.position), len(hub.window)) == ("next-3", 0)
    run(hub)
    assert heard(live) == [connected("log-3"), reset("next-3", "epoch_changed")]
    assert heard(elsewhere)[1:] == [reset("next-3", "epoch_changed")]
    behind.give_room(10_000)
    await turns()
    run(hub)
    told = heard(behind)
    assert told[:2] == [connected("log-0", "complete", "a"), "id: log-1\ndata: 0"]
    assert told[-1] == reset("next-3", "epoch_changed")
    assert replaying.is_live
    await hub.publish("a", "new")
    run(hub)
    assert heard(live) == heard(behind) == ["id: next-4\ndata: new"]


# Where a stream begins.


@pytest.mark.gen_test
async def test_only_what_the_window_cannot_tell_is_outside_it() -> None:
    hub = await started(Engine(9, recent=[event(8), event(9)], forgotten=7))
    answers = {
        None: False, "": False,
        "earliest": True, "log-6": True,  # too old
        "log-7": False, "log-9": False,
        "log-10": True,  # another process may be ahead of this one
        "another-10": False, "junk": False,
    }  # fmt: skip
    assert {id: hub.is_outside_window(raw("a"), id) for id in answers} == answers


@pytest.mark.gen_test
async def test_before_its_start_only_a_new_stream_is_inside() -> None:
    assert not Hub().is_outside_window(raw("a"), None)


@pytest.mark.gen_test
async def test_the_window_ends_for_each_topic_at_its_own_time(clock: Clock) -> None:
    hub = await started(history=HistorySettings(topics=(CHATTER,)))
    await hub.publish("chat", "x")
    await hub.publish("a", "x")
    clock.now += 61
    outside = {topic: hub.is_outside_window(raw(topic), "log-0") for topic in ("chat", "a")}
    assert outside == {"chat": True, "a": False}
    clock.now += 3600
    assert hub.is_outside_window(raw("a"), "log-0")


@pytest.mark.gen_test
async def test_what_lies_before_the_window_comes_from_the_broker() -> None:
    broker = Engine(5, older=[event(n, str(n)) for n in range(1, 6)], recent=[event(5, "5")], forgotten=4)
    broker.trimmed = 1
    hub = await started(broker)
    assert await hub.look_up(raw("a"), "log-0") is None
    assert broker.asked == [(0, {"a"})]
    assert await hub.look_up(raw("a"), "earliest") == Position("log", 1)
    older = await hub.look_up(raw("a"), "log-2")
    assert older == Position("log", 2)
    assert hub.open(raw("a"), "log-2").result == "too_old"
    start = hub.open(raw("a"), "log-2", older=older)
    assert (start.result, start.replay_from) == ("complete", 2)
    stream = FakeStream()
    connection = adopt(hub, stream, raw("a"), start)
    while not connection.is_live:
        run(hub)
        await turns()
    assert heard(stream) == [f"id: log-{n}\ndata: {n}" for n in (3, 4, 5)]


@pytest.mark.gen_test
@pytest.mark.parametrize(("reached", "newest", "result"), [(True, 7, "complete"), (False, 5, "unknown_id")])
async def test_an_id_from_a_process_that_is_ahead(reached: bool, newest: int, result: str) -> None:
    broker = Engine(5, forgotten=5)
    broker.catches_up = lambda: reached
    hub = await started(broker)
    older = await hub.look_up(raw("a"), "log-7")
    assert broker.asked == [7]
    assert (hub.window.newest, hub.open(raw("a"), "log-7", older=older).result) == (newest, result)


@pytest.mark.gen_test
async def test_an_id_that_the_log_did_not_have_is_not_resumed_when_the_log_has_grown_past_it() -> None:
    broker = Engine(5, forgotten=5)
    broker.catches_up = lambda: False
    hub = await started(broker)
    older = await hub.look_up(raw("a"), "log-7")
    hub.deliver([event(n) for n in range(6, 10)])
    start = hub.open(raw("a"), "log-7", older=older)
    assert (start.result, start.replay_from) == ("unknown_id", None)


@pytest.mark.gen_test
async def test_the_log_does_not_go_back_to_an_id_that_it_has_passed_meanwhile() -> None:
    broker = Engine(5, forgotten=5)
    hub = await started(broker)

    def catches_up() -> bool:
        hub.deliver([event(n) for n in range(6, 10)])
        return True

    broker.catches_up = catches_up
    await hub.look_up(raw("a"), "log-7")
    assert hub.window.newest == 9


@pytest.mark.gen_test
async def test_an_id_that_has_come_and_is_not_in_the_window_yet_waits_for_that() -> None:
    broker = Engine(5, forgotten=5)
    hub = await started(broker)
    batch = [event(n) for n in range(6, 6 + 3 * LOOKS_AT_ONCE * TOPICS_PER_LOOK)]

    def catches_up() -> bool:
        hub.deliver(batch)
        return True

    broker.catches_up = catches_up
    looking = asyncio.ensure_future(hub.look_up(raw("a"), f"log-{batch[-2].offset}"))
    await turns()
    assert hub.window.newest < batch[-2].offset
    assert not looking.done()
    run(hub)
    assert await looking is None
    assert hub.window.newest == batch[-1].offset
    assert [one.offset for one in hub.window.newest_first()] == [one.offset for one in reversed(batch)]


@pytest.mark.gen_test
async def test_what_the_broker_has_and_the_window_has_not_comes_once() -> None:
    broker = Engine(5, older=[event(n, str(n)) for n in range(1, 9)], forgotten=5)
    broker.trimmed = 0
    hub = await started(broker)
    stream = FakeStream()
    connection = adopt(hub, stream, raw("a"), hub.open(raw("a"), "log-2", older=await hub.look_up(raw("a"), "log-2")))
    while not connection.is_live:
        run(hub)
        await turns()
    assert heard(stream) == [f"id: log-{n}\ndata: {n}" for n in (3, 4, 5)]
    hub.deliver([event(n, str(n)) for n in (6, 7, 8)])
    run(hub)
    assert heard(stream) == [f"id: log-{n}\ndata: {n}" for n in (6, 7, 8)]


@pytest.mark.gen_test
async def test_what_comes_while_the_broker_says_that_there_is_no_more_is_replayed() -> None:
    broker = Engine(5, older=[event(5, "5")], forgotten=5)
    broker.trimmed = 0
    hub = await started(broker)
    stream = FakeStream()
    older = await hub.look_up(raw("a"), "log-4")
    hub._replay_runner._log_reader._pages.clear()
    broker.older = []  # what lies between is no event of the log

    async def read(after: int, limit: int, topics: Collection[str] = ()) -> Sequence[Publication]:
        hub.deliver([event(6, "6")])
        return []

    broker.read = read  # type: ignore[method-assign]
    connection = adopt(hub, stream, raw("a"), hub.open(raw("a"), "log-4", older=older))
    while not connection.is_live:
        run(hub)
        await turns()
    assert heard(stream) == ["id: log-6\ndata: 6"]


@pytest.mark.gen_test
async def test_an_id_that_is_not_ahead_waits_for_nobody() -> None:
    broker = Engine(5, forgotten=5)
    hub = await started(broker)
    for id in ("log-5", "another-9", "junk"):
        older = await hub.look_up(raw("a"), id)
        assert hub.open(raw("a"), id, older=older).replay_from == (5 if id == "log-5" else None)
    assert broker.asked == []


@pytest.mark.gen_test
async def test_a_stream_begins_with_the_state_only_if_it_asks_for_it() -> None:
    hub = await started()
    await hub.publish("a", "old")
    await hub.publish("a", "new")
    assert hub.open(raw(), None).replay_from is None
    _, plain = connect(hub)
    _, stateful = connect(hub, latest=True)
    run(hub)
    assert heard(plain) == [connected("log-2")]
    assert heard(stateful) == [connected("log-2").replace("id: log-2\n", ""), "id: log-2\ndata: new"]


@pytest.mark.gen_test
@pytest.mark.parametrize("step", [7200.0, -7200.0, 1e9])
async def test_a_clock_that_is_set_makes_nothing_older(clock: Clock, step: float) -> None:
    hub = await started()
    await hub.publish("a", "before")
    clock.step = step
    await hub.publish("a", "after")
    hub.reload(limits=hub.limits, history=hub.window.settings)
    assert not hub.is_outside_window(raw("a"), "log-0")
    assert hub.open(raw("a"), "log-0").result == "complete"
    assert [p.data for p in hub.window.newest_first()] == [b"after", b"before"]
    # A key is the same key.
    first = await hub.publish("a", "x", idempotency_key="k")
    clock.step = 0
    assert (await hub.publish("a", "x", idempotency_key="k")).id == first.id
    clock.now += 301
    assert (await hub.publish("a", "x", idempotency_key="k")).id != first.id
    clock.now += 3601
    assert hub.is_outside_window(raw("a"), "log-0")


@pytest.mark.gen_test
async def test_a_stream_cannot_begin_behind_what_has_become_too_old(clock: Clock) -> None:
    hub = await started()
    await hub.publish("a", "x")
    clock.now += 3601
    start = hub.open(raw(), "log-0")
    assert (start.result, [m.id for m in start.first]) == ("too_old", [None, "log-1"])
    assert b"2027-01-15T09:00:01.000000+00:00" in start.first[0].data


# Taking a stream over.


@pytest.mark.gen_test
async def test_a_stream_is_counted_named_and_told_to_those_who_asked(lines: Lines, clock: Clock) -> None:
    hub = await started()
    told: list[Connection] = []
    hub.on_open += [told.append, told.append]
    clock.now += 3
    connection = adopt(hub, FakeStream(), raw("b", "a"), hub.open(raw("b", "a"), "junk"))
    assert told == [connection, connection]
    assert list(hub.registry) == [connection]
    assert (connection.id, connection.ip, connection.client_key) == (1, "192.0.2.7", "192.0.2.0/24")
    assert (connection.user_agent, connection.opened_at) == ("Gecko", clock.now)
    assert connection.is_live
    assert hub.registry.of_client("192.0.2.0/24") == 1
    assert [feed.subscription for feed in hub.router] == [raw("a", "b")]
    assert lines("events.connected") == [
        {
            "event": "events.connected", "level": "info", "connection": 1, "remote_ip": "192.0.2.7",
            "topics": ["a", "b"], "replay": "reset", "reason": "unknown_id", "user_agent": "Gecko", "transport": "sse",
        }
    ]  # fmt: skip
    connect(hub, Subscription(framing=Framing.WEBSOCKET))
    assert (lines("events.connected")[1]["connection"], lines("events.connected")[1]["transport"]) == (2, "websocket")
    for transport in ("sse", "websocket"):
        assert counter(hub.metrics, "qgstream_connections_opened_by_transport_total", transport=transport) == 1
    for result in ("unknown_id", "none"):
        assert counter(hub.metrics, "qgstream_replay_total", result=result) == 1


@pytest.mark.gen_test
async def test_a_line_names_the_first_of_many_topics(lines: Lines) -> None:
    hub = await started()
    connect(hub, raw(*[f"topic/{number:02}" for number in range(64)]))
    connect(hub, raw(*[letter * 255 for letter in "abc"]))
    many, long = lines("events.connected")
    assert (many["topics"], many["more_topics"]) == ([f"topic/{number:02}" for number in range(10)], 54)
    assert (long["topics"], long["more_topics"]) == (["a" * 255, "b" * 255], 1)


@pytest.mark.gen_test
async def test_its_socket_is_tuned_as_the_limits_say(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await started(send_buffer_bytes=4321, tcp_user_timeout_seconds=0)
    asked: list[object] = []
    stream = FakeStream()
    monkeypatch.setattr(stream.socket, "setsockopt", lambda *option: asked.append(option[-1]))
    adopt(hub, stream, raw(), hub.open(raw(), None))
    assert asked == [4321]


@pytest.mark.gen_test
async def test_events_wait_until_the_first_bytes_are_out() -> None:
    hub = await started()
    connection, stream = connect(hub, room=10)
    await hub.publish("a", "x")
    run(hub)
    assert connection.is_live
    assert connection.backlog_bytes == len("id: log-1\ndata: x\n\n")
    stream.give_room(10_000)
    await turns()
    run(hub)
    assert heard(stream) == [connected("log-0"), "id: log-1\ndata: x"]
    assert connection.backlog_bytes == 0


@pytest.mark.gen_test
async def test_a_replay_goes_on_when_there_is_room() -> None:
    hub = await started()
    for n in range(1, 4):
        await hub.publish("a", str(n))
    connection, stream = connect(hub, None, "log-1")
    stream.socket.room = 8
    run(hub)
    assert not connection.is_live
    assert connection.backlog_bytes == 2 * len("id: log-1\ndata: 1\n\n") - 8
    assert counter(hub.metrics, "qgstream_events_delivered_total") == 0
    stream.give_room(10_000)
    await turns()
    assert connection.backlog_bytes == 0  # all of the page is with the kernel, and there is another
    run(hub)
    await hub.publish("a", "4")
    run(hub)
    assert heard(stream) == [connected("log-1", "complete"), *[f"id: log-{n}\ndata: {n}" for n in (2, 3, 4)]]
    sizes = 3 * len("id: log-1\ndata: 1\n\n")
    assert (connection.events_sent, connection.bytes_sent) == (3, sizes)
    assert counter(hub.metrics, "qgstream_events_delivered_total") == 3
    assert counter(hub.metrics, "qgstream_bytes_sent_total") == sizes
    assert counter(hub.metrics, "qgstream_replay_events_sum") == 2
    assert counter(hub.metrics, "qgstream_replay_total", result="complete") == 1


@pytest.mark.gen_test
async def test_a_parked_stream_goes_on_when_there_is_room() -> None:
    hub = await started()
    connection, stream = connect(hub)
    stream.socket.room = 5
    await hub.publish("a", "1")
    await hub.publish("a", "2")
    run(hub)
    assert connection.backlog_bytes == 2 * len("id: log-1\ndata: 1\n\n") - 5
    stream.give_room(10_000)
    await turns()
    assert heard(stream)[1:] == ["id: log-1\ndata: 1", "id: log-2\ndata: 2"]


# How a stream ends.


@pytest.mark.gen_test
async def test_one_line_says_why_a_stream_has_ended(lines: Lines, clock: Clock) -> None:
    hub = await started()
    told: list[Connection] = []
    hub.on_close += [told.append, told.append]
    connection, stream = connect(hub, raw("a"))
    await hub.publish("a", "x")
    run(hub)
    clock.now += 0.12345
    stream.peer_closes()
    await turns()
    size = len("id: log-1\ndata: x\n\n")
    assert lines("events.disconnected") == [
        {
            "event": "events.disconnected", "level": "info", "connection": 1, "remote_ip": "192.0.2.1",
            "reason": "client", "seconds": 0.123, "events": 1, "bytes": size,
        }
    ]  # fmt: skip
    assert told == [connection, connection]
    assert counter(hub.metrics, "qgstream_connections_closed_total", reason="client") == 1
    assert counter(hub.metrics, "qgstream_connection_age_seconds_sum") == pytest.approx(0.12345)
    assert (len(hub.registry), len(hub.router), hub.registry.of_client("192.0.2.1")) == (0, 0, 0)
    assert counter(hub.metrics, "qgstream_events_delivered_total") == 1  # by its round, and not once more


@pytest.mark.gen_test
async def test_no_stream_is_younger_than_nothing(lines: Lines, clock: Clock) -> None:
    hub = await started()
    connection, _ = connect(hub)
    clock.now -= 100
    connection.close("kicked")
    assert lines("events.disconnected")[0]["seconds"] == 0
    assert counter(hub.metrics, "qgstream_connection_age_seconds_sum") == 0


@pytest.mark.gen_test
async def test_what_a_replay_had_sent_is_counted_when_its_client_leaves(lines: Lines) -> None:
    hub = await started()
    await hub.publish("a", "1")
    connection, stream = connect(hub, None, "log-0")
    stream.socket.room = 8
    run(hub)
    stream.peer_closes()
    await turns()
    run(hub)
    size = len("id: log-1\ndata: 1\n\n")
    assert (lines("events.disconnected")[0]["events"], lines("events.disconnected")[0]["bytes"]) == (1, size)
    assert counter(hub.metrics, "qgstream_events_delivered_total") == 1
    assert counter(hub.metrics, "qgstream_bytes_sent_total") == size
    assert connection.replay is None


@pytest.mark.gen_test
@pytest.mark.parametrize("is_told", [True, False])
async def test_what_only_the_leaving_waited_for_is_free_at_once(is_told: bool) -> None:
    """Not when its goodbye is out: that may take all of its time."""
    hub = await started()
    connection, stream = connect(hub)
    connect(hub)
    stream.socket.room = 0
    for _ in range(2):
        await hub.publish("a", "x" * 1000)
    run(hub)
    (feed,) = hub.router
    assert feed.held_bytes == len("id: log-2\ndata: \n\n") + 1000  # what is before that waits in its stream
    if is_told:
        hub.end(connection, "kicked")
    else:
        stream.peer_closes()
        await turns()
    run(hub)
    assert feed.held_bytes == hub.live().backlog_bytes_total == 0
    assert connection.is_open == is_told
    assert list(hub.router) == [feed]


# Goodbyes.


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("reason", "retry_ms"),
    [
        ("max_age", 4500),
        ("drain", 4500),
        ("token_expired", 4500),
        ("kicked", 15_000),
        ("slow_consumer", 15_000),
        ("access_changed", 15_000),
    ],
)
async def test_a_goodbye_says_why_and_when_to_come_back(reason: CloseReason, retry_ms: int, lines: Lines) -> None:
    hub = await started()
    connection, stream = connect(hub)
    await hub.publish("a", "the last")  # whose round has not come yet
    hub.end(connection, reason)
    hub.end(connection, "kicked")  # twice is once
    await turns()
    assert heard(stream) == [connected("log-0"), "id: log-1\ndata: the last", closing(reason, retry_ms)]
    (line,) = lines("events.disconnected")
    assert (line["reason"], line["events"]) == (reason, 1)
    assert stream.closed()
    hub.end(connection, "kicked")
    await turns()
    run(hub)
    assert len(lines("events.disconnected")) == 1
    assert counter(hub.metrics, "qgstream_events_delivered_total") == 1


@pytest.mark.gen_test
async def test_a_goodbye_may_be_told_when_to_come_back() -> None:
    hub = await started()
    connection, stream = connect(hub)
    hub.end(connection, "kicked", retry_ms=0)
    await turns()
    assert heard(stream)[1:] == [closing("kicked", 0)]


@pytest.mark.gen_test
async def test_a_goodbye_ends_the_body_that_it_is_in() -> None:
    hub = await started()
    connection, stream = connect(hub, Subscription())
    stream.socket.received.clear()
    hub.end(connection, "drain")
    await turns()
    goodbye = b'retry: 4500\ndata: {"event": "closing", "timestamp": "2027-01-15T08:00:00.000000+00:00", "reason": '
    goodbye += b'"drain"}\n\n'
    assert bytes(stream.socket.received) == b"%x\r\n%b\r\n0\r\n\r\n" % (len(goodbye), goodbye)


@pytest.mark.gen_test
async def test_a_websocket_ends_with_the_code_of_its_reason(lines: Lines, clock: Clock) -> None:
    hub = await started()
    connection, stream = connect(hub, Subscription(framing=Framing.WEBSOCKET))
    hub.end(connection, "kicked")
    await turns()
    assert b'"reason": "kicked"' in stream.socket.received
    assert stream.socket.received.endswith(b"\x88\x08\x03\xf0kicked")  # 1008
    clock.now += CLOSING_SECONDS
    hub.sweep()  # its client does not answer
    run(hub)
    (line,) = lines("events.disconnected")
    assert (line["reason"], line["close_code"]) == ("kicked", 1008)
    assert type(line["close_code"]) is int


@pytest.mark.gen_test
async def test_a_peer_that_turns_out_to_be_gone_gets_no_goodbye(lines: Lines) -> None:
    hub = await started()
    connection, stream = connect(hub)
    await hub.publish("a", "x")
    stream.peer_resets(noticed=False)
    hub.end(connection, "kicked")
    assert [line["reason"] for line in lines("events.disconnected")] == ["write_error"]
    assert not hub._closing


@pytest.mark.gen_test
async def test_a_goodbye_that_is_not_taken_has_its_time(clock: Clock, lines: Lines) -> None:
    hub = await started()
    began = clock.now
    for number, reason in enumerate(("kicked", "drain")):
        connection, stream = connect(hub)
        stream.socket.room = 0
        clock.now = began + number
        hub.end(connection, cast(CloseReason, reason))
    open_at = {CLOSING_SECONDS - 0.01: 2, CLOSING_SECONDS: 1, CLOSING_SECONDS + 0.99: 1, CLOSING_SECONDS + 1: 0}
    for seconds, still_open in open_at.items():
        clock.now = began + seconds
        hub.sweep()
        run(hub)
        assert len(hub.registry) == still_open
    assert [line["reason"] for line in lines("events.disconnected")] == ["kicked", "drain"]
    assert not hub._closing


@pytest.mark.gen_test
async def test_a_slow_reader_is_told_so(clock: Clock, lines: Lines) -> None:
    hub = await started(max_backlog_bytes=4 * KIB, backlog_grace_seconds=1)
    (slow, stream), (quick, _) = connect(hub), connect(hub)
    stream.socket.room = 0
    await hub.publish("a", "x" * 5000)
    run(hub)
    clock.now += 1
    assert slow.reason is None
    hub.check_slow()  # by a timer: who stalls makes no event
    run(hub)
    assert not slow.is_live
    assert quick.is_live
    stream.give_room(10_000)
    await turns()
    assert heard(stream)[2:] == [closing("slow_consumer", 15_000)]
    assert [line["reason"] for line in lines("events.disconnected")] == ["slow_consumer"]


@pytest.mark.gen_test
async def test_a_replay_that_the_log_runs_away_from_is_a_slow_reader() -> None:
    hub = await started(history=HistorySettings(max_events=2))
    await hub.publish("a", "1")
    await hub.publish("a", "2")
    _, stream = connect(hub, None, "log-0")
    stream.socket.room = 8
    run(hub)
    for n in range(3, 6):
        await hub.publish("a", str(n))
    stream.give_room(10_000)
    while len(hub.registry):
        await turns()
        run(hub)
    told = [connected("log-0", "complete"), "id: log-1\ndata: 1", "id: log-2\ndata: 2"]
    assert heard(stream) == [*told, closing("slow_consumer", 15_000)]


@pytest.mark.gen_test
async def test_a_fault_of_ours_ends_a_stream_without_a_word(lines: Lines, expect_log: ExpectLog) -> None:
    expect_log(r"^fanout\.round_failed$")
    hub = await started()
    connection, stream = connect(hub)
    stream.socket.error = cast(OSError, ZeroDivisionError())
    await hub.publish("a", "x")
    run(hub)
    assert [line["reason"] for line in lines("events.disconnected")] == [connection.reason] == ["server_error"]
    assert heard(stream) == [connected("log-0")]


@pytest.mark.gen_test
async def test_a_fault_between_log_and_streams_is_told_to_every_stream(
    lines: Lines, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_log(r"^hub\.deliver_failed$")
    expect_log(r"^broker\.lost$")
    hub = await started()
    await hub.publish("a", "1")
    _, stream = connect(hub)
    run(hub)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(hub.rates, "count", fail)
        for n in (2, 3):
            await hub.publish("a", str(n))
    await hub.publish("a", "4")
    run(hub)
    assert heard(stream) == [
        connected("log-1"), reset("log-2", "too_old"), reset("log-3", "too_old"), "id: log-4\ndata: 4",
    ]  # fmt: skip
    assert [bool(line["exc_info"]) for line in lines("hub.deliver_failed")] == [True], "each time"


@pytest.mark.gen_test
@pytest.mark.parametrize("of", ["the window", "the broker"])
async def test_a_replay_that_meets_a_fault_of_ours_is_no_silence(
    lines: Lines, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    expect_log(r"^replay\.failed$")
    broker = Engine(5, older=[event(n, str(n)) for n in range(1, 6)], recent=[event(5, "5")], forgotten=4)
    broker.trimmed = 0
    hub = await started(broker)

    def fail(*_: object) -> NoReturn:
        raise ZeroDivisionError

    is_old = of == "the broker"
    older = await hub.look_up(raw("a"), "log-2") if is_old else None
    start = hub.open(raw("a"), "log-2" if is_old else "log-4", older=older)
    assert start.result == "complete"
    monkeypatch.setattr(hub._replay_runner._log_reader, "after", fail)
    monkeypatch.setattr(hub._replay_runner._pages, "after", fail)
    connection = adopt(hub, FakeStream(), raw("a"), start)
    while len(hub.registry):
        run(hub)
        await turns()
    assert [line["reason"] for line in lines("events.disconnected")] == [connection.reason] == ["server_error"]


def test_what_comes_at_once_does_not_come_back_at_once() -> None:
    hub = Hub(limits=LimitSettings(retry_seconds=2, overload_retry_seconds=7.5))
    drawn = [hub.retry_ms() for _ in range(1000)]
    assert len(set(drawn)) > 100
    assert 2000 <= min(drawn) < max(drawn) <= 4000
    hub.random = Half()
    assert (hub.retry_ms(), hub.retry_ms(later=False), hub.retry_ms(later=True)) == (3000, 3000, 11_250)


@pytest.mark.gen_test
async def test_those_whose_server_was_killed_do_not_come_back_at_once() -> None:
    hub = Hub(limits=LimitSettings(retry_seconds=2))
    await hub.start()
    told = [hub.open(raw(), None).first[0].retry_ms or 0 for _ in range(1000)]
    assert len(set(told)) > 100
    assert 2000 <= min(told) < max(told) <= 2400
    await hub.stop()


# What a scrape sees.


@pytest.mark.gen_test
async def test_a_scrape_sees_what_holds_now() -> None:
    hub = Hub(broker=Engine(), slices=ManualSlices(), limits=LimitSettings(max_connections=77))
    assert hub.live() == Live(connections_limit=77, broker_up=False)
    await hub.start()
    streams = [connect(hub, raw(topic))[1] for topic in ("a", "a", "b", "c")]
    assert hub.live() == Live(connections=4, connections_limit=77, topics=3)
    for stream in streams[:3]:
        stream.socket.room = 0
    await hub.publish(["a", "b"], "x")
    await hub.publish("b", "yy")
    run(hub)
    one, two = (len(f"id: log-1\ndata: {data}\n\n") for data in ("x", "yy"))
    live = Live(
        connections=4, connections_limit=77, topics=3, backlog_bytes_total=4 * one + 1, backlog_bytes_max=one + two,
        history_events=2, history_bytes=hub.window.size_bytes,
    )  # fmt: skip
    assert hub.live() == live
    assert hub.draining is False
    hub.draining = True
    assert hub.metrics.live == hub.live() != live
    assert counter(hub.metrics, "qgstream_draining") == 1


@pytest.mark.gen_test
async def test_many_stalled_goodbyes_are_closed_one_by_one(clock: Clock) -> None:
    hub = await started()
    assert isinstance(hub.slices, ManualSlices)
    for _ in range(5):
        connection, stream = connect(hub)
        stream.socket.room = 0
        hub.end(connection, "drain")
    run(hub)
    clock.now += CLOSING_SECONDS
    left = []
    hub.sweep()
    hub.sweep()  # the next tick comes before the walk has ended
    assert len(hub.slices) == 1
    while hub.slices:
        hub.slices.step()
        left.append(len(hub.registry))
    assert sorted(set(left), reverse=True) == [4, 3, 2, 1, 0]


@pytest.mark.gen_test
async def test_the_topics_of_what_came_are_sorted_before_anybody_asks_for_a_prefix() -> None:
    slices = ManualSlices()
    hub = Hub(slices=slices)
    await hub.start()
    for number in range(1000):
        await hub.publish(f"topic/{number}", 1)
    hub.forget()
    assert not hub.window.sort_topics(0)  # in steps
    slices.run()
    assert hub.window.sort_topics(0)
    await hub.stop()
