"""`/health` for a supervisor that restarts the process, `/ready` for a load balancer."""

from __future__ import annotations

from qgstream.http.base import BaseHandler
from qgstream.service.status import readiness


class HealthHandler(BaseHandler):
    """200 while the process is alive and its event loop runs."""

    def get(self) -> None:
        """`{"status": "ok"}`"""
        self.answer({"status": "ok"})


class ReadyHandler(BaseHandler):
    """200 while the server accepts new streams, otherwise 503 with the reason."""

    def get(self) -> None:
        """Send `ready`, or `degraded` with a reason; 503 with `draining`, `maintenance`, `full` or `broker_down`."""
        status = readiness(self.service.hub)
        if status == "degraded":
            self.answer({"status": status, "reason": "broker_down"})
            return
        self.set_status(200 if status == "ready" else 503)
        self.answer({"status": status})
