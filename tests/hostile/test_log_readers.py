"""Whoever reads the log goes away, or stops reading: the server serves on, and says later what is missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.hostile.observing import ask, cpu_seconds
from tests.publishing import publish
from tests.serving import KEY, RawClient, ServerProcess, wait_until


class Piped(ServerProcess):
    """A server whose log is a pipe; nobody reads it but `read_line`."""

    def __init__(self) -> None:
        self.scheme = "http"
        read, write = os.pipe()
        environment = os.environ | {"QGSTREAM_AUTH__PUBLISH_KEYS": json.dumps([KEY]), "QGSTREAM_DRAIN__SECONDS": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qgstream", "serve", "--port", "0"],
            stdout=subprocess.DEVNULL, stderr=write, env=environment,
        )  # fmt: skip
        os.close(write)
        self.log = os.fdopen(read, "rb")
        self.port: int = self.read_until("server.started")["port"]
        self.admin_port: int | None = None

    def read_until(self, event: str) -> dict[str, Any]:
        """Read on to the next line with this event."""
        for text in self.log:
            line: dict[str, Any] = json.loads(text)
            if line["event"] == event:
                return line
        raise AssertionError(f"no {event} before the end of the log")

    def come_and_go(self, count: int) -> None:
        """So many streams, each with its two lines in the log."""
        for _ in range(count):
            client = RawClient(self.port).get("/events", "User-Agent: " + "x" * 200)
            client.until(b'"connected"')
            client.close()


@pytest.fixture
def server() -> Iterator[Piped]:
    server = Piped()
    yield server
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait()
    server.log.close()


def test_a_reader_that_goes_away(server: Piped) -> None:
    stream = RawClient(server.port).get("/events?topic=a")
    stream.until(b'"connected"')
    server.log.close()
    used = cpu_seconds(server)
    server.come_and_go(50)
    publish(server, "a", "still here")
    stream.until(b"data: still here")
    assert cpu_seconds(server) - used < 2
    server.process.send_signal(signal.SIGTERM)
    assert b'"reason": "drain"' in stream.to_end()
    assert server.process.wait(60) == 0
    stream.close()


def test_a_reader_that_stops_reading(server: Piped) -> None:
    """The pipe is full after some two hundred streams; the loop must not wait for somebody to empty it."""
    stream = RawClient(server.port).get("/events?topic=a")
    stream.until(b'"connected"')
    server.come_and_go(300)
    for _ in range(3):
        publish(server, "a", "still here")
        stream.until(b"data: still here")
        stream.received = b""
        assert ask(server, "GET", "/health")[0].status == 200
    # It reads on: what had come before, then how much is missing.
    reading = threading.Thread(target=server.come_and_go, args=(20,))
    reading.start()
    lost = server.read_until("log.lines_lost")
    assert (lost["level"], lost["lines"] > 100) == ("warning", True)
    assert server.read_until("events.connected")["user_agent"] == "x" * 200
    reading.join()
    server.process.send_signal(signal.SIGTERM)
    assert server.read_until("server.stopped")
    assert server.process.wait(60) == 0
    stream.close()


def test_a_reader_that_is_only_slow_misses_nothing(server: Piped) -> None:
    total = 400
    coming = threading.Thread(target=server.come_and_go, args=(total,))
    coming.start()
    events: list[str] = []
    while events.count("events.disconnected") < total:
        text = server.log.readline()
        events.append(json.loads(text)["event"])
    coming.join()
    assert events.count("events.connected") == total
    assert "log.lines_lost" not in events
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.process.poll() == 0, what="its end")
