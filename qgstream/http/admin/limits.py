"""`/admin/limits`: what this process accepts, changed while it runs."""

from __future__ import annotations

from qgstream.http.admin.base import AdminHandler

CHANGED_UNTIL = "a restart, or a reload of a configuration in which the same limit has changed"


class LimitsHandler(AdminHandler):
    """The limits in effect, and changes to them."""

    def get(self) -> None:
        """All limits, and which of them were changed here."""
        service = self.service
        self.answer({
            "limits": service.limits.model_dump(mode="json"),
            "changed": sorted(service.tuned),
            "changed_until": CHANGED_UNTIL,
        })  # fmt: skip

    def patch(self) -> None:
        """Change some: all of them at once, or none for a single wrong one."""
        changed = self.service.tune(self.json_object())
        if changed:
            self.audit(
                "admin.limits_changed",
                changes={name: {"old": old, "new": new} for name, (old, new) in changed.items()},
            )
        self.get()
