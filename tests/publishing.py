"""Publishing as any program does it: one HTTP POST."""

from __future__ import annotations

import http.client
import json
from typing import Any

from tests.serving import KEY, ServerProcess


def publish(server: ServerProcess, topic: str | list[str], data: object, *, event: str | None = None) -> dict[str, Any]:
    """Publish one event; returns the server's answer."""
    document = {"topic": topic, "data": data} | ({"event": event} if event else {})
    return post(server, json.dumps(document), "application/json")


def publish_all(server: ServerProcess, events: list[dict[str, Any]]) -> dict[str, Any]:
    """Publish a batch, in order; returns the server's answer."""
    return post(server, "\n".join(map(json.dumps, events)), "application/x-ndjson")


def post(server: ServerProcess, body: str, content_type: str) -> dict[str, Any]:
    """POST this body to /events with the key; the answer must be 200."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": content_type}
    try:
        connection.request("POST", "/events", body.encode(), headers)
        answer = connection.getresponse()
        document: dict[str, Any] = json.loads(answer.read())
        assert answer.status == 200, document
        return document
    finally:
        connection.close()
