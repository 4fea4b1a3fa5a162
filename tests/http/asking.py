"""What the tests of the handlers ask with: requests, publishes and streams, on the test's own loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.iostream import IOStream
from tornado.tcpclient import TCPClient

from qgstream.service.service import Service
from qgstream.wire.sse import Event, Parser

KEY = "test-key"
BEARER = {"Authorization": f"Bearer {KEY}"}


class Client:
    """pytest-tornado's client, bound to the server under test."""

    def __init__(self, http: AsyncHTTPClient, base_url: str, service: Service) -> None:
        self.http = http
        self.base_url = base_url
        self.service = service
        self.hub = service.hub

    async def ask(
        self, method: str, target: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> HTTPResponse:
        """One request; an answer of any status is returned."""
        return await self.http.fetch(
            self.base_url + target, method=method, headers=dict(headers or {}), body=body, raise_error=False,
            allow_nonstandard_methods=True, follow_redirects=False, request_timeout=60,
        )  # fmt: skip

    async def post(
        self, body: object, *, headers: Mapping[str, str] | None = None, media_type: str | None = "application/json",
        query: str = "",
    ) -> HTTPResponse:  # fmt: skip
        """POST /events with the tests' key unless `headers` say otherwise. What is not bytes is sent as JSON."""
        headers = dict(BEARER if headers is None else headers)
        if media_type is not None:
            headers["Content-Type"] = media_type
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.ask("POST", f"/events{query}", headers=headers, body=data)

    async def publish(self, topic: str | list[str], data: object, **fields: object) -> dict[str, Any]:
        """Publish one event, which must succeed."""
        answer = await self.post({"topic": topic, "data": data, **fields})
        assert answer.code == 200, answer.body
        return document(answer)

    async def stream(self, *topics: str, headers: Mapping[str, str] | None = None, **query: str) -> Stream:
        """An open stream, its `connected` message read."""
        pairs = [("topic", topic) for topic in topics] + list(query.items())
        stream = Stream(await self.connect())
        await stream.open("/events" + ("?" + urlencode(pairs) if pairs else ""), headers or {})
        return stream

    async def connect(self) -> IOStream:
        """A connection on which nothing was said yet."""
        return await TCPClient().connect("127.0.0.1", urlsplit(self.base_url).port or 0)

    @property
    def published(self) -> float:
        """The counter of published events."""
        value = self.hub.metrics.registry.get_sample_value("qgstream_events_published_total")
        assert value is not None
        return value


class Stream:
    """A client of `GET /events` over HTTP/1.1."""

    def __init__(self, iostream: IOStream) -> None:
        self.iostream = iostream
        self.head = b""
        self._parser = Parser()
        self._events: list[Event] = []

    async def open(self, target: str, headers: Mapping[str, str]) -> None:
        lines = [f"GET {target} HTTP/1.1", "Host: tests", *(f"{name}: {value}" for name, value in headers.items())]
        await self.iostream.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        self.head = await self.iostream.read_until(b"\r\n\r\n")
        assert self.head.startswith(b"HTTP/1.1 200 "), self.head
        self.connected = await self.message()
        assert self.connected["event"] == "connected"

    async def next(self) -> Event:
        """The next event of any kind."""
        while not self._events:
            size = int(await self.iostream.read_until(b"\r\n"), 16)
            assert size, "the server ended the stream"
            payload = await self.iostream.read_bytes(size + 2)
            self._events += self._parser.feed(payload[:-2])
        return self._events.pop(0)

    async def message(self) -> dict[str, Any]:
        """The next event's data, which must be a JSON object."""
        parsed = json.loads((await self.next()).data)
        assert isinstance(parsed, dict)
        return parsed

    async def data(self) -> str:
        """The data of the next published event; heartbeats are passed over."""
        while '"event": "heartbeat"' in (event := await self.next()).data:
            pass
        return event.data

    def close(self) -> None:
        self.iostream.close()


async def until(condition: Callable[[], bool]) -> None:
    """Return as soon as the condition holds; the test's timeout is how long that may take."""
    while not condition():  # noqa: ASYNC110  # what is waited for has no event
        await asyncio.sleep(0.001)


def document(answer: HTTPResponse) -> dict[str, Any]:
    """The JSON object of an answer."""
    assert answer.headers["Content-Type"].lower() == "application/json; charset=utf-8"
    parsed = json.loads(answer.body)
    assert isinstance(parsed, dict)
    return parsed


def error_of(answer: HTTPResponse) -> dict[str, Any]:
    """The error of an answer, whose shape is checked here once for all tests."""
    parsed = document(answer)
    assert list(parsed) == ["error"]
    error = parsed["error"]
    assert set(error) <= {"code", "message", "field", "docs"}
    assert error["code"] == error["code"].lower()
    assert isinstance(error["message"], str)
    assert error["message"]
    assert answer.headers["Cache-Control"] == "no-store"
    return dict(error)
