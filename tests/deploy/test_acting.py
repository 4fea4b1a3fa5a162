"""An operator acts on two processes behind HAProxy: who is banned stays away, and streams move and come back."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.programs import Program, free_port
from tests.serving import ServerProcess, wait_until

ADMIN_KEY = "admin-key"
HAPROXY = """\
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout check 20s
frontend clients
    bind 127.0.0.1:{port}
    option forwardfor
    default_backend processes
backend processes
    balance leastconn
    option httpchk
    http-check send meth GET uri /ready ver HTTP/1.1 hdr Host localhost
    http-check expect status 200
    default-server check inter 100ms fall 1 rise 1
    server one 127.0.0.1:{one.port} port {one.admin_port}
    server two 127.0.0.1:{two.port} port {two.admin_port}
"""


class Visitor:
    """A browser at an address of its own, which opens streams through the proxy."""

    def __init__(self, port: int, address: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 60, source_address=(address, 0))
        request = "GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        self.socket.sendall(request.encode())
        self.received = b""

    def until(self, *expected: bytes) -> bytes:
        """Everything until one of these is there."""
        while not any(word in self.received for word in expected):
            more = self.socket.recv(65536)
            assert more, f"closed before {expected}; got {self.received[-1000:]!r}"
            self.received += more
        return self.received

    def close(self) -> None:
        self.socket.close()


def asks(process: ServerProcess, method: str, path: str, body: object = None) -> Any:
    answer = httpx.request(
        method, f"http://127.0.0.1:{process.admin_port}/admin/{path}", json=body, timeout=60, trust_env=False,
        headers={"Authorization": f"Bearer {ADMIN_KEY}"},
    )  # fmt: skip
    assert answer.is_success, answer.text
    return answer.json()


def streams(process: ServerProcess) -> int:
    count: int = asks(process, "GET", "connections")["matching"]
    return count


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    settings: dict[str, Any] = {"auth__admin_keys": {"boss": ADMIN_KEY}, "server__trusted_proxies": ["127.0.0.1"]}
    with (
        ServerProcess(tmp_path, admin__port=free_port(), **settings) as one,
        ServerProcess(tmp_path, admin__port=free_port(), **settings) as two,
    ):
        yield one, two


@pytest.fixture
def proxy(
    processes: tuple[ServerProcess, ServerProcess], tmp_path: Path, require_program: Callable[[str], Path]
) -> Iterator[int]:
    """The port of HAProxy, which asks `/ready` of both."""
    port, file = free_port(), tmp_path / "haproxy.cfg"
    file.write_text(HAPROXY.format(port=port, one=processes[0], two=processes[1]))
    with Program([require_program("haproxy"), "-db", "-f", file], tmp_path / "haproxy.log") as haproxy:
        haproxy.wait_for_port(port)
        yield port


def opened(port: int, number: int, address: str) -> list[Visitor]:
    visitors = [Visitor(port, address) for _ in range(number)]
    for visitor in visitors:
        visitor.until(b'"connected"')
    return visitors


def test_a_ban_on_both_keeps_one_client_away(processes: tuple[ServerProcess, ServerProcess], proxy: int) -> None:
    floods, others = opened(proxy, 6, "127.0.0.2"), opened(proxy, 6, "127.0.0.3")
    assert sum(map(streams, processes)) == 12
    assert min(map(streams, processes)) > 0
    ban = {"address": "127.0.0.2", "reason": "floods"}
    assert sum(asks(process, "POST", "bans", ban)["kicked"] for process in processes) == 6
    for visitor in floods:
        visitor.until(b'"reason": "kicked"')
    for _ in range(4):
        refused = Visitor(proxy, "127.0.0.2")
        assert b"HTTP/1.1 200 " in refused.until(b'"reason": "banned"')  # an EventSource goes on asking
        refused.close()
    wait_until(lambda: sum(map(streams, processes)) == 6, what="the end of those that were kicked")
    for process in processes:
        (entry,) = asks(process, "GET", "bans")["bans"]
        asks(process, "DELETE", f"bans/{entry['id']}")
    for visitor in floods + others + opened(proxy, 2, "127.0.0.2"):
        visitor.close()


def test_streams_leave_for_maintenance_and_are_shed_back(
    processes: tuple[ServerProcess, ServerProcess], proxy: int
) -> None:
    one, two = processes
    visitors = opened(proxy, 20, "127.0.0.2")
    of_one = streams(one)
    assert of_one > 0
    asks(one, "POST", "maintenance", {"seconds": 0})
    wait_until(lambda: streams(one) == 0, what="the end of the streams")
    returned = 0
    while returned < of_one:  # as a browser does; until HAProxy has asked /ready, some are refused politely
        visitor = Visitor(proxy, "127.0.0.2")
        if b'"connected"' in visitor.until(b'"connected"', b'"maintenance"'):
            returned += 1
        visitors.append(visitor)
    wait_until(lambda: (streams(one), streams(two)) == (0, 20), what="all at the other")

    asks(one, "DELETE", "maintenance")
    shed = asks(two, "POST", "shed", {"percent": 50, "seconds": 0})
    assert shed["connections"] == 10
    wait_until(lambda: streams(two) == 10, what="the shedding")
    while streams(one) < 10:  # until HAProxy has asked /ready again, they come back to the other one
        visitors.append(opened(proxy, 1, "127.0.0.2")[0])
    ready = httpx.get(f"http://127.0.0.1:{one.admin_port}/ready", trust_env=False, timeout=60)
    assert json.loads(ready.text) == {"status": "ready"}
    for visitor in visitors:
        visitor.close()
