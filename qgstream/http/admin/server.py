"""`/admin`: the process itself, with its topics, its configuration in effect, its drain, and the OpenAPI
description."""

from __future__ import annotations

from typing import Any

import msgspec

from qgstream.errors import ConfigError, ConfigRejected, InvalidField, NotFound
from qgstream.events.topics import check_pattern
from qgstream.http import openapi
from qgstream.http.admin.base import AdminHandler
from qgstream.service import connection_query, status
from qgstream.service.connection_query import Filter
from qgstream.service.evictions import DEFAULT_SECONDS, MAX_SECONDS
from qgstream.service.status_history import MAX_SAMPLES

_MAX_TOPICS = 1000
_DRAIN_FIELDS = ("seconds", "now", "topic", "exact")


class TopicsHandler(AdminHandler):
    """The topics with the most events, and the patterns with the most subscribers."""

    parameters = ("limit",)

    async def get(self) -> None:
        """Return at most `limit` of each."""
        limit = self.whole("limit", 100, low=1, high=_MAX_TOPICS)
        self.answer(await self.service.hub.slices.result(status.topics(self.service.hub, limit)))


class OverviewHandler(AdminHandler):
    """One snapshot of the process."""

    def get(self) -> None:
        """Return a snapshot, as `/admin/events` sends them."""
        self.answer(self.service.viewers.take())


class HistoryHandler(AdminHandler):
    """The last hour."""

    parameters = ("limit",)

    def get(self) -> None:
        """The newest `limit` samples."""
        self.answer(self.service.status_history.document(self.whole("limit", MAX_SAMPLES, low=1, high=MAX_SAMPLES)))


class ConfigHandler(AdminHandler):
    """The configuration in effect."""

    def get(self) -> None:
        """Return the value and the origin of each key. Secrets are not shown."""
        if self.service.effective is None:
            raise NotFound("got no configuration: the program that embeds this server has its own")
        entries = {key: {"value": value, "source": source} for key, value, source in self.service.effective()}
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        document = {"config": entries, **self.service.reloads.document()}
        self.write(msgspec.json.encode(document, enc_hook=str) + b"\n")


class ReloadHandler(AdminHandler):
    """Loads the configuration again, as SIGHUP does."""

    def post(self) -> None:
        """Return the changes; with `dry_run`, the changes that a reload would make."""
        body = self.json_object(required=False)
        for name in body:
            if name != "dry_run":
                raise InvalidField(name[:100], "unknown field, expected dry_run")
        dry_run = body.get("dry_run", False)
        if not isinstance(dry_run, bool):
            raise InvalidField("dry_run", f"got {type(dry_run).__name__}, expected true or false")
        if self.service.reload is None:
            raise NotFound("got no configuration to load again: the program that embeds this server has its own")
        if not dry_run:
            self.audit("admin.reload")
        try:
            changes = self.service.reload(dry_run)
        except ConfigError as error:
            raise ConfigRejected(str(error)) from None
        self.answer({"status": "checked" if dry_run else "reloaded", **changes})


class DrainHandler(AdminHandler):
    """Drains the server, as SIGTERM does; or, with a topic, ends the streams that subscribe to the topic."""

    parameters = ("topic", "exact")

    async def post(self) -> None:
        """Begin the drain. Once a server is draining, only `now` changes anything."""
        body = self.json_object(required=False)
        self.check_fields(body, _DRAIN_FIELDS)
        seconds = self.number_of(body, "seconds", -1, low=0, high=MAX_SECONDS)
        now = self.flag_of(body, "now", default=False)
        topic, exact = self._topic(body)
        if topic is not None:
            if now:
                raise InvalidField("now", "not allowed with topic; to end the streams at once, set seconds to 0")
            await self._drain_topic(topic, exact, DEFAULT_SECONDS if seconds < 0 else seconds)
            return
        if exact:
            raise InvalidField("exact", "got this field without topic, expected both or neither")
        if self.service.leave is None:
            raise NotFound("got no process of its own to end: the program that embeds this server decides")
        in_effect = self.service.leave(None if seconds < 0 else seconds, now)
        self.audit("admin.drain", seconds=in_effect, now=now)
        self.set_status(202)
        self.answer({
            "status": "draining", "connections": len(self.service.hub.registry), "seconds": in_effect, "now": now,
        })  # fmt: skip

    def _topic(self, body: dict[str, Any]) -> tuple[str | None, bool]:
        for name in self.parameters:
            if name in body and self.text(name) is not None:
                raise InvalidField(name, "got this field in the query and in the body, expected it once")
        topic = body.get("topic", self.text("topic"))
        exact = self.flag_of(body, "exact", default=self.flag("exact"))
        return (None, exact) if topic is None and "topic" not in body else (check_pattern(topic), exact)

    async def _drain_topic(self, topic: str, exact: bool, seconds: float) -> None:
        hub, evictions = self.service.hub, self.service.evictions
        evictions.check("topic")
        ids = await hub.slices.result(connection_query.find(hub, Filter(topic=topic, exact=exact)))
        eviction = evictions.begin(ids, seconds, "topic")
        self.audit(
            "admin.topic_drained", topic=topic, exact=exact, eviction=eviction.id, connections=len(ids),
            seconds=seconds,
        )  # fmt: skip
        self.set_status(202)
        self.answer({"topic": topic, **eviction.document()})


class OpenApiHandler(AdminHandler):
    """The description of the HTTP interface."""

    def get(self) -> None:
        """Return the OpenAPI 3.1 document."""
        self.answer(openapi.document())
