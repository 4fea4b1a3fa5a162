"""Several processes behind one port, joined by an engine: one server to the outside, and each may leave."""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from qgstream.wire.sse import Event, Parser
from tests.brokers.machines import NATS, Machine
from tests.deploy.programs import free_port
from tests.fleet.clients import Post
from tests.serving import KEY, ServerProcess

PROCESSES = 3
LISTENERS = 40
LIMIT = 100
SECONDS = 60


class Listener:
    """An EventSource: it comes back with its id, whatever ended its stream."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.numbers: list[int] = []
        self.own: list[str] = []  # the server's own messages, but heartbeats
        self.connects = 0

    async def live(self) -> None:
        """Connect again and again."""
        last_event_id = ""
        while True:
            parser = Parser(last_event_id=last_event_id)
            with suppress(OSError):  # a listener that closes resets those that it had not accepted
                await self._listen(parser)
            last_event_id = parser.last_event_id
            await asyncio.sleep(0.05)

    async def _listen(self, parser: Parser) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            resume = f"Last-Event-ID: {parser.last_event_id}\r\n" if parser.last_event_id else ""
            # HTTP/1.0: no chunks, and the end of the connection ends the stream.
            writer.write(f"GET /events?topic=numbers HTTP/1.0\r\n{resume}\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head.splitlines()[0], head
            while piece := await reader.read(65536):
                for event in parser.feed(piece):
                    self._take(event)
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("closed before the head") from error
        finally:
            writer.close()

    def _take(self, event: Event) -> None:
        if event.event == "number":
            self.numbers.append(int(event.data))
            return
        said = json.loads(event.data)
        if said["event"] == "connected":
            self.connects += 1
            self.own.append(f"connected, {said['replay']}")
        elif said["event"] != "heartbeat":
            self.own.append(said["event"])


class Publisher:
    """Publishes 0, 1, 2, ... and tries each again until it is answered, as who must not lose one does."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self.made = 0

    async def publish(self) -> None:
        body = {"topic": "numbers", "event": "number", "data": str(self.made), "idempotency_key": f"n{self.made}"}
        while True:
            post = Post(self._url, KEY)  # a connection of its own: the kernel chooses the process
            try:
                status, answer = await post(json.dumps(body).encode())
            except (OSError, EOFError):
                continue
            finally:
                post.close()
            assert status == 200, answer
            self.made += 1
            return

    async def publish_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.publish()
            await asyncio.sleep(0.02)


def metric(server: ServerProcess, name: str) -> float:
    url = f"http://127.0.0.1:{server.admin_port}/metrics"
    with urllib.request.urlopen(url, timeout=60) as answer:
        found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


@pytest.fixture
def servers(tmp_path: Path, require_program: Callable[[str], Path]) -> Iterator[list[ServerProcess]]:
    """Processes that share a port and a NATS server."""
    require_program("nats-server")
    folder = tmp_path / "nats"
    folder.mkdir()
    machine = Machine(NATS, folder)
    port = free_port()
    with ExitStack() as stack:
        stack.callback(machine.kill)
        machine.start()
        started: list[ServerProcess] = []
        url = f"nats://127.0.0.1:{machine.port}"
        while len(started) < PROCESSES:
            server = ServerProcess(
                tmp_path, port=port, server__reuse_port=True, admin__port=free_port(), broker__url=url,
                limits__max_connections=LIMIT, limits__retry_seconds=0.1, drain__seconds=1,
            )  # fmt: skip
            stack.callback(server.kill)  # which does nothing to one that has ended
            started.append(server)
        yield started


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {SECONDS} s"
        await asyncio.sleep(0.05)


def test_processes_on_one_port_are_one_server_and_any_of_them_may_leave(servers: list[ServerProcess]) -> None:
    asyncio.run(check(servers))


async def check(servers: list[ServerProcess]) -> None:
    (port,) = {server.port for server in servers}
    listeners = [Listener(port) for _ in range(LISTENERS)]
    tasks = [asyncio.create_task(listener.live()) for listener in listeners]
    try:
        await until(lambda: all(listener.connects for listener in listeners), "streams")
        # The kernel spreads them by a hash of the client's address and port.
        streams: list[float] = []

        def is_complete() -> bool:
            streams[:] = [metric(server, "qgstream_connections") for server in servers]
            return sum(streams) == LISTENERS

        await until(is_complete, "a stream for each listener")
        assert all(streams), f"one process has nobody: {streams}"
        # A limit is each process's own: the port takes as many as all of them together.
        assert [metric(server, "qgstream_connections_limit") for server in servers] == [LIMIT] * PROCESSES

        publisher = Publisher(port)
        for _ in range(3):
            await publisher.publish()
        await until(lambda: all(len(listener.numbers) == 3 for listener in listeners), "an event of any process")

        leaving = servers[0]
        leaving.process.terminate()
        await publisher.publish_until(lambda: leaving.process.poll() is not None)
        for _ in range(3):
            await publisher.publish()
        everything = list(range(publisher.made))
        await until(lambda: all(len(listener.numbers) >= len(everything) for listener in listeners), "all events")
        for listener in listeners:
            assert listener.numbers == everything, listener.own
            assert listener.own[0] == "connected, none"
            assert set(listener.own[1:]) <= {"closing", "connected, complete"}
        moved = [listener for listener in listeners if listener.connects > 1]
        assert len(moved) >= streams[0]
        await until(lambda: sum(metric(server, "qgstream_connections") for server in servers[1:]) == LISTENERS, "all")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for server in servers:
        server.stop()
