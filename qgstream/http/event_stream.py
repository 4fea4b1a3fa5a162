"""A response that is a stream of Server-Sent Events: its headers, its first bytes, and the detached socket."""

from __future__ import annotations

from typing import ClassVar

from tornado.iostream import IOStream

from qgstream.http.base import BaseHandler
from qgstream.wire import sse
from qgstream.wire.framing import Framing


class EventStreamHandler(BaseHandler):
    """Begins a stream. The handler detaches its socket and is freed."""

    cache_control: ClassVar = "no-cache"

    @property
    def framing(self) -> Framing:
        """Return how the body is framed: a client of HTTP/1.0 reads until the socket closes."""
        return Framing.CHUNKED if self.request.version == "HTTP/1.1" else Framing.RAW

    def set_stream_headers(self) -> None:
        """Set the headers of every stream."""
        # Tornado would echo `Connection: keep-alive` to an HTTP/1.0 client, but this body ends when the connection
        # closes. Safari drops an HTTP/2 stream that has this header.
        self.request.headers.pop("Connection", None)
        self.set_header("Content-Type", sse.CONTENT_TYPE)
        # no-transform: a proxy that compresses also buffers.
        self.set_header("Cache-Control", f"{self.cache_control}, no-transform")
        self.set_header("X-Accel-Buffering", "no")
        if self.settings.get("compress_response"):
            # In an application that compresses responses, only the start of the stream would be compressed.
            self.set_header("Content-Encoding", "identity")

    def finish_headers(self) -> None:
        """Send the headers alone, as the response to HEAD."""
        self.set_stream_headers()
        self.flush()  # now: finish() would add a Content-Length, and a stream has none
        self.finish()

    def begin(self, first: bytes) -> IOStream:
        """Write the headers and the first bytes, and return the detached socket, which may be closed."""
        self.set_stream_headers()
        self.write(first)
        self.flush()
        stream = self.detach()
        # Tornado clears `ui` in `finish`, but not in `detach`. `ui` holds a cycle that would keep this handler and 37
        # other objects until the garbage collector runs: a seventh of a handshake and 1.3 KiB a stream
        # (benchmarks/collector.py).
        self.ui = None  # type: ignore[assignment]
        return stream
