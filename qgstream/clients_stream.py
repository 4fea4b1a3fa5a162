"""A connection of a client before it is a stream of events: Tornado's, prepared for whoever may be at its other end."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Any, ClassVar

from tornado.iostream import IOStream, SSLIOStream

from qgstream.lingering import Lingering


class _EndOfHead:
    """Finds the empty line behind a request's head without looking at any byte twice.

    Tornado looks for it from the beginning whenever something has come, which takes 16 ms in a megabyte: somebody who
    sends that and then single bytes kept a processor busy with sixty packets a second.
    """

    # Where Tornado's own `\r?\n\r?\n` ends, at a third of the cost: it begins with a byte that is rare.
    pattern = re.compile(rb"\n\r?\n")

    def __init__(self) -> None:
        self._seen = 0

    def search(self, buffer: bytearray) -> re.Match[bytes] | None:
        """As of a compiled pattern. The buffer is the one of the last call with more behind it."""
        found = self.pattern.search(buffer, max(0, self._seen - 2))
        self._seen = len(buffer)
        return found


class ClientsStream(IOStream):
    """A stream of whose other end nothing good can be assumed."""

    # Of the class: an attribute of its own more, and Python keeps a dict of 1.3 KiB for every stream.
    lingering: ClassVar[Lingering | None] = None  # None: it closes at once

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:  # noqa: ARG002
        """See `IOStream`; a server uses it for the head of a request and for nothing else."""
        future = super().read_until_regex(_EndOfHead.pattern.pattern, max_bytes)
        if self._read_future is not None:
            # Should Tornado's next version name it differently, this does nothing, and heads are searched as ever.
            self._read_regex = _EndOfHead()  # type: ignore[assignment]  # all that it needs is `search`
        return future

    def close(self, exc_info: Any = False) -> None:
        """See `IOStream`. Its error would hold the frames that met it, and these the stream, until the collector comes:
        4.4 KiB for each reset, and with the thresholds of `server.py` that is a long time."""
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
    """The same over TLS."""
