"""Decoding a chunked body in the buffer where the body arrives. Pure. Source: RFC 9112, section 7.1.

Extensions and trailers are validated and discarded. Only CRLF ends a line: if two servers disagree about a lone LF,
they see different ends of the body, and an attacker can smuggle a request between the two ends.
"""

from __future__ import annotations

import re

from qgstream.errors import MalformedRequest, QgstreamError, TooLarge
from qgstream.net.http1.request_head import parse_trailers

# The limit of one line with a chunk's size and extensions, and the limit of all trailers. "A server ought to limit the
# total length of chunk extensions": no known client sends any. nginx accepts what fits its buffer of about 4 KiB.
MAX_LINE_BYTES = 1024
MAX_TRAILER_BYTES = 16 * 1024
# The most bytes taken at a time, so that other work on the event loop gets its turn.
PIECE_BYTES = 64 * 1024

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"'
# 16 digits are more than any limit on a body; leading zeros are allowed.
_SIZE_LINE = re.compile(
    rb"(?=[0-9A-Fa-f])0*+([0-9A-Fa-f]{0,16}+)(?:[ \t]*+;[ \t]*+%b(?:[ \t]*+=[ \t]*+(?:%b|%b))?+)*+\r\n"
    % (_TOKEN, _TOKEN, _QUOTED)
)


class ChunkedBody:
    """Decodes a chunked body of at most `max_bytes`.

    An instance has the interface of a compiled regular expression, so that an `IOStream` can read with it. `search`
    returns a match when there is data to take. `end` is the number of bytes of the buffer that were parsed. `take`
    returns the decoded data, `is_complete` says that the body has ended, and `error` describes malformed data.
    """

    def __init__(self, max_bytes: int) -> None:
        self.data = bytearray()
        self.is_complete = False
        self.error: QgstreamError | None = None
        self._max_bytes = max_bytes
        self._total_bytes = 0
        self._at = 0  # the parse position in the buffer
        self._left: int | None = None  # the remaining bytes of the chunk, without its CRLF; None between two chunks
        self._in_trailers = False

    def search(self, buffer: bytearray) -> ChunkedBody | None:
        """Continue to parse. The buffer is the buffer of the last call with new bytes appended, or the bytes after
        `end`."""
        try:
            while not self.is_complete and self._at < PIECE_BYTES and self._step(buffer):
                pass
        except QgstreamError as error:
            self.error = error.with_traceback(None)
            return self
        return self if self.is_complete or self._at >= PIECE_BYTES else None

    def end(self) -> int:
        """Return the number of parsed bytes at the start of the buffer; the caller removes these bytes."""
        at, self._at = self._at, 0
        return at

    def take(self) -> bytes:
        """Return the data decoded since the last call."""
        data = bytes(self.data)
        self.data.clear()
        return data

    def _step(self, buffer: bytearray) -> bool:
        """Parse one part. Return whether another part may follow."""
        if self._in_trailers:
            return self._read_trailers(buffer)
        if self._left is None:
            return self._read_size(buffer)
        if self._left:
            with memoryview(buffer) as whole, whole[self._at : self._at + self._left] as part:
                self.data += part
                self._at += len(part)
                self._left -= len(part)
            return self._left == 0
        return self._read_end_of_chunk(buffer)

    def _read_size(self, buffer: bytearray) -> bool:
        found = buffer.find(b"\n", self._at, self._at + MAX_LINE_BYTES)
        if found < 0:
            if len(buffer) - self._at >= MAX_LINE_BYTES:
                raise MalformedRequest(f"chunk: got a size line that is too long, limit {MAX_LINE_BYTES} bytes")
            return False
        line = bytes(buffer[self._at : found + 1])
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise MalformedRequest(f"chunk: got the size line {line[:60]!r}, expected a hexadecimal number")
        self._at = found + 1
        size = int(match[1] or b"0", 16)
        self._total_bytes += size
        if self._total_bytes > self._max_bytes:
            raise TooLarge("body", self._total_bytes, self._max_bytes)
        self._in_trailers, self._left = size == 0, size
        return True

    def _read_end_of_chunk(self, buffer: bytearray) -> bool:
        end = bytes(buffer[self._at : self._at + 2])
        if not b"\r\n".startswith(end):
            raise MalformedRequest(f"chunk: got {end!r} after the data, expected CRLF")
        if len(end) < 2:
            return False
        self._at += 2
        self._left = None
        return True

    def _read_trailers(self, buffer: bytearray) -> bool:
        if buffer.startswith(b"\r\n", self._at):  # no trailers, the common case
            self._at += 2
            self.is_complete = True
            return False
        found = buffer.find(b"\r\n\r\n", self._at, self._at + MAX_TRAILER_BYTES)
        if found < 0:
            if len(buffer) - self._at >= MAX_TRAILER_BYTES:
                raise MalformedRequest(f"trailers: got too many bytes, expected at most {MAX_TRAILER_BYTES}")
            return False
        section = bytes(buffer[self._at : found + 4])
        if section.count(b"\n") != section.count(b"\r\n"):
            raise MalformedRequest("trailers: got a line that ends in a lone LF, expected CRLF")
        parse_trailers(section)
        self._at = found + 4
        self.is_complete = True
        return False
