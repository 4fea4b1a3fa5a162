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

_BOM = b"\xef\xbb\xbf"

# More digits of `retry:` are as good as these, 30 000 years: int() refuses thousands of them.
_MAX_RETRY_DIGITS = 15

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
    U+FFFD, as in a browser. Raises `ValueError` when one event has more than `max_pending_bytes`, field names, line
    ends and comments between its fields included. Each byte is looked at once, however small the pieces are.
    """

    def __init__(self, *, last_event_id: str = "", max_pending_bytes: int = DEFAULT_MAX_PENDING_BYTES) -> None:
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        self._max_pending_bytes = max_pending_bytes
        self._bom = b""  # the beginning of the stream, until it can be told whether it is a byte order mark
        self._started = False
        self._line = bytearray()  # a line whose end has not come
        self._after_cr = False
        self._block_bytes = 0  # of the lines of the event that is not complete
        self._id = last_event_id
        self._event = ""
        self._data = bytearray()

    def feed(self, received: bytes) -> Iterator[Event]:
        """Yield each event that `received` completes."""
        if not self._started:
            # 9.2.5: one leading U+FEFF is stripped.
            received = self._bom + received
            if len(received) < len(_BOM) and _BOM.startswith(received):
                self._bom = received
                return
            received = received.removeprefix(_BOM)
            self._started = True
        if not received:
            return
        # A CR ends its line at once: nobody waits for the next byte to learn whether it is the LF of a CRLF.
        start = int(self._after_cr and received.startswith(b"\n"))
        for end in _END_OF_LINE.finditer(received, start):
            line = received[start : end.start()]
            start = end.end()
            if self._line:
                line = bytes(self._line + line)
                self._line = bytearray()
            event = self._end_line(line)
            if event is not None:
                yield event
        self._after_cr = received.endswith(b"\r")
        if start < len(received):
            self._line += received[start:]
            self._check_size(len(self._line))

    def _check_size(self, line_bytes: int) -> None:
        if self._block_bytes + line_bytes > self._max_pending_bytes:
            raise ValueError(f"an event of more than {self._max_pending_bytes} bytes was received")

    def _end_line(self, line: bytes) -> Event | None:
        if not line:
            return self._dispatch()
        self._check_size(len(line))
        # Comments alone are no event: some servers send nothing else for hours, and nothing of them is kept.
        if self._block_bytes or not line.startswith(b":"):
            self._block_bytes += len(line) + 1
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data += value
            self._data += b"\n"
        elif field == b"event":
            self._event = value.decode("utf-8", "replace")
        elif field == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif field == b"retry" and value.isdigit():  # of bytes only ASCII digits are
            digits = value.lstrip(b"0")
            self.retry_ms = int(digits or b"0") if len(digits) <= _MAX_RETRY_DIGITS else 10**_MAX_RETRY_DIGITS
        return None

    def _dispatch(self) -> Event | None:
        self.last_event_id = self._id
        data, event = self._data, self._event
        self._event, self._block_bytes = "", 0
        if not data:
            return None
        self._data = bytearray()
        # One line feed is removed, the one after the last line.
        return Event(data[:-1].decode("utf-8", "replace"), event or "message", self._id, self.retry_ms)
