"""A Tornado stream for a client's connection, hardened against hostile clients."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable
from typing import Any, ClassVar, Protocol, cast

from tornado.iostream import IOStream, SSLIOStream

from qgstream.net.lingering_close import LingeringSockets
from qgstream.net.tls import send_close_notify


class Finder(Protocol):
    """The part of a compiled regular expression that reading a buffer needs."""

    def search(self, buffer: bytearray, /) -> Found | None:
        """Return the match; None if there is none yet. Between two calls the buffer only grows."""


class Found(Protocol):
    """A match."""

    def end(self) -> int:
        """Return the number of bytes up to the end of the match."""


class EndOfHead:
    """Finds the empty line after a request head and examines each byte only once.

    Tornado searches from the start of the buffer whenever bytes arrive, which takes 16 ms for a megabyte. A client that
    sends a megabyte and then single bytes could keep a processor busy with sixty packets a second.

    A head longer than `max_bytes` counts as found at that length. The server can then send an error response, where
    Tornado would close.
    """

    # Ends at the same place as Tornado's `\r?\n\r?\n`, at a third of the cost: the pattern starts with a rare byte.
    _pattern = re.compile(rb"\n\r?\n")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._seen = 0
        self._end = 0
        # when the first byte that is not part of an empty line arrived, on the monotonic clock
        self.begun_at: float | None = None

    def search(self, buffer: bytearray) -> EndOfHead | None:
        """See `re.Pattern.search`. The buffer is the buffer of the last call with new bytes appended."""
        found = self._pattern.search(buffer, max(0, self._seen - 2), self._max_bytes)
        self._seen = len(buffer)
        if found is None and self._seen < self._max_bytes:
            if self.begun_at is None and (self._seen > 4 or buffer.strip(b"\r\n")):
                self.begun_at = time.monotonic()
            return None
        self._end = self._max_bytes if found is None else found.end()
        return self

    def end(self) -> int:
        """See `Found`."""
        return self._end


class ClientStream(IOStream):
    """A stream whose client may be hostile."""

    # A class attribute: one more instance attribute would make Python allocate a dict of 1.3 KiB for every stream.
    lingering: ClassVar[LingeringSockets | None] = None  # None: the stream closes at once

    def read_until_found(self, finder: Finder) -> Awaitable[bytes]:
        """Read up to the match of `finder`. The same as `read_until_regex`, which would compile its argument."""
        future = self._start_read()
        self._read_regex = cast("re.Pattern[bytes]", finder)  # Tornado calls only `search`
        self._read_max_bytes = None
        try:
            self._try_inline_read()
        except BaseException:
            future.add_done_callback(lambda done: done.exception())  # the error is raised here
            raise
        return future

    def close(self, exc_info: Any = False) -> None:
        """See `IOStream`. The error is dropped, because the error would keep its stack frames alive, and the frames the
        stream, until the garbage collector runs. That costs 4.4 KiB for each reset, and with the thresholds of
        `process.server` the collector runs seldom."""
        super().close(exc_info)
        if self.error is not None:
            self.error.__traceback__ = None

    def close_fd(self) -> None:
        """See `IOStream`."""
        if self.lingering is None or self.error is not None:
            super().close_fd()
            return
        self.lingering.take(self.socket)
        self.socket = None  # type: ignore[assignment]  # as the base does

    def close_at_once(self) -> None:
        """Close the socket now to free its descriptor, without lingering."""
        self.end_lingering()
        self.close()

    def end_lingering(self) -> None:
        """Stop lingering: from now on the stream closes at once."""
        self.__class__ = TlsClientStream if isinstance(self, SSLIOStream) else ClientStream

    def _is_connreset(self, exc: BaseException) -> bool:
        """Treat a broken TLS record or a dead route as the end of the connection, like a reset, and not as an error to
        log or raise. The base class says: "May be overridden in subclasses"."""
        return isinstance(exc, OSError)


class TlsClientStream(ClientStream, SSLIOStream):
    """The same over TLS. It sends close_notify after all data, so that a client can tell a complete response from a cut
    one."""

    def close_fd(self) -> None:
        """See `IOStream`."""
        if self.error is None and not self._ssl_accepting and not self.writing():
            send_close_notify(self.socket)
        super().close_fd()
