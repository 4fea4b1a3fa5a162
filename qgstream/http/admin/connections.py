"""`/admin/connections`: lists the open streams, and ends them."""

from __future__ import annotations

import time

from qgstream.delivery.connection import Connection
from qgstream.errors import BadRequest, InvalidField, NotFound
from qgstream.events.topics import check_pattern
from qgstream.http.admin.base import AdminHandler
from qgstream.logs import printable
from qgstream.net.addresses import Network, parse_network
from qgstream.service import connection_query
from qgstream.service.connection_query import SORTS, Filter
from qgstream.talkers import MAX_NAME_CHARACTERS

DEFAULT_PAGE = 100
MAX_PAGE = 1000
_MAX_AGE_SECONDS = 1e9
_FILTERS = ("topic", "exact", "ip", "key", "sub", "min_age_seconds", "min_backlog_bytes")


class ConnectionsHandler(AdminHandler):
    """The open streams, all or those that match."""

    parameters = (*_FILTERS, "sort", "limit", "cursor", "all")

    async def get(self) -> None:
        """Return one page of the streams."""
        if self.text("all") is not None:
            raise InvalidField("all", "got a parameter of DELETE, expected a parameter of GET")
        sort = self.text("sort") or "oldest"
        if sort not in SORTS:
            raise InvalidField("sort", f"got {sort[:100]!r}, expected one of {', '.join(SORTS)}")
        job = connection_query.list_page(
            self.service.hub,
            self._filter(),
            sort=sort,
            limit=self.whole("limit", DEFAULT_PAGE, low=1, high=MAX_PAGE),
            cursor=self.text("cursor"),
        )
        page = await self.service.hub.slices.result(job)
        self.answer({"connections": page.connections, "cursor": page.cursor, "matching": page.matching})

    async def delete(self) -> None:
        """End all matching streams. The response is sent when the last one has been told."""
        for name in ("sort", "limit", "cursor"):
            if self.text(name) is not None:
                raise InvalidField(name, "got a parameter of GET, expected a parameter of DELETE")
        wanted = self._filter()
        if wanted.is_everything and not self.flag("all"):
            raise BadRequest(
                "got no filter, expected topic, ip, key, sub, min_age_seconds or min_backlog_bytes, "
                "or all=true for every stream",
                code="filter_required",
            )
        kicked = await self.service.hub.slices.result(connection_query.kick_all(self.service.hub, wanted))
        self.audit("admin.kicked", streams=kicked, filter=self.request.query[:1000])
        self.answer({"kicked": kicked})

    def _filter(self) -> Filter:
        topic = self.text("topic")
        return Filter(
            topic=None if topic is None else check_pattern(topic),
            exact=self.flag("exact"),
            network=self._network(),
            key=self._name("key"),
            sub=self._name("sub"),
            min_age_seconds=self.number("min_age_seconds", 0.0, high=_MAX_AGE_SECONDS),
            min_backlog_bytes=self.whole("min_backlog_bytes", 0),
        )

    def _name(self, name: str) -> str | None:
        # In the form for display: a name matches whether the operator copies it from the list, from the log or from the
        # token.
        text = self.text(name)
        return None if text is None else printable(text, MAX_NAME_CHARACTERS)

    def _network(self) -> Network | None:
        text = self.text("ip")
        if text is None:
            return None
        try:
            return parse_network(text)
        except ValueError:
            got = f"got {text[:100]!r}, expected an address or a network such as 10.0.0.0/8"
            raise InvalidField("ip", got) from None


class ConnectionHandler(AdminHandler):
    """One stream, by its id in the log."""

    def get(self, id: str) -> None:
        """Return the stream's description for operators."""
        self.answer(connection_query.describe(self.service.hub, self._find(id), time.time()))

    def delete(self, id: str) -> None:
        """End the stream. `kicked` is 0 if it was ending already."""
        connection = self._find(id)
        kicked = int(connection.reason is None)
        if kicked:
            self.service.hub.end(connection, "kicked")
            self.audit("admin.kicked", streams=1, connection=connection.id, kicked_ip=connection.ip)
        self.answer({"kicked": kicked})

    def _find(self, id: str) -> Connection:
        connection = self.service.hub.registry.get(int(id))
        if connection is None:
            raise NotFound(f"got {id}, expected the id of an open stream")
        return connection
