"""An address has one form wherever it comes in and wherever it is shown, counted or asked for."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import pytest
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.tcpclient import TCPClient

from qgstream.http.app import public_app
from qgstream.net.addresses import Client as Asking
from qgstream.net.addresses import Network, find_client, parse_networks
from qgstream.net.sockets import StreamServer
from qgstream.service.service import Service
from tests.http.asking import Client, Stream, document, until

ADMIN = {"Authorization": "Bearer admin-key"}
ONE_EACH = {"limits": {"max_connections_per_ip": 1}}
SPELLINGS = [
    ("203.0.113.7", ["203.0.113.7", "::ffff:203.0.113.7", "::FFFF:cb00:7107", "[::ffff:203.0.113.7]:99"]),
    ("2001:db8::a", ["2001:DB8::A", "2001:0db8:0:0:0:0:0:000a", "[2001:db8::a]:443"]),
    ("fe80::1", ["fe80::1%eth0", "fe80::1%2", "FE80:0::1"]),
]


def said(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    """The addresses of the lines with this event."""
    return [record.remote_ip for record in caplog.records if record.getMessage() == event]  # type: ignore[attr-defined]


async def shown(client: Client, query: str = "") -> list[str]:
    """The addresses that an operator sees."""
    answer = await client.ask("GET", f"/admin/connections{query}", headers=ADMIN)
    return [connection["ip"] for connection in document(answer)["connections"]]


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [ONE_EACH])
@pytest.mark.parametrize(("form", "spellings"), SPELLINGS, ids=[form for form, _ in SPELLINGS])
async def test_whatever_a_proxy_calls_a_client_the_client_is_one(
    client: Client, caplog: pytest.LogCaptureFixture, form: str, spellings: list[str]
) -> None:
    client.service.trusted_proxies = parse_networks(["::ffff:127.0.0.0/104"])
    for spelling in spellings:
        with caplog.at_level(logging.DEBUG, "qgstream"):
            stream = await client.stream(headers={"X-Forwarded-For": spelling})
            for other in spellings:
                answer = await client.ask("GET", "/events", headers={"X-Forwarded-For": other})
                assert answer.code == 429, other
            assert await shown(client) == [form]
            for other in spellings:
                bare = other[1 : other.index("]")] if other.startswith("[") else other
                assert await shown(client, f"?ip={quote(bare)}") == [form]
            stream.close()
            await until(lambda: len(client.hub.registry) == 0)
            client.service.refusals.flush(everything=True)
        assert set(said(caplog, "events.connected") + said(caplog, "events.disconnected")) == {form}
        assert set(said(caplog, "events.rejected")) == {form}
        assert form in said(caplog, "request")
        caplog.clear()


# A socket that takes both IPv6 and IPv4: the kernel names the peers of the second ::ffff:a.b.c.d.


@pytest.fixture
def refused() -> list[str]:
    """The addresses of sockets that were closed for the cap."""
    return []


@pytest.fixture
def dual_stack_port(io_loop: IOLoop, service: Service, refused: list[str]) -> Iterator[int]:
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", 0))
    listener.listen()
    listener.setblocking(False)
    server = StreamServer(
        public_app(service), limits=lambda: service.limits, detached=lambda: len(service.hub.registry),
        refused=refused.append,
    )  # fmt: skip
    server.add_socket(listener)
    yield listener.getsockname()[1]
    server.stop()
    io_loop.run_sync(server.close_all_connections)


async def connected(port: int) -> IOStream:
    return await TCPClient().connect("127.0.0.1", port)


@pytest.mark.gen_test
async def test_a_peer_that_speaks_ipv4_to_an_ipv6_socket_has_an_ipv4_address(
    client: Client, dual_stack_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "qgstream"):
        stream = Stream(await connected(dual_stack_port))
        await stream.open("/events", {})
        assert await shown(client, "?ip=127.0.0.0/8") == ["127.0.0.1"]
        assert client.hub.registry.of_client("127.0.0.1") == 1
        stream.close()
        asking = await connected(dual_stack_port)
        await asking.write(b"GET /nowhere HTTP/1.1\r\nHost: tests\r\n\r\n")
        await asking.read_until(b"not_found")
        asking.close()
        await until(lambda: len(client.hub.registry) == 0)
    for event in ("events.connected", "events.disconnected", "request"):
        assert set(said(caplog, event)) == {"127.0.0.1"}


@pytest.mark.gen_test
async def test_a_proxy_that_speaks_ipv4_to_an_ipv6_socket_is_trusted(client: Client, dual_stack_port: int) -> None:
    client.service.trusted_proxies = parse_networks(["127.0.0.1"])
    stream = Stream(await connected(dual_stack_port))
    await stream.open("/events", {"X-Forwarded-For": "203.0.113.7"})
    assert await shown(client) == ["203.0.113.7"]
    stream.close()
    await until(lambda: len(client.hub.registry) == 0)


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"max_sockets": 1, "max_connections": 1}}])
async def test_a_socket_that_is_refused_has_an_ipv4_address_too(
    client: Client, dual_stack_port: int, refused: list[str], settings: dict[str, Any]
) -> None:
    stream = Stream(await connected(dual_stack_port))
    await stream.open("/events", {})
    other = await connected(dual_stack_port)
    await until(lambda: refused == ["127.0.0.1"])
    for iostream in (other, stream.iostream):
        iostream.close()
    await until(lambda: len(client.hub.registry) == 0)


# What a proxy says is read once for each request.


@pytest.mark.gen_test
async def test_the_header_is_read_once_for_each_request(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> Asking:
        read.extend(forwarded_for)
        return find_client(peer, forwarded_for, trusted)

    monkeypatch.setattr("qgstream.http.base.find_client", counted)
    stream = await client.stream(headers={"X-Forwarded-For": "203.0.113.7"})
    assert read == []  # nobody is trusted
    stream.close()
    client.service.trusted_proxies = parse_networks(["127.0.0.1"])
    stream = await client.stream(headers={"X-Forwarded-For": "203.0.113.7"})
    assert read == ["203.0.113.7"]
    stream.close()
    await until(lambda: len(client.hub.registry) == 0)
