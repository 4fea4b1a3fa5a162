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
    from qgstream.answers import ClientError as ClientError
    from qgstream.answers import CredentialsRefused as CredentialsRefused
    from qgstream.answers import Refused as Refused
    from qgstream.answers import RequestRefused as RequestRefused
    from qgstream.answers import TryLater as TryLater
    from qgstream.answers import Unreachable as Unreachable
    from qgstream.app import operator_routes as operator_routes
    from qgstream.app import routes as routes
    from qgstream.auth import AuthSettings as AuthSettings
    from qgstream.brokers.base import Broker as Broker
    from qgstream.brokers.base import open_broker as open_broker
    from qgstream.client import EventsMissed as EventsMissed
    from qgstream.client import Reset as Reset
    from qgstream.client import State as State
    from qgstream.client import Stream as Stream
    from qgstream.client import connect as connect
    from qgstream.cors import CorsSettings as CorsSettings
    from qgstream.envelope import ReceivedEvent as ReceivedEvent
    from qgstream.errors import ConfigError as ConfigError
    from qgstream.errors import InvalidField as InvalidField
    from qgstream.errors import QgstreamError as QgstreamError
    from qgstream.errors import TooLarge as TooLarge
    from qgstream.errors import Unavailable as Unavailable
    from qgstream.heartbeat import HeartbeatSettings as HeartbeatSettings
    from qgstream.hub import Hub as Hub
    from qgstream.hub import Receipt as Receipt
    from qgstream.intake import run_source as run_source
    from qgstream.jwt_settings import JwtSettings as JwtSettings
    from qgstream.limits import LimitSettings as LimitSettings
    from qgstream.metrics import Metrics as Metrics
    from qgstream.publication import Publication as Publication
    from qgstream.publisher import AsyncPublisher as AsyncPublisher
    from qgstream.publisher import Published as Published
    from qgstream.publisher import PublishedAll as PublishedAll
    from qgstream.publisher import Publisher as Publisher
    from qgstream.service import Service as Service
    from qgstream.sockets import StreamServer as StreamServer
    from qgstream.sockets import raise_descriptor_limit as raise_descriptor_limit
    from qgstream.sources.base import Draft as Draft
    from qgstream.sources.base import SourceFailed as SourceFailed
    from qgstream.window import HistorySettings as HistorySettings

# Where each name lives.
_MODULES = {
    "answers": ("ClientError", "CredentialsRefused", "Refused", "RequestRefused", "TryLater", "Unreachable"),
    "app": ("operator_routes", "routes"),
    "auth": ("AuthSettings",),
    "brokers.base": ("Broker", "open_broker"),
    "client": ("EventsMissed", "Reset", "State", "Stream", "connect"),
    "cors": ("CorsSettings",),
    "envelope": ("ReceivedEvent",),
    "errors": ("ConfigError", "InvalidField", "QgstreamError", "TooLarge", "Unavailable"),
    "heartbeat": ("HeartbeatSettings",),
    "hub": ("Hub", "Receipt"),
    "intake": ("run_source",),
    "limits": ("LimitSettings",),
    "metrics": ("Metrics",),
    "publication": ("Publication",),
    "publisher": ("AsyncPublisher", "Published", "PublishedAll", "Publisher"),
    "service": ("Service",),
    "sockets": ("StreamServer", "raise_descriptor_limit"),
    "sources.base": ("Draft", "SourceFailed"),
    "tokens": ("JwtSettings",),
    "window": ("HistorySettings",),
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
