"""`GET /admin/events`: a snapshot every second, for the dashboard and for `curl`."""

from __future__ import annotations

from qgstream.http.admin.base import AdminHandler
from qgstream.wire import sse
from qgstream.wire.framing import Framing


class AdminEventsHandler(AdminHandler):
    """Opens an admin stream. The handler detaches its socket and is freed, as for every stream."""

    def head(self, *_path: str) -> None:
        """Send the headers of GET."""
        self._set_stream_headers()
        self.flush()  # now: finish() would add a Content-Length, and a stream has none
        self.finish()

    def get(self) -> None:
        """Open the stream."""
        viewers = self.service.viewers
        framing = Framing.CHUNKED if self.request.version == "HTTP/1.1" else Framing.RAW
        first = viewers.first()
        self._set_stream_headers()
        self.write(first)
        self.flush()
        stream = self.detach()
        if stream.closed():  # the client has disconnected: no close callback would run
            return
        viewers.adopt(stream, framing, self.principal, ip=self.remote_ip)
        self.audit("admin.watching", viewers=len(viewers))

    def _set_stream_headers(self) -> None:
        self.set_header("Content-Type", sse.CONTENT_TYPE)
        self.request.headers.pop("Connection", None)  # Tornado would echo it to an HTTP/1.0 client
        self.set_header("Cache-Control", "no-store, no-transform")
        self.set_header("X-Accel-Buffering", "no")
