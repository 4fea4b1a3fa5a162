"""qgstream: a server for Server-Sent Events on Tornado, whole or inside your own application.

    hub = Hub()
    async with Service(hub) as service:
        Application([*routes(service), ("/orders", Orders)]).listen(8888)
        await hub.publish("orders", {"order": 7}, event="created")

And the other end, in any program on asyncio:

    async for event in connect("http://localhost:8000/events", topics=["orders"]):
        print(event.topic, event.data)

The names below are what a program uses. Each is imported when it is first asked for, so that `import qgstream`
costs nothing and does nothing; their modules may change, these names stay.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from qgstream.version import __version__ as __version__

if TYPE_CHECKING:
    from qgstream.auth.authenticator import AuthSettings as AuthSettings
    from qgstream.auth.jwt_settings import JwtSettings as JwtSettings
    from qgstream.brokers.base import Broker as Broker
    from qgstream.brokers.base import open_broker as open_broker
    from qgstream.client.envelope import ReceivedEvent as ReceivedEvent
    from qgstream.client.publisher import AsyncPublisher as AsyncPublisher
    from qgstream.client.publisher import Published as Published
    from qgstream.client.publisher import PublishedAll as PublishedAll
    from qgstream.client.publisher import Publisher as Publisher
    from qgstream.client.responses import ClientError as ClientError
    from qgstream.client.responses import CredentialsRefused as CredentialsRefused
    from qgstream.client.responses import Refused as Refused
    from qgstream.client.responses import RequestRefused as RequestRefused
    from qgstream.client.responses import TryLater as TryLater
    from qgstream.client.responses import Unreachable as Unreachable
    from qgstream.client.stream import EventsMissed as EventsMissed
    from qgstream.client.stream import Reset as Reset
    from qgstream.client.stream import State as State
    from qgstream.client.stream import Stream as Stream
    from qgstream.client.stream import connect as connect
    from qgstream.errors import ConfigError as ConfigError
    from qgstream.errors import InvalidField as InvalidField
    from qgstream.errors import QgstreamError as QgstreamError
    from qgstream.errors import TooLarge as TooLarge
    from qgstream.errors import Unavailable as Unavailable
    from qgstream.events.history import HistorySettings as HistorySettings
    from qgstream.events.publication import Publication as Publication
    from qgstream.http.app import operator_routes as operator_routes
    from qgstream.http.app import routes as routes
    from qgstream.hub import Hub as Hub
    from qgstream.hub import Receipt as Receipt
    from qgstream.limits import LimitSettings as LimitSettings
    from qgstream.metrics import Metrics as Metrics
    from qgstream.net.cors import CorsSettings as CorsSettings
    from qgstream.net.sockets import StreamServer as StreamServer
    from qgstream.net.sockets import raise_descriptor_limit as raise_descriptor_limit
    from qgstream.service.heartbeat import HeartbeatSettings as HeartbeatSettings
    from qgstream.service.service import Service as Service
    from qgstream.sources.base import Draft as Draft
    from qgstream.sources.base import SourceFailed as SourceFailed
    from qgstream.sources.runner import run_source as run_source

# Where each name lives.
_MODULES = {
    "client.responses": ("ClientError", "CredentialsRefused", "Refused", "RequestRefused", "TryLater", "Unreachable"),
    "http.app": ("operator_routes", "routes"),
    "auth.authenticator": ("AuthSettings",),
    "brokers.base": ("Broker", "open_broker"),
    "client.stream": ("EventsMissed", "Reset", "State", "Stream", "connect"),
    "net.cors": ("CorsSettings",),
    "client.envelope": ("ReceivedEvent",),
    "errors": ("ConfigError", "InvalidField", "QgstreamError", "TooLarge", "Unavailable"),
    "service.heartbeat": ("HeartbeatSettings",),
    "hub": ("Hub", "Receipt"),
    "sources.runner": ("run_source",),
    "limits": ("LimitSettings",),
    "metrics": ("Metrics",),
    "events.publication": ("Publication",),
    "client.publisher": ("AsyncPublisher", "Published", "PublishedAll", "Publisher"),
    "service.service": ("Service",),
    "net.sockets": ("StreamServer", "raise_descriptor_limit"),
    "sources.base": ("Draft", "SourceFailed"),
    "auth.tokens": ("JwtSettings",),
    "events.history": ("HistorySettings",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604  # all of them are strings


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'qgstream' has no attribute {name!r}")
    value: object = getattr(import_module(f"qgstream.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
