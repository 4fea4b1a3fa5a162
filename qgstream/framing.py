"""How what is said to a client is put on the wire. Pure: bytes out."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from qgstream import sse


class Message(NamedTuple):
    """What the server itself says, in no framing yet: `data` is JSON text."""

    data: bytes
    id: str | None = None
    retry_ms: int | None = None

    def as_sse(self) -> bytes:
        """An event of a stream of Server-Sent Events."""
        return sse.encode(self.data, id=self.id, retry_ms=self.retry_ms)


class Framing(IntEnum):
    """How an event is wrapped for its transport."""

    CHUNKED = 0  # HTTP/1.1
    RAW = 1  # HTTP/1.0: the body ends with the connection

    def wrap(self, payload: bytes) -> bytes:
        """What is to be said, as the transport has it."""
        return sse.chunk(payload) if self is Framing.CHUNKED else payload

    def frame(self, message: Message) -> bytes:
        """The bytes of a message of the server's own."""
        return self.wrap(message.as_sse())

    @property
    def end(self) -> bytes:
        """What ends the stream cleanly."""
        return sse.LAST_CHUNK if self is Framing.CHUNKED else b""
