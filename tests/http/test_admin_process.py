"""/admin of a whole process: its configuration, its leaving, and its own port."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.programs import free_port
from tests.serving import RawClient, ServerProcess

ADMIN = {"Authorization": "Bearer admin-key"}


@pytest.fixture
def expected() -> list[str]:
    """Events above `info` that a server's log may have."""
    return []


@pytest.fixture
def start(tmp_path: Path, expected: list[str]) -> Iterator[Callable[..., ServerProcess]]:
    servers: list[ServerProcess] = []

    def start(*, admin_port: bool = True, **settings: object) -> ServerProcess:
        if admin_port:
            settings["admin__port"] = free_port()
        servers.append(
            ServerProcess(tmp_path, **{"auth__admin_keys": {"boss": "admin-key"}} | settings)  # type: ignore[arg-type]  # `port` is among them
        )
        return servers[-1]

    yield start
    for server in servers:
        server.stop(expect=tuple(expected))


def admin(server: ServerProcess) -> httpx.Client:
    port = server.admin_port or server.port
    return httpx.Client(base_url=f"http://127.0.0.1:{port}/admin/", headers=ADMIN, timeout=60, trust_env=False)


def answers(server: ServerProcess) -> bool:
    try:
        return httpx.get(f"{server.url}/health", trust_env=False, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def streams(server: ServerProcess, number: int) -> list[RawClient]:
    opened = [RawClient(server.port).get("/events") for _ in range(number)]
    for stream in opened:
        stream.until(b"connected")
    return opened


def test_the_operators_side_leaves_the_public_port(start: Callable[..., ServerProcess]) -> None:
    server = start()
    assert server.admin_port is not None
    for path in ("/metrics", "/ready", "/admin", "/admin/limits"):
        assert httpx.get(server.url + path, headers=ADMIN, trust_env=False, timeout=60).status_code == 404
        url = f"http://127.0.0.1:{server.admin_port}{path}"
        assert httpx.get(url, headers=ADMIN, trust_env=False, timeout=60).status_code == 200
    assert httpx.get(f"http://127.0.0.1:{server.admin_port}/events", trust_env=False, timeout=60).status_code == 404


def test_the_configuration_in_effect_and_where_it_came_from(start: Callable[..., ServerProcess]) -> None:
    server = start(limits__max_connections=500, broker__url="memory://user:hunter2@here")
    with admin(server) as client:

        def config() -> dict[str, Any]:
            answer = client.get("config")
            assert "admin-key" not in answer.text
            assert "hunter2" not in answer.text
            found: dict[str, Any] = answer.json()["config"]
            return found

        environment = "environment QGSTREAM_LIMITS__MAX_CONNECTIONS"
        assert config()["limits.max_connections"] == {"value": 500, "source": environment}
        assert config()["limits.retry_seconds"] == {"value": 3.0, "source": "default"}
        assert config()["server.port"] == {"value": 0, "source": "flag --port"}
        assert config()["auth.admin_keys"]["value"] == "(not shown)"
        client.patch("limits", json={"max_connections": 600, "retry_seconds": 3})
        assert config()["limits.max_connections"] == {"value": 600, "source": "admin API"}
        assert config()["limits.retry_seconds"]["source"] == "default"
        server.process.send_signal(signal.SIGHUP)
        assert server.wait_for_log("config.reloaded")["limits_kept"] == ["max_connections"]
        assert config()["limits.max_connections"] == {"value": 600, "source": "admin API"}


def test_emergency_limits_outlast_a_reload_that_does_not_touch_them(
    start: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    path = tmp_path / "q.toml"
    path.write_text("[limits]\nmax_connections = 500\n")
    server = start(config=str(path), limits__connect_burst_per_ip=7)
    with admin(server) as client:

        def limits() -> tuple[dict[str, Any], list[str]]:
            answer = client.get("limits").json()
            return answer["limits"], answer["changed"]

        def reload(text: str, number: int) -> dict[str, Any]:
            path.write_text(text)
            server.process.send_signal(signal.SIGHUP)
            return server.wait_for_log("config.reloaded", count=number)

        emergency = {"max_connections": 50, "retry_seconds": 30, "connect_burst_per_ip": 1}
        answer = client.patch("limits", json=emergency).json()
        assert answer["changed"] == sorted(emergency)
        assert (
            answer["changed_until"] == "a restart, or a reload of a configuration in which the same limit has changed"
        )
        line = reload("[limits]\nmax_connections = 500\nmax_event_bytes = 1000\n", 1)
        assert (line["limits_kept"], line["limits_reset"]) == (sorted(emergency), [])
        now, changed = limits()
        assert now.items() >= (emergency | {"max_event_bytes": 1000}).items()
        assert changed == sorted(emergency)
        # What is written in the file from then on wins, also when it is less strict.
        line = reload("[limits]\nmax_connections = 600\n", 2)
        assert (line["limits_kept"], line["limits_reset"]) == (
            ["connect_burst_per_ip", "retry_seconds"], ["max_connections"],
        )  # fmt: skip
        now, changed = limits()
        assert (now["max_connections"], now["retry_seconds"], now["max_event_bytes"]) == (600, 30, 256 * 1024)
        assert changed == ["connect_burst_per_ip", "retry_seconds"]
        assert client.get("config").json()["config"]["limits.max_connections"]["source"] == f"file {path}"


def test_a_file_that_is_refused_leaves_them_too(
    start: Callable[..., ServerProcess], tmp_path: Path, expected: list[str]
) -> None:
    path = tmp_path / "q.toml"
    path.write_text("")
    server = start(config=str(path))
    expected.append("config.rejected")
    with admin(server) as client:
        client.patch("limits", json={"max_connections": 50})
        path.write_text("[limits]\nmax_connections = -1\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("config.rejected")
        assert client.get("limits").json()["limits"]["max_connections"] == 50


def test_maintenance_and_bans_outlast_a_reload(start: Callable[..., ServerProcess]) -> None:
    server = start()
    (stream,) = streams(server, 1)
    with admin(server) as client:
        assert client.post("maintenance", json={"seconds": 0}).status_code == 202
        assert b'"reason": "drain"' in stream.to_end()
        assert client.post("bans", json={"network": "192.0.2.0/24"}).status_code == 201
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("config.reloaded")
        assert client.get("maintenance").json()["status"] == "maintenance"
        assert [ban["value"] for ban in client.get("bans").json()["bans"]] == ["192.0.2.0/24"]
        assert httpx.get(f"{server.url}/events", trust_env=False, timeout=60).status_code == 503
        assert client.delete("maintenance").status_code == 200
    stream.close()
    (stream,) = streams(server, 1)
    stream.close()


def test_a_server_in_maintenance_leaves_when_it_is_told_to(start: Callable[..., ServerProcess]) -> None:
    server = start()
    (stream,) = streams(server, 1)
    with admin(server) as client:
        assert client.post("maintenance", json={"seconds": 3600}).status_code == 202
    server.stop()
    stream.close()


def test_a_drain_begun_here_is_seen_to_its_end(start: Callable[..., ServerProcess]) -> None:
    server = start(drain__seconds=600)
    opened = streams(server, 4)
    with admin(server) as client:
        assert client.post("drain", json={"seconds": "soon"}).status_code == 400
        assert client.get("overview").json()["status"] == "ready"
        with client.stream("GET", "events") as watched:
            snapshots = (json.loads(line[6:]) for line in watched.iter_lines() if line.startswith("data: "))
            assert next(snapshots)["status"] == "ready"
            answer = client.post("drain", json={"seconds": 0.4})
            assert answer.status_code == 202
            assert answer.json() == {"status": "draining", "connections": 4, "seconds": 0.4, "now": False}
            statuses = [one.get("status", one.get("reason")) for one in snapshots]
    assert set(statuses[:-1]) <= {"draining"}
    assert statuses[-1] == "drain"  # its goodbye, after the last of the others
    for stream in opened:
        assert b'"reason": "drain"' in stream.to_end()
        stream.close()
    assert server.wait_for_log("drain.started")["seconds"] == 0.4
    assert server.wait_for_log("admin.drain")["admin_key"] == "boss"
    server.process.wait(60)


def test_a_drain_may_be_ended_at_once(start: Callable[..., ServerProcess]) -> None:
    server = start(drain__seconds=600)
    opened = streams(server, 3)
    with admin(server) as client:
        for body in ({}, {"seconds": 1}):  # asking again changes nothing
            answer = client.post("drain", json=body)
            assert (answer.status_code, answer.json()["seconds"], answer.json()["now"]) == (202, 600, False)
        assert client.post("drain", json={"now": True}).json()["now"] is True
    server.process.wait(60)
    for stream in opened:
        stream.close()


def test_the_operator_gets_in_when_no_socket_is_left(start: Callable[..., ServerProcess]) -> None:
    server = start(limits__max_sockets=5)
    opened = streams(server, 5)
    with admin(server) as client:
        assert not answers(server)
        assert client.get("overview").json()["totals"]["rejected"]["max_sockets"] == 1
    for stream in opened:
        stream.close()


def test_lowering_the_limit_locks_nobody_out(start: Callable[..., ServerProcess]) -> None:
    server = start(admin_port=False)
    opened = streams(server, 120)  # more than 1 + 10 % + 100
    with admin(server) as client:
        client.patch("limits", json={"max_connections": 1})
    with admin(server) as client:  # a new socket
        assert client.get("overview").json()["status"] == "full"
        assert client.patch("limits", json={"max_connections": 200}).status_code == 200
    more = streams(server, 1)
    for stream in opened + more:
        stream.close()
