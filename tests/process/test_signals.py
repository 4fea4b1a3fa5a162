"""What each signal does to a real process, from its first moment to its last."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from qgstream.process.signals import ALL, LEAVE
from tests.hostile.observing import ask
from tests.publishing import publish
from tests.serving import RawClient, ServerProcess

DEFAULTS = ("--port", "0", "--set", "drain.seconds=0", "--set", "broker.timeout_seconds=300")

ROOT = Path(__file__).parents[2]


def test_the_operator_is_told_of_each() -> None:
    page = (ROOT / "docs" / "running.md").read_text().partition("\n## Signals\n")[2].partition("\n## ")[0]
    assert all(number.name in page for number in ALL)


# The server.


@pytest.mark.parametrize("number", LEAVE, ids=lambda number: number.name)
def test_it_drains_and_leaves(tmp_path: Path, number: signal.Signals) -> None:
    with ServerProcess(tmp_path) as server:
        client = RawClient(server.port).get("/events")
        client.until(b'"connected"')
        server.process.send_signal(number)
        assert b'"reason": "drain"' in client.to_end()
        client.close()
        assert server.process.wait(60) == 0
        assert server.lines()[-1]["event"] == "server.stopped"


@pytest.mark.parametrize("number", LEAVE, ids=lambda number: number.name)
def test_once_more_it_leaves_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with ServerProcess(tmp_path, drain__seconds=3600, drain__notice_seconds=600) as server:
        client = RawClient(server.port).get("/events")
        client.until(b'"connected"')
        server.process.send_signal(signal.SIGTERM)
        while b'"draining"' not in ask(server, "GET", "/ready")[1]:
            pass
        server.process.send_signal(number)
        assert server.process.wait(60) == 0
        client.close()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE], ids=lambda number: number.name)
def test_it_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    server = ServerProcess(tmp_path, log__level="debug")
    client = RawClient(server.port).get("/events?topic=a")
    client.until(b'"connected"')
    for _ in range(3):
        server.process.send_signal(number)
    if number != signal.SIGPIPE:  # which Python ignores
        line = server.wait_for_log("signal.ignored", signal=number.name)
        assert line["level"] == {"SIGUSR1": "debug", "SIGUSR2": "warning"}[number.name]
    publish(server, "a", "still there")
    client.until(b"still there")
    client.close()
    server.stop(expect=("signal.ignored",))


def test_a_reload_without_a_file_changes_nothing(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        server.process.send_signal(signal.SIGHUP)
        assert server.wait_for_log("config.reloaded")["needs_restart"] == []
        publish(server, "a", 1)  # with the key from the environment


def test_no_signal_kills_one_that_leaves(tmp_path: Path) -> None:
    """Whoever supervises would take it for a crash."""
    server = ServerProcess(tmp_path)
    server.process.send_signal(signal.SIGTERM)
    for number in cycle(ALL):
        server.process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(0.001)
            break
    server.stop(expect=("signal.ignored",))


def test_programs_that_it_starts_do_not_inherit_what_is_ignored(tmp_path: Path) -> None:
    source = {"use": "process", "options": {"command": ["cat", "/proc/self/status"], "topic": "status"}}
    with ServerProcess(tmp_path, sources=[source]) as server:
        client = RawClient(server.port).get("/events?topic=status&last_event_id=earliest")
        received = client.until(b"SigCgt").decode()
        client.close()
        (ignored,) = [line.split()[-1] for line in received.splitlines() if "SigIgn:" in line]
        assert not int(ignored, 16) & 0x7FFFFFFF  # those above belong to the C library


# The start.


@contextmanager
def starting(*flags: str, program: str | None = None, **environ: str) -> Iterator[subprocess.Popen[str]]:
    command = ["-m", "qgstream"] if program is None else ["-c", program]
    with subprocess.Popen(
        [sys.executable, *command, "serve", *DEFAULTS, *flags], env=os.environ | environ, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """Wait for the line of this event."""
    assert process.stderr is not None
    for text in process.stderr:
        found: dict[str, Any] = json.loads(text)
        if found["event"] == event:
            return found
    raise AssertionError(f"the process ended without {event}")


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A listener that says nothing to whoever comes."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(30)
        yield listener


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel", "nats", "nats+tls", "amqp", "amqps"])
def test_a_start_that_waits_for_a_broker_ends_well(silent: socket.socket, scheme: str) -> None:
    path = "/main" if "sentinel" in scheme else ""
    url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}{path}"
    with starting("--set", f"broker.url={url}") as process:
        with closing(silent.accept()[0]):
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert process.stderr is not None
        events = [json.loads(text)["event"] for text in process.stderr]
        assert events == ["limits.in_effect", "server.stopped"]


def test_a_start_that_waits_for_keys_ends_well(silent: socket.socket) -> None:
    url = f"http://127.0.0.1:{silent.getsockname()[1]}/keys"
    # Its own patience, of 5 s, is told of in the log.
    with starting(QGSTREAM_AUTH__JWT__ALGORITHMS="ES256", QGSTREAM_AUTH__JWT__JWKS_URL=url) as process:
        with closing(silent.accept()[0]):
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert line(process, "server.stopped")["level"] == "info"


NAME_SERVER_THAT_HANGS = """
import socket, sys, time

def getaddrinfo(host, *rest, really=socket.getaddrinfo, **more):
    if host == "broker.example":
        print("asked", flush=True)
        time.sleep(600)
    return really(host, *rest, **more)

socket.getaddrinfo = getaddrinfo
from qgstream.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("scheme", ["redis", "nats", "amqp"])
def test_a_start_that_waits_for_a_name_server_ends_well(scheme: str) -> None:
    with starting("--set", f"broker.url={scheme}://broker.example", program=NAME_SERVER_THAT_HANGS) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert line(process, "server.stopped")


HELD_BEFORE_IT_LOADS = """
import sys
from qgstream.cli import _settings, main

def load(args, really=_settings.load):
    print("loading", flush=True)
    sys.stdin.readline()
    return really(args)

_settings.load = load
sys.exit(main())
"""


@pytest.mark.parametrize("number", LEAVE, ids=lambda number: number.name)
def test_before_it_has_read_its_configuration(number: signal.Signals) -> None:
    with starting(program=HELD_BEFORE_IT_LOADS) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(number)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_what_came_before_it_started_is_done_then() -> None:
    with starting(program=HELD_BEFORE_IT_LOADS) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "loading\n"
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            process.send_signal(number)
        process.stdin.write("\n\n")
        process.stdin.flush()
        assert line(process, "server.started")
        assert line(process, "config.reloaded")
        process.send_signal(signal.SIGTERM)
        assert line(process, "server.stopped")
        assert process.wait(60) == 0
