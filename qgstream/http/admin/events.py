"""`GET /admin/events`: a snapshot every second, for the dashboard and for `curl`."""

from __future__ import annotations

from qgstream.http.admin.base import AdminHandler
from qgstream.wire import sse
from qgstream.wire.framing import Framing


class AdminEventsHandler(AdminHandler):
    """Opens a stream of snapshots. As every stream it detaches, and the handler is freed."""

    def head(self, *_path: str) -> None:
        """The headers alone."""
        self._set_stream_headers()
        self.flush()  # now: finish() would add a Content-Length, and there is none
        self.finish()

    def get(self) -> None:
        """The stream."""
        viewers = self.service.viewers
        framing = Framing.CHUNKED if self.request.version == "HTTP/1.1" else Framing.RAW
        first = viewers.first()
        self._set_stream_headers()
        self.write(first)
        self.flush()
        stream = self.detach()
        if stream.closed():  # gone by now: there would be no close callback
            return
        viewers.adopt(stream, framing, self.principal, ip=self.remote_ip)
        self.audit("admin.watching", viewers=len(viewers))

    def _set_stream_headers(self) -> None:
        self.set_header("Content-Type", sse.CONTENT_TYPE)
        self.request.headers.pop("Connection", None)  # Tornado would echo it to an HTTP/1.0 client
        self.set_header("Cache-Control", "no-store, no-transform")
        self.set_header("X-Accel-Buffering", "no")
