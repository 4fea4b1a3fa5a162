"""A replay's client hears heartbeats while its replay looks, waits or is stalled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import pytest
from tornado.iostream import IOStream

from qgstream.brokers.base import Opened, Sink
from qgstream.brokers.memory import MemoryBroker
from qgstream.delivery.connection import Connection
from qgstream.events.history import HistorySettings
from qgstream.events.latest import LOOKS
from qgstream.events.publication import Position, Publication
from qgstream.events.subscription import Subscription
from qgstream.hub import Hub
from qgstream.replay.pages import PAGE_PUBLICATIONS
from qgstream.service.heartbeat import HeartbeatSettings, Wheel
from qgstream.wire.framing import Framing
from tests.fakes import ENDLESS, FakeStream, ManualSlices, connect, turns


class Engine(MemoryBroker):
    """A log of 1000 events that are older than this process, which answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()

    async def open(self, sink: Sink, history: HistorySettings) -> Opened:
        await super().open(sink, history)
        self._newest = 1000
        return Opened(Position("log", 1000), (), 1000)

    async def read(self, after: int, limit: int, topics: Collection[str] = ()) -> Sequence[Publication]:
        await self.answers.wait()
        numbers = range(after + 1, min(after + limit, 1000) + 1)
        return [Publication((f"other/{n % 7}" if n % 500 else "mine",), b"%d" % n, offset=n) for n in numbers]


@dataclass
class Scene:
    hub: Hub
    wheel: Wheel
    stream: FakeStream = field(default_factory=FakeStream)
    connection: Connection | None = None
    read: int = 0

    @classmethod
    async def begin(cls, broker: MemoryBroker | None = None) -> Scene:
        hub = Hub(broker=broker, slices=ManualSlices())
        await hub.start()
        return cls(hub, Wheel(hub, HeartbeatSettings(interval_seconds=0.05)))

    def connect(
        self, last_event_id: str | None, topic: str, *, event: str = "message", latest: bool = False,
        room: int = ENDLESS,
    ) -> None:  # fmt: skip
        subscription = Subscription(frozenset([topic]), frozenset([event]), framing=Framing.RAW)
        self.connection, self.stream = connect(self.hub, subscription, last_event_id, latest=latest, room=room)
        self.said()

    def beat(self) -> None:
        assert self.connection is not None
        for _ in self.wheel._beat([self.connection]):
            pass

    def said(self) -> str:
        """What came since the last time."""
        text = self.stream.socket.received[self.read :].decode()
        self.read += len(text)
        return text

    def step(self) -> None:
        assert isinstance(self.hub.slices, ManualSlices)
        self.hub.slices.step()

    def finish(self) -> None:
        assert isinstance(self.hub.slices, ManualSlices)
        self.hub.slices.run()


async def looking(*, room: int = ENDLESS) -> Scene:
    """A replay in the middle of a window that holds nothing for it but the last event. It looks at all of them: they
    are on its topic, and of another type."""
    scene = await Scene.begin()
    first = str(scene.hub.window.position)
    for _ in range(5 * PAGE_PUBLICATIONS):
        await scene.hub.publish("mine", 1, event="other")
    await scene.hub.publish("mine", 1)
    scene.connect(first, "mine", room=room)
    scene.step()
    return scene


@pytest.mark.gen_test
async def test_a_replay_that_finds_nothing_says_that_it_lives_and_where_it_is() -> None:
    scene = await looking()
    assert scene.said() == ""
    scene.beat()
    scene.step()
    said = scene.said()
    place = int(said.partition("id: ")[2].partition("\n")[0].rpartition("-")[2])
    assert 0 < place <= 2 * PAGE_PUBLICATIONS
    assert said.count("heartbeat") == 1
    scene.finish()
    assert "heartbeat" not in scene.said()  # one for each beat
    assert scene.connection is not None
    assert scene.connection.is_live


@pytest.mark.gen_test
async def test_it_is_part_of_no_count_of_events() -> None:
    scene = await looking()
    scene.beat()
    scene.finish()
    assert scene.said().count("heartbeat") == 1
    assert scene.connection is not None
    assert scene.connection.events_sent == 1
    assert scene.connection.bytes_sent == len(f"id: {scene.hub.window.position}\ndata: 1\n\n")


@pytest.mark.gen_test
async def test_nothing_comes_behind_the_goodbye_of_a_replay_that_waits() -> None:
    """The goodbye is out, the connection closes in the next turn of the loop, and a heartbeat is due in between."""
    engine = Engine()
    scene = await Scene.begin(engine)
    subscription = Subscription(frozenset(["mine"]), framing=Framing.RAW)
    start = scene.hub.open(subscription, "log-0", older=Position("log", 0))
    scene.connection = scene.hub.adopt(
        cast(IOStream, scene.stream), subscription, start, ip="192.0.2.1", client_key="192.0.2.1", user_agent="fake"
    )
    scene.finish()
    await turns()
    assert scene.connection.replay is not None
    assert scene.connection.replay.waits_for == "log"
    scene.said()
    scene.hub.end(scene.connection, "kicked")
    scene.beat()
    assert scene.connection.is_open
    assert [line for line in scene.said().splitlines() if "heartbeat" in line] == []
    engine.answers.set()
    await turns()


@pytest.mark.gen_test
@pytest.mark.parametrize("first", ["the broker answers", "the socket has room"])
async def test_a_replay_that_waits_for_the_broker_says_that_it_lives(first: str) -> None:
    engine = Engine()
    scene = await Scene.begin(engine)
    subscription = Subscription(frozenset(["mine"]), framing=Framing.RAW)
    start = scene.hub.open(subscription, "log-0", older=Position("log", 0))
    assert start.result == "complete"
    scene.connection = scene.hub.adopt(
        cast(IOStream, scene.stream), subscription, start, ip="192.0.2.1", client_key="192.0.2.1", user_agent="fake"
    )
    scene.finish()
    await turns()
    scene.beat()
    assert "id: log-0\n" in scene.said()
    # A part of the next one is still on its way when the broker answers: what was fetched comes behind it.
    scene.stream.socket.room = 10
    scene.beat()
    events: list[Callable[[], None]] = [engine.answers.set, partial(scene.stream.give_room, ENDLESS)]
    for happens in events if first == "the broker answers" else events[::-1]:
        assert scene.connection.replay is not None
        happens()
        for _ in range(50):
            await turns()
            scene.finish()
    said = scene.said()
    assert [line for line in said.split("\n") if line.startswith("data")][1:] == ["data: 500", "data: 1000"]
    assert said.count("heartbeat") == 1
    assert scene.connection.is_live
    await scene.hub.stop()


@pytest.mark.gen_test
async def test_one_whose_socket_is_full_gets_no_heartbeat_in_the_middle_of_an_event() -> None:
    scene = await Scene.begin()
    first = str(scene.hub.window.position)
    await scene.hub.publish("mine", "x" * 1000)
    scene.connect(first, "mine", room=500)
    scene.finish()
    scene.beat()
    scene.stream.give_room(ENDLESS)
    await turns()
    scene.finish()
    assert "heartbeat" not in scene.said()


@pytest.mark.gen_test
async def test_before_the_state_has_come_there_is_no_place() -> None:
    scene = await Scene.begin()
    for topic in ("mine/1", "mine/2"):
        await scene.hub.publish(topic, 1)
    scene.connect(None, "mine/*", latest=True)
    scene.beat()
    scene.step()
    said = scene.said()
    assert said.index("heartbeat") < said.index("data: 1")
    assert "id:" not in said[: said.index("heartbeat")]


@pytest.mark.gen_test
async def test_a_large_state_is_sent_in_steps_and_what_comes_meanwhile_follows_it() -> None:
    scene = await Scene.begin()
    topics = 6 * LOOKS
    for number in range(topics):
        await scene.hub.publish(f"mine/{number:05}", number)
    while not scene.hub.window.sort_topics(LOOKS):
        pass
    scene.connect(None, "mine/*", latest=True)
    scene.step()
    assert scene.connection is not None
    assert not scene.connection.is_live
    await scene.hub.publish("mine/00000", "early")
    await scene.hub.publish(f"mine/{topics - 1:05}", "late")
    scene.finish()
    said = scene.said()
    heard = [line.removeprefix("data: ") for line in said.splitlines() if line.startswith("data: ") and "{" not in line]
    # The last topic was replaced before its turn, the first after its event was sent.
    assert [item for item in heard if item.isdigit()] == [str(number) for number in range(topics - 1)]
    assert [item for item in heard if not item.isdigit()] == ["early", "late"]


@pytest.mark.gen_test
async def test_while_the_state_is_looked_for_there_is_no_place() -> None:
    scene = await Scene.begin()
    for number in range(LOOKS + 1):
        await scene.hub.publish(f"mine/{number}", "state")
    scene.connect(None, "mine/*", latest=True)  # the first step sorts topics, and finds nothing yet
    scene.beat()
    scene.step()
    said = scene.said()
    assert said.count("heartbeat") == 1
    assert "id:" not in said[: said.index("heartbeat")]
