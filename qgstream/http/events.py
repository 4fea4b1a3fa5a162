"""`GET /events`: up to the first byte of the stream; then it is the hub's."""

from __future__ import annotations

import math
import time

from qgstream.http.streams import StreamHandler
from qgstream.limits import Rejection
from qgstream.wire import messages, sse
from qgstream.wire.framing import Framing


class EventsHandler(StreamHandler):
    """Opens a stream. Its life as a handler ends with the headers: it detaches, and is freed."""

    @property
    def allowed_methods(self) -> str:
        """POST has a handler of its own on the same path."""
        return "GET, HEAD, POST, OPTIONS"

    def head(self) -> None:
        """The headers alone, at once."""
        self.service.check_ban(self.remote_ip)
        principal = self.authenticate()
        self.service.check_ban(self.remote_ip, principal)
        self.subscription(principal, self._framing)
        self._set_stream_headers()
        self.flush()  # now: finish() would add a Content-Length, and there is none
        self.finish()

    async def get(self) -> None:
        """The stream."""
        admitted = await self.admitted(self._framing)
        if isinstance(admitted, Rejection):
            self._reject(admitted)
            return
        opening = self.opening(admitted)
        self._set_stream_headers()
        self.write(b"".join([message.as_sse() for message in opening.first]))
        self.flush()
        stream = self.detach()
        # What `finish` does in Tornado and `detach` does not: `ui` holds a cycle that keeps this handler and 37 other
        # objects until the collector comes, a seventh of a handshake and 1.3 KiB a stream (benchmarks/collector.py).
        self.ui = None  # type: ignore[assignment]
        self.adopt(stream, admitted.wanted, opening)

    @property
    def _framing(self) -> Framing:
        return Framing.CHUNKED if self.request.version == "HTTP/1.1" else Framing.RAW

    def _set_stream_headers(self) -> None:
        if self.request.version == "HTTP/1.0":
            # Tornado would promise `Connection: Keep-Alive` to who asked for it, and this body ends by closing.
            self.request.headers["Connection"] = "close"
        self.set_header("Content-Type", sse.CONTENT_TYPE)
        # no-transform: a proxy that compresses also buffers. Never `Connection: keep-alive`: Safari drops an HTTP/2
        # stream for it; Tornado would echo it to an HTTP/1.0 client that asks.
        self.request.headers.pop("Connection", None)
        self.set_header("Cache-Control", "no-cache, no-transform")
        self.set_header("X-Accel-Buffering", "no")
        if self.settings.get("compress_response"):
            # In an application that compresses, the start would be compressed and what comes after it would not.
            self.set_header("Content-Encoding", "identity")

    # One too many.

    def _reject(self, rejection: Rejection) -> None:
        error = self.refusal(rejection)
        wants_stream = "text/event-stream" in self.request.headers.get("Accept", "").lower()
        if not wants_stream or self.service.limits.overload_response == "error":
            raise error
        # The standard makes an EventSource stop for good on any status but 200; `retry:` and the end it obeys.
        self._set_stream_headers()
        self.set_header("Connection", "close")
        retry_ms = math.ceil((error.retry_after_seconds or 0) * 1000)
        self.finish(messages.rejected(time.time(), reason=rejection.reason, retry_ms=retry_ms).as_sse())
