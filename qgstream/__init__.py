"""qgstream: a server for Server-Sent Events on Tornado, whole or inside your own application.

    hub = Hub()
    async with Service(hub) as service:
        Application([*routes(service), ("/orders", Orders)]).listen(8888)
        await hub.publish("orders", {"order": 7}, event="created")

The names below are what a program embeds. Each is imported when it is first asked for, so that `import qgstream`
costs nothing and does nothing; their modules may change, these names stay.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from qgstream.version import __version__ as __version__

if TYPE_CHECKING:
    from qgstream.app import operator_routes as operator_routes
    from qgstream.app import routes as routes
    from qgstream.auth import AuthSettings as AuthSettings
    from qgstream.brokers.base import Broker as Broker
    from qgstream.brokers.base import open_broker as open_broker
    from qgstream.cors import CorsSettings as CorsSettings
    from qgstream.errors import ConfigError as ConfigError
    from qgstream.errors import InvalidField as InvalidField
    from qgstream.errors import QgstreamError as QgstreamError
    from qgstream.errors import TooLarge as TooLarge
    from qgstream.errors import Unavailable as Unavailable
    from qgstream.heartbeat import HeartbeatSettings as HeartbeatSettings
    from qgstream.hub import Hub as Hub
    from qgstream.hub import Receipt as Receipt
    from qgstream.limits import LimitSettings as LimitSettings
    from qgstream.metrics import Metrics as Metrics
    from qgstream.publication import Publication as Publication
    from qgstream.service import Service as Service
    from qgstream.sockets import StreamServer as StreamServer
    from qgstream.sockets import raise_descriptor_limit as raise_descriptor_limit
    from qgstream.tokens import JwtSettings as JwtSettings
    from qgstream.window import HistorySettings as HistorySettings

# Where each name lives.
_MODULES = {
    "app": ("operator_routes", "routes"),
    "auth": ("AuthSettings",),
    "brokers.base": ("Broker", "open_broker"),
    "cors": ("CorsSettings",),
    "errors": ("ConfigError", "InvalidField", "QgstreamError", "TooLarge", "Unavailable"),
    "heartbeat": ("HeartbeatSettings",),
    "hub": ("Hub", "Receipt"),
    "limits": ("LimitSettings",),
    "metrics": ("Metrics",),
    "publication": ("Publication",),
    "service": ("Service",),
    "sockets": ("StreamServer", "raise_descriptor_limit"),
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
