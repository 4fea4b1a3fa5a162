"""Who gets in and stays: sustained rates, addresses behind proxies, ages; and nothing is kept of who left."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tornado.iostream import IOStream
from tornado.tcpclient import TCPClient

from qgstream.auth.authenticator import AuthSettings
from qgstream.delivery.connection import Connection
from qgstream.errors import ConfigError
from qgstream.http.app import public_app
from qgstream.hub import Hub
from qgstream.limits import LimitSettings
from qgstream.net.sockets import StreamServer
from qgstream.service.heartbeat import HeartbeatSettings
from qgstream.service.service import Service
from tests.conftest import ExpectLog
from tests.hostile.observing import Watch, ask, metrics
from tests.http.asking import until
from tests.pacing import rate_is_kept
from tests.serving import KEY, RawClient, ServerProcess, wait_until


def opened(server: ServerProcess, *headers: str) -> RawClient:
    client = RawClient(server.port).get("/events", *headers)
    assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    client.until(b'"connected"')
    return client


def status(server: ServerProcess, *headers: str) -> int:
    """Of a stream that is not stayed on."""
    client = RawClient(server.port).get("/events", *headers)
    code = int(client.until(b"\r\n\r\n").split(b" ")[1])
    client.close()
    return code


# Rates. A burst says nothing of what comes after it.


def test_the_sustained_rate_of_connecting_is_the_configured_one(tmp_path: Path) -> None:
    rate, burst = 20.0, 10
    with ServerProcess(tmp_path, limits__connect_rate_per_ip=rate, limits__connect_burst_per_ip=burst) as server:

        def opens() -> bool:
            code = status(server)
            assert code in (200, 429)
            return code == 200

        _, refused = rate_is_kept(opens, rate=rate, burst=burst, events=30)
        assert metrics(server)['connections_rejected_total{reason="connect_rate_per_ip"}'] == refused


def test_the_sustained_rate_of_publishing_is_the_configured_one(tmp_path: Path) -> None:
    rate, burst = 20.0, 10
    with ServerProcess(tmp_path, limits__publish_rate_per_key=rate, limits__publish_burst_per_key=burst) as server:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}

        def publishes() -> bool:
            code = ask(server, "POST", "/events", body=b'{"topic": "a", "data": 1}', headers=headers)[0].status
            assert code in (200, 429)
            return code == 200

        allowed, _ = rate_is_kept(publishes, rate=rate, burst=burst, events=30)
        assert metrics(server)["events_published_total"] == allowed


# How many.


def test_a_slot_that_is_freed_is_taken(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, limits__max_connections=5) as server:
        watch = Watch(server)
        for _ in range(4):
            clients = [opened(server) for _ in range(5)]
            assert status(server) == 503
            assert ask(server, "GET", "/ready")[1] == b'{"status": "full"}\n'
            for client in clients:
                client.close()
            wait_until(lambda: metrics(server)["connections"] == 0, what="no stream")
        watch.expect(client=20)
        assert watch.rejected == {"max_connections": 4}
        assert metrics(server)["connections_limit"] == 5


# Addresses.


def test_a_stranger_cannot_say_who_it_is(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, limits__max_connections_per_ip=2) as server:
        clients = [opened(server, f"X-Forwarded-For: 192.0.2.{number}") for number in range(2)]
        for name in ("X-Forwarded-For", "X-Real-Ip", "Forwarded", "X-Client-Ip", "True-Client-Ip"):
            value = "for=192.0.2.9" if name == "Forwarded" else "192.0.2.9"
            assert status(server, f"{name}: {value}") == 429
        assert {server.wait_for_log("events.connected", count=n)["remote_ip"] for n in (1, 2)} == {"127.0.0.1"}
        for client in clients:
            client.close()


def test_behind_a_trusted_proxy_the_client_counts(tmp_path: Path) -> None:
    with ServerProcess(
        tmp_path, limits__max_connections_per_ip=1, server__trusted_proxies=["127.0.0.1", "10.0.0.0/8"]
    ) as server:
        chains = {
            "192.0.2.1": ["X-Forwarded-For: 192.0.2.1"],
            # What stands further left was written by the client, who can write anything.
            "192.0.2.2": ["X-Forwarded-For: 192.0.2.99, 192.0.2.2"],
            "192.0.2.3": ["X-Forwarded-For: evil, 127.0.0.1, 192.0.2.3, 10.1.2.3"],
            "192.0.2.4": ["X-Forwarded-For: 192.0.2.98", "X-Forwarded-For: 192.0.2.4:5123,10.9.9.9"],
            "2001:db8::1": ["X-Forwarded-For: [2001:db8::1]:443"],
            # Nobody said anything, or nonsense: it is the proxy itself.
            "127.0.0.1": ["X-Forwarded-For: nonsense"],
        }
        clients = []
        for number, (address, headers) in enumerate(chains.items(), 1):
            clients.append(opened(server, *headers))
            assert server.wait_for_log("events.connected", connection=number)["remote_ip"] == address
            assert status(server, *headers) == 429
        # A /64 of IPv6 is one customer.
        assert status(server, "X-Forwarded-For: 2001:db8::ffff") == 429
        clients.append(opened(server, "X-Forwarded-For: 2001:db8:0:1::1"))
        for client in clients:
            client.close()


# Ages.


def test_a_stream_is_told_to_reconnect_at_its_age_and_not_all_at_once(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, limits__max_connection_age_seconds=1.5) as server:
        watch = Watch(server)
        clients = [opened(server) for _ in range(60)]
        retries = set()
        for client in clients:
            client.to_end()
            closing = re.search(rb'retry: (\d+)\ndata: (\{"event": "closing".*\})\n\n\r\n0\r\n\r\n$', client.received)
            assert closing
            assert json.loads(closing[2])["reason"] == "max_age"
            retries.add(closing[1])
            client.close()
        lines = watch.expect(max_age=60)
        ages = [line["seconds"] for line in lines]
        # At most 1.8 s, on a machine that holds up nobody.
        assert min(ages) >= 1.5 * 0.8
        assert max(ages) - min(ages) > 0.1
        assert len(retries) > 40


# Keys.


def test_bad_keys_change_nothing() -> None:
    service = Service(Hub(), auth=AuthSettings.model_validate({"publish_keys": ["good"], "private_topics": ["a*"]}))
    before = service.auth
    with pytest.raises(ConfigError):
        service.reload_auth(AuthSettings.model_validate({"publish_keys": {"one": "same", "two": "same"}}))
    assert service.auth is before
    assert service.private_topics.patterns == {"a*"}
    service.reload_auth(AuthSettings.model_validate({"private_topics": ["b"]}))
    assert service.private_topics.patterns == {"b"}


# A fault of ours costs one stream, and nobody else.


@pytest.mark.gen_test
async def test_a_stream_whose_heartbeat_fails_costs_the_others_none(
    expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_log(r"^heartbeat\.failed$")
    hub = Hub()
    service = Service(hub, heartbeat=HeartbeatSettings(interval_seconds=0.1))
    await service.start()
    server = StreamServer(public_app(service), limits=lambda: service.limits)
    server.listen(0, "127.0.0.1")
    (listener,) = server._sockets.values()
    streams: list[IOStream] = []
    for _ in range(2):
        stream: IOStream = await TCPClient().connect("127.0.0.1", listener.getsockname()[1])
        await stream.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.read_until(b'"connected"')
        streams.append(stream)
    first, second = hub.registry
    service.wheel.remove(second)
    service.wheel._put(second, first.slot)  # behind the one that fails

    say = Connection.say

    def fail(connection: Connection, message: bytes) -> bool:
        if connection is first:
            raise ZeroDivisionError
        return say(connection, message)

    monkeypatch.setattr(Connection, "say", fail)
    await streams[1].read_until(b'"heartbeat"')
    await until(lambda: list(hub.registry) == [second])
    assert first.reason == "server_error"
    server.stop()
    await server.close_all_connections()
    await service.stop()


# Nothing is kept of who left.


@pytest.mark.gen_test
async def test_a_service_forgets_who_left() -> None:
    hub = Hub(limits=LimitSettings(max_connection_age_seconds=3600, connect_rate_per_ip=1e6))
    service = Service(hub, heartbeat=HeartbeatSettings(interval_seconds=0.1))
    await service.start()
    server = StreamServer(public_app(service), limits=lambda: service.limits)
    server.listen(0, "127.0.0.1")
    (listener,) = server._sockets.values()
    ended: list[Connection] = []
    hub.on_close.append(ended.append)

    async def come_and_go(number: int) -> None:
        stream: IOStream = await TCPClient().connect("127.0.0.1", listener.getsockname()[1])
        await stream.write(f"GET /events?topic=t{number} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await stream.read_until(b'"connected"')
        if number % 2:
            stream.close()
        else:
            next(iter(hub.registry)).close("kicked")
            await stream.read_until_close()
        await until(lambda: not len(hub.registry))

    for number in range(1200):
        await come_and_go(number)
    wheel = service.wheel
    assert len(ended) == 1200
    assert len(hub.router) == 0
    assert not any(wheel._slots.values())
    # A deadline may stay until its time, but not for everybody who was ever here.
    assert len(wheel._ages) <= 1100
    assert not hub._closing
    assert list(hub._fanout.slow) == []
    service._sweep()
    assert len(service._admission._rates) <= 1
    server.stop()
    await server.close_all_connections()
    await service.stop()
