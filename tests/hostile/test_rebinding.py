"""A page whose name is made to resolve to this machine (DNS rebinding) reads nothing of a developer's server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.programs import free_port
from tests.http.test_websocket import HANDSHAKE
from tests.serving import RawClient, ServerProcess

SHAKES_HANDS = [f"{name}: {value}" for name, value in HANDSHAKE.items()]


def status(port: int, target: str, host: str, *headers: str, address: str = "127.0.0.1") -> int:
    client = RawClient(port, host=address)
    client.socket.sendall("\r\n".join([f"GET {target} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode())
    code = int(client.until(b"\r\n\r\n").split(b" ")[1])
    client.close()
    return code


def of_page(port: int, name: str) -> dict[str, int]:
    """What a page of this name gets from a server on this port."""
    host = f"{name}:{port}"
    page = f"Origin: http://{host}"
    return {
        "/events": status(port, "/events", host),
        "/metrics": status(port, "/metrics", host),
        "/ws": status(port, "/ws", host, page, *SHAKES_HANDS),
        "/": status(port, "/", host),
        "/admin": status(port, "/admin", host),
    }


def test_a_rebound_page_is_refused_everything(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, server__allowed_hosts=[]) as server:
        assert set(of_page(server.port, "evil.example").values()) == {421}
        # The host of an absolute target counts, whatever `Host` says beside it (RFC 9112, 3.2.2).
        assert status(server.port, "http://evil.example/metrics", "localhost") == 421
        local = {"/events": 200, "/metrics": 200, "/ws": 101, "/": 200, "/admin": 200}
        assert of_page(server.port, "localhost") == of_page(server.port, "127.0.0.1") == local


def test_the_operators_port_has_an_address_of_its_own(tmp_path: Path) -> None:
    admin = free_port()
    with ServerProcess(tmp_path, server__allowed_hosts=[], server__host="0.0.0.0", admin__port=admin) as server:
        # A public server is reached by whatever names it has.
        assert status(server.port, "/events", "events.example.com") == 200
        # Its operator's port is on the loopback.
        for path in ("/metrics", "/ready", "/health", "/admin", "/admin/overview", "/nowhere"):
            assert status(admin, path, "evil.example") == 421
            assert status(admin, path, f"localhost:{admin}") != 421


def test_names_that_are_set_hold_on_every_address(tmp_path: Path) -> None:
    with ServerProcess(
        tmp_path, server__host="0.0.0.0", server__allowed_hosts=["events.example.com", "*.example.org"]
    ) as server:
        for host in ("events.example.com", "a.example.org:8443", "localhost", f"10.1.2.3:{server.port}"):
            assert status(server.port, "/health", host) == 200, host
        for host in ("evil.example", "example.org"):
            assert status(server.port, "/health", host) == 421, host


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2"])
def test_every_address_of_the_loopback_is_guarded(tmp_path: Path, host: str) -> None:
    address = "127.0.0.1" if host == "localhost" else host
    port = free_port()
    with ServerProcess(tmp_path, port=port, server__allowed_hosts=[], server__host=host) as server:
        assert status(server.port, "/health", "evil.example", address=address) == 421
        assert status(server.port, "/health", "localhost", address=address) == 200
