"""`/admin`: the process itself. Its topics, its configuration in effect, its leaving, and the description of it all."""

from __future__ import annotations

import msgspec

from qgstream import openapi, overview
from qgstream.errors import ConfigError, ConfigRejected, InvalidField, NotFound
from qgstream.handlers.admin import AdminHandler

_MAX_TOPICS = 1000
_DRAIN_FIELDS = ("seconds", "now")
_MAX_DRAIN_SECONDS = 3600


class TopicsHandler(AdminHandler):
    """What is published to most, and what is asked for most."""

    parameters = ("limit",)

    async def get(self) -> None:
        """At most `limit` of each."""
        limit = self.whole("limit", 100, low=1, high=_MAX_TOPICS)
        self.answer(await self.service.hub.slices.result(overview.topics(self.service.hub, limit)))


class OverviewHandler(AdminHandler):
    """Everything at a glance, once."""

    def get(self) -> None:
        """A snapshot, as `/admin/events` sends them."""
        self.answer(self.service.viewers.take())


class ConfigHandler(AdminHandler):
    """The configuration in effect."""

    def get(self) -> None:
        """Each key's value and where it came from. Secrets are not shown."""
        if self.service.effective is None:
            raise NotFound("got no configuration: the program that embeds this server has its own")
        entries = {key: {"value": value, "source": source} for key, value, source in self.service.effective()}
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        document = {"config": entries, **self.service.reloads.document()}
        self.write(msgspec.json.encode(document, enc_hook=str))


class ReloadHandler(AdminHandler):
    """Reading the configuration again, as on SIGHUP."""

    def post(self) -> None:
        """What has changed; with `dry_run` what would change."""
        body = self.json_object(required=False)
        for name in body:
            if name != "dry_run":
                raise InvalidField(name[:100], "unknown field, expected dry_run")
        dry_run = body.get("dry_run", False)
        if not isinstance(dry_run, bool):
            raise InvalidField("dry_run", f"got {type(dry_run).__name__}, expected true or false")
        if self.service.reload is None:
            raise NotFound("got no configuration to read again: the program that embeds this server has its own")
        if not dry_run:
            self.audit("admin.reload")
        try:
            changes = self.service.reload(dry_run)
        except ConfigError as error:
            raise ConfigRejected(str(error)) from None
        self.answer({"status": "checked" if dry_run else "reloaded", **changes})


class DrainHandler(AdminHandler):
    """Leaving, as on SIGTERM."""

    def post(self) -> None:
        """Begin the drain. Once begun, only `now` changes it."""
        body = self.json_object(required=False)
        for name in body:
            if name not in _DRAIN_FIELDS:
                raise InvalidField(name[:100], f"unknown field, expected {' or '.join(_DRAIN_FIELDS)}")
        seconds, now = body.get("seconds"), body.get("now", False)
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
            raise InvalidField("seconds", f"got {type(seconds).__name__}, expected a number")
        if seconds is not None and not 0 <= seconds <= _MAX_DRAIN_SECONDS:
            raise InvalidField("seconds", f"got {repr(seconds)[:100]}, expected 0 to {_MAX_DRAIN_SECONDS}")
        if not isinstance(now, bool):
            raise InvalidField("now", f"got {type(now).__name__}, expected true or false")
        if self.service.leave is None:
            raise NotFound("got no process of its own to end: the program that embeds this server decides")
        in_effect = self.service.leave(seconds, now)
        self.audit("admin.drain", seconds=in_effect, now=now)
        self.set_status(202)
        self.answer({
            "status": "draining", "connections": len(self.service.hub.registry), "seconds": in_effect, "now": now,
        })  # fmt: skip


class OpenApiHandler(AdminHandler):
    """The description of the HTTP interface."""

    def get(self) -> None:
        """OpenAPI 3.1."""
        self.answer(openapi.document())
