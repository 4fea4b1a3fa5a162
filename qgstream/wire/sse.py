"""The event stream format: encode, frame and parse. Pure: bytes in, bytes out.

Source: WHATWG HTML, section 9.2 "Server-sent events".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

CONTENT_TYPE = "text/event-stream; charset=utf-8"

# 9.2.5: end-of-line = ( cr lf / cr / lf ). Never splitlines(), which also splits on U+2028, U+0085 and others, and
# would silently change payloads. In UTF-8, CR and LF never occur inside another character.
_END_OF_LINE = re.compile(rb"\r\n|\r|\n")

_BOM = b"\xef\xbb\xbf"

# A `retry:` with more digits counts as this many (30 000 years): int() raises ValueError for thousands of digits.
_MAX_RETRY_DIGITS = 15

# The parser's limit for one unfinished event. Browsers have no limit; the library websockets rejects messages over 1
# MiB.
DEFAULT_MAX_PENDING_BYTES = 16 * 1024 * 1024

LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Event:
    """One dispatched event, as a client sees the event.

    `event` is `"message"` if the stream named no type. `id` is the last event id in force, which stays in force for
    later events. `retry_ms` is the reconnection time in milliseconds that arrived with this event or earlier.
    """

    data: str
    event: str = "message"
    id: str = ""
    retry_ms: int | None = None


def encode(data: bytes, *, event: str | None = None, id: str | None = None, retry_ms: int | None = None) -> bytes:
    """Encode one event.

    `data` is UTF-8. A CR, LF or CRLF in `data` starts another `data:` line, so a reader receives each of the three as
    LF. `event` and `id` must not contain line ends: `topics.check_text` has checked both when they arrived.
    """
    head = ""
    if retry_ms is not None:
        head = f"retry: {retry_ms}\n"
    if id is not None:
        head += f"id: {id}\n"
    if event is not None:
        head += f"event: {event}\n"
    # 9.2.6: the reader removes one space after the colon. This space is always written, so a payload keeps its own
    # leading space.
    if b"\n" in data or b"\r" in data:
        data = _END_OF_LINE.sub(b"\ndata: ", data)
    return b"%bdata: %b\n\n" % (head.encode(), data)


def comment(text: str, *, id: str | None = None) -> bytes:
    """Encode a comment, which fires no event in the client; with `id`, the comment also moves the client's position.

    9.2.6: an `id` field counts even in a block without data ("set the last event ID string ... then, if the data buffer
    is an empty string, ... return").
    """
    return (f": {text}\nid: {id}\n\n" if id is not None else f": {text}\n\n").encode()


def chunk(payload: bytes) -> bytes:
    """Encode the payload as one chunk of HTTP/1.1's chunked transfer coding (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


class Parser:
    """Incremental parser: takes bytes as they arrive, and yields events as they complete.

    A client must keep `last_event_id` and `retry_ms` for its next connection. Bytes that are not UTF-8 become U+FFFD,
    as in a browser. The parser raises `ValueError` when one event has more than `max_pending_bytes`, including field
    names, line ends and the comments between its fields. The parser examines each byte only once, even if the pieces
    are small.
    """

    def __init__(self, *, last_event_id: str = "", max_pending_bytes: int = DEFAULT_MAX_PENDING_BYTES) -> None:
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        self._max_pending_bytes = max_pending_bytes
        self._bom = b""  # the start of the stream, until the parser knows whether it is a byte order mark
        self._started = False
        self._line = bytearray()  # an unfinished line
        self._after_cr = False
        self._block_bytes = 0  # the number of bytes in the lines of the unfinished event
        self._id = last_event_id
        self._event = ""
        self._data = bytearray()

    def feed(self, received: bytes) -> Iterator[Event]:
        """Yield each event that `received` completes."""
        if not self._started:
            # 9.2.5: one leading U+FEFF is removed.
            received = self._bom + received
            if len(received) < len(_BOM) and _BOM.startswith(received):
                self._bom = received
                return
            received = received.removeprefix(_BOM)
            self._started = True
        if not received:
            return
        # A CR ends its line at once: waiting for the LF of a possible CRLF would delay the event.
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
            raise ValueError(f"got an event that is too long, expected at most {self._max_pending_bytes} bytes")

    def _end_line(self, line: bytes) -> Event | None:
        if not line:
            return self._dispatch()
        self._check_size(len(line))
        # Comments before an event are not counted and not kept: some servers send only comments for hours.
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
        elif field == b"retry" and value.isdigit():  # for bytes, isdigit() accepts only ASCII digits
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
        # The line feed after the last line is removed.
        return Event(data[:-1].decode("utf-8", "replace"), event or "message", self._id, self.retry_ms)
