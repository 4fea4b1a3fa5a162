"""Many at once: connects, reconnects, stalled readers, topics. Everybody is served or told, and nothing is left.

`HOSTILE_FULL=1 pytest tests/hostile/test_load.py` comes with as many as a busy day; a run of everything with a part.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from qgstream.wire.sse import Parser
from tests.deploy.programs import free_port
from tests.hostile.observing import Watch, ask, data_of, metrics, resident_bytes
from tests.publishing import publish, publish_all
from tests.serving import RawClient, ServerProcess, wait_until

MIB = 1024 * 1024
IS_FULL = os.environ.get("HOSTILE_FULL") == "1"


def many(full: int, part: int) -> int:
    """How many of them."""
    return full if IS_FULL else part


@pytest.fixture(autouse=True)
def descriptors() -> None:
    """As many for the clients as there may be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@asynccontextmanager
async def asking_for_health(port: int) -> AsyncIterator[list[float]]:
    """Somebody asks /health all the time; the seconds that each answer took."""
    took: list[float] = []

    async def ask_on() -> None:
        while True:
            began = time.monotonic()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                async with asyncio.timeout(60):
                    answer = await reader.read()
            finally:
                writer.close()
            assert answer.startswith(b"HTTP/1.1 200"), answer
            took.append(time.monotonic() - began)
            await asyncio.sleep(0.05)

    asking = asyncio.create_task(ask_on())
    try:
        yield took
    finally:
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
    assert took, "nobody answered"


class EventSource:
    """Connects, reads what comes until `data: done`, obeys `retry:`, and comes back with its id."""

    def __init__(self, port: int, last_event_id: str = "") -> None:
        self.port = port
        self.id = last_event_id
        self.attempts = 0
        self.data: list[str] = []
        self.refused: Counter[str] = Counter()

    async def until_done(self) -> None:
        """Until it has got what it waits for, however often it is refused."""
        retry_seconds = 0.1
        while "done" not in self.data:
            self.attempts += 1
            with suppress(ConnectionError):
                retry_seconds = await self._once() or retry_seconds
            if "done" not in self.data:
                await asyncio.sleep(retry_seconds)

    async def _once(self) -> float | None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            id = f"Last-Event-ID: {self.id}\r\n" if self.id else ""
            writer.write(f"GET /events?topic=a HTTP/1.0\r\nHost: x\r\nAccept: text/event-stream\r\n{id}\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            parser = Parser(last_event_id=self.id)
            while "done" not in self.data and (received := await reader.read(65536)):
                for event in parser.feed(received):
                    self.id = event.id
                    if not event.data.startswith('{"event": '):
                        self.data.append(event.data)
                    elif (said := json.loads(event.data))["event"] in ("rejected", "reset"):
                        self.refused[said["reason"]] += 1
            return None if parser.retry_ms is None else parser.retry_ms / 1000
        except asyncio.IncompleteReadError:
            return None  # closed at accept
        finally:
            writer.transport.abort()


@pytest.mark.parametrize("rate", [0, 300], ids=["without a rate limit", "with one"])
def test_everybody_comes_back_at_once(tmp_path: Path, rate: int) -> None:
    """All streams of a server that died reconnect in the same moment, to one that has the log."""
    count = many(10_000, 600)
    url = f"sqlite://{tmp_path}/events.db"
    with ServerProcess(tmp_path, broker__url=url) as first:
        id = publish(first, "a", "before")["id"]
        publish_all(first, [{"topic": "a", "data": f"missed {number}"} for number in range(20)])
        publish(first, "a", "done")
    with ServerProcess(
        tmp_path,
        broker__url=url,
        limits__connect_rate_per_ip=rate,
        limits__connect_burst_per_ip=100,
        limits__overload_retry_seconds=0.3,
    ) as server:
        watch = Watch(server)
        sources = [EventSource(server.port, id) for _ in range(count)]

        async def storm() -> list[float]:
            async with asking_for_health(server.port) as took, asyncio.TaskGroup() as group:
                for source in sources:
                    group.create_task(source.until_done())
            return took

        began = time.monotonic()
        took = asyncio.run(storm())
        print(f"{count} were back after {time.monotonic() - began:.1f} s, /health took {max(took):.3f} s at most")
        expected = [*(f"missed {number}" for number in range(20)), "done"]
        assert all(source.data == expected for source in sources)  # nobody was starved, and nobody missed anything
        refused = sum((source.refused for source in sources), Counter[str]())
        assert refused.keys() == ({"connect_rate_per_ip"} if rate else set())
        assert watch.rejected.keys() <= {"connect_rate_per_ip"}
        wait_until(lambda: watch.open == 0, what="no stream")
        assert metrics(server)["connections_opened_total"] == count


def test_ten_times_as_many_as_are_let_in(tmp_path: Path) -> None:
    """In one go, and they stay: a thousand streams are open, and each of the others was told or closed, and counted."""
    count, limit = many(10_000, 2000), many(1000, 200)
    with ServerProcess(tmp_path, limits__max_connections=limit, admin__port=free_port()) as server:
        watch = Watch(server)
        began = time.monotonic()
        assert server.admin_port is not None

        async def come(clients: list[socket.socket]) -> list[float]:
            loop = asyncio.get_running_loop()
            async with asking_for_health(server.admin_port or 0) as took:
                for number in range(count):
                    client = socket.socket()
                    client.setblocking(False)
                    clients.append(client)
                    with suppress(ConnectionError):
                        await loop.sock_connect(client, ("127.0.0.1", server.port))
                        await loop.sock_sendall(client, REQUEST)
                    if not number % 50:
                        await asyncio.sleep(0)
                while watch.open + sum(watch.rejected.values()) < count:
                    assert time.monotonic() - began < 200
                    await asyncio.sleep(0.1)
            return took

        clients: list[socket.socket] = []
        try:
            took = asyncio.run(come(clients))
            print(f"{count} came in {time.monotonic() - began:.1f} s, /health took {max(took):.3f} s at most")
            assert watch.open == limit
            assert watch.rejected.keys() <= {"max_connections", "max_sockets"}
            assert sum(watch.rejected.values()) == count - limit
        finally:
            for client in clients:
                client.close()
        wait_until(lambda: watch.open == 0, what="no stream")
        # And all places can be had again.
        again = [RawClient(server.port).get("/events") for _ in range(limit)]
        for one in again:
            one.until(b'"connected"')
        for one in again:
            one.close()


REQUEST = b"GET /events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"


def test_who_never_ends_a_request_does_not_keep_others_out(tmp_path: Path) -> None:
    """Slowloris, on headers and on bodies, with more sockets than there may be."""
    with ServerProcess(tmp_path, limits__max_connections=50, limits__max_sockets=60) as server:
        stream = RawClient(server.port).get("/events?topic=a")
        stream.until(b'"connected"')

        def no_stream() -> bool:
            with suppress(ConnectionError):  # while there are too many sockets, this one may be the one to go
                return metrics(server)["connections"] == 0
            return False

        slow = []
        for number in range(300):
            client = RawClient(server.port)
            slow.append(client)
            with suppress(ConnectionError):
                client.socket.sendall(
                    REQUEST[:-2]
                    if number % 2
                    else b"POST /events HTTP/1.1\r\nHost: x\r\n"
                    b"Authorization: Bearer test-key\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{"
                )
        assert publish(server, "a", "served")["subscribers"] == 1
        assert ask(server, "GET", "/health")[0].status == 200
        stream.until(b"data: served")
        for client in [*slow, stream]:
            client.close()
        wait_until(no_stream, what="no stream")


def test_five_hundred_stalled_readers_and_a_flood(tmp_path: Path) -> None:
    """Live readers get everything, /health answers, and what the stalled ones hold is bounded."""
    bound = 16 * MIB
    stalled_count = many(500, 200)
    with ServerProcess(
        tmp_path, limits__max_backlog_bytes=256 * 1024, limits__max_total_backlog_bytes=bound,
        limits__tcp_user_timeout_seconds=60, limits__backlog_grace_seconds=0,
    ) as server:  # fmt: skip
        watch = Watch(server)
        stalled = [RawClient(server.port, receive_buffer=4096).get("/events?topic=a") for _ in range(stalled_count)]
        live = [RawClient(server.port).get("/events?topic=a") for _ in range(5)]
        for client in [*stalled, *live]:
            client.until(b'"connected"')
        before = resident_bytes(server)
        numbers = []
        for number in range(60):
            publish_all(server, [{"topic": "a", "data": f"{number}.{part} " + "x" * 4000} for part in range(5)])
            numbers += [f"{number}.{part} " for part in range(5)]
            for client in live:
                client.until(f"data: {number}.4 ".encode())
            if not number % 10:
                assert ask(server, "GET", "/health")[0].status == 200
        for client in live:
            client.until(b"data: 59.4 " + b"x" * 4000)
            assert [data[:-4000] for data in data_of(client)] == numbers
        # What they wait for is the same bytes for all of them, and the history holds them, too.
        assert resident_bytes(server) - before < bound + 8 * MIB
        wait_until(lambda: watch.closed.get("slow_consumer") == stalled_count, what="the shedding")
        assert watch.closed == {"slow_consumer": stalled_count}
        for client in [*stalled, *live]:
            client.close()
        wait_until(lambda: watch.open == 0, what="no stream")
        assert metrics(server)["backlog_bytes"] == 0


def test_thousands_with_sixty_four_topics_each(tmp_path: Path) -> None:
    """No two ask for the same; each gets what is for it, once, and nothing is left of their topics."""
    count = many(5000, 300)
    random = Random(1)
    with ServerProcess(tmp_path, history__max_events=100) as server:
        watch = Watch(server)
        asked = [sorted(random.sample(range(2000), 62)) for _ in range(count)]
        clients = []
        for number, topics in enumerate(asked):
            names = [*(f"t/{topic}" for topic in topics), f"own/{number}", f"some/{number % 10}/*"]
            clients.append(RawClient(server.port).get("/events?" + "&".join(f"topic={name}" for name in names)))
        for client in clients:
            client.until(b'"connected"')
        assert metrics(server)["topics"] == count
        assert publish(server, "nobody", 1)["subscribers"] == 0
        assert publish(server, "own/7", "for one")["subscribers"] == 1
        assert publish(server, "some/3/x", "for a tenth")["subscribers"] == count // 10
        several = {"topic": [f"t/{topic}" for topic in range(64)], "data": "once"}
        wanted = [bool(set(topics) & set(range(64))) for topics in asked]
        assert publish_all(server, [several])["subscribers"] == sum(wanted)
        publish_all(server, [{"topic": f"own/{number}", "data": "the end"} for number in range(count)])
        for number, client in enumerate(clients):
            client.until(b"data: the end\n\n")
            expected = ["for one"] * (number == 7) + ["for a tenth"] * (number % 10 == 3)
            assert data_of(client) == [*expected, *["once"] * wanted[number], "the end"]
            client.close()
        wait_until(lambda: metrics(server)["topics"] == 0, what="no topic")
        assert watch.closed == {"client": count}
