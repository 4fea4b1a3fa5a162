"""A server that answers each connection as the test has written down, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"


def stream(*blocks: str) -> bytes:
    """A stream of these blocks that ends by closing."""
    return STREAM + "".join(f"{block}\n\n" for block in blocks).encode()


def own(word: str, *, id: str = "", retry_ms: int = 1, **fields: str) -> str:
    """A message of the server's own."""
    data = json.dumps({"event": word, "timestamp": "2026-11-22T21:25:14.246292+00:00", **fields})
    return f"retry: {retry_ms}\n" + (f"id: {id}\n" if id else "") + f"data: {data}"


def enveloped(id: str, topic: str | list[str] = "t", *, data: str = "1", event: str | None = None) -> str:
    """A published event; `data` is JSON text."""
    head = json.dumps({"id": id, "topic": topic, "event": event})
    return f"id: {id}\n" + (f"event: {event}\n" if event else "") + f'data: {head[:-1]}, "data": {data}}}'


def refused(status: int, body: str = "", *headers: str) -> bytes:
    """An answer that is no stream."""
    lines = [f"HTTP/1.1 {status} No", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def error(code: str, message: str = "no") -> str:
    """The JSON of a refusal."""
    return json.dumps({"error": {"code": code, "message": message}})


@dataclass
class Script:
    """Answers connection by connection; after the last answer connections stay open and silent.

    `asked` has the head and body of each request. `was_asked` is set by the first, `gone` by a client that has closed
    a silent connection.
    """

    answers: list[Answer]
    tls: ssl.SSLContext | None = None
    asked: list[str] = field(default_factory=list)
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next((int(x[15:]) for x in head.lower().split("\r\n") if x.startswith("content-length:")), 0)
            self.asked.append(head + (await reader.readexactly(length)).decode())
            self.was_asked.set()
            answer: Answer = self.answers.pop(0) if self.answers else stream(own("connected"))
            if callable(answer):
                await answer(writer)
            else:
                writer.write(answer)
                if self.answers:
                    return
            await reader.read()
            self.gone.set()
        except (OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass  # the client has left, or the test is over
        finally:
            writer.close()
            self._tasks.discard(task)

    def header(self, name: str) -> list[str]:
        """What each request had in this header; nothing is ""."""
        name = f"{name.lower()}: "
        return [
            next((line[len(name) :] for line in ask.split("\r\n") if line.lower().startswith(name)), "")
            for ask in self.asked
        ]
