"""Floods on a real server: one knows that, and who, from its metrics, its log and /admin alone."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.publishing import post
from tests.serving import KEY, RawClient, ServerProcess, wait_until

ADMIN_KEY = "admin-key"
REFUSED = 10_000
PIPELINED = 50


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(
        tmp_path, auth__admin_keys={"boss": ADMIN_KEY}, auth__publish_keys={"shop": KEY, "flooder": "flood-key"}
    ) as server:
        yield server


def get(server: ServerProcess, path: str) -> bytes:
    client = RawClient(server.port).get(path, f"Authorization: Bearer {ADMIN_KEY}", "Connection: close")
    head, _, body = client.to_end().partition(b"\r\n\r\n")
    client.close()
    assert b" 200 " in head, head
    return body


def admin(server: ServerProcess, path: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(get(server, f"/admin/{path}"))
    return parsed


def publishes(server: ServerProcess) -> dict[str, int]:
    """By result, without those that are 0."""
    found = re.findall(
        r'^qgstream_publishes_total{result="(\w+)"} (\d+)\.0$', get(server, "/metrics").decode(), re.MULTILINE
    )
    return {result: int(count) for result, count in found if count != "0"}


def test_a_wrong_key_in_a_loop_is_counted_exactly_and_takes_two_lines(server: ServerProcess) -> None:
    body = b'{"topic": "a", "data": 1}'
    request = (
        b"POST /events HTTP/1.1\r\nHost: x\r\nUser-Agent: loop/1\r\nAuthorization: Bearer not-a-key\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    ) + body
    began = time.monotonic()
    client = RawClient(server.port, timeout_seconds=60)
    for _ in range(REFUSED // PIPELINED):
        client.socket.sendall(request * PIPELINED)
        client.received = b""
        while client.received.count(b"HTTP/1.1 401") < PIPELINED or not client.received.endswith(b"}\n"):
            more = client.socket.recv(65536)
            assert more
            client.received += more
    client.close()
    assert publishes(server) == {"unauthorized": REFUSED}
    (row,) = admin(server, "talkers")["address"]
    assert (row["name"], row["publishes_refused"], row["last_refusal"]) == ("127.0.0.1", REFUSED, "unauthorized")
    assert [one["publishes_refused"] for one in admin(server, "talkers")["agent"] if one["name"] == "loop/1"] == [
        REFUSED
    ]
    assert admin(server, "publishers")["publishers"] == []
    server.stop()
    lines = [line for line in server.lines() if line["event"] == "publish.refused"]
    if time.monotonic() - began < 60:  # else there is one more for each minute
        assert len(lines) == 2
    assert [(line["reason"], line["remote_ip"]) for line in lines] == [("unauthorized", "127.0.0.1")] * len(lines)
    assert sum(line.get("more", 1) for line in lines) == REFUSED
    assert "not-a-key" not in server.log_path.read_text()


def test_a_flooding_key_is_seen_at_once_among_steady_ones(server: ServerProcess) -> None:
    for _ in range(100):
        post(server, '{"topic": "steady", "data": 1}', "application/json")
    stop = threading.Event()
    batch = "\n".join(['{"topic": "flood", "data": "x"}'] * 200)
    refused: list[Exception] = []

    def flood() -> None:
        client = RawClient(server.port, timeout_seconds=60)
        request = (
            f"POST /events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer flood-key\r\n"
            f"Content-Type: application/x-ndjson\r\nContent-Length: {len(batch)}\r\n\r\n{batch}"
        ).encode()
        try:
            while not stop.is_set():
                client.received = b""
                client.socket.sendall(request)
                client.until(b'"subscribers"')
        except (OSError, AssertionError) as error:
            refused.append(error)
        client.close()

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        seen: dict[str, Any] = {}

        def is_seen() -> bool:
            seen["topics"] = admin(server, "topics")["published"]
            seen["publishers"] = admin(server, "publishers")["publishers"]
            row, topic = seen["publishers"][0], seen["topics"][0]
            return bool(
                row["name"] == "flooder" and row["events_per_second"] > 0
                and topic["topic"] == "flood" and topic["events_per_second_now"] > 0
            )  # fmt: skip

        wait_until(is_seen, what="the flood in the first rows")
    finally:
        stop.set()
        thread.join()
    assert refused == []
    row = seen["publishers"][0]
    assert row["kind"] == "key"
    assert (row["publishes_refused"], row["last_refusal"]) == (0, None)


def test_a_scanner_leaves_a_trace(server: ServerProcess) -> None:
    for _ in range(5):
        client = RawClient(server.port)
        client.socket.sendall(b"\x16\x03\x01\x02\x00 no HTTP at all\r\n\r\n")
        client.to_end()
        client.close()
    assert admin(server, "talkers")["address"][0]["others_refused"] == 5
    server.stop()
    lines = [line for line in server.lines() if line["event"] == "request.refused" and "logger" not in line]
    assert [(line["reason"], line.get("more")) for line in lines] == [("bad_request", None), ("bad_request", 4)]
