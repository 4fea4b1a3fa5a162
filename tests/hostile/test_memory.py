"""The memory of a server that is full is what `qgstream doctor` and docs/tuning-limits.md calculate."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from qgstream.process.capacity import resident_bytes
from qgstream.process.config import Config
from tests.serving import KEY, RawClient, ServerProcess

MIB = 1024 * 1024
STREAMS, STALLED, UPLOADS = 300, 24, 4
LIMITS = {
    "max_connections": STREAMS + STALLED, "max_total_backlog_bytes": 20 * MIB, "max_inflight_body_bytes": 24 * MIB,
    "send_buffer_bytes": 4096,
}  # fmt: skip
HISTORY = {"max_bytes": 48 * MIB, "max_events": 1_000_000}


def rss(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def metric(server: ServerProcess, name: str) -> float:
    with closing(RawClient(server.port)) as client:
        text = client.get("/metrics", "Connection: close").to_end().decode()
    return float(text.partition(f"\nqgstream_{name} ")[2].split()[0])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def post(
    server: ServerProcess, body: bytes, media_type: str = "application/json", *, length: int | None = None
) -> RawClient:
    client = RawClient(server.port)
    head = (
        f"POST /events HTTP/1.1\r\nHost: tests\r\nAuthorization: Bearer {KEY}\r\nContent-Type: {media_type}\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    client.socket.sendall(head.encode() + body)
    return client


def publish(server: ServerProcess, body: bytes, media_type: str = "application/json") -> None:
    with closing(post(server, body, media_type)) as client:
        assert b" 200 " in client.until(b"\r\n")


def fill_history(server: ServerProcess, topics: list[str], data: str) -> None:
    """Publish until what is oldest is forgotten."""
    number, events = 0, -1.0
    while (held := metric(server, "history_events")) > events:
        events = held
        lines = []
        for _ in range(min(1000, 4 * MIB // len(data))):
            number += 1
            lines.append(
                json.dumps({"topic": [f"{topic}/{number}" for topic in topics], "event": "kind", "data": data})
            )
        publish(server, "\n".join(lines).encode(), "application/x-ndjson")
    assert metric(server, "history_bytes") > 0.97 * HISTORY["max_bytes"]


@pytest.mark.parametrize(
    ("topics", "data"),
    [(["orders"], "x" * 100), ([f"a/long/name/of/a/topic/{n}" for n in range(8)], "x"), (["large"], "x" * 50_000)],
    ids=["small", "topics", "large"],
)
def test_a_full_server_takes_what_is_calculated(tmp_path: Path, topics: list[str], data: str) -> None:
    settings: dict[str, Any] = {f"limits__{name}": value for name, value in LIMITS.items()}
    settings |= {f"history__{name}": value for name, value in HISTORY.items()}
    planned = resident_bytes(Config.model_validate({"limits": LIMITS, "history": HISTORY}))
    with ServerProcess(tmp_path, **settings) as server, ExitStack() as stack:
        fill_history(server, topics, data)
        for number in range(STREAMS):
            stack.enter_context(closing(RawClient(server.port))).get(f"/events?topic=quiet/{number}").until(
                b"connected"
            )
        stalled = [stack.enter_context(closing(RawClient(server.port, receive_buffer=4096))) for _ in range(STALLED)]
        for number, client in enumerate(stalled):
            client.get(f"/events?topic=stalled/{number}").until(b"connected")
        for _ in range(8):  # 100 KiB each: in eight steps up to the bound of all
            for number in range(STALLED):
                publish(server, json.dumps({"topic": f"stalled/{number}", "data": "y" * 100_000}).encode())
        until(lambda: metric(server, "backlog_bytes") > 0.8 * LIMITS["max_total_backlog_bytes"])
        size = LIMITS["max_inflight_body_bytes"] // UPLOADS
        start = b'{"topic": "a", "data": "'
        for _ in range(UPLOADS):
            stack.enter_context(closing(post(server, start + b"z" * (size - 100), length=size)))
        until(lambda: metric(server, "inflight_body_bytes") > 0.95 * LIMITS["max_inflight_body_bytes"])
        used = rss(server)
        assert planned / 1.5 < used < 1.5 * planned
