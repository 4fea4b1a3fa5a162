"""One service and its HTTP server on the test's own loop, under pytest-tornado's fixtures.

pytest-tornado 0.8.1 has no release for the current pytest and Tornado. Three things are done about it: the `io_loop`
fixture is ours (tests/conftest.py), because its own uses what Tornado has deprecated; pytest's and setuptools' warnings
about how it is written are silenced (pyproject.toml); and `http_server` is ours, because its own is a plain HTTPServer
without the timeouts, bounds and cap that qgstream serves with.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.ioloop import IOLoop
from tornado.web import Application

from qgstream.auth.authenticator import AuthSettings
from qgstream.http.app import public_app
from qgstream.hub import Hub
from qgstream.limits import LimitSettings
from qgstream.net.cors import CorsSettings
from qgstream.net.sockets import StreamServer
from qgstream.service.service import Service
from tests.http.asking import KEY, Client


@pytest.fixture
def settings() -> dict[str, Any]:
    """Sections by name. A test that wants others parametrizes it."""
    return {}


@pytest.fixture
def service(io_loop: IOLoop, settings: dict[str, dict[str, Any]]) -> Iterator[Service]:
    """A running service, whose publish key is KEY."""
    service = Service(
        Hub(limits=LimitSettings(**settings.get("limits", {}))),
        cors=CorsSettings(**settings.get("cors", {"allow_origins": ["*"]})),
        auth=AuthSettings(**{"publish_keys": {"tests": KEY}, "admin_keys": {"boss": "admin-key"}}
                          | settings.get("auth", {})),
    )  # fmt: skip
    io_loop.run_sync(service.start)
    yield service
    io_loop.run_sync(service.stop)


@pytest.fixture
def app(service: Service) -> Application:
    return public_app(service)


@pytest.fixture
def http_server(
    io_loop: IOLoop, app: Application, service: Service, _unused_port: tuple[socket.socket, int]
) -> Iterator[StreamServer]:
    server = StreamServer(app, limits=lambda: service.limits, detached=lambda: len(service.hub.registry))
    server.add_socket(_unused_port[0])
    yield server
    server.stop()
    io_loop.run_sync(server.close_all_connections)


@pytest.fixture
def client(http_client: AsyncHTTPClient, base_url: str, service: Service) -> Client:
    return Client(http_client, base_url, service)
