"""A hub on an engine, served over HTTP on the test's own loop."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.testing import bind_unused_port

from qgstream.auth.authenticator import AuthSettings
from qgstream.brokers.base import Broker
from qgstream.events.history import HistorySettings
from qgstream.http.app import public_app
from qgstream.hub import Hub
from qgstream.limits import LimitSettings
from qgstream.net.sockets import StreamServer
from qgstream.service.service import Service
from qgstream.wire.sse import Event
from tests.http.asking import KEY, Client, Stream


class Served:
    """`async with Served(broker) as client`: a server that ends with its block, broker and all."""

    def __init__(
        self, broker: Broker, *, history: HistorySettings | None = None, limits: LimitSettings | None = None
    ) -> None:
        self.hub = Hub(broker=broker, history=history, limits=limits)
        self._service = Service(self.hub, auth=AuthSettings.model_validate({"publish_keys": {"tests": KEY}}))

    async def __aenter__(self) -> Client:
        await self._service.start()
        self._server = StreamServer(
            public_app(self._service), limits=lambda: self._service.limits, detached=lambda: len(self.hub.registry)
        )
        sock, port = bind_unused_port()
        self._server.add_socket(sock)
        self._http = AsyncHTTPClient(force_instance=True)
        return Client(self._http, f"http://127.0.0.1:{port}", self._service)

    async def __aexit__(self, *_: object) -> None:
        self._server.stop()
        await self._service.stop()
        await self._server.close_all_connections()
        self._http.close()


async def open_stream(client: Client, *topics: str, id: str | None = None) -> tuple[Stream, str, str]:
    """A stream that resumes after an id: what `connected` says of the replay, and the position that it gives."""
    stream = Stream(await client.connect())
    query = "?" + "&".join(f"topic={topic}" for topic in topics) if topics else ""
    headers = [f"GET /events{query} HTTP/1.1", "Host: tests", *([f"Last-Event-ID: {id}"] if id is not None else [])]
    await stream.iostream.write(("\r\n".join(headers) + "\r\n\r\n").encode())
    head = await stream.iostream.read_until(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        pytest.fail(f"{head.decode()}{(await stream.iostream.read_until_close()).decode()}")
    connected = await stream.next()
    message: dict[str, Any] = json.loads(connected.data)
    assert message["event"] == "connected", message
    return stream, message["replay"], connected.id


async def take(stream: Stream, count: int) -> list[Event]:
    """The next events that were published."""
    found: list[Event] = []
    while len(found) < count:
        event = await stream.next()
        if '"event": "heartbeat"' not in event.data:
            found.append(event)
    return found
