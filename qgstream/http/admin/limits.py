"""`/admin/limits`: the limits of this process, and changes to them while it runs."""

from __future__ import annotations

from qgstream.http.admin.base import AdminHandler

CHANGED_UNTIL = "a restart, or a reload of a configuration in which the same limit has changed"


class LimitsHandler(AdminHandler):
    """The limits in effect, and changes to them."""

    def get(self) -> None:
        """Return all limits, and the names of those that were changed here."""
        service = self.service
        self.answer({
            "limits": service.limits.model_dump(mode="json"),
            "changed": sorted(service.tuned),
            "changed_until": CHANGED_UNTIL,
        })  # fmt: skip

    def patch(self) -> None:
        """Change limits: all of them at once, or none if one is wrong."""
        changed = self.service.tune(self.json_object())
        if changed:
            self.audit(
                "admin.limits_changed",
                changes={name: {"old": old, "new": new} for name, (old, new) in changed.items()},
            )
        self.get()
