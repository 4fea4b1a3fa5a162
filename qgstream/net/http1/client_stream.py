"""A connection of a client before it is a stream of events: Tornado's, prepared for whoever may be at its other end."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable
from typing import Any, ClassVar, Protocol, cast

from tornado.iostream import IOStream, SSLIOStream

from qgstream.net.lingering_close import Lingering
from qgstream.net.tls import say_goodbye


class Finder(Protocol):
    """What says how far a buffer can be taken: a compiled regular expression, as far as that is used here."""

    def search(self, buffer: bytearray, /) -> Found | None:
        """The end of what is looked for; None while it is not there. The buffer only grows between two calls."""


class Found(Protocol):
    """Where it ends."""

    def end(self) -> int:
        """The number of bytes up to there."""


class EndOfHead:
    """Finds the empty line behind a request's head without looking at any byte twice.

    Tornado looks for it from the beginning whenever something has come, which takes 16 ms in a megabyte: somebody who
    sends that and then single bytes kept a processor busy with sixty packets a second.

    A head that is longer than `max_bytes` is found cut off there: its client can be answered, where Tornado would
    close.
    """

    # Where Tornado's own `\r?\n\r?\n` ends, at a third of the cost: it begins with a byte that is rare.
    _pattern = re.compile(rb"\n\r?\n")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._seen = 0
        self._end = 0
        self.begun_at: float | None = None  # when anything but empty lines was first there, by the monotonic clock

    def search(self, buffer: bytearray) -> EndOfHead | None:
        """As of a compiled pattern. The buffer is the one of the last call with more behind it."""
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


class ClientsStream(IOStream):
    """A stream of whose other end nothing good can be assumed."""

    # Of the class: an attribute of its own more, and Python keeps a dict of 1.3 KiB for every stream.
    lingering: ClassVar[Lingering | None] = None  # None: it closes at once

    def read_until_found(self, finder: Finder) -> Awaitable[bytes]:
        """Read as far as `finder` says. As `read_until_regex`, which compiles what it is given."""
        future = self._start_read()
        self._read_regex = cast("re.Pattern[bytes]", finder)  # all that it needs is `search`
        self._read_max_bytes = None
        try:
            self._try_inline_read()
        except BaseException:
            future.add_done_callback(lambda done: done.exception())  # it is raised here
            raise
        return future

    def close(self, exc_info: Any = False) -> None:
        """See `IOStream`. Its error would hold the frames that met it, and these the stream, until the collector comes:
        4.4 KiB for each reset, and with the thresholds of `process.server` that is a long time."""
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
        """Close it for its descriptor, whatever the client makes of it."""
        self.end_lingering()
        self.close()

    def end_lingering(self) -> None:
        """From now on it closes at once."""
        self.__class__ = TlsClientsStream if isinstance(self, SSLIOStream) else ClientsStream

    def _is_connreset(self, exc: BaseException) -> bool:
        """A broken TLS record or a dead route is the end, as a reset is, and no error of ours to be logged or raised.
        The base says: "May be overridden in subclasses"."""
        return isinstance(exc, OSError)


class TlsClientsStream(ClientsStream, SSLIOStream):
    """The same over TLS. Its end is clean when everything was sent: a client can tell that nothing was cut off."""

    def close_fd(self) -> None:
        """See `IOStream`."""
        if self.error is None and not self._ssl_accepting and not self.writing():
            say_goodbye(self.socket)
        super().close_fd()
