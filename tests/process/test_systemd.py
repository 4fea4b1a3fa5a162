"""The service manager's protocol: what is said, where, and that nobody listening is no trouble."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qgstream.process.config import load
from qgstream.process.server import STOP_SECONDS
from qgstream.process.systemd import Supervisor
from tests.serving import ServerProcess


class Manager:
    """The manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(60)
        self.socket.bind(address)

    def message(self) -> dict[str, str]:
        lines = self.socket.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def until(self, name: str) -> list[str]:
        """The first word of each message up to the one with this name."""
        said: list[str] = []
        while not said or said[-1] != name:
            said.append(next(iter(self.message())))
        return said

    def close(self) -> None:
        self.socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Manager, str]]:
    name = f"@qgstream-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with closing(Manager(name.replace("@", "\0"))) as found:
        yield found, name


def test_each_message_is_said_as_systemd_knows_it(manager: tuple[Manager, str]) -> None:
    there, address = manager
    supervisor = Supervisor({"NOTIFY_SOCKET": address})
    supervisor.ready()
    supervisor.reloading()
    supervisor.stopping(41.5)
    supervisor.alive()
    assert there.message() == {"READY": "1"}
    reloading = there.message()
    assert reloading.pop("RELOADING") == "1"
    assert int(reloading.pop("MONOTONIC_USEC")) > 0
    assert reloading == {}
    assert there.message() == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "41500000"}
    assert there.message() == {"WATCHDOG": "1"}


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}], ids=str)
def test_where_nobody_asks_nothing_is_said(environment: dict[str, str]) -> None:
    supervisor = Supervisor(environment | {"WATCHDOG_USEC": "1000"})
    supervisor.ready()
    assert supervisor.watchdog_seconds is None


def test_a_manager_that_is_away_or_does_not_read_stops_nobody(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    Supervisor({"NOTIFY_SOCKET": address}).ready()
    with closing(Manager(address)):
        supervisor = Supervisor({"NOTIFY_SOCKET": address})
        for _ in range(1000):  # more than its queue holds
            supervisor.alive()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_asked_for_in_microseconds(environment: dict[str, str], seconds: float | None) -> None:
    assert Supervisor({"NOTIFY_SOCKET": "/run/notify", **environment}).watchdog_seconds == seconds


def test_a_server_says_when_it_is_ready_reloads_lives_and_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(tmp_path / "notify")
    with closing(Manager(address)) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        with ServerProcess(tmp_path, drain__notice_seconds=0.1) as server:
            assert manager.until("READY") == ["READY"]
            manager.until("WATCHDOG")
            manager.until("WATCHDOG")
            server.process.send_signal(signal.SIGHUP)
            assert set(manager.until("RELOADING")) <= {"RELOADING", "WATCHDOG"}
            assert set(manager.until("READY")) <= {"READY", "WATCHDOG"}
            server.process.send_signal(signal.SIGTERM)
            while "STOPPING" not in (message := manager.message()):
                assert message == {"WATCHDOG": "1"}
            assert int(message["EXTEND_TIMEOUT_USEC"]) == 100_000 + 1_000_000 * STOP_SECONDS


class HangingServer(ServerProcess):
    """Its loop hangs in every reload, for ten times the watchdog's interval."""

    program = (
        "-c",
        """if True:
            import sys, time
            from qgstream import cli
            from qgstream.process import server
            server.Server.reconfigure = lambda self: time.sleep(1)
            sys.exit(cli.main(sys.argv[1:]))
        """,
    )


def test_a_loop_that_hangs_is_not_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    with closing(Manager(address)) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        with HangingServer(tmp_path) as server:
            manager.until("WATCHDOG")
            server.process.send_signal(signal.SIGHUP)
            manager.until("RELOADING")
            assert manager.until("READY") == ["READY"]


def test_a_drain_that_is_configured_to_last_is_announced_whole() -> None:
    drain = load(Path(__file__).parents[2] / "conf" / "production.toml").config.drain
    assert drain.notice_seconds + drain.seconds + STOP_SECONDS == 36
