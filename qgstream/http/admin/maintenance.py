"""`/admin/maintenance`: the process runs without clients for a while."""

from __future__ import annotations

from qgstream.errors import NotFound
from qgstream.http.admin.base import AdminHandler
from qgstream.logs import utc_iso
from qgstream.service.evictions import DEFAULT_SECONDS, MAX_SECONDS
from qgstream.service.status import readiness

_FIELDS = ("seconds", "publishes")


class MaintenanceHandler(AdminHandler):
    """Maintenance: a drain that can be undone. The process keeps running."""

    def get(self) -> None:
        """Return whether maintenance is in effect, and how many streams are left."""
        maintenance = self.service.maintenance
        self.answer({
            "maintenance": maintenance.is_on,
            "since": None if maintenance.since is None else utc_iso(maintenance.since),
            "publishes": maintenance.takes_publishes,
            "connections": len(self.service.hub.registry),
            "status": readiness(self.service.hub),
        })  # fmt: skip

    def post(self) -> None:
        """Begin the maintenance, or change its arguments."""
        body = self.json_object(required=False)
        self.check_fields(body, _FIELDS)
        seconds = self.number_of(body, "seconds", DEFAULT_SECONDS, low=0, high=MAX_SECONDS)
        publishes = self.flag_of(body, "publishes", default=True)
        self.service.maintenance.begin(seconds, takes_publishes=publishes)
        self.audit(
            "admin.maintenance_started", seconds=seconds, publishes=publishes,
            connections=len(self.service.hub.registry),
        )  # fmt: skip
        self.set_status(202)
        self.get()

    def delete(self) -> None:
        """End the maintenance: admit clients again."""
        if not self.service.maintenance.end():
            raise NotFound("maintenance is not in effect")
        self.audit("admin.maintenance_ended", connections=len(self.service.hub.registry))
        self.get()
