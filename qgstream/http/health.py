"""`/health` for who restarts the process, `/ready` for who sends it clients."""

from __future__ import annotations

from qgstream.http.base import BaseHandler
from qgstream.service.status import readiness


class HealthHandler(BaseHandler):
    """200 while the process lives and its loop turns."""

    def get(self) -> None:
        """`{"status": "ok"}`"""
        self.answer({"status": "ok"})

    def head(self) -> None:
        """The same without its body."""
        self.get()


class ReadyHandler(BaseHandler):
    """200 while new streams are welcome, else 503 with the reason."""

    def get(self) -> None:
        """`ready`, or `degraded` with a reason; 503 with `draining`, `maintenance`, `full` or `broker_down`."""
        status = readiness(self.service.hub)
        if status == "degraded":
            self.answer({"status": status, "reason": "broker_down"})
            return
        self.set_status(200 if status == "ready" else 503)
        self.answer({"status": status})

    def head(self) -> None:
        """The same without its body."""
        self.get()
