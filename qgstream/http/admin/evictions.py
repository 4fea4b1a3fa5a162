"""`/admin/shed` and `/admin/evictions`: some streams end over a period, and the server continues to serve."""

from __future__ import annotations

from qgstream.errors import InvalidField, NotFound
from qgstream.http.admin.base import AdminHandler
from qgstream.service import connection_query
from qgstream.service.connection_query import Filter
from qgstream.service.evictions import DEFAULT_SECONDS, MAX_SECONDS, Eviction

_FIELDS = ("percent", "seconds")


class ShedHandler(AdminHandler):
    """Ends a part of the streams, to balance the load between processes."""

    async def post(self) -> None:
        """Begin an eviction."""
        body = self.json_object()
        self.check_fields(body, _FIELDS)
        if body.get("percent") is None:
            raise InvalidField("percent", "not set, expected a number above 0 and at most 100")
        percent = self.number_of(body, "percent", 0, low=0, high=100)
        if not percent:
            raise InvalidField("percent", f"got {percent}, expected a number above 0 and at most 100")
        seconds = self.number_of(body, "seconds", DEFAULT_SECONDS, low=0, high=MAX_SECONDS)
        hub, evictions = self.service.hub, self.service.evictions
        evictions.check("shed")
        ids = await hub.slices.result(connection_query.find(hub, Filter()))
        count = max(1, round(len(ids) * percent / 100))
        eviction = evictions.begin(ids, seconds, "shed", count=count)
        self.audit("admin.shed", eviction=eviction.id, percent=percent, connections=eviction.total, seconds=seconds)
        self.set_status(202)
        self.answer(eviction.document())


class EvictionsHandler(AdminHandler):
    """All evictions under way."""

    def get(self) -> None:
        """Return them, the oldest first."""
        self.answer({"evictions": [eviction.document() for eviction in self.service.evictions]})


class EvictionHandler(AdminHandler):
    """One eviction, by its id."""

    def get(self, id: str) -> None:
        """Return its progress."""
        self.answer(self._find(id).document())

    def delete(self, id: str) -> None:
        """Cancel the eviction: streams that have not been told yet stay open."""
        eviction = self._find(id)
        if eviction.cause == "maintenance":
            raise InvalidField(
                "id", f"got {id}, which belongs to a maintenance: end the maintenance with DELETE /admin/maintenance"
            )
        stay = self.service.evictions.cancel(eviction)
        self.audit("admin.eviction_cancelled", eviction=eviction.id, cause=eviction.cause, stayed=stay)
        self.answer({"id": eviction.id, "stayed": stay})

    def _find(self, id: str) -> Eviction:
        eviction = self.service.evictions.get(int(id))
        if eviction is None:
            raise NotFound(f"got {id}, expected the id of an eviction under way")
        return eviction
