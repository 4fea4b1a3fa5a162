"""How a stream begins: wherever it is cut, its client comes back for what it has not got and was not told of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

import qgstream.brokers.memory
import qgstream.hub
from qgstream.events.history import HistorySettings, Window
from qgstream.events.publication import Position, Publication
from qgstream.events.subscription import Subscription
from qgstream.hub import Hub
from qgstream.replay.resume import StreamStart, decide_start
from qgstream.service.heartbeat import HeartbeatSettings, Wheel
from qgstream.wire import messages
from qgstream.wire.framing import Framing
from qgstream.wire.sse import Parser
from tests.conftest import ExpectLog
from tests.fakes import ENDLESS, Clock, FakeStream, ManualSlices, connect, turns

NEWEST = 9
TEXTS = (Framing.RAW, Framing.WEBSOCKET)


# What a client knows when it is cut.


@dataclass
class Client:
    """What a client keeps of a stream: the id that it comes back with, the events that it got, and what it was told."""

    id: str
    got: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def at_each_cut(self, sent: bytes, framing: Framing) -> Iterator[Client]:
        """What it is when it has read one more message of a stream; of an unfinished one it keeps nothing."""
        yield self
        for id, data in (_frames if framing is Framing.WEBSOCKET else _blocks)(sent):
            self.id = id or self.id
            if isinstance(data, dict):
                self.said.append(data["event"])
            elif data is not None:
                self.got.append(int(data))
            yield self


def _blocks(sent: bytes) -> Iterator[tuple[str, Any]]:
    parser = Parser()
    for block in sent.split(b"\n\n")[:-1]:
        (event,) = parser.feed(block + b"\n\n")
        yield parser.last_event_id, json.loads(event.data)


def _frames(sent: bytes) -> Iterator[tuple[str, Any]]:
    while sent:
        size, start = (int.from_bytes(sent[2:4], "big"), 4) if sent[1] == 126 else (sent[1], 2)
        message = json.loads(sent[start : start + size])
        yield message.get("id", ""), message["data"]
        sent = sent[start + size :]


def check_every_cut(sent: bytes, framing: Framing, asked: str, due: Callable[[int], bool]) -> Client:
    """A client that has moved from the id that it asked with to another one has got every event up to there that was
    due, or it was told that it missed some."""
    client = Client(asked)
    for _ in client.at_each_cut(sent, framing):
        if client.id == asked or "reset" in client.said:
            continue
        begun, reached = (Position.parse(id) for id in (asked, client.id))
        assert reached is not None
        after = begun.offset if begun is not None and begun.epoch == reached.epoch else 0
        missing = [
            offset for offset in range(after + 1, reached.offset + 1) if due(offset) and offset not in client.got
        ]
        assert not missing, f"cut now, it comes back without {missing}: {client}"
    return client


# The first messages.


def window(*, forgotten: int = 4) -> Window:
    held = Window(HistorySettings(), Position("log", forgotten))
    for offset in range(forgotten + 1, NEWEST + 1):
        held.append(Publication((f"t/{offset % 2}",), b"%d" % offset, offset=offset, published_at=100.0), 100.0)
    return held


def begin(last_event_id: str, subscription: Subscription, *, latest: bool = False) -> StreamStart:
    return decide_start(window(), subscription, last_event_id, latest=latest, now=100.0, retry_ms=3000)


@pytest.mark.parametrize("framing", TEXTS)
@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("topic", ["t/0", "t/*", "elsewhere"])
@pytest.mark.parametrize(
    ("id", "result"),
    [("log-3", "too_old"), ("log-99", "unknown_id"), ("nonsense", "unknown_id"), ("old-7", "epoch_changed")],
)
def test_nobody_moves_past_a_gap_untold(id: str, result: str, topic: str, latest: bool, framing: Framing) -> None:
    subscription = Subscription(frozenset({topic}), framing=framing)
    begun = begin(id, subscription, latest=latest)
    assert begun.result == result
    sent = b"".join([framing.frame(message) for message in begun.first])
    client = check_every_cut(sent, framing, id, due=lambda _: True)
    assert client.said == ["connected", "reset"]
    has_state = latest and topic != "elsewhere"
    assert client.id == (id if has_state else f"log-{NEWEST}")  # the state that follows moves it


@pytest.mark.parametrize("framing", TEXTS)
@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("id", ["", "earliest", "log-4", "log-7", f"log-{NEWEST}"])
def test_what_is_resumed_begins_where_it_was(id: str, latest: bool, framing: Framing) -> None:
    begun = begin(id, Subscription(framing=framing), latest=latest)
    (connected,) = begun.first
    expected = {"": None if latest else f"log-{NEWEST}", "earliest": "log-4"}.get(id, id)
    assert connected.id == expected


# The stream that follows: a real hub, whose sockets take a few bytes at a time.


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (qgstream.hub, qgstream.brokers.memory):
        monkeypatch.setattr(module, "time", clock)
    return clock


async def publish(hub: Hub, count: int) -> None:
    for _ in range(count):
        await hub.publish(f"t/{hub.window.newest % 2}", hub.window.newest + 1)


async def started() -> tuple[Hub, Wheel]:
    hub = Hub(slices=ManualSlices())
    await hub.start()
    await publish(hub, NEWEST)
    return hub, Wheel(hub, HeartbeatSettings(interval_seconds=0.05))  # a heartbeat at each tick


def run(hub: Hub) -> None:
    assert isinstance(hub.slices, ManualSlices)
    hub.slices.run()


def beat_first(hub: Hub, wheel: Wheel) -> None:
    """A heartbeat, before everything else that waits for its slice."""
    wheel.tick()
    assert isinstance(hub.slices, ManualSlices)
    hub.slices._jobs.rotate(1)


async def drink(hub: Hub, wheel: Wheel, stream: FakeStream, sips: int = 60) -> None:
    """The peer takes 50 bytes at a time, and there is a heartbeat after each."""
    for _ in range(sips):
        run(hub)
        wheel.tick()
        run(hub)
        stream.give_room(50)
        await turns()
    stream.give_room(ENDLESS)
    await turns()
    run(hub)


@pytest.mark.gen_test
@pytest.mark.parametrize("framing", TEXTS)
@pytest.mark.parametrize("room", [100, 100_000])
@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("id", ["log-3", "log-0", "log-9", "nonsense", "old-7", "earliest", ""])
async def test_a_stream_that_is_cut_anywhere(id: str, latest: bool, room: int, framing: Framing) -> None:
    hub, wheel = await started()
    epoch = hub.window.epoch
    asked = id.replace("log", epoch)
    _, stream = connect(hub, Subscription(frozenset({"t/*"}), framing=framing), asked, latest=latest, room=room)
    beat_first(hub, wheel)  # before a replay begins
    run(hub)
    wheel.tick()  # these heartbeats are for streams that are behind by then
    await publish(hub, 3)
    await drink(hub, wheel, stream)
    resumes = id.startswith("log") or id == "earliest"

    def due(offset: int) -> bool:
        # To a new stream, what was there before it; but of the state it asked for the newest of each topic.
        return resumes or offset > NEWEST or (latest and offset > NEWEST - 2)

    client = check_every_cut(bytes(stream.socket.received), framing, asked, due)
    assert client.id == f"{epoch}-{NEWEST + 3}"
    assert client.got[-3:] == [10, 11, 12]


@pytest.mark.gen_test
@pytest.mark.parametrize("framing", TEXTS)
@pytest.mark.parametrize("how", ["live", "behind", "at its beginning"])
@pytest.mark.parametrize("id", ["", "log-0", "old-7"])
async def test_a_log_that_is_lost_under_a_stream(expect_log: ExpectLog, id: str, how: str, framing: Framing) -> None:
    expect_log(r"^broker\.lost$")
    hub, wheel = await started()
    asked = id.replace("log", hub.window.epoch)
    room = 100 if how == "behind" else 100_000
    _, stream = connect(hub, Subscription(frozenset({"t/*"}), framing=framing), asked, room=room)
    if how == "live":
        run(hub)
    wheel.tick()
    await publish(hub, 2)
    hub.lost(Position("next", 70), "epoch_changed")
    beat_first(hub, wheel)
    await drink(hub, wheel, stream)
    client, gaps = Client(asked), 2 if id == "old-7" else 1
    for _ in client.at_each_cut(bytes(stream.socket.received), framing):
        assert client.said.count("reset") == gaps or not client.id.startswith("next"), f"it is not told: {client}"
    assert client.id == "next-70"


# What `connected` says of the subscription.


def said_of(**fields: Any) -> dict[str, Any]:
    message = messages.connected(100.0, id="e-1", replay="none", retry_ms=1, **fields)
    (event,) = Parser().feed(message.as_sse())
    said = json.loads(event.data)
    assert json.loads(message.as_json())["data"] == said
    return {name: said[name] for name in said.keys() - {"event", "timestamp", "replay"}}


def test_connected_names_the_topics() -> None:
    assert said_of() == {"topics": ["*"]}
    assert said_of(topics=frozenset({"b", "a", "c/*"})) == {"topics": ["a", "b", "c/*"]}
    for odd in ('"', "\\", "\u2028", "é", "<script>", "\x85", "\U0001f600"):
        assert said_of(topics={odd}) == {"topics": [odd]}


def test_connected_names_what_it_did_not_understand() -> None:
    assert said_of(ignored=("topics", "_")) == {"topics": ["*"], "ignored": ["topics", "_"]}
    for odd in ("\r\ndata: x", "\n\n", "\0", '"', "\x7f", "\ufffd"):
        assert said_of(ignored=(odd,))["ignored"] == [odd]


def test_of_many_names_only_the_first_are_said() -> None:
    topics = [f"{number:03}" for number in range(100)]
    said = said_of(topics=frozenset(topics), ignored=["x" * 1000] * 1000)
    assert said == {"topics": topics[: messages.MAX_TOPICS], "ignored": ["x" * messages.MAX_IGNORED_CHARACTERS] * 8}
