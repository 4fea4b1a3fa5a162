"""Raw clients on asyncio: a stream that stops reading, cuts and resumes, and a connection that publishes."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from contextlib import suppress
from urllib.parse import urlsplit

from qgstream.wire.sse import Event, Parser
from tests.fleet.judge import Witness
from tests.fleet.ledger import Violation

ANSWER_SECONDS = 60.0


class Body:
    """Takes HTTP framing off a response: the head, then the blocks of the event stream, each with its empty line."""

    def __init__(self) -> None:
        self.head: bytes | None = None
        self.is_complete = False  # the last chunk was read
        self._raw = bytearray()
        self._blocks = bytearray()
        self._chunked = False

    def feed(self, received: bytes) -> list[bytes]:
        """The blocks that `received` completes. Raises ValueError for bad framing."""
        self._raw += received
        if self.head is None:
            head, end, rest = self._raw.partition(b"\r\n\r\n")
            if not end:
                return []
            self.head = bytes(head)
            self._chunked = b"\r\ntransfer-encoding: chunked" in head.lower()
            self._raw = rest
        if self._chunked:
            self._unchunk()
        else:
            self._blocks += self._raw
            self._raw.clear()
        *blocks, rest = self._blocks.split(b"\n\n")
        self._blocks = rest
        return [bytes(block) + b"\n\n" for block in blocks]

    def _unchunk(self) -> None:
        raw, at = self._raw, 0
        while (line := raw.find(b"\r\n", at)) >= 0:
            size = int(raw[at:line], 16)
            end = line + 2 + size + 2
            if len(raw) < end:
                break
            if self.is_complete or raw[end - 2 : end] != b"\r\n":
                raise ValueError(f"bad chunked coding: {bytes(raw[at : at + 80])!r}")
            self.is_complete = size == 0
            self._blocks += raw[line + 2 : end - 2]
            at = end
        del raw[:at]


class Stream(asyncio.Protocol):
    """One connection of a subscriber, judged by its witness. `closed` is done when it has ended, however it did."""

    def __init__(self, witness: Witness | None, parser: Parser, *, cut_after_bytes: int | None = None) -> None:
        self.witness = witness
        self.parser = parser
        self.body = Body()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.violation: Violation | None = None
        self._allowance = cut_after_bytes
        self._transport: asyncio.Transport | None = None

    async def open(self, url: str, target: str, *headers: str, http: str, receive_buffer: int | None = None) -> None:
        """Connect and send the request. Raises OSError."""
        address = urlsplit(url)
        assert address.hostname is not None
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        try:
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            await loop.sock_connect(sock, (address.hostname, address.port))
            transport, _ = await loop.create_connection(lambda: self, sock=sock)
        except BaseException:
            sock.close()
            raise
        lines = [f"GET {target} HTTP/{http}", f"Host: {address.netloc}", "Accept: text/event-stream", *headers]
        transport.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.violation is not None or self._transport is None:
            return
        if self._allowance is not None:
            # A client may vanish in the middle of anything: what it has of an unfinished event counts for nothing.
            data, left = data[: self._allowance], self._allowance - len(data)
            self._allowance = left
        try:
            blocks = self.body.feed(data)
            if self.body.head is not None and not self.opened.done():
                self._check_head(self.body.head)
                self.opened.set_result(None)
            for block in blocks:
                self._block(block)
        except Violation as violation:
            self.violation = violation
            self.cut()
        except ValueError as error:
            name = self.witness.name if self.witness is not None else "a stream"
            self.violation = Violation(name, "HTTP and an event stream", str(error))
            self.cut()
        if self._allowance is not None and self._allowance <= 0:
            self.cut(reset=True)

    def _check_head(self, head: bytes) -> None:
        if not head.split(b"\r\n")[0].endswith(b" 200 OK") or b"text/event-stream" not in head:
            # Any other answer stops an EventSource for good.
            raise ValueError(f"answered {head!r}")

    def _block(self, block: bytes) -> None:
        before = self.parser.last_event_id
        dispatched = False
        for event in self.parser.feed(block):
            dispatched = True
            self.on_event(event)
        if not dispatched and self.parser.last_event_id != before:
            self.on_moved(self.parser.last_event_id)

    def on_event(self, event: Event) -> None:
        """An event was dispatched."""
        if self.witness is not None:
            self.witness.dispatched(event)

    def on_moved(self, id: str) -> None:
        """A block without data changed the last event id."""
        if self.witness is not None:
            self.witness.moved(id)

    def eof_received(self) -> None:
        """The server closed; the transport closes too."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)

    # What a client can do to a server.

    def stall(self) -> None:
        """Stop reading: the buffers of both kernels fill."""
        if self._transport is not None:
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def cut(self, *, reset: bool = False) -> None:
        """Leave at once, with RST or with FIN; nothing that arrives later is seen."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        if reset:
            with suppress(OSError):  # closed by itself a moment ago
                sock = transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


class Post:
    """A keep-alive connection that publishes."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __call__(self, body: bytes, content_type: str = "application/json") -> tuple[int, dict[str, object]]:
        """The answer to one publish: status and document. OSError or EOFError: nobody knows what came of it."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._post(body, content_type)
        except BaseException:
            self.close()
            raise

    async def _post(self, body: bytes, content_type: str) -> tuple[int, dict[str, object]]:
        address = urlsplit(self.url)
        if self._streams is None:
            self._streams = await asyncio.open_connection(address.hostname, address.port)
        reader, writer = self._streams
        head = [
            "POST /events HTTP/1.1", f"Host: {address.netloc}", f"Authorization: Bearer {self.key}",
            f"Content-Type: {content_type}", f"Content-Length: {len(body)}",
        ]  # fmt: skip
        writer.write(("\r\n".join(head) + "\r\n\r\n").encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        status, _, headers = answer.partition(b"\r\n")
        found = re.search(rb"(?i)^content-length: (\d+)", headers, re.MULTILINE)
        assert found is not None, answer
        document: dict[str, object] = json.loads(await reader.readexactly(int(found[1])))
        return int(status.split()[1]), document

    def close(self) -> None:
        """Close the connection; the next publish opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
