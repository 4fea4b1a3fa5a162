"""`GET /events`: the request up to the first byte of the stream. Then the hub takes the stream over."""

from __future__ import annotations

import math
import time

from qgstream.http.event_stream import EventStreamHandler
from qgstream.http.streams import StreamHandler
from qgstream.limits import Rejection
from qgstream.wire import messages


class EventsHandler(EventStreamHandler, StreamHandler):
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
        self.subscription(principal, self.framing)
        self.finish_headers()

    async def get(self) -> None:
        """Open the stream."""
        admitted = await self.admitted(self.framing)
        if isinstance(admitted, Rejection):
            self._reject(admitted)
            return
        start = self.decide_start(admitted)
        stream = self.begin(b"".join([message.as_sse() for message in start.first]))
        self.adopt(stream, admitted.wanted, start)

    # Refusals by a limit.

    def _reject(self, rejection: Rejection) -> None:
        error = self.refusal(rejection)
        wants_stream = "text/event-stream" in self.request.headers.get("Accept", "").lower()
        if not wants_stream or self.service.limits.overload_response == "error":
            raise error
        # The standard makes an EventSource stop for good on any status but 200. After a 200, it obeys `retry:` and
        # reconnects.
        self.set_stream_headers()
        self.set_header("Connection", "close")
        retry_ms = math.ceil((error.retry_after_seconds or 0) * 1000)
        self.finish(messages.rejected(time.time(), reason=rejection.reason, retry_ms=retry_ms).as_sse())
