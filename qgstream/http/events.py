"""`GET /events`: the request up to the first byte of the stream. Then the hub takes the stream over."""

from __future__ import annotations

import math
import time

from qgstream.http.streams import StreamHandler
from qgstream.limits import Rejection
from qgstream.wire import messages, sse
from qgstream.wire.framing import Framing


class EventsHandler(StreamHandler):
    """Opens a stream. The handler sends the headers, detaches its socket, and is freed."""

    @property
    def allowed_methods(self) -> str:
        """Return the allowed methods: POST has its own handler on the same path."""
        return "GET, HEAD, POST, OPTIONS"

    def head(self, *_path: str) -> None:
        """Send the headers alone, at once."""
        self.service.check_ban(self.remote_ip)
        principal = self.authenticate()
        self.service.check_ban(self.remote_ip, principal)
        self.subscription(principal, self._framing)
        self._set_stream_headers()
        self.flush()  # now: finish() would add a Content-Length, and a stream has none
        self.finish()

    async def get(self) -> None:
        """Open the stream."""
        admitted = await self.admitted(self._framing)
        if isinstance(admitted, Rejection):
            self._reject(admitted)
            return
        opening = self.opening(admitted)
        self._set_stream_headers()
        self.write(b"".join([message.as_sse() for message in opening.first]))
        self.flush()
        stream = self.detach()
        # Tornado clears `ui` in `finish`, but not in `detach`. `ui` holds a cycle that would keep this handler and 37
        # other objects until the garbage collector runs: a seventh of a handshake and 1.3 KiB a stream
        # (benchmarks/collector.py).
        self.ui = None  # type: ignore[assignment]
        self.adopt(stream, admitted.wanted, opening)

    @property
    def _framing(self) -> Framing:
        return Framing.CHUNKED if self.request.version == "HTTP/1.1" else Framing.RAW

    def _set_stream_headers(self) -> None:
        if self.request.version == "HTTP/1.0":
            # Tornado would promise `Connection: Keep-Alive` to a client that asked for it, but this body ends when the
            # connection closes.
            self.request.headers["Connection"] = "close"
        self.set_header("Content-Type", sse.CONTENT_TYPE)
        # no-transform: a proxy that compresses also buffers. Never `Connection: keep-alive`: Safari drops an HTTP/2
        # stream that has this header, and Tornado would echo it to an HTTP/1.0 client.
        self.request.headers.pop("Connection", None)
        self.set_header("Cache-Control", "no-cache, no-transform")
        self.set_header("X-Accel-Buffering", "no")
        if self.settings.get("compress_response"):
            # In an application that compresses responses, only the start of the stream would be compressed.
            self.set_header("Content-Encoding", "identity")

    # Refusals by a limit.

    def _reject(self, rejection: Rejection) -> None:
        error = self.refusal(rejection)
        wants_stream = "text/event-stream" in self.request.headers.get("Accept", "").lower()
        if not wants_stream or self.service.limits.overload_response == "error":
            raise error
        # The standard makes an EventSource stop for good on any status but 200. After a 200, it obeys `retry:` and
        # reconnects.
        self._set_stream_headers()
        self.set_header("Connection", "close")
        retry_ms = math.ceil((error.retry_after_seconds or 0) * 1000)
        self.finish(messages.rejected(time.time(), reason=rejection.reason, retry_ms=retry_ms).as_sse())
