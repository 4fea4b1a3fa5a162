"""A client is admitted before the broker has any work for it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from qgstream.brokers.base import Opened, Sink
from qgstream.brokers.memory import MemoryBroker
from qgstream.events.history import HistorySettings
from qgstream.events.publication import Position, Publication
from qgstream.hub import Hub
from qgstream.limits import LimitSettings
from qgstream.service.service import Service
from tests.http.asking import Client, error_of, until

OLD, FUTURE = "log-5", "log-1000"


class Log(MemoryBroker):
    """A log of 500 events that are older than this process. It answers when it is told to, and counts questions."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.answers = asyncio.Event()

    async def open(self, sink: Sink, history: HistorySettings) -> Opened:
        await super().open(sink, history)
        self._newest = 500
        return Opened(Position("log", 500), (), 500)

    async def read(self, after: int, limit: int, topics: Collection[str] = ()) -> Sequence[Publication]:
        self.asked += 1
        await self.answers.wait()
        return [Publication(("a",), b"1", offset=n) for n in range(after + 1, min(500, after + limit) + 1)]

    async def reach(self, offset: int) -> bool:
        self.asked += 1
        await self.answers.wait()
        return False


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def service(io_loop: IOLoop, log: Log, settings: dict[str, dict[str, Any]]) -> Iterator[Service]:
    service = Service(Hub(broker=log, limits=LimitSettings(**settings["limits"])))
    io_loop.run_sync(service.start)
    yield service
    io_loop.run_sync(service.stop)


HANDSHAKE = {
    "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"max_connections": 0}}])
@pytest.mark.parametrize(("path", "headers"), [("/events", {}), ("/ws", HANDSHAKE)])
@pytest.mark.parametrize("last_event_id", [OLD, FUTURE, "earliest"])
async def test_a_refused_client_causes_no_work_of_the_broker(
    client: Client, log: Log, path: str, headers: dict[str, str], last_event_id: str
) -> None:
    log.answers.set()
    for _ in range(25):
        answer = await client.ask("GET", path, headers={"Last-Event-ID": last_event_id, **headers})
        assert (answer.code, error_of(answer)["code"]) == (503, "max_connections")
    assert log.asked == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"max_connections": 1}}, {"limits": {"max_connections_per_ip": 1}}])
@pytest.mark.parametrize("last_event_id", [OLD, FUTURE])
async def test_a_client_that_waits_for_the_broker_keeps_its_place(
    client: Client, log: Log, last_event_id: str, settings: dict[str, dict[str, int]]
) -> None:
    opening = asyncio.ensure_future(client.stream("a", last_event_id=last_event_id))
    await until(lambda: log.asked == 1)
    reason = next(iter(settings["limits"]))
    for headers in ({}, {"Last-Event-ID": OLD}):
        answer = await client.ask("GET", "/events", headers=headers)
        assert error_of(answer)["code"] == reason
    assert log.asked == 1
    log.answers.set()
    stream = await opening
    registry = client.hub.registry
    assert (len(registry), registry.places) == (1, 0)
    stream.close()
    await until(lambda: not len(registry))
    assert registry._of_client == {}
    (await client.stream("a")).close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"max_connections": 1}}])
async def test_the_place_of_a_client_that_leaves_is_free_again(client: Client, log: Log) -> None:
    iostream = await client.connect()
    await iostream.write(b"GET /events HTTP/1.1\r\nHost: tests\r\nLast-Event-ID: log-5\r\n\r\n")
    await until(lambda: log.asked == 1)
    iostream.close()
    log.answers.set()
    registry = client.hub.registry
    await until(lambda: not registry.places and not len(registry))
    assert registry._of_client == {}


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"max_connections": 1}}])
async def test_a_drain_that_begins_meanwhile_refuses_it(client: Client, log: Log) -> None:
    asking = asyncio.ensure_future(client.ask("GET", "/events", headers={"Last-Event-ID": OLD}))
    await until(lambda: log.asked == 1)
    client.hub.draining = True
    log.answers.set()
    assert error_of(await asking)["code"] == "draining"
    assert client.hub.registry.places == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"connect_rate_per_ip": 0.001, "connect_burst_per_ip": 1}}])
async def test_its_rate_is_charged_once(client: Client, log: Log) -> None:
    log.answers.set()
    (await client.stream("a", last_event_id=OLD)).close()
    assert error_of(await client.ask("GET", "/events"))["code"] == "connect_rate_per_ip"
