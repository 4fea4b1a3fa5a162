"""How what is said to a client is put on the wire. Pure: bytes out."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from qgstream.reasons import CloseReason
from qgstream.wire import sse
from qgstream.wire import websocket_frames as frames


class Message(NamedTuple):
    """What the server itself says, in no framing yet: `data` is JSON text."""

    data: bytes
    id: str | None = None
    retry_ms: int | None = None

    def as_sse(self) -> bytes:
        """An event of a stream of Server-Sent Events."""
        return sse.encode(self.data, id=self.id, retry_ms=self.retry_ms)

    def as_json(self) -> bytes:
        """A message on a WebSocket: the fields of the event in a JSON object. It has no `"topic"`, as events have."""
        id = f'"id": "{self.id}", ' if self.id is not None else ""
        retry = f'"retry": {self.retry_ms}, ' if self.retry_ms is not None else ""
        return b'{%b"data": %b}' % ((id + retry).encode(), self.data)


class Framing(IntEnum):
    """How an event is wrapped for its transport."""

    CHUNKED = 0  # HTTP/1.1
    RAW = 1  # HTTP/1.0: the body ends with the connection
    WEBSOCKET = 4  # 2 and 3 are those above with an envelope, for subscriptions; here every event has one

    def wrap(self, payload: bytes) -> bytes:
        """What is to be said, as the transport has it."""
        if self is Framing.CHUNKED:
            return sse.chunk(payload)
        return frames.text(payload) if self is Framing.WEBSOCKET else payload

    def frame(self, message: Message) -> bytes:
        """The bytes of a message of the server's own."""
        return self.wrap(message.as_json() if self is Framing.WEBSOCKET else message.as_sse())

    def end(self, reason: CloseReason) -> bytes:
        """What ends the stream cleanly."""
        if self is Framing.CHUNKED:
            return sse.LAST_CHUNK
        return frames.close(frames.CLOSE_CODES[reason], reason) if self is Framing.WEBSOCKET else b""
