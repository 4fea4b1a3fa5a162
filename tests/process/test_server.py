"""One process: how it starts or says why not, takes a new configuration without dropping a stream, and leaves."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from qgstream.net.sockets import BODY_SECONDS
from tests.deploy.programs import free_port
from tests.hostile.certificates import make_certificate
from tests.hostile.observing import Watch, ask, metrics
from tests.publishing import publish
from tests.serving import KEY, RawClient, ServerProcess, wait_until

JSON = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
EVENT = b'{"topic": "a", "data": 1}'


def opened(server: ServerProcess, *headers: str, topic: str = "a") -> RawClient:
    client = RawClient(server.port).get(f"/events?topic={topic}", *headers)
    client.until(b'"connected"')
    return client


# Starting.


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    """A server that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "qgstream", "serve", *flags], capture_output=True, text=True, timeout=60, check=False
    )


def test_it_listens_when_it_can_serve_and_not_before(tmp_path: Path) -> None:
    """A balancer sends newcomers to a port that takes connections, and they would wait for the end of the start."""
    port, log_path = free_port(), tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as engine, log_path.open("wb") as log:
        flags = ["--port", str(port), "--set", f"broker.url=redis://127.0.0.1:{engine.getsockname()[1]}"]
        with subprocess.Popen([sys.executable, "-m", "qgstream", "serve", *flags], stderr=log) as process:
            engine.settimeout(30)
            connection, _ = engine.accept()  # it waits for its broker, which says nothing
            assert refused(port)
            connection.close()
            process.terminate()


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert json.loads(line)["event"] == "server.failed"
    assert "the port is in use by the process" in json.loads(line)["reason"]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("wrong", ["missing", "nonsense", "not the key of the certificate"])
def test_a_certificate_that_cannot_be_used(tmp_path: Path, wrong: str) -> None:
    certfile, keyfile = make_certificate(tmp_path)
    if wrong == "missing":
        certfile = tmp_path / "missing.crt"
    elif wrong == "nonsense":
        certfile.write_text("nonsense")
    else:
        keyfile = make_certificate(tmp_path, name="other")[1]
    done = run("--port", "0", "--set", f"server.certfile={certfile}", "--set", f"server.keyfile={keyfile}")
    assert done.returncode == 1
    assert "server.certfile, server.keyfile: cannot be used: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_host_that_is_not_ours() -> None:
    done = run("--port", "0", "--host", "192.0.2.1")
    assert done.returncode == 1
    assert "server.failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_processes_share_a_port_when_told_to(tmp_path: Path) -> None:
    first = ServerProcess(tmp_path, server__reuse_port=True)
    second = ServerProcess(tmp_path, port=first.port, server__reuse_port=True)
    both = (first, second)
    try:
        assert second.port == first.port
        clients = []
        while not all(count(server, "events.connected") for server in both):
            clients.append(opened(first))
            assert len(clients) < 200
        for client in clients:
            client.close()
        wait_until(lambda: sum(count(server, "events.disconnected") for server in both) == len(clients))
    finally:
        for server in both:
            server.stop(expect=("config.warning",))  # they share no log


def count(server: ServerProcess, event: str) -> int:
    return sum(line["event"] == event for line in server.lines())


# A new configuration.


BY_FILE_ALONE = """
import os, sys
for name in list(os.environ):
    if name.startswith("QGSTREAM_") and name != "QGSTREAM_CONFIG":
        del os.environ[name]
from qgstream.cli import main
sys.exit(main())
"""


class FromFile(ServerProcess):
    """A server that is configured by a file alone."""

    program: ClassVar[tuple[str, ...]] = ("-c", BY_FILE_ALONE)


class Reloadable:
    """A server and the file that it reads again at SIGHUP."""

    BASE: ClassVar[dict[str, dict[str, Any]]] = {
        "auth": {"publish_keys": {"tests": KEY}},
        "cors": {"allow_origins": ["*"]},
        "drain": {"seconds": 0},
    }

    def __init__(self, tmp_path: Path, **sections: dict[str, Any]) -> None:
        self.path = tmp_path / "qgstream.toml"
        self._reloads = 0
        self.write(sections)
        self.server = FromFile(tmp_path, config=str(self.path))

    def write(self, sections: dict[str, dict[str, Any]]) -> None:
        sections = {
            name: self.BASE.get(name, {}) | sections.get(name, {}) for name in self.BASE.keys() | sections.keys()
        }
        text = "".join(
            f"[{name}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in section.items())
            for name, section in sections.items()
        )
        self.path.write_text(text)

    def reload(self, **sections: dict[str, Any]) -> dict[str, Any]:
        """Write these sections over the base, and have them read; returns the line about it."""
        self.write(sections)
        self.server.process.send_signal(signal.SIGHUP)
        self._reloads += 1
        return self.server.wait_for_log("config.reloaded", count=self._reloads)


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


@pytest.fixture
def reloadable(tmp_path: Path) -> Iterator[Reloadable]:
    reloadable = Reloadable(tmp_path)
    with reloadable.server:
        yield reloadable


def test_limits_change_without_dropping_a_stream(reloadable: Reloadable) -> None:
    server = reloadable.server
    watch = Watch(server)
    clients = [opened(server) for _ in range(3)]
    line = reloadable.reload(limits={"max_connections": 2})
    assert (line["level"], line["needs_restart"]) == ("info", [])
    # Nobody is closed for it, nobody else gets in.
    assert metrics(server)["connections"] == 3
    assert metrics(server)["connections_limit"] == 2
    assert ask(server, "GET", "/events")[0].status == 503
    reloadable.reload(limits={"max_connections": 4})
    clients.append(opened(server))
    assert ask(server, "GET", "/events")[0].status == 503
    publish(server, "a", "to all of them")
    for client in clients:
        client.until(b"to all of them")
        client.close()
    watch.expect(client=4)


def test_keys_are_rotated_and_origins_change(reloadable: Reloadable) -> None:
    server = reloadable.server
    client = opened(server, f"Authorization: Bearer {KEY}")

    def published(key: str) -> int:
        return ask(server, "POST", "/events", body=EVENT, headers=JSON | {"Authorization": f"Bearer {key}"})[0].status

    def origin() -> str | None:
        headers = {"Origin": "https://app.example.com"}
        return ask(server, "GET", "/health", headers=headers)[0].getheader("Access-Control-Allow-Origin")

    def allowed_headers() -> str | None:
        headers = {"Origin": "https://app.example.com"}
        return ask(server, "OPTIONS", "/events", headers=headers)[0].getheader("Access-Control-Allow-Headers")

    assert (published(KEY), published("new-key"), origin()) == (200, 401, "*")
    reloadable.reload(
        auth={"publish_keys": {"new": "new-key"}, "private_topics": ["secret*"]},
        cors={"allow_origins": ["https://*.example.com"], "allow_headers": ["X-Request-Id"]},
    )
    assert allowed_headers() == "X-Request-Id"
    assert (published(KEY), published("new-key"), origin()) == (401, 200, "https://app.example.com")
    assert ask(server, "GET", "/events?topic=secret")[0].status == 401
    client.until(b"data: 1\n")  # the stream that the old key opened stays
    client.close()


def test_heartbeats_change_their_pace_and_form(reloadable: Reloadable) -> None:
    reloadable.reload(heartbeat={"interval_seconds": 3600})  # at this pace nobody waits for one
    client = opened(reloadable.server)
    reloadable.reload(heartbeat={"interval_seconds": 0.1, "format": "comment"})
    while client.received.count(b": heartbeat\n") < 5:
        client.received += client.socket.recv(65536)
    reloadable.reload(heartbeat={"interval_seconds": 0.1, "format": "data"})
    client.until(b'{"event": "heartbeat"')
    client.close()


def test_history_shrinks(reloadable: Reloadable) -> None:
    server = reloadable.server
    first = publish(server, "a", "first")["id"]
    for number in range(20):
        publish(server, "a", number)
    reloadable.reload(history={"max_events": 5})
    assert metrics(server)["history_events"] == 5
    client = RawClient(server.port).get("/events", f"Last-Event-ID: {first}")
    client.until(b'"reason": "too_old"')
    client.close()


def test_the_log_gets_louder_and_quieter(reloadable: Reloadable) -> None:
    server = reloadable.server
    reloadable.reload(log={"level": "debug", "env": "changed"})
    ask(server, "GET", "/health")
    assert server.wait_for_log("request", path="/health")["env"] == "changed"
    reloadable.reload(log={"level": "info"})
    before = len(server.lines())
    ask(server, "GET", "/health")
    client = opened(server)
    client.close()
    server.wait_for_log("events.disconnected")
    assert "request" not in {line["event"] for line in server.lines()[before:]}


def test_trusted_proxies_change(reloadable: Reloadable) -> None:
    line = reloadable.reload(server={"trusted_proxies": ["127.0.0.1"], "allowed_hosts": ["events.example.com"]})
    assert line["needs_restart"] == []
    client = opened(reloadable.server, "X-Forwarded-For: 192.0.2.7")
    assert reloadable.server.wait_for_log("events.connected")["remote_ip"] == "192.0.2.7"
    client.close()


def test_allowed_hosts_change(reloadable: Reloadable) -> None:
    def status(host: str) -> int:
        return ask(reloadable.server, "GET", "/health", headers={"Host": host})[0].status

    assert (status("events.example.com"), status("localhost")) == (421, 200)
    line = reloadable.reload(
        server={"allowed_hosts": ["Events.example.com:443"]}, auth={"admin_keys": {"boss": "boss"}}
    )
    assert line["needs_restart"] == []
    assert (status("events.example.com"), status("www.example.com"), status("localhost")) == (200, 421, 200)
    _, shown = ask(reloadable.server, "GET", "/admin/config", headers={"Authorization": "Bearer boss"})
    assert json.loads(shown)["config"]["server.allowed_hosts"]["value"] == ["events.example.com"]
    reloadable.reload()
    assert status("events.example.com") == 421


def test_how_long_a_connection_is_kept_changes(reloadable: Reloadable) -> None:
    client = RawClient(reloadable.server.port, timeout_seconds=60)
    assert reloadable.reload(server={"keepalive_seconds": 0.2})["needs_restart"] == []
    client.get("/health").until(b'"ok"}\n')
    assert client.to_end().endswith(b'"ok"}\n')  # long before 75 s
    client.close()


def test_what_needs_a_restart_is_said(reloadable: Reloadable) -> None:
    line = reloadable.reload(server={"host": "127.0.0.2"}, admin={"port": 1})
    assert sorted(line["needs_restart"]) == ["admin.port", "server.host"]
    assert ask(reloadable.server, "GET", "/health")[0].status == 200


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("this is no TOML", "qgstream.toml"),
        ("[limits]\nmax_conections = 1\n", "did you mean limits.max_connections?"),
        ("[limits]\nmax_connections = -1\n", "limits.max_connections"),
        ("[limits]\nmax_connections = 100000000\n", "limits.max_connections: got 100000000, which needs"),
        ('[cors]\nallow_origins = ["*"]\nallow_credentials = true\n', "allow_credentials"),
        ('[auth]\npublish_keys = ["same", "same"]\n', "the same key"),
        ('[server]\ncertfile = "missing.crt"\nkeyfile = "missing.key"\n', "server.certfile"),
        (None, "qgstream.toml"),
    ],
)
def test_a_broken_file_keeps_the_old_one(tmp_path: Path, text: str | None, said: str) -> None:
    reloadable = Reloadable(tmp_path)
    server = reloadable.server
    client = opened(server)
    if text is None:
        reloadable.path.unlink()
    else:
        reloadable.path.write_text(text)
    server.process.send_signal(signal.SIGHUP)
    line = server.wait_for_log("config.rejected")
    assert line["level"] == "error"
    assert said in "\n".join(line["problems"])
    # All of the old one: limits, keys and origins.
    publish(server, "a", "as before")
    client.until(b"as before")
    answer, _ = ask(server, "GET", "/health")
    assert answer.getheader("Access-Control-Allow-Origin") == "*"
    assert metrics(server)["connections_limit"] == 10_000
    client.close()
    reloadable.reload()  # and the next good one is taken
    server.stop(expect=("config.rejected",))


# Leaving.


def test_it_leaves_with_status_0_and_says_goodbye(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        clients = [opened(server) for _ in range(5)]
        server.process.send_signal(signal.SIGINT)
        for client in clients:
            assert client.to_end().endswith(b'"reason": "drain"}\n\n\r\n0\r\n\r\n')
            client.close()
        assert server.process.wait(60) == 0
        lines = [line for line in server.lines() if line["event"] == "events.disconnected"]
        assert [line["reason"] for line in lines] == ["drain"] * 5
        assert server.lines()[-1]["event"] == "server.stopped"


def test_notice_comes_before_the_listener_closes(tmp_path: Path) -> None:
    admin = free_port()
    with ServerProcess(tmp_path, drain__notice_seconds=600, drain__seconds=0, admin__port=admin) as server:
        client = opened(server)
        assert ask(server, "GET", "/ready", port=admin)[0].status == 200
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: ask(server, "GET", "/ready", port=admin)[0].status == 503, what="/ready to say it")
        # Still served, while the balancer finds out; new streams are sent elsewhere.
        assert ask(server, "GET", "/ready", port=admin)[1] == b'{"status": "draining"}\n'
        assert ask(server, "GET", "/health")[0].status == 200
        publish(server, "a", "during notice")
        client.until(b"during notice")
        late = RawClient(server.port).get("/events", "Accept: text/event-stream")
        assert b'"reason": "draining"' in late.to_end()
        late.close()
        assert metrics(server)["draining"] == 1
        server.process.send_signal(signal.SIGTERM)
        client.to_end()
        client.close()
        assert server.process.wait(60) == 0


def test_notice_lasts_as_long_as_it_should(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, drain__notice_seconds=1.5, drain__seconds=0) as server:
        client = opened(server)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        client.to_end()
        assert time.monotonic() - began >= 1.5
        client.close()
        assert server.process.wait(60) == 0


def test_events_flow_to_those_that_remain(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, drain__seconds=3) as server:
        clients = [opened(server) for _ in range(12)]
        publisher = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        publisher.connect()
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("drain.started")
        assert refused(server.port)  # its place is somebody else's already
        ids = []
        while b'"draining"' not in (answer := post(publisher))[1]:
            ids.append(json.loads(answer[1])["id"])
            time.sleep(0.02)
            if answer[0].getheader("Connection") == "close":
                break
        assert len(ids) >= 1
        for client in clients:
            client.to_end()
            assert client.received.endswith(b'"reason": "drain"}\n\n\r\n0\r\n\r\n')
            client.close()
        ends = [line for line in server.lines() if line["event"] == "events.disconnected"]
        ages = [line["seconds"] for line in ends]
        # Over 3 s; those whose turn came while a busy machine held up the server leave together.
        assert max(ages) - min(ages) > 0.3
        assert max(line["events"] for line in ends) >= 1
        assert server.process.wait(60) == 0
        publisher.close()


def post(connection: http.client.HTTPConnection) -> tuple[http.client.HTTPResponse, bytes]:
    connection.request("POST", "/events", EVENT, JSON)
    answer = connection.getresponse()
    return answer, answer.read()


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, drain__seconds=600, drain__notice_seconds=600) as server:
        clients = [opened(server) for _ in range(5)]
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: ask(server, "GET", "/ready")[0].status == 503, what="the notice")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        for client in clients:
            client.to_end()
            client.close()
        reasons = [line["reason"] for line in server.lines() if line["event"] == "events.disconnected"]
        assert reasons == ["drain"] * 5


def test_a_second_signal_ends_a_drain_under_way(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, drain__seconds=600) as server:
        client = opened(server)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("drain.started")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        client.to_end()
        client.close()


def test_stalled_clients_do_not_hold_it(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, limits__max_backlog_bytes=100_000_000, limits__tcp_user_timeout_seconds=600) as server:
        stalled = RawClient(server.port, receive_buffer=4096).get("/events?topic=a")
        stalled.until(b'"connected"')
        for _ in range(4):
            publish(server, "a", "x" * 250_000)  # the rest of one is more than the kernel takes
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert server.wait_for_log("drain.finished")["cut"] == 1
        (line,) = [line for line in server.lines() if line["event"] == "events.disconnected"]
        assert line["reason"] == "drain"
        stalled.close()


def test_a_publish_under_way_is_answered(tmp_path: Path) -> None:
    """Its publisher knows that it was taken, or that it was not; a reset would leave it in doubt."""
    with ServerProcess(tmp_path) as server:
        slow = RawClient(server.port)
        slow.socket.sendall(
            b"POST /events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (KEY.encode(), len(EVENT), EVENT[:9])
        )
        ask(server, "GET", "/health")  # the server has read what was sent before
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("drain.finished")
        slow.socket.sendall(EVENT[9:])
        answer = slow.to_end()
        assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 503 "))
        slow.close()
        assert server.process.wait(60) == 0


def test_one_that_never_finishes_does_not_hold_it_for_long(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        slow = RawClient(server.port)
        slow.socket.sendall(
            b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
        ask(server, "GET", "/health")
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert time.monotonic() - began < BODY_SECONDS  # it had as long to finish
        slow.close()


def test_kill_9_is_survived_by_nobody_and_the_next_one_says_so(tmp_path: Path) -> None:
    """With the memory broker the log ends with its process: whoever comes back is told."""
    port = free_port()
    server = ServerProcess(tmp_path, port=port)
    last_id = publish(server, "a", "gone with it")["id"]
    server.kill()
    with ServerProcess(tmp_path, port=port) as again:
        client = RawClient(again.port).get("/events", f"Last-Event-ID: {last_id}")
        client.until(b'"reason": "epoch_changed"')
        client.close()
