"""Requests that are no requests: each is answered or closed at once, says nothing in the log, and costs nothing."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest
from coverage import Coverage

from qgstream.net.sockets import MAX_HEADER_BYTES
from tests.hostile.observing import Watch, ask, cpu_seconds, metrics, resident_bytes
from tests.serving import KEY, RawClient, ServerProcess, wait_until

# Where coverage is measured the dearest took 2.08 s, without it 0.44 s.
CHEAP_CPU_SECONDS = 2 if Coverage.current() is None else 5

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Its end checks that nothing of all this was an error or a warning."""
    with ServerProcess(tmp_path_factory.mktemp("server")) as server:
        yield server


def talk(server: ServerProcess, *parts: bytes, seconds: float = 60.0) -> bytes:
    """Say all that can be said and return what comes until the server closes; a reset is an end, too."""
    client = RawClient(server.port, timeout_seconds=seconds)
    try:
        for part in parts:
            client.socket.sendall(part)
        client.to_end()
    except (ConnectionResetError, BrokenPipeError):
        pass
    finally:
        client.close()
    return client.received


GET = b"GET /events HTTP/1.1\r\nHost: x\r\n"
POST = (
    b"POST /events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\n" % KEY.encode()
)
NONSENSE = [
    pytest.param(b"GET /\r\n\r\n", id="HTTP/0.9"),
    pytest.param(b"GET /events\r\n\r\n", id="HTTP/0.9, a stream"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2's preface"),
    pytest.param(b"GET / HTTP/3\r\n\r\n", id="HTTP/3"),
    pytest.param(b"GET / HTTP/1.1.1\r\n\r\n", id="a version too many"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 512 + b"\r\n\r\n", id="a TLS handshake"),
    pytest.param(b"\x04\x01\x1f\x40\x7f\x00\x00\x01\x00\r\n\r\n", id="SOCKS"),
    pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", id="SSH"),
    pytest.param(b"EHLO x\r\n\r\n", id="SMTP"),
    pytest.param(b"\0" * 4096 + b"\r\n\r\n", id="zeros"),
    pytest.param(b"\r\n\r\n" * 3000, id="empty lines"),
    pytest.param(b" \r\n\r\n", id="a space"),
    pytest.param(b"GET  /events  HTTP/1.1\r\nHost: x\r\n\r\n", id="two spaces"),
    pytest.param(b"GET /ev ents HTTP/1.1\r\nHost: x\r\n\r\n", id="a space in the path"),
    pytest.param(b"GET /events HTTP/1.1\r\n\r\n", id="no host"),
    pytest.param(b"GET /events HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", id="two hosts"),
    pytest.param(b"GET /events HTTP/1.1\r\nHost: a b\r\n\r\n", id="no name of a host"),
    pytest.param(GET + b"no colon\r\n\r\n", id="a header without a colon"),
    pytest.param(GET + b": no name\r\n\r\n", id="a header without a name"),
    pytest.param(GET + b"a b: c\r\n\r\n", id="a space in a header's name"),
    pytest.param(GET + b"Last-Event-ID: a\0b\r\n\r\n", id="NUL in an id"),
    pytest.param(GET + b"Last-Event-ID: a\x01b\r\n\r\n", id="a control character in an id"),
    pytest.param(GET + b"Last-Event-ID: a\rb\r\n\r\n", id="CR in an id"),
    pytest.param(GET + b"Content-Length: nonsense\r\n\r\n", id="a length that is none"),
    pytest.param(GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", id="two lengths"),
    pytest.param(GET + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="smuggling"),
    pytest.param(GET + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="a coding that nobody knows"),
    pytest.param(GET + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", id="a chunk's size that is none"),
    pytest.param(GET + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n", id="a negative chunk"),
    pytest.param(GET + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n\r\n", id="a chunk of all memory"),
    pytest.param(GET + b"Content-Length: 10000000\r\n\r\n", id="a GET with ten megabytes to come"),
    pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcdeXX", id="a chunk without its end"),
]


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_is_refused_at_once(server: ServerProcess, nonsense: bytes) -> None:
    """Not with the 408 of a request that takes too long."""
    watch = Watch(server)
    # `http_table` says which status is whose.
    answer = talk(server, nonsense)
    assert answer[:13] in {b"HTTP/1.1 %d " % status for status in (400, 413, 501, 505)}, answer
    assert answer.partition(b"\r\n\r\n")[2].startswith(b'{"error": {"code": "'), answer
    assert (watch.open, watch.closed) == (0, {})


def test_random_bytes(server: ServerProcess) -> None:
    source = random.Random(7)
    for _ in range(300):
        data = source.randbytes(source.randrange(1, 400)) + b"\r\n\r\n"
        if source.random() < 0.5:
            data = GET + data
        client = RawClient(server.port)
        client.socket.sendall(data)
        client.socket.shutdown(socket.SHUT_WR)
        try:
            client.to_end()
        except ConnectionResetError:
            continue
        finally:
            client.close()
        assert client.received[:9] in (b"HTTP/1.1 ", b""), (data, client.received)
        assert not client.received.startswith(b"HTTP/1.1 500"), (data, client.received)
    wait_until(lambda: metrics(server)["connections"] == 0, what="no stream")


# A megabyte. An id that a client was made to keep must not stop its EventSource.


@pytest.mark.parametrize("where", ["header", "query", "parameter of another name"])
def test_a_megabyte_of_an_id_is_answered_with_a_reset(server: ServerProcess, where: str) -> None:
    big = b"x" * MIB
    client = RawClient(server.port)
    target, header = {
        "header": (b"/events", b"Last-Event-ID: %b\r\n" % big),
        "query": (b"/events?last_event_id=%b" % big, b""),
        "parameter of another name": (b"/events?topic=a&lastEventID=%b" % big, b""),
    }[where]
    client.socket.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n%b\r\n" % (target, header))
    head = client.until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b'"replay": "reset"' in client.until(b'"reason": "unknown_id"}')
    client.close()
    server.wait_for_log("events.disconnected", count=round(metrics(server)["connections_opened_total"]))
    log = server.log_path.read_bytes()
    assert big[:300] not in log


def test_more_than_that_is_refused(server: ServerProcess) -> None:
    watch = Watch(server)
    answer = talk(server, GET + b"Last-Event-ID: ", b"x" * (2 * MAX_HEADER_BYTES))
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert watch.open == 0


def test_what_a_client_says_of_itself_is_bounded_in_the_log(server: ServerProcess) -> None:
    client = RawClient(server.port).get(
        "/events?topic=agent", "User-Agent: " + "a" * 100_000 + "\x80", "X-Forwarded-For: " + "1.2.3.4, " * 10_000
    )
    client.until(b'"connected"')
    client.close()
    line = server.wait_for_log("events.connected", topics=["agent"])
    assert len(line["user_agent"]) <= 200
    assert line["remote_ip"] == "127.0.0.1"
    many = RawClient(server.port).get(
        "/events?" + "&".join(f"topic=many/{number}/" + "x" * 100 for number in range(64))
    )
    many.until(b'"connected"')
    many.close()
    server.wait_for_log("events.connected", more_topics=60)
    talk(server, b"M" * 60_000 + b" /" + b"p" * 60_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert max(len(line) for line in server.log_path.read_text().splitlines()) < 2000


def test_secrets_in_odd_places_do_not_reach_the_log(server: ServerProcess) -> None:
    client = RawClient(server.port).get(
        f"/events?topic=odd&access_token={KEY}", f"User-Agent: x token={KEY} Bearer {KEY}"
    )
    client.until(b'"connected"')
    client.close()
    talk(server, b"GET /%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % KEY.encode())
    connection = server.wait_for_log("events.connected", topics=["odd"])["connection"]
    server.wait_for_log("events.disconnected", connection=connection)
    assert KEY not in server.log_path.read_text()


# What one client costs.


@pytest.mark.parametrize(
    "target",
    [
        b"/events?" + b"topic=a&" * 100_000,
        b"/events?" + b"&" * 900_000,
        b"/events?topic=" + b"%41" * 300_000,
        b"/" + b"a/" * 450_000,
        b"/health?" + b"a=%zz&" * 150_000,
    ],
    ids=["topics", "ampersands", "escapes", "segments", "broken escapes"],
)
def test_a_long_target_is_cheap(server: ServerProcess, target: bytes) -> None:
    used = cpu_seconds(server)
    talk(server, b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % target)
    assert cpu_seconds(server) - used < CHEAP_CPU_SECONDS


@pytest.mark.parametrize(
    "headers",
    [
        b"a: b\r\n" * 150_000,
        b"Cookie: " + b"a=b; " * 200_000 + b"\r\n",
        b"Accept: " + b"text/event-stream;" * 50_000 + b"\r\n",
        b"Accept: " + b"application/openmetrics-text;version=0.1," * 20_000 + b"\r\n",
        b"Origin: " + b"a" * 900_000 + b"\r\n",
        b"Authorization: Bearer " + b"a" * 900_000 + b"\r\n",
        b"Authorization: " + b" " * 900_000 + b"Bearer\r\n",
        b"User-Agent: " + b"token=" * 150_000 + b"\r\n",
        b"If-None-Match: " + b'"a' * 400_000 + b"\r\n",
    ],
    ids=["many", "cookies", "accept", "openmetrics", "origin", "bearer", "spaces", "user agent", "tags"],
)
@pytest.mark.parametrize("path", [b"/health", b"/metrics", b"/events"])
def test_long_headers_are_cheap(server: ServerProcess, headers: bytes, path: bytes) -> None:
    used = cpu_seconds(server)
    client = RawClient(server.port)
    client.socket.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (path, headers))
    assert client.until(b"\r\n\r\n").startswith((b"HTTP/1.1 200", b"HTTP/1.1 401", b"HTTP/1.1 431"))
    client.close()
    assert cpu_seconds(server) - used < CHEAP_CPU_SECONDS


@pytest.mark.parametrize("filling", [b"x", b"\r", b"\nx", b"a:b\r\n"], ids=["x", "CR", "LF", "headers"])
def test_a_megabyte_and_then_single_bytes_is_cheap(server: ServerProcess, filling: bytes) -> None:
    """Looking for the end of the head from its beginning takes 16 ms each time: 60 packets a second were enough."""
    client = RawClient(server.port)
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.socket.sendall(GET + b"X: " + filling * (MIB // len(filling)))
    answer_is_due(server)
    used = cpu_seconds(server)
    for _ in range(200):
        client.socket.sendall(b"x")
        answer_is_due(server)  # a turn of the loop for each
    assert cpu_seconds(server) - used < 1
    client.close()


def answer_is_due(server: ServerProcess) -> None:
    assert ask(server, "GET", "/health")[0].status == 200


def test_memory_comes_back(server: ServerProcess) -> None:
    """After all that is above: what a client sent is gone with it."""
    for _ in range(5):
        talk(server, GET + b"X: " + b"x" * MIB + b"\r\nContent-Length: z\r\n\r\n")
    before = resident_bytes(server)
    for _ in range(20):
        talk(server, GET + b"X: " + b"x" * MIB + b"\r\nContent-Length: z\r\n\r\n")
    assert resident_bytes(server) - before < 8 * MIB


def test_the_server_is_well(server: ServerProcess) -> None:
    answer, body = ask(server, "GET", "/ready")
    assert (answer.status, body) == (200, b'{"status": "ready"}\n')
    wait_until(lambda: metrics(server)["connections"] == 0, what="no stream")
