"""`GET /admin/events`: a snapshot every second, for the dashboard and for `curl`."""

from __future__ import annotations

from qgstream.http.admin.base import AdminHandler
from qgstream.http.event_stream import EventStreamHandler


class AdminEventsHandler(EventStreamHandler, AdminHandler):
    """Opens an admin stream. The handler detaches its socket and is freed, as for every stream."""

    cache_control = "no-store"

    def head(self, *_path: str) -> None:
        """Send the headers of GET."""
        self.finish_headers()

    def get(self) -> None:
        """Open the stream."""
        viewers = self.service.viewers
        stream = self.begin(viewers.first())
        if stream.closed():  # the client has disconnected: no close callback would run
            return
        viewers.adopt(stream, self.framing, self.principal, ip=self.remote_ip)
        self.audit("admin.watching", viewers=len(viewers))
