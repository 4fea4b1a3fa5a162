"""What streams and publishers see of a broker that goes away, forgets, or comes back as another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Sequence

import pytest

from qgstream.brokers.base import Broker, Forgotten, Opened, Sink
from qgstream.errors import Unavailable
from qgstream.events.history import HistorySettings, TopicHistory
from qgstream.events.publication import Position, Publication
from qgstream.limits import LimitSettings
from qgstream.reasons import ResetReason
from qgstream.service.heartbeat import HeartbeatSettings
from qgstream.wire.sse import Event
from tests.brokers.serving import Served, open_stream, take
from tests.conftest import ExpectLog
from tests.http.asking import Stream, error_of, until


class Fickle(Broker):
    """A broker that does what a test tells it to. It keeps everything, until it is told to forget."""

    def __init__(self, *, gone: int = 0) -> None:
        self.epoch = "first"
        self.log: list[Publication] = []
        self.is_away = False
        self.forgotten = 0
        self.reads_left = 10**9  # then it is away
        self.refused = 0
        self.elsewhere: set[int] = set()  # offsets that another process has given to its clients already
        self.reached: list[int] = []
        self._newest = gone

    @property
    def is_up(self) -> bool:
        return not self.is_away

    async def open(self, sink: Sink, history: HistorySettings) -> Opened:
        self._sink = sink
        return Opened(Position(self.epoch, self._newest), (), self._newest)

    async def append(self, publications: Sequence[Publication]) -> Sequence[int]:
        self._check()
        for publication in publications:
            self._newest += 1
            publication.offset, publication.published_at = self._newest, 2e9
        self.log += publications
        self._sink.deliver(publications)
        return [publication.offset for publication in publications]

    async def read(self, after: int, limit: int, topics: Collection[str] = ()) -> Sequence[Publication]:
        await asyncio.sleep(0)
        self.is_away = self.is_away or not self.reads_left
        self._check()
        self.reads_left -= 1
        if after < self.forgotten:
            raise Forgotten(after, self.forgotten)
        return [publication for publication in self.log if publication.offset > after][:limit]

    async def close(self) -> None:
        self.is_away = True

    async def reach(self, offset: int) -> bool:
        self.reached.append(offset)
        await asyncio.sleep(0)
        self._check()
        if offset in self.elsewhere:
            await self.catch_up(offset)
        return offset <= self._newest

    async def catch_up(self, offset: int) -> None:
        """What another process appended comes here too."""
        await asyncio.sleep(0.01)
        first, self._newest = self._newest + 1, offset
        more = [Publication(("a",), str(n).encode(), offset=n, published_at=2e9) for n in range(first, offset + 1)]
        self.log += more
        self._sink.deliver(more)

    def _check(self) -> None:
        if self.is_away:
            self.refused += 1
            raise Unavailable("the engine is away", retry_after_seconds=1, code="broker_down")

    def lose(self, reason: ResetReason, offset: int) -> None:
        self.epoch = "second" if reason == "epoch_changed" else self.epoch
        self._newest = self.forgotten = offset
        self.log.clear()
        self._sink.lost(Position(self.epoch, offset), reason)


async def next_message(stream: Stream) -> tuple[str, str, str]:
    """The next message of the server's own that is no heartbeat: its kind, its reason, and its id."""
    while True:
        event = await stream.next()
        message = json.loads(event.data)
        if message["event"] != "heartbeat":
            return message["event"], message.get("reason", ""), event.id


# The log goes on elsewhere.


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("reason", "new", "old_id"), [("epoch_changed", "second-0", "first-3"), ("too_old", "first-50", "first-3")]
)
async def test_every_stream_is_told_what_was_lost(
    reason: ResetReason, new: str, old_id: str, expect_log: ExpectLog
) -> None:
    expect_log("broker.lost")
    broker = Fickle()
    async with Served(broker) as client:
        streams = [(await open_stream(client, *topics))[0] for topics in ((), ("a",), ("a", "b"), ("b",))]
        for n in range(3):
            await client.hub.publish("a", str(n))
        broker.lose(reason, int(new.rpartition("-")[2]))
        await client.hub.publish("b", "afterwards")
        await client.hub.publish("a", "afterwards")
        for stream in streams[:3]:
            assert [event.data for event in await take(stream, 3)] == ["0", "1", "2"]
        for stream in streams:
            assert await next_message(stream) == ("reset", reason, new)
            assert (await take(stream, 1))[0].data == "afterwards"
        # Who was away meanwhile is told too, and who comes back with the new id is not.
        stream, replay, _ = await open_stream(client, "a", id=old_id)
        assert replay == "reset"
        assert (await next_message(stream))[1] == reason
        stream, replay, _ = await open_stream(client, id=new)
        assert replay == "complete"
        assert len(await take(stream, 2)) == 2


@pytest.mark.gen_test
async def test_a_stream_in_the_middle_of_its_replay_is_told_too(expect_log: ExpectLog) -> None:
    expect_log("broker.lost")
    broker = Fickle()
    async with Served(broker, limits=LimitSettings(send_buffer_bytes=8192)) as client:
        for n in range(400):
            await client.hub.publish("a", f"{n}".ljust(20_000))
        stream, replay, _ = await open_stream(client, id="first-0")
        assert replay == "complete"
        (connection,) = client.hub.registry
        assert connection.replay is not None, "its socket took it all"
        broker.lose("epoch_changed", 0)
        await client.hub.publish("a", "afterwards")
        events: list[Event] = []
        while not events or events[-1].data != "afterwards":
            events.append(await stream.next())
        before, reset, after = events[:-2], json.loads(events[-2].data), events[-1]
        numbers = [int(event.data) for event in before]
        assert numbers == list(range(len(numbers)))
        assert 0 < len(numbers) < 400
        assert (reset["event"], reset["reason"], events[-2].id) == ("reset", "epoch_changed", "second-0")
        assert after.id == "second-1"
        await client.hub.publish("a", "live")
        assert (await take(stream, 1))[0].data == "live"
        assert connection.replay is None


@pytest.mark.gen_test
async def test_a_heartbeat_never_takes_a_stream_back_behind_the_loss(expect_log: ExpectLog) -> None:
    expect_log("broker.lost")
    broker = Fickle()
    async with Served(broker) as client:
        client.service.wheel.settings = HeartbeatSettings(interval_seconds=0.1)
        stream, _, at = await open_stream(client, "quiet")
        assert (await stream.next()).id == at
        broker.lose("epoch_changed", 0)  # the same offset as before
        ids = [(await stream.next()).id for _ in range(4)]
        assert "second-0" in ids
        assert ids[ids.index("second-0") :] == ["second-0"] * len(ids[ids.index("second-0") :])


# The broker is away.


@pytest.mark.gen_test
async def test_without_its_broker_a_server_refuses_events_and_keeps_its_streams() -> None:
    broker = Fickle()
    async with Served(broker) as client:
        client.service.wheel.settings = HeartbeatSettings(interval_seconds=0.1)
        stream, *_ = await open_stream(client, "a")
        await client.publish("a", "before")
        broker.is_away = True
        answer = await client.post({"topic": "a", "data": 1})
        assert (answer.code, error_of(answer)["code"]) == (503, "broker_down")
        assert int(answer.headers["Retry-After"]) >= 1
        ready = await client.ask("GET", "/ready")
        assert (ready.code, json.loads(ready.body)) == (200, {"status": "degraded", "reason": "broker_down"})
        assert b"qgstream_broker_up 0.0" in (await client.ask("GET", "/metrics")).body
        assert (await take(stream, 1))[0].data == "before"
        assert '"heartbeat"' in (await stream.next()).data
        broker.is_away = False
        await client.publish("a", "after")
        assert (await take(stream, 1))[0].data == "after"
        assert json.loads((await client.ask("GET", "/ready")).body) == {"status": "ready"}


SMALL = HistorySettings(max_events=10)


@pytest.mark.gen_test
async def test_nobody_is_answered_with_a_guess_while_the_log_cannot_be_read() -> None:
    broker = Fickle()
    async with Served(broker, history=SMALL) as client:
        for n in range(600):
            await client.hub.publish("a", str(n))
        broker.is_away = True
        # An EventSource must not be told any status but 200, or it stops for good.
        answer = await client.ask("GET", "/events", headers={"Last-Event-ID": "first-5", "Accept": "text/event-stream"})
        assert answer.code == 200
        assert b'"rejected"' in answer.body
        assert b'"reason": "broker_down"' in answer.body
        assert b"retry: " in answer.body
        answer = await client.ask("GET", "/events", headers={"Last-Event-ID": "first-5"})
        assert (answer.code, error_of(answer)["code"]) == (503, "broker_down")
        rejected = client.hub.metrics.registry.get_sample_value(
            "qgstream_connections_rejected_total", {"reason": "broker_down"}
        )
        assert rejected == 2
        # What the window can answer, it does.
        assert (await open_stream(client, id="first-595"))[1] == "complete"
        assert (await open_stream(client))[1] == "none"
        broker.is_away = False
        stream, replay, _ = await open_stream(client, id="first-5")
        assert replay == "complete"
        assert [event.data for event in await take(stream, 595)] == [str(n) for n in range(5, 600)]


# Another process is ahead.


@pytest.mark.gen_test
@pytest.mark.parametrize("history", [HistorySettings(), SMALL], ids=["all in the window", "the rest from the broker"])
async def test_who_has_an_id_that_this_process_has_not_got_yet_is_waited_for(history: HistorySettings) -> None:
    broker = Fickle()
    async with Served(broker, history=history) as client:
        for n in range(1, 4):
            await client.hub.publish("a", str(n))
        broker.elsewhere.add(50)
        stream, replay, at = await open_stream(client, id="first-50")
        assert (replay, at) == ("complete", "first-50")
        await client.hub.publish("a", "next")
        assert (await take(stream, 1))[0].data == "next"
        stream, replay, at = await open_stream(client, id="first-99")
        assert (replay, at) == ("reset", "")
        assert await next_message(stream) == ("reset", "unknown_id", "first-51")
        assert broker.reached == [50, 99]
        # A place without an event: what is there was none, for any process.
        broker._newest = 70
        stream, replay, at = await open_stream(client, id="first-60")
        assert (replay, at) == ("complete", "first-60")
        await client.hub.publish("a", "after nothing")
        assert (await take(stream, 1))[0].id == "first-71"
        # While nobody can tell whether there is such an id, nobody is told that there is none.
        broker.is_away = True
        answer = await client.ask("GET", "/events", headers={"Last-Event-ID": "first-99"})
        assert (answer.code, error_of(answer)["code"]) == (503, "broker_down")
        stream, replay, _ = await open_stream(client, id="second-99")
        assert replay == "reset"


@pytest.mark.gen_test
async def test_a_replay_waits_for_a_broker_that_is_away() -> None:
    broker = Fickle()
    async with Served(broker, history=SMALL) as client:
        for n in range(600):
            await client.hub.publish("a", str(n))
        broker.reads_left = 1
        stream, replay, _ = await open_stream(client, id="first-0")
        assert replay == "complete"
        assert [int(event.data) for event in await take(stream, 256)] == list(range(256))
        await until(lambda: broker.refused >= 2)
        broker.is_away, broker.reads_left = False, 100
        assert [int(event.data) for event in await take(stream, 344)] == list(range(256, 600))


@pytest.mark.gen_test
async def test_what_is_not_to_be_stored_is_not_replayed_though_the_broker_has_it() -> None:
    history = HistorySettings(max_events=10, topics=(TopicHistory(pattern="noise", store=False),))
    async with Served(Fickle(), history=history) as client:
        for n in range(800):
            await client.hub.publish("noise" if 200 <= n < 600 or n % 2 else "a", str(n))
        stream, replay, _ = await open_stream(client, id="first-0")
        assert replay == "complete"
        expected = [n for n in range(0, 800, 2) if not 200 <= n < 600]
        assert [int(event.data) for event in await take(stream, 200)] == expected


@pytest.mark.gen_test
async def test_a_log_that_forgets_faster_than_a_stream_reads_ends_it_with_its_id() -> None:
    broker = Fickle()
    async with Served(broker, history=SMALL, limits=LimitSettings(send_buffer_bytes=8192)) as client:
        for n in range(600):
            await client.hub.publish("a", f"{n}".ljust(5000))
        stream, replay, _ = await open_stream(client, id="first-0")
        assert replay == "complete"
        broker.forgotten = 580
        last_id = ""
        while True:
            event = await stream.next()
            if '"closing"' in event.data:
                break
            last_id = event.id
        assert json.loads(event.data)["reason"] == "slow_consumer"
        assert 0 < int(last_id.rpartition("-")[2]) < 580
        stream, replay, _ = await open_stream(client, id=last_id)
        assert replay == "reset"
        assert (await next_message(stream))[1] == "too_old"
        client.hub._replay_runner._log_reader._pages.clear()
        stream, replay, _ = await open_stream(client, id="earliest")
        assert [int(event.data) for event in await take(stream, 20)] == list(range(580, 600))
