"""From the log to the feeds: in order, in slices, and nobody joins in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

import qgstream.delivery.dispatch
import qgstream.delivery.fanout
from qgstream.brokers.memory import MemoryBroker
from qgstream.delivery.connection import Connection
from qgstream.delivery.dispatch import LOOKS_AT_ONCE, VISITS_PER_LOOK
from qgstream.delivery.router import Router
from qgstream.events.publication import Position, Publication
from qgstream.events.subscription import Subscription
from qgstream.events.topics import PrivateTopics
from qgstream.hub import Hub
from qgstream.limits import LimitSettings
from qgstream.service.heartbeat import HeartbeatSettings, Wheel
from qgstream.wire.framing import Framing
from tests.fakes import FakeSocket, FakeStream, ManualSlices, connect, turns


def raw(*topics: str) -> Subscription:
    return Subscription(frozenset(topics), framing=Framing.RAW)


def events(*data: str, topic: str = "all") -> list[Publication]:
    return [Publication((topic,), text.encode(), is_json=False) for text in data]


def data_of(stream: FakeStream) -> list[str]:
    """What was published, of all that the stream got."""
    lines = stream.socket.received.decode().split("\n")
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ") and '"event"' not in line]


class Scene:
    """A hub whose slices run by hand, and a clock of visits: how many feeds got something since the last look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
        self.slices = ManualSlices()
        self.hub = Hub(slices=self.slices, limits=LimitSettings.model_validate(limits))
        self.visits = 0
        for name in ("append", "extend"):
            monkeypatch.setattr(self.hub._fanout, name, self.counted(getattr(self.hub._fanout, name)))

    def counted(self, give: Callable[..., None]) -> Callable[..., None]:
        def counted(*args: object) -> None:
            self.visits += 1
            give(*args)

        return counted

    async def open(self, count: int) -> list[tuple[Connection, FakeStream]]:
        """So many streams, each with a topic of its own and a shared one."""
        await self.hub.start()
        return [connect(self.hub, raw(f"user/{number}", "all")) for number in range(count)]

    def visits_of_a_step(self) -> int:
        self.visits = 0
        self.slices.step()
        return self.visits


@pytest.fixture
def queues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is dispatched in the turn of the loop that appended it."""
    monkeypatch.setattr(qgstream.delivery.dispatch, "LOOKS_AT_ONCE", 0)
    monkeypatch.setattr(qgstream.delivery.dispatch, "VISITS_PER_LOOK", 1)


@pytest.mark.gen_test
async def test_a_batch_for_many_feeds_is_a_walk_that_yields(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    streams = await scene.open(1000)
    publishing = asyncio.ensure_future(scene.hub.publish_all(events(*"abc")))
    await turns()
    assert scene.visits == LOOKS_AT_ONCE * VISITS_PER_LOOK  # in the turn of the loop in which it was published
    assert not publishing.done()  # its audience is not known yet
    while scene.slices:
        assert scene.visits_of_a_step() <= VISITS_PER_LOOK
        await turns(1)
    assert (await publishing).subscribers == 1000
    assert [data_of(stream) for _, stream in streams] == [["a", "b", "c"]] * 1000
    assert scene.hub._dispatch.queued_bytes == 0


@pytest.mark.gen_test
async def test_what_nobody_wants_yields_too(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    await scene.open(1)
    found, patterns = [0], Router.patterns

    def counted(self: Router, topic: str) -> list[str]:
        found[0] += 1
        return patterns(self, topic)

    monkeypatch.setattr(Router, "patterns", counted)
    scene.hub._dispatch.deliver(events(*map(str, range(5000)), topic="nobody"), "log")
    assert scene.slices
    while scene.slices:
        assert found[0] <= LOOKS_AT_ONCE * VISITS_PER_LOOK
        found[0] = 0
        scene.slices.step()
    assert scene.hub._dispatch.is_idle


@pytest.mark.gen_test
async def test_many_small_publishes_behind_a_long_one_yield_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    await scene.open(VISITS_PER_LOOK - 4)
    dispatch = scene.hub._dispatch
    dispatch.deliver(events(*map(str, range(100))), "log")
    for number in range(100):
        dispatch.deliver(events(str(number)), "log")
    while scene.slices:
        assert scene.visits_of_a_step() <= VISITS_PER_LOOK
    assert dispatch.is_idle


def count_sends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often anything was sent to anybody, from now on."""
    sends, take = [0], FakeSocket.take

    def counted(self: FakeSocket, data: bytes | memoryview) -> int:
        sends[0] += 1
        return take(self, data)

    monkeypatch.setattr(FakeSocket, "take", counted)
    return sends


@pytest.mark.gen_test
@pytest.mark.parametrize("looks_held", [10**6, 5])
async def test_a_stream_gets_many_events_of_a_batch_with_one_send(
    monkeypatch: pytest.MonkeyPatch, looks_held: int
) -> None:
    """And does not wait for the end of a walk that is longer than that."""
    monkeypatch.setattr(qgstream.delivery.dispatch, "LOOKS_HELD", looks_held)
    scene = Scene(monkeypatch)
    streams = await scene.open(320)
    sends = count_sends(monkeypatch)
    names = [str(number) for number in range(30)]
    dispatch = scene.hub._dispatch
    dispatch.deliver(events(*names), "log")
    heard_before_the_end = 0
    while scene.slices:
        scene.slices.step()
        if not dispatch.is_idle:
            heard_before_the_end = len(data_of(streams[200][1]))
    assert [data_of(stream) for _, stream in streams] == [names] * 320
    assert sends[0] == 320
    assert heard_before_the_end == (30 if looks_held == 5 else 0)
    assert scene.hub._fanout._due == 0


@pytest.mark.gen_test
async def test_rounds_do_not_wait_while_small_publishes_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qgstream.delivery.dispatch, "LOOKS_HELD", 10)
    monkeypatch.setattr(qgstream.delivery.dispatch, "PUBLICATIONS_PER_WALK", 1)
    scene = Scene(monkeypatch)
    [(_, stream)] = await scene.open(1)
    dispatch = scene.hub._dispatch
    dispatch.deliver(events(*map(str, range(1000)), topic="nobody"), "log")
    for number in range(100):
        dispatch.deliver(events(str(number)), "log")
    while not data_of(stream):
        assert not dispatch.is_idle
        scene.slices.step()


@pytest.mark.gen_test
@pytest.mark.usefixtures("queues")
async def test_no_more_rounds_are_put_off_than_may_begin_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qgstream.delivery.fanout, "MAX_HELD", 2)
    scene = Scene(monkeypatch)
    streams = await scene.open(5)
    scene.hub._dispatch.deliver(events(*"abc"), "log")
    while not any(data_of(stream) for _, stream in streams):
        assert len(scene.hub._fanout._held or ()) <= 2
        scene.slices.step()
    assert not scene.hub._dispatch.is_idle
    scene.slices.run()
    assert [data_of(stream) for _, stream in streams] == [["a", "b", "c"]] * 5


@pytest.mark.gen_test
async def test_a_small_publish_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    await scene.open(10)
    assert (await scene.hub.publish("all", "a")).subscribers == 10
    assert scene.visits == 10
    assert scene.hub._dispatch.is_idle


@pytest.mark.gen_test
@pytest.mark.usefixtures("queues")
async def test_what_comes_during_the_walk_comes_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    streams = await scene.open(3)
    receipts = [asyncio.ensure_future(scene.hub.publish("all", text)) for text in "abc"]
    while not all(receipt.done() for receipt in receipts):
        if scene.slices:
            scene.slices.step()
        await turns(1)
    scene.slices.run()
    assert [data_of(stream) for _, stream in streams] == [["a", "b", "c"]] * 3


@pytest.mark.gen_test
@pytest.mark.usefixtures("queues")
@pytest.mark.parametrize("last_event_id", [None, "first"])
async def test_a_stream_that_opens_during_the_walk_gets_what_follows(
    monkeypatch: pytest.MonkeyPatch, last_event_id: str | None
) -> None:
    scene = Scene(monkeypatch)
    await scene.open(3)
    hub = scene.hub
    first = str(hub.window.position)
    publishing = asyncio.ensure_future(hub.publish_all(events("a", "b")))
    await turns()
    scene.slices.step()
    assert not hub._dispatch.is_idle
    late, stream = connect(hub, raw("all"), first if last_event_id else None)
    after = asyncio.ensure_future(hub.publish("all", "c"))
    while scene.slices:
        scene.slices.step()
        await turns(1)
    assert late.is_live
    assert data_of(stream) == (["a", "b", "c"] if last_event_id else ["c"])
    await asyncio.gather(publishing, after)


@pytest.mark.gen_test
@pytest.mark.usefixtures("queues")
async def test_a_stream_that_leaves_before_its_turn_joins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    await scene.open(1)
    publishing = asyncio.ensure_future(scene.hub.publish("all", "a"))
    await turns()
    late, stream = connect(scene.hub, raw("all"))
    scene.slices.step()
    stream.peer_closes()
    while scene.slices:
        scene.slices.step()
        await turns(1)
    assert (late.is_open, late.is_live, len(scene.hub.router)) == (False, False, 1)
    await publishing


@pytest.mark.gen_test
@pytest.mark.usefixtures("queues")
async def test_the_log_may_be_lost_before_its_turn(
    monkeypatch: pytest.MonkeyPatch, expect_log: Callable[[str], None]
) -> None:
    expect_log("broker.lost")
    scene = Scene(monkeypatch)
    await scene.open(1)
    publishing = asyncio.ensure_future(scene.hub.publish("all", "a"))
    await turns()
    live, (late, stream) = next(iter(scene.hub.registry)), connect(scene.hub, raw("all"))
    scene.slices.step()
    scene.hub.lost(Position("other", 5), "epoch_changed")
    while scene.slices:
        scene.slices.step()
        await turns(1)
    assert late.is_live
    assert stream.socket.received.count(b'"event": "reset"') == 1
    told = live.stream.socket.received  # type: ignore[attr-defined]
    assert told.index(b"data: a") < told.index(b'"event": "reset"')  # what came before is said before
    await publishing


@pytest.mark.gen_test
@pytest.mark.usefixtures("queues")
async def test_a_heartbeat_says_no_place_while_the_feeds_are_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some have got the event already, and its id; the place before it would move them back, that behind it on."""
    scene = Scene(monkeypatch)
    streams = await scene.open(3)
    wheel = Wheel(scene.hub, HeartbeatSettings(interval_seconds=0.05))
    for connection, _ in streams:
        wheel.add(connection)
    publishing = asyncio.ensure_future(scene.hub.publish("all", "a"))
    await turns()
    scene.slices.step()
    assert scene.hub.live_position is None
    sent = [len(stream.socket.received) for _, stream in streams]
    for _ in wheel._beat([connection for connection, _ in streams]):
        pass
    said = [bytes(stream.socket.received[start:]) for (_, stream), start in zip(streams, sent, strict=True)]
    assert all(b"heartbeat" in text and b"id:" not in text for text in said)
    while scene.slices:
        scene.slices.step()
        await turns(1)
    await publishing
    assert scene.hub.live_position == scene.hub.window.position


@pytest.mark.gen_test
@pytest.mark.usefixtures("queues")
async def test_publishers_wait_while_too_much_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, max_total_backlog_bytes=64 * 1024)
    await scene.open(1)
    first = asyncio.ensure_future(scene.hub.publish("all", "x" * 70_000))
    await turns()
    second = asyncio.ensure_future(scene.hub.publish("all", "y"))
    await turns()
    assert scene.hub.window.newest == 1  # the second is not in the log yet
    while not second.done():
        scene.slices.step()
        await turns()
    assert scene.hub.window.newest == 2
    await first


@pytest.mark.gen_test
async def test_a_fault_brings_everybody_back(
    monkeypatch: pytest.MonkeyPatch, expect_log: Callable[[str], None]
) -> None:
    expect_log("dispatch.failed")
    scene = Scene(monkeypatch)
    streams = await scene.open(2)

    def faulty(self: Router, topic: str) -> Iterator[object]:
        yield from ()
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Router, "patterns", faulty)
        scene.hub._dispatch.deliver(events("a"), "log")
    assert [connection.reason for connection, _ in streams] == ["server_error"] * 2
    assert scene.hub._dispatch.is_idle
    assert isinstance(scene.hub.broker, MemoryBroker)


@pytest.mark.gen_test
@pytest.mark.usefixtures("queues")
async def test_a_reload_during_the_walk_holds_for_the_rest_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    await scene.hub.start()
    private = PrivateTopics()
    readers = [
        connect(scene.hub, Subscription(frozenset({"all", name}), framing=Framing.WEBSOCKET, private_topics=private))
        for name in "abc"
    ]
    publishing = asyncio.ensure_future(scene.hub.publish(["all", "more"], "hidden"))
    await turns()
    while not scene.visits:
        scene.slices.step()
    private.patterns = frozenset({"*"})
    while scene.slices:
        scene.slices.step()
        await turns(1)
    await publishing
    heard = [stream.socket.received.partition(b"hidden")[0].rpartition(b'"topic": ')[2] for _, stream in readers]
    got = [name for name, (_, stream) in zip("abc", readers, strict=True) if b"hidden" in stream.socket.received]
    assert len(got) == 1
    assert all(text.startswith(b'["all", "more"]') for text, name in zip(heard, "abc", strict=True) if name in got)
    assert all(connection.is_live and not connection.backlog_bytes for connection, _ in readers)
