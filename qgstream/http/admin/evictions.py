"""`/admin/shed` and `/admin/evictions`: some of the streams end over a while, and the server goes on."""

from __future__ import annotations

from qgstream.errors import InvalidField, NotFound
from qgstream.http.admin.base import AdminHandler
from qgstream.service import connection_query
from qgstream.service.connection_query import Filter
from qgstream.service.evictions import DEFAULT_SECONDS, MAX_SECONDS, Eviction

_FIELDS = ("percent", "seconds")


class ShedHandler(AdminHandler):
    """A part of the streams goes elsewhere, to balance processes."""

    async def post(self) -> None:
        """Begin."""
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
    """All that are under way."""

    def get(self) -> None:
        """The oldest first."""
        self.answer({"evictions": [eviction.document() for eviction in self.service.evictions]})


class EvictionHandler(AdminHandler):
    """One of them, by its id."""

    def get(self, id: str) -> None:
        """How far it is."""
        self.answer(self._find(id).document())

    def delete(self, id: str) -> None:
        """Cancel it: streams whose turn has not come stay."""
        eviction = self._find(id)
        if eviction.cause == "maintenance":
            raise InvalidField("id", f"got {id}, which is of a maintenance: end that with DELETE /admin/maintenance")
        stay = self.service.evictions.cancel(eviction)
        self.audit("admin.eviction_cancelled", eviction=eviction.id, cause=eviction.cause, stayed=stay)
        self.answer({"id": eviction.id, "stayed": stay})

    def _find(self, id: str) -> Eviction:
        eviction = self.service.evictions.get(int(id))
        if eviction is None:
            raise NotFound(f"got {id}, expected the id of an eviction: this one is over, or never was")
        return eviction
