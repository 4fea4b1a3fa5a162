"""Framing: turns events and messages into the bytes of a transport. Pure: bytes out."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from qgstream.reasons import CloseReason
from qgstream.wire import sse
from qgstream.wire import websocket_frames as frames


class Message(NamedTuple):
    """A message of the server itself, before framing: `data` is JSON text."""

    data: bytes
    id: str | None = None
    retry_ms: int | None = None

    def as_sse(self) -> bytes:
        """Encode the message as a Server-Sent Event."""
        return sse.encode(self.data, id=self.id, retry_ms=self.retry_ms)

    def as_json(self) -> bytes:
        """Encode the message for a WebSocket: a JSON object with the fields of the event. Unlike events it has no
        `"topic"`."""
        id = f'"id": "{self.id}", ' if self.id is not None else ""
        retry = f'"retry": {self.retry_ms}, ' if self.retry_ms is not None else ""
        return b'{%b"data": %b}' % ((id + retry).encode(), self.data)


class Framing(IntEnum):
    """The framing of an event for its transport."""

    CHUNKED = 0  # HTTP/1.1
    RAW = 1  # HTTP/1.0: the body ends with the connection
    # 2 and 3 are CHUNKED and RAW with an envelope, for subscriptions; on a WebSocket every event has an envelope
    WEBSOCKET = 4

    def wrap(self, payload: bytes) -> bytes:
        """Frame a payload for the transport."""
        if self is Framing.CHUNKED:
            return sse.chunk(payload)
        return frames.text(payload) if self is Framing.WEBSOCKET else payload

    def frame(self, message: Message) -> bytes:
        """Encode and frame a message of the server itself."""
        return self.wrap(message.as_json() if self is Framing.WEBSOCKET else message.as_sse())

    def end(self, reason: CloseReason) -> bytes:
        """Return the bytes that end the stream cleanly."""
        if self is Framing.CHUNKED:
            return sse.LAST_CHUNK
        return frames.close(frames.CLOSE_CODES[reason], reason) if self is Framing.WEBSOCKET else b""
