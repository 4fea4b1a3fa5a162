"""A body in chunks, read out of the buffer that it comes in. Pure. Source: RFC 9112, section 7.1.

Extensions and trailers are checked and passed over. Line ends are CRLF and nothing else: a reader that takes a lone LF
for one sees another end of the body than its neighbour does, and what lies between the two ends is a smuggled request.
"""

from __future__ import annotations

import re

from qgstream.errors import MalformedRequest, QgstreamError, TooLarge
from qgstream.net.http1.request_head import parse_trailers

# Of one line with a chunk's size and extensions; of all trailers. "A server ought to limit the total length of chunk
# extensions": nobody is known to send any. nginx takes what fits its buffer of 4 KiB or so.
MAX_LINE_BYTES = 1024
MAX_TRAILER_BYTES = 16 * 1024
# So much is taken at once before the rest of the loop has its turn.
PIECE_BYTES = 64 * 1024

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"'
# 16 digits are more than any bound on a body; zeros before them are allowed.
_SIZE_LINE = re.compile(
    rb"(?=[0-9A-Fa-f])0*+([0-9A-Fa-f]{0,16}+)(?:[ \t]*+;[ \t]*+%b(?:[ \t]*+=[ \t]*+(?:%b|%b))?+)*+\r\n"
    % (_TOKEN, _TOKEN, _QUOTED)
)


class ChunkedBody:
    """What comes of a body in chunks, at most `max_bytes` of it.

    It looks at a buffer as a compiled regular expression does, so that an `IOStream` can read with it: `search` says
    whether there is something to take, `end` how much of the buffer is behind us then. `data` is what was found
    meanwhile, `is_complete` says that the body is over, and `error` what is wrong with it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.data = bytearray()
        self.is_complete = False
        self.error: QgstreamError | None = None
        self._max_bytes = max_bytes
        self._total_bytes = 0
        self._at = 0  # how far the buffer was read
        self._left: int | None = None  # bytes to come of the chunk, its CRLF not counted; None between two chunks
        self._in_trailers = False

    def search(self, buffer: bytearray) -> ChunkedBody | None:
        """Read on. The buffer is that of the last call with more behind it, or what is left after `end`."""
        try:
            while not self.is_complete and self._at < PIECE_BYTES and self._step(buffer):
                pass
        except QgstreamError as error:
            self.error = error.with_traceback(None)
            return self
        return self if self.is_complete or self._at >= PIECE_BYTES else None

    def end(self) -> int:
        """How many bytes at the beginning of the buffer are read, and are to be removed."""
        at, self._at = self._at, 0
        return at

    def take(self) -> bytes:
        """What was found since the last time."""
        data = bytes(self.data)
        self.data.clear()
        return data

    def _step(self, buffer: bytearray) -> bool:
        """Read one part. Whether there may be another."""
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
                raise MalformedRequest(f"chunk: got a first line of more than {MAX_LINE_BYTES} bytes")
            return False
        line = bytes(buffer[self._at : found + 1])
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise MalformedRequest(
                f"chunk: got the first line {line[:60]!r}, expected its size as a hexadecimal number"
            )
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
            raise MalformedRequest(f"chunk: got {end!r} behind its data, expected CRLF")
        if len(end) < 2:
            return False
        self._at += 2
        self._left = None
        return True

    def _read_trailers(self, buffer: bytearray) -> bool:
        if buffer.startswith(b"\r\n", self._at):  # there are none, as nearly always
            self._at += 2
            self.is_complete = True
            return False
        found = buffer.find(b"\r\n\r\n", self._at, self._at + MAX_TRAILER_BYTES)
        if found < 0:
            if len(buffer) - self._at >= MAX_TRAILER_BYTES:
                raise MalformedRequest(f"trailers: got more than {MAX_TRAILER_BYTES} bytes")
            return False
        section = bytes(buffer[self._at : found + 4])
        if section.count(b"\n") != section.count(b"\r\n"):
            raise MalformedRequest("trailers: got a line that ends in LF alone, expected CRLF")
        parse_trailers(section)
        self._at = found + 4
        self.is_complete = True
        return False
