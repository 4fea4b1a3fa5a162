"""The table of paths, and the Tornado applications that use it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.routing import Matcher, PathMatches, Rule
from tornado.web import Application, RequestHandler

from qgstream.http.admin.bans import BanHandler, BansHandler
from qgstream.http.admin.connections import ConnectionHandler, ConnectionsHandler
from qgstream.http.admin.events import AdminEventsHandler
from qgstream.http.admin.evictions import EvictionHandler, EvictionsHandler, ShedHandler
from qgstream.http.admin.limits import LimitsHandler
from qgstream.http.admin.maintenance import MaintenanceHandler
from qgstream.http.admin.server import (
    ConfigHandler,
    DrainHandler,
    HistoryHandler,
    OpenApiHandler,
    OverviewHandler,
    ReloadHandler,
    TopicsHandler,
)
from qgstream.http.admin.talkers import PublishersHandler, TalkersHandler
from qgstream.http.base import MAX_METHOD_CHARACTERS, MAX_PATH_CHARACTERS, BaseHandler, NotFoundHandler
from qgstream.http.client import ClientHandler, ClientTypesHandler, MinifiedClientHandler, VersionedClientHandler
from qgstream.http.dashboard import DashboardHandler
from qgstream.http.demo import DemoHandler
from qgstream.http.docs import DocsHandler, PublicOpenApiHandler
from qgstream.http.events import EventsHandler
from qgstream.http.health import HealthHandler, ReadyHandler
from qgstream.http.metrics import MetricsHandler
from qgstream.http.misdirected import MisdirectedHandler
from qgstream.http.publish import PublishHandler
from qgstream.http.websocket import WebSocketEventsHandler
from qgstream.logs import access_log, quote
from qgstream.net.allowed_hosts import is_allowed
from qgstream.service.service import Service

# The escapes of the characters that RFC 3986, 2.3 calls unreserved: letters, digits and - . _ ~
_ESCAPED = re.compile(r"%(2[DdEe]|3[0-9]|4[1-9A-Fa-f]|5[0-9AaFf]|6[1-9A-Fa-f]|7[0-9AaEe])")


class PublicPath(PathMatches):
    """A path that also matches with escaped letters (RFC 3986, 6.2.2.2): "/%65vents" is "/events".

    Operator paths are compared letter by letter, because a proxy that guards them may compare them in this way too.
    """

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        """Match the path."""
        if "%" not in request.path or self.regex.groups:
            return super().match(request)
        path = _ESCAPED.sub(lambda escape: chr(int(escape[1], 16)), request.path)
        return {} if self.regex.match(path) else None


class MethodMatches(PublicPath):
    """A path for one method: `POST /events` reads a body, and `GET /events` must not wait for one."""

    def __init__(self, method: str, path: str) -> None:
        super().__init__(path)
        self.method = method

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        """Match the path, for this method only."""
        return super().match(request) if request.method == self.method else None


class UnknownHost(Matcher):
    """Matches requests with a `Host` that the service does not accept; with `rules`, only requests that one of the
    rules matches.

    This rule comes first, so that such a request gets no other response, whatever its path and method.
    """

    def __init__(self, service: Service, *, on_loopback: bool = False, rules: Sequence[Rule] | None = None) -> None:
        self._service = service
        self._on_loopback = on_loopback
        self._rules = rules

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        """Match everything, unless the host is a name of this server."""
        if is_allowed(request.host, self._service.allowed_hosts, on_loopback=self._on_loopback):
            return None
        is_ours = self._rules is None or any(rule.matcher.match(request) is not None for rule in self._rules)
        return {} if is_ours else None


def routes(service: Service, *, prefix: str = "") -> list[Rule]:
    """The rules for streams and publishing, for any Tornado application: `/events` and `/ws`.

    Args:
        service: The service behind the paths.
        prefix: What the paths begin with, such as `/live`.

    Returns:
        Rules for `tornado.web.Application`.

    Example::

        import qgstream
        from tornado.web import Application

        async with qgstream.Service(qgstream.Hub()) as service:
            Application(qgstream.routes(service, prefix="/live")).listen(8888)
    """
    return _checked(service, _routes(service, prefix))


def operator_routes(service: Service) -> list[Rule]:
    """The rules for operators: `/health`, `/ready`, `/metrics` and everything below `/admin`.

    Put them on a port that only operators reach, or beside `routes`; `/admin` needs a key of `AuthSettings.admin_keys`.

    Args:
        service: The service behind the paths.

    Returns:
        Rules for `tornado.web.Application`.

    Example::

        import qgstream
        from tornado.web import Application

        async with qgstream.Service(qgstream.Hub()) as service:
            Application(qgstream.operator_routes(service)).listen(8888, "127.0.0.1")
    """
    return _checked(service, _operator_routes(service))


def _checked(service: Service, rules: list[Rule]) -> list[Rule]:
    # This server must not refuse the other paths of the application that embeds it.
    return [Rule(UnknownHost(service, rules=rules), MisdirectedHandler, {"service": service}), *rules]


def _routes(service: Service, prefix: str = "") -> list[Rule]:
    shared = {"service": service}
    return [
        Rule(MethodMatches("POST", f"{prefix}/events"), PublishHandler, shared),
        Rule(PublicPath(f"{prefix}/events"), EventsHandler, shared),
        Rule(PublicPath(f"{prefix}/ws"), WebSocketEventsHandler, shared),
    ]


def _operator_routes(service: Service, *, demo: str = "") -> list[Rule]:
    """`demo` is the address of the demo page, relative to /admin/, where the same port serves that page."""
    shared = {"service": service}
    return [
        Rule(PathMatches("/health"), HealthHandler, shared),
        Rule(PathMatches("/ready"), ReadyHandler, shared),
        Rule(PathMatches("/metrics"), MetricsHandler, shared),
        Rule(PathMatches("/admin/?"), DashboardHandler, {**shared, "neighbour": demo}),
        Rule(PathMatches("/admin/overview"), OverviewHandler, shared),
        Rule(PathMatches("/admin/history"), HistoryHandler, shared),
        Rule(PathMatches("/admin/events"), AdminEventsHandler, shared),
        Rule(PathMatches("/admin/limits"), LimitsHandler, shared),
        Rule(PathMatches("/admin/connections"), ConnectionsHandler, shared),
        Rule(PathMatches("/admin/connections/([0-9]{1,18})"), ConnectionHandler, shared),
        Rule(PathMatches("/admin/bans"), BansHandler, shared),
        Rule(PathMatches("/admin/bans/([0-9]{1,18})"), BanHandler, shared),
        Rule(PathMatches("/admin/maintenance"), MaintenanceHandler, shared),
        Rule(PathMatches("/admin/shed"), ShedHandler, shared),
        Rule(PathMatches("/admin/evictions"), EvictionsHandler, shared),
        Rule(PathMatches("/admin/evictions/([0-9]{1,18})"), EvictionHandler, shared),
        Rule(PathMatches("/admin/topics"), TopicsHandler, shared),
        Rule(PathMatches("/admin/publishers"), PublishersHandler, shared),
        Rule(PathMatches("/admin/talkers"), TalkersHandler, shared),
        Rule(PathMatches("/admin/config"), ConfigHandler, shared),
        Rule(PathMatches("/admin/reload"), ReloadHandler, shared),
        Rule(PathMatches("/admin/drain"), DrainHandler, shared),
        Rule(PathMatches("/admin/openapi.json"), OpenApiHandler, shared),
    ]


def public_app(service: Service, *, with_operator_routes: bool = True, on_loopback: bool = False) -> Application:
    """Return the application of the public port. `on_loopback` says that all its sockets are on the loopback
    interface."""
    shared: dict[str, Any] = {"service": service}
    described = shared | {"with_operator_paths": with_operator_routes}
    table = _routes(service)
    if with_operator_routes:
        table += _operator_routes(service, demo="../")
    else:
        table += [Rule(PathMatches("/health"), HealthHandler, shared)]
    table += [
        Rule(PathMatches("/"), DemoHandler, shared | {"neighbour": "admin" if with_operator_routes else ""}),
        Rule(PathMatches("/docs"), DocsHandler, described),
        Rule(PathMatches(r"/openapi\.json"), PublicOpenApiHandler, described),
        Rule(PublicPath(r"/client\.js"), ClientHandler, shared),
        Rule(PublicPath(r"/client\.min\.js"), MinifiedClientHandler, shared),
        Rule(PublicPath(r"/client-([0-9a-f]{16})\.min\.js"), VersionedClientHandler, shared),
        Rule(PublicPath(r"/client\.d\.ts"), ClientTypesHandler, shared),
    ]
    return _application(service, table, on_loopback, docs="/docs")


def admin_app(service: Service, *, on_loopback: bool = False) -> Application:
    """Return the application of `admin.port`."""
    return _application(service, _operator_routes(service), on_loopback)


def _application(
    service: Service, table: list[Rule], on_loopback: bool, *, docs: str | None = None
) -> Application:  # fmt: skip
    unknown_host = Rule(UnknownHost(service, on_loopback=on_loopback), MisdirectedHandler, {"service": service})
    return Application(
        [unknown_host, *table],
        default_handler_class=NotFoundHandler,
        default_handler_args={"service": service, "docs": docs},
        log_function=_log_request,
    )


def _log_request(handler: RequestHandler) -> None:
    # Streams have their own log lines. Errors of clients are logged at info, as is everything that is not a fault of
    # the server.
    request = handler.request
    access_log.debug(
        "request",
        extra={
            "method": (request.method or "")[:MAX_METHOD_CHARACTERS],
            "path": quote(request.uri or "", MAX_PATH_CHARACTERS),
            "status": handler.get_status(),
            "remote_ip": handler.remote_ip if isinstance(handler, BaseHandler) else request.remote_ip,
            "milliseconds": round(1000 * request.request_time(), 1),
        },
    )
