"""The event stream format: encode, frame and parse. Pure: bytes in, bytes out.

Source: WHATWG HTML, section 9.2 "Server-sent events".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

CONTENT_TYPE = "text/event-stream; charset=utf-8"

# 9.2.5: end-of-line = ( cr lf / cr / lf ). Never splitlines(): it also splits on U+2028, U+0085 and others, and
# would silently rewrite payloads. In UTF-8 these two bytes never occur inside another character.
_END_OF_LINE = re.compile(rb"\r\n|\r|\n")

# The parser's bound on one unfinished event. Others: browsers have none, websockets refuses messages over 1 MiB.
DEFAULT_MAX_PENDING_BYTES = 16 * 1024 * 1024

LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Event:
    """One dispatched event, as a client sees it.

    `event` is `"message"` when the stream named none, `id` the last event id in force (it outlives its event),
    `retry_ms` the reconnection time that arrived with or before this event, in milliseconds.
    """

    data: str
    event: str = "message"
    id: str = ""
    retry_ms: int | None = None


def encode(data: bytes, *, event: str | None = None, id: str | None = None, retry_ms: int | None = None) -> bytes:
    """One event on the wire.

    `data` is UTF-8; a CR, LF or CRLF in it starts another `data:` line, so a reader gets each as LF. `event` and `id`
    must hold no line end: they are checked once, where they come in (`topics.check_text`).
    """
    head = ""
    if retry_ms is not None:
        head = f"retry: {retry_ms}\n"
    if id is not None:
        head += f"id: {id}\n"
    if event is not None:
        head += f"event: {event}\n"
    # 9.2.6: one space after the colon is removed, so writing it always keeps a payload's own leading space.
    if b"\n" in data or b"\r" in data:
        data = _END_OF_LINE.sub(b"\ndata: ", data)
    return b"%bdata: %b\n\n" % (head.encode(), data)


def comment(text: str, *, id: str | None = None) -> bytes:
    """A comment, which fires no event; with `id` the client's position moves all the same.

    9.2.6: an `id` field counts even in a block without data ("set the last event ID string ... then, if the data
    buffer is an empty string, ... return").
    """
    return (f": {text}\nid: {id}\n\n" if id is not None else f": {text}\n\n").encode()


def chunk(payload: bytes) -> bytes:
    """The payload as one chunk of HTTP/1.1's chunked transfer coding (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


class Parser:
    """Incremental parser: feed bytes as they come, get events as they complete.

    `last_event_id` and `retry_ms` are what a client must keep for its next connection. Bytes that are not UTF-8 become
    U+FFFD, as in a browser. Raises `ValueError` when one event grows over `max_pending_bytes`.
    """

    def __init__(self, *, last_event_id: str = "", max_pending_bytes: int = DEFAULT_MAX_PENDING_BYTES) -> None:
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        self._max_pending_bytes = max_pending_bytes
        self._pending = b""
        self._started = False
        self._id = last_event_id
        self._event = ""
        self._data: list[str] = []
        self._data_bytes = 0

    def feed(self, received: bytes) -> Iterator[Event]:
        """Yield each event that `received` completes."""
        buffer = self._pending + received
        if not self._started:
            # 9.2.5: one leading U+FEFF is stripped. Wait until it can be told.
            if b"\xef\xbb\xbf".startswith(buffer[:3]) and len(buffer) < 3:
                self._pending = buffer
                return
            buffer = buffer.removeprefix(b"\xef\xbb\xbf")
            self._started = True
        start = 0
        for end in _END_OF_LINE.finditer(buffer):
            if end[0] == b"\r" and end.end() == len(buffer):
                break  # a LF may follow: CRLF is one line end
            event = self._line(buffer[start : end.start()].decode("utf-8", "replace"))
            start = end.end()
            if event is not None:
                yield event
        self._pending = buffer[start:]
        if len(self._pending) + self._data_bytes > self._max_pending_bytes:
            raise ValueError(f"an event of more than {self._max_pending_bytes} bytes was received")

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
            self._data_bytes += len(value)
        elif field == "event":
            self._event = value
        elif field == "id":
            if "\0" not in value:
                self._id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value)
        return None

    def _dispatch(self) -> Event | None:
        self.last_event_id = self._id
        data, event = self._data, self._event
        self._data, self._event, self._data_bytes = [], "", 0
        if not data:
            return None
        return Event("\n".join(data), event or "message", self._id, self.retry_ms)
