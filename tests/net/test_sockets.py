"""Accepted sockets: tuned, bounded in number and in time, and never more than the descriptors allow."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError
from tornado.netutil import add_accept_handler
from tornado.tcpclient import TCPClient

from qgstream.delivery.connection import Connection
from qgstream.errors import ConfigError
from qgstream.http.app import public_app
from qgstream.hub import Hub
from qgstream.limits import LimitSettings
from qgstream.net import sockets
from qgstream.net.http1.client_stream import ClientStream
from qgstream.net.sockets import RESERVED_DESCRIPTORS, StreamServer, max_sockets, raise_descriptor_limit
from qgstream.service.service import Service
from tests.conftest import ExpectLog
from tests.deploy.programs import free_port
from tests.hostile.certificates import TlsClient, make_certificate
from tests.hostile.observing import Watch, ask, cpu_seconds, descriptors, metrics
from tests.publishing import publish
from tests.serving import RawClient, ServerProcess, wait_until

# The hard cap.


@pytest.mark.parametrize(
    ("limits", "streams", "expected"),
    [
        ({}, 0, 11_100),
        ({"max_connections": 100}, 0, 210),
        ({"max_connections": 0}, 0, 100),
        ({"max_connections": 100, "max_sockets": 7}, 0, 7),
        ({"max_connections": 100}, 5000, 5110),  # lowered while 5 000 were open: others still get in
    ],
)
def test_how_many_sockets(limits: dict[str, int], streams: int, expected: int) -> None:
    assert max_sockets(LimitSettings.model_validate(limits), streams=streams) == expected


def test_no_more_sockets_than_the_cap(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, limits__max_connections=6, limits__max_sockets=6, admin__port=free_port()) as server:
        watch = Watch(server)
        streams = [RawClient(server.port).get("/events") for _ in range(6)]
        for client in streams:
            client.until(b'"connected"')
        # All six are taken by streams: the next are closed without a word, and the loop does not spin.
        used = cpu_seconds(server)
        for _ in range(50):
            client = RawClient(server.port)
            with suppress(ConnectionResetError):
                assert client.to_end() == b""
            client.close()
        assert watch.rejected == {"max_sockets": 50}
        assert cpu_seconds(server) - used < 0.5
        streams[0].close()
        wait_until(lambda: answers(server), what="a free socket")
        watch.expect(client=1, left=5)
        RawClient(server.port).get("/events").close()
        for client in streams:
            client.close()
        wait_until(lambda: metrics(server)["connections"] == 0, what="no stream")


def test_who_is_waited_for_longest_makes_room(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, limits__max_connections=3, limits__max_sockets=6, admin__port=free_port()) as server:
        watch = Watch(server)
        streams = [RawClient(server.port).get("/events?topic=a") for _ in range(3)]
        for client in streams:
            client.until(b'"connected"')
        idle = [RawClient(server.port) for _ in range(3)]
        for client in (idle[1], idle[0]):  # after its answer each is waited for again
            client.get("/health").until(b'"ok"')
        newcomers = []
        for longest in (idle[2], idle[1], idle[0]):
            newcomers.append(RawClient(server.port).get("/health"))
            newcomers[-1].until(b'"ok"')
            with suppress(ConnectionResetError):
                longest.to_end()
            longest.close()
        assert watch.rejected == {"max_sockets": 3}
        assert publish(server, "a", "to all of them")["subscribers"] == 3
        for client in streams:
            client.until(b"to all of them")
        for client in [*streams, *newcomers]:
            client.close()
        watch.expect(client=3)


def test_of_a_crowd_that_comes_at_once_the_last_is_served(tmp_path: Path) -> None:
    """They are all accepted in one turn of the loop, before a word of any is looked at."""
    with ServerProcess(tmp_path, limits__max_connections=3, limits__max_sockets=6, admin__port=free_port()) as server:
        watch = Watch(server)
        os.kill(server.process.pid, signal.SIGSTOP)
        crowd = [RawClient(server.port) for _ in range(40)]
        last = RawClient(server.port).get("/health")
        os.kill(server.process.pid, signal.SIGCONT)
        last.until(b'"ok"')
        wait_until(lambda: watch.rejected == {"max_sockets": 35}, what="the crowd at the cap")
        for client in [*crowd, last]:
            client.close()


# Tornado accepts 128 connections in a turn of the loop, and a request that has come with its connection is answered two
# turns after it was accepted. So these crowds are accepted in the very turn in which others become streams.


@pytest.mark.parametrize("path", ["/events?topic=a", "/ws?topic=a"])
def test_who_has_been_answered_keeps_its_stream(tmp_path: Path, path: str) -> None:
    with ServerProcess(tmp_path, limits__max_connections=9, limits__max_sockets=250, admin__port=free_port()) as server:
        watch = Watch(server)
        os.kill(server.process.pid, signal.SIGSTOP)
        streams = [RawClient(server.port).get(path, *HANDSHAKE) for _ in range(9)]
        crowd = [RawClient(server.port) for _ in range(400)]
        os.kill(server.process.pid, signal.SIGCONT)
        all_are_streams(server, watch, streams, refused=9 + 400 - 250)
        for client in [*streams, *crowd]:
            client.close()


def test_many_who_are_answered_at_once_keep_their_streams(tmp_path: Path) -> None:
    """More than are looked at for one that may be closed."""
    many = sockets._LOOKED_AT + 44
    with ServerProcess(
        tmp_path, limits__max_sockets=many + 50, limits__max_connections=many, admin__port=free_port()
    ) as server:
        watch = Watch(server)
        streams = [RawClient(server.port) for _ in range(many)]
        # One that is still in the kernel's queue would be accepted together with the crowd, before
        # its request is read.
        wait_until(lambda: accepted(server.port) >= many, what="all of them accepted")
        os.kill(server.process.pid, signal.SIGSTOP)
        for client in streams:
            client.get("/events?topic=a")
        crowd = [RawClient(server.port) for _ in range(500)]
        os.kill(server.process.pid, signal.SIGCONT)
        all_are_streams(server, watch, streams)
        for client in [*streams, *crowd]:
            client.close()


def accepted(port: int) -> int:
    """How many connections to this port a process has accepted: until then a socket has no inode."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" and row[9] != "0" for row in rows)


def all_are_streams(
    server: ServerProcess, watch: Watch, clients: list[RawClient], *, refused: int | None = None
) -> None:
    for client in clients:
        client.until(b'"connected"')
    if refused is not None:
        wait_until(lambda: watch.rejected == {"max_sockets": refused}, what="the crowd at the cap")
    assert publish(server, "a", "to all of them")["subscribers"] == len(clients)
    for client in clients:
        client.until(b"to all of them")
    watch.expect(left=len(clients))
    assert watch.rejected.keys() == {"max_sockets"}


# The last answer.

HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {'A' * 22}==",
)
NO_REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\nx\0y: z\r\n\r\n"


def test_who_is_still_sending_gets_the_answer(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        sends_on_and_reads(server, RawClient(server.port))


def test_who_is_still_sending_gets_the_answer_over_tls(tmp_path: Path) -> None:
    certfile, keyfile = map(str, make_certificate(tmp_path))
    with ServerProcess(tmp_path, server__certfile=certfile, server__keyfile=keyfile) as server:
        sends_on_and_reads(server, TlsClient(server.port, ssl.create_default_context(cafile=certfile)))


def sends_on_and_reads(server: ServerProcess, client: RawClient) -> None:
    client.socket.sendall(NO_REQUEST)
    select.select([client.socket], [], [], 15)  # it is answered, and was closed
    for _ in range(20):
        client.socket.sendall(b"x" * 100_000)
    assert client.to_end().startswith(b"HTTP/1.1 400 ")
    open_while_there = descriptors(server)
    client.close()
    wait_until(lambda: descriptors(server) < open_while_there, what="a free descriptor")


def test_who_never_ends_sending_is_cut(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        before = descriptors(server)
        client = RawClient(server.port)
        client.socket.sendall(NO_REQUEST)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_without_end(client)
        wait_until(lambda: descriptors(server) == before, what="a free descriptor")
        client.close()


def test_those_that_were_answered_make_room_first(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, limits__max_connections=3, limits__max_sockets=6, admin__port=free_port()) as server:
        waiting = [RawClient(server.port).get("/health") for _ in range(3)]
        for client in waiting:
            client.until(b'"ok"')
        answered = [RawClient(server.port) for _ in range(3)]
        for client in answered:
            client.socket.sendall(NO_REQUEST)
            assert client.to_end().startswith(b"HTTP/1.1 400 ")
        for _ in answered:
            waiting.append(RawClient(server.port).get("/health"))
            waiting[-1].until(b'"ok"')
        for client in waiting[:3]:  # they are still there
            client.received = b""
            client.get("/health").until(b'"ok"')
        for client in [*waiting, *answered]:
            client.close()


def send_without_end(client: RawClient) -> None:
    while True:
        client.socket.sendall(b"x" * 1000)


def answers(server: ServerProcess) -> bool:
    try:
        return ask(server, "GET", "/health")[0].status == 200
    except OSError:
        return False


# The descriptors.

SERVE = [sys.executable, "-m", "qgstream", "serve", "--port", "0"]


def start_within(descriptors: int, *settings: str) -> subprocess.CompletedProcess[str]:
    """Start a server whose hard limit on descriptors is so low. One that starts is stopped as soon as it says so."""

    arguments = [part for setting in settings for part in ("--set", setting)]
    shell = ["sh", "-c", f'ulimit -Sn 64 && ulimit -Hn {descriptors} && exec "$@"', "sh"]
    with subprocess.Popen(
        [*shell, *SERVE, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if '"server.started"' in line:
                process.terminate()
        return subprocess.CompletedProcess([], process.wait(), "", said)


def test_more_streams_than_descriptors_is_refused_at_the_start() -> None:
    done = start_within(512)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (
        "limits.max_connections: got 10000, which needs 11164 descriptors (11100 sockets + 64 reserved), "
        "but the hard limit is 512; expected at most 316, or a higher limit (ulimit -Hn, LimitNOFILE=)"
    ) in done.stderr


def test_the_number_that_it_proposes_fits_and_one_more_does_not() -> None:
    done = start_within(512, "limits.max_connections=316")
    assert done.returncode == 0, done.stderr
    in_effect = next(json.loads(line) for line in done.stderr.splitlines() if '"limits.in_effect"' in line)
    assert in_effect["max_connections"] == 316
    assert in_effect["max_sockets"] + RESERVED_DESCRIPTORS <= in_effect["descriptors"] == 512  # raised from 64
    assert start_within(512, "limits.max_connections=318").returncode == 1


def test_a_cap_of_its_own_that_does_not_fit_is_named() -> None:
    done = start_within(512, "limits.max_connections=10", "limits.max_sockets=5000")
    assert done.returncode == 1
    assert "limits.max_sockets: got 5000, which needs 5064 descriptors" in done.stderr
    assert "expected at most 448" in done.stderr


def test_a_reload_that_does_not_fit_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 512))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: calls.append(limits))
    with pytest.raises(ConfigError):
        raise_descriptor_limit(LimitSettings())
    assert calls == []
    assert raise_descriptor_limit(LimitSettings(max_connections=10)) == 512
    assert calls == [(512, 512)]


def test_without_a_hard_limit_the_soft_one_is_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    infinity = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, infinity))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: calls.append(limits))
    assert raise_descriptor_limit(LimitSettings()) == 11_164
    assert raise_descriptor_limit(LimitSettings(max_connections=10)) == 1024
    assert calls == [(11_164, infinity)]


# The sockets themselves, on the test's own loop.


@pytest.fixture
def service(io_loop: IOLoop) -> Iterator[Service]:
    service = Service(Hub(limits=LimitSettings(tcp_user_timeout_seconds=7, send_buffer_bytes=32 * 1024)))
    io_loop.run_sync(service.start)
    yield service
    io_loop.run_sync(service.stop)


@pytest.fixture
def port(io_loop: IOLoop, service: Service) -> Iterator[int]:
    server = StreamServer(public_app(service), limits=lambda: service.limits)
    server.listen(0, "127.0.0.1")
    (listener,) = server._sockets.values()
    yield listener.getsockname()[1]
    server.stop()
    io_loop.run_sync(server.close_all_connections)


async def opened(port: int) -> IOStream:
    stream = await TCPClient().connect("127.0.0.1", port)
    await stream.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    await stream.read_until(b'"connected"')
    return stream


def only(hub: Hub) -> Connection:
    (connection,) = hub.registry
    return connection


@pytest.mark.gen_test
async def test_a_listener_that_cannot_be_watched_again_is_not_forgotten(
    service: Service, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    expect_log("server.out_of_sockets")
    monkeypatch.setattr(sockets, "ACCEPT_PAUSE_SECONDS", 0.01)
    server = StreamServer(public_app(service), limits=lambda: service.limits)
    server.listen(0, "127.0.0.1")
    (listener,) = server._sockets.values()
    watch, tries = add_accept_handler, 0

    def refused(*arguments: Any) -> Callable[[], None]:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError(errno.ENOMEM, "no memory for epoll")
        return watch(*arguments)

    monkeypatch.setattr(sockets, "add_accept_handler", refused)
    server._pause(listener)
    (await opened(listener.getsockname()[1])).close()
    assert tries == 3
    server.stop()
    await server.close_all_connections()


@pytest.mark.gen_test
async def test_a_stream_is_tuned(service: Service, port: int) -> None:
    stream = await opened(port)
    sock = only(service.hub).stream.socket
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 64 * 1024  # Linux doubles it
    stream.close()


@pytest.mark.gen_test
async def test_a_stream_in_the_kernels_own_way(service: Service, port: int) -> None:
    service.hub.reload(
        limits=LimitSettings(tcp_user_timeout_seconds=0, send_buffer_bytes=0), history=service.hub.window.settings
    )
    stream = await opened(port)
    sock = only(service.hub).stream.socket
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) != 64 * 1024
    stream.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(sockets, "BODY_SECONDS", 0.3)


@pytest.mark.gen_test
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("beginning", "last"),
    [
        pytest.param(b"", b"", id="silence"),
        pytest.param(b"\r\n", b"", id="an empty line, as some send behind a body"),
        pytest.param(b"GET /events HTTP/1.1\r\nHost: x\r\nX: ", b"408", id="half a header"),
        pytest.param(
            b"GET /events HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf", b"408", id="half a body of a GET"
        ),
        pytest.param(b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf", b"408", id="half a body"),
        pytest.param(
            b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", b"408", id="half a chunk"
        ),
    ],
)
async def test_who_does_not_go_on_is_closed(service: Service, port: int, beginning: bytes, last: bytes) -> None:
    """A request that was begun is answered; where none was, an answer would be taken for that of the next one."""
    began = time.monotonic()
    stream = await TCPClient().connect("127.0.0.1", port)
    await stream.write(beginning)
    received = await stream.read_until_close()
    assert received[9:12] == last
    assert received.count(b"HTTP/1.1 ") == (1 if last else 0)
    assert (b'"request_timeout"' in received) == (last == b"408")
    assert time.monotonic() - began > 0.2
    assert len(service.hub.registry) == 0
    assert service.publishing == 0


@pytest.mark.gen_test
@pytest.mark.usefixtures("hasty")
async def test_who_sends_a_byte_now_and_then_is_closed_too(port: int) -> None:
    began = time.monotonic()
    stream = await TCPClient().connect("127.0.0.1", port)
    loop = IOLoop.current()

    def trickle() -> None:
        if not stream.closed():
            stream.write(b"x").add_done_callback(lambda future: future.exception())
            loop.call_later(0.02, trickle)

    await stream.write(b"GET /events HTTP/1.1\r\nX: ")
    trickle()
    assert (await stream.read_until_close()).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began > 0.2


HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def keeping(service: Service, *, idle_seconds: float, header_seconds: float) -> AsyncIterator[IOStream]:
    """A client that has been answered once, by a server with these times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sockets, "HEADER_SECONDS", header_seconds)
        server = StreamServer(public_app(service), keepalive_seconds=lambda: idle_seconds)
    server.listen(0, "127.0.0.1")
    (listener,) = server._sockets.values()
    stream = await TCPClient().connect("127.0.0.1", listener.getsockname()[1])
    try:
        await answered(stream, HEALTH)
        yield stream
    finally:
        stream.close()
        server.stop()
        await server.close_all_connections()


async def answered(stream: IOStream, *request: bytes) -> None:
    for part in request:
        await stream.write(part)
        await asyncio.sleep(0.05)  # each is read by itself
    await stream.read_until(b'"ok"}\n')


@pytest.mark.gen_test
async def test_an_idle_connection_may_wait_longer_than_a_request_may_take(service: Service) -> None:
    """As long as a proxy keeps it: one that is closed under a request makes a 502."""
    async with keeping(service, idle_seconds=60, header_seconds=2) as stream:
        for part in (b"\r\n", HEALTH[:1]):
            await asyncio.sleep(2.3)
            await answered(stream, part, HEALTH[len(part.strip()) : 20], HEALTH[20:])


@pytest.mark.gen_test
async def test_an_idle_connection_is_closed_without_a_word(service: Service) -> None:
    began = time.monotonic()
    async with keeping(service, idle_seconds=0.6, header_seconds=0.2) as stream:
        assert await stream.read_until_close() == b""
        assert time.monotonic() - began >= 0.6
    async with keeping(service, idle_seconds=0.2, header_seconds=60) as stream:
        assert await stream.read_until_close() == b""


@pytest.mark.gen_test
@pytest.mark.parametrize("pause", [0.0, 0.5])
async def test_a_request_that_was_begun_late_has_no_more_time_than_others(service: Service, pause: float) -> None:
    async with keeping(service, idle_seconds=3600, header_seconds=0.3) as stream:
        await asyncio.sleep(pause)
        await stream.write(b"GET /health HTTP/1.1\r\nX: ")
        reading = asyncio.ensure_future(stream.read_until_close())
        while not reading.done():
            with suppress(StreamClosedError):
                await stream.write(b"x")
            await asyncio.sleep(0.02)
        assert (await reading).startswith(b"HTTP/1.1 408 ")


@pytest.mark.gen_test
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("line", [b"", b"\r\n"])
async def test_a_new_connection_has_no_time_to_be_idle(port: int, line: bytes) -> None:
    """The default for idle ones is 75 s; empty lines are no request, and give no more time."""
    stream = await TCPClient().connect("127.0.0.1", port)
    reading = asyncio.ensure_future(stream.read_until_close())
    while not reading.done():
        with suppress(StreamClosedError):
            await stream.write(line)
        await asyncio.sleep(0.1)
    assert await reading == b""


@pytest.mark.gen_test
@pytest.mark.usefixtures("hasty")
async def test_a_stream_is_not_closed_by_these(service: Service, port: int) -> None:
    stream = await opened(port)
    began = time.monotonic()
    while time.monotonic() - began < 1:
        await service.hub.publish("a", "x" * 10)
        await stream.read_until(b"data: xxxxxxxxxx\n\n")
        await asyncio.sleep(0.05)
    assert len(service.hub.registry) == 1
    stream.close()


HEADS = [
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /health HTTP/1.1\nHost: x\n\n",
    b"GET /health HTTP/1.1\r\nHost: x\n\r\n",
    b"GET /health HTTP/1.1\nHost: x\r\n\n",
    b"\r\nGET /health HTTP/1.1\r\nX: " + b"x" * 300 + b"\r\nHost: x\r\n\r\n",
]


@pytest.mark.gen_test
@pytest.mark.parametrize("head", HEADS)
async def test_a_head_may_come_in_any_two_pieces(port: int, head: bytes) -> None:
    """Also with its end in both of them, and the next request right behind it."""
    stream = await TCPClient().connect("127.0.0.1", port)
    stream.set_nodelay(True)
    for end in [*range(1, 30), *range(len(head) - 10, len(head))]:
        await stream.write(head[:end])
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        await stream.write(head[end:] + head)
        for _ in range(2):
            assert (await stream.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            await stream.read_until(b"}\n")
    stream.close()


class BrokenStream(ClientStream):
    """Its next read finds a broken TLS record, which from outside can be hit only now and then."""

    def __init__(self, sock: socket.socket, error: OSError) -> None:
        super().__init__(sock)
        self.broken = error

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        raise self.broken


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "error", [ssl.SSLError(1, "wrong version number"), OSError(errno.EHOSTUNREACH, "no route"), ConnectionResetError()]
)
async def test_what_breaks_is_closed_and_neither_raised_nor_logged(error: OSError) -> None:
    ours, theirs = socket.socketpair()
    stream = BrokenStream(ours, error)
    with pytest.raises(StreamClosedError) as caught:
        await stream.read_until_regex(b"")
    assert caught.value.real_error is error  # the reason in the log of a stream comes from it
    theirs.close()
