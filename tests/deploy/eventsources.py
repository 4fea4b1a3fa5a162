"""EventSources through a proxy: each comes back as the standard says, or stops for good."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from qgstream.wire.sse import Event, Parser
from tests.fleet.clients import Body

SECONDS = 60.0  # how long a failure takes
AWAY_MS = 5000  # what the files in deploy/ say at least when no server has answered; no server here says so much


class EventSource:
    """Opens `/events?topic=numbers` again and again, each time after `retry:`, with its last id."""

    def __init__(self, port: int, certificate: Path) -> None:
        self._port = port
        self._tls = ssl.create_default_context(cafile=certificate)
        self._parser = Parser()
        self.is_open = False
        self.opened = 0  # streams
        self.sent_away = 0  # answers of the proxy itself
        self.stopped: bytes | None = None  # the answer that would have stopped a browser for good
        self.numbers: list[int] = []
        self.resets: list[str] = []

    async def live(self) -> None:
        """Until it is cancelled, or stopped."""
        while self.stopped is None:
            before, self._parser = self._parser, Parser(last_event_id=self._parser.last_event_id)
            self._parser.retry_ms = before.retry_ms
            with suppress(OSError, EOFError):
                await self._connect()
            self.is_open = False
            await asyncio.sleep((self._parser.retry_ms or 0) / 1000)

    async def _connect(self) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._tls, server_hostname="localhost"
        )
        body, id = Body(), self._parser.last_event_id
        # One answer is read, to its end.
        lines = ["GET /events?topic=numbers HTTP/1.1", f"Host: localhost:{self._port}", "Connection: close"]
        lines += ["Accept: text/event-stream"]
        lines += [f"Last-Event-ID: {id}"] if id else []
        try:
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            while not body.is_complete and (piece := await reader.read(65536)):
                blocks = body.feed(piece)
                if body.head is not None and not body.head.startswith(b"HTTP/1.1 200 "):
                    self.stopped = body.head
                    return
                for block in blocks:
                    self._take(block)
        finally:
            writer.transport.abort()

    def _take(self, block: bytes) -> None:
        before = self._parser.retry_ms
        events = list(self._parser.feed(block))
        if not events and self._parser.retry_ms != before and (self._parser.retry_ms or 0) >= AWAY_MS:
            self.sent_away += 1
        for event in events:
            self._on_event(event)

    def _on_event(self, event: Event) -> None:
        if event.event == "number":
            self.numbers.append(int(event.data))
            return
        said = json.loads(event.data)
        if said["event"] == "connected":
            self.is_open = True
            self.opened += 1
        elif said["event"] == "reset":
            self.resets.append(said["reason"])


class Crowd:
    """Many of them, until the end of the block."""

    def __init__(self, port: int, certificate: Path, count: int) -> None:
        self.all: Sequence[EventSource] = [EventSource(port, certificate) for _ in range(count)]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Sequence[EventSource]:
        self._tasks = [asyncio.create_task(one.live()) for one in self.all]
        await until(lambda: all(one.is_open for one in self.all), "all streams")
        return self.all

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Return as soon as `condition()` is true."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SECONDS
    while not condition():
        assert loop.time() < deadline, f"{what}: not within {SECONDS} s"
        await asyncio.sleep(0.02)
