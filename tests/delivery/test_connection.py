"""One stream on the wire, and every way in which it ends: from outside, on real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jwt
import pytest
from tornado.iostream import IOStream

from qgstream.delivery.connection import MAX_STRAY_BYTES
from qgstream.events.subscription import Subscription
from qgstream.hub import Hub
from tests.hostile.observing import Watch, metrics
from tests.publishing import publish, publish_all
from tests.serving import KEY, RawClient, ServerProcess, wait_until

SECRET = "a secret of the tests, of at least 32 bytes"
BEAT_SECONDS = 0.2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(
        tmp_path_factory.mktemp("server"),
        heartbeat__interval_seconds=BEAT_SECONDS,
        auth__jwt__algorithms=["HS256"],
        auth__jwt__secret=SECRET,
        auth__jwt__leeway_seconds=0,
    ) as server:
        yield server


@pytest.fixture
def watch(server: ServerProcess) -> Watch:
    """Whatever was open before must be gone, so that the counts are this test's own."""
    wait_until(lambda: metrics(server)["connections"] == 0, what="an empty server")
    return Watch(server)


TIME = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00"
POSITION = rb"[A-Za-z0-9._~-]{1,64}"
CONNECTED = (
    rb"retry: 3[0-5]\d\d\n"
    rb"id: (?P<id>%b)\n"
    rb'data: {"event": "connected", "timestamp": "%b", "replay": "none", "topics": \[.*\]}\n\n' % (POSITION, TIME)
)
HEARTBEAT = rb'id: (?P<id>%b)\ndata: {"event": "heartbeat", "timestamp": "%b"}\n\n' % (POSITION, TIME)
HEADERS = (
    rb"HTTP/1\.1 200 OK\r\n"
    rb"Server: qgstream\r\n"
    rb"Content-Type: text/event-stream; charset=utf-8\r\n"
    rb"Date: [A-Za-z]{3}, \d\d [A-Za-z]{3} \d{4} \d\d:\d\d:\d\d GMT\r\n"
    rb"Access-Control-Allow-Origin: \*\r\n"
    rb"Access-Control-Expose-Headers: Retry-After\r\n"
    rb"Cache-Control: no-cache, no-transform\r\n"
    rb"X-Accel-Buffering: no\r\n"
)


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def matches(pattern: bytes, got: bytes) -> re.Match[bytes]:
    found = re.fullmatch(pattern, got)
    assert found, (pattern, got)
    return found


def next_chunk(client: RawClient) -> bytes:
    """The payload of the next chunk, taken off what was received."""
    while True:
        size, found, rest = client.received.partition(b"\r\n")
        if found and len(rest) >= int(size, 16) + 2:
            payload, end = rest[: int(size, 16)], rest[int(size, 16) :]
            assert end.startswith(b"\r\n")
            client.received = end[2:]
            return payload
        more = client.socket.recv(65536)
        assert more, f"the server closed; got {client.received!r}"
        client.received += more


def next_event(client: RawClient) -> bytes:
    """The next chunk that is no heartbeat."""
    while b'{"event": "heartbeat"' in (payload := next_chunk(client)):
        pass
    return payload


def opened(server: ServerProcess, target: str = "/events", *headers: str) -> RawClient:
    """A stream whose headers and `connected` are read."""
    client = RawClient(server.port).get(target, *headers)
    client.until(b"\r\n\r\n")
    client.received = client.received.partition(b"\r\n\r\n")[2]
    assert b'"event": "connected"' in next_chunk(client)
    return client


# Byte by byte.


def test_the_beginning_of_a_stream(server: ServerProcess) -> None:
    client = RawClient(server.port).get("/events")
    head = client.until(b"\r\n\r\n")
    matches(HEADERS + rb"Transfer-Encoding: chunked\r\n\r\n", head)
    client.received = client.received.partition(b"\r\n\r\n")[2]
    connected = matches(CONNECTED, next_chunk(client))
    beat = matches(HEARTBEAT, next_chunk(client))
    assert beat["id"] == connected["id"]
    client.close()


def test_http_1_0_is_not_chunked_and_ends_with_the_connection(server: ServerProcess) -> None:
    client = RawClient(server.port).get("/events?topic=ten", version="1.0")
    head = client.until(b"\r\n\r\n")
    matches(HEADERS + rb"\r\n", head)
    publish(server, "ten", "x")
    client.until(b"data: x\n\n")
    body = client.received.partition(b"\r\n\r\n")[2]
    beats = rb"(?:%b)*" % HEARTBEAT.replace(rb"(?P<id>", rb"(?:")
    matches(CONNECTED + beats + rb"id: %b\ndata: x\n\n" % POSITION, body)
    client.close()


@pytest.mark.parametrize(
    ("version", "asked"), [("1.0", "keep-alive"), ("1.0", "Keep-Alive"), ("1.1", "keep-alive"), ("1.1", "close")]
)
def test_never_keep_alive(server: ServerProcess, version: str, asked: str) -> None:
    """Over HTTP/2 at the edge it makes Safari drop the stream."""
    client = RawClient(server.port).get("/events", f"Connection: {asked}", version=version)
    head = client.until(b"\r\n\r\n").lower()
    assert b"keep-alive" not in head
    client.until(b'"heartbeat"')
    client.close()


def test_never_compressed(server: ServerProcess) -> None:
    client = RawClient(server.port).get("/events", "Accept-Encoding: gzip, deflate, br, zstd")
    assert b"content-encoding" not in client.until(b"\r\n\r\n").lower()
    client.until(b'"connected"')
    client.close()


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"data": {"order": 7}, "event": "created"}, b'event: created\ndata: {"order": 7}\n\n'),
        ({"data": {"order": 7}}, b'data: {"order": 7}\n\n'),
        ({"data": "text"}, b"data: text\n\n"),
        ({"data": ""}, b"data: \n\n"),
        ({"data": " spaced"}, b"data:  spaced\n\n"),
        ({"data": ":colon"}, b"data: :colon\n\n"),
        ({"data": "a\nb\r\nc\rd\n"}, b"data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n"),
        ({"data": "data: x\n\nid: 7"}, b"data: data: x\ndata: \ndata: id: 7\n\n"),
        ({"data": "\u2028\u0085\x0b\x0c\0"}, "data: \u2028\u0085\x0b\x0c\0\n\n".encode()),
        ({"data": "\U0001f600é"}, "data: \U0001f600é\n\n".encode()),
        ({"data": "x", "event": "with spaces: and ünïcödé"}, "event: with spaces: and ünïcödé\ndata: x\n\n".encode()),
    ],
)
def test_an_event(server: ServerProcess, event: dict[str, Any], expected: bytes) -> None:
    client = opened(server, "/events?topic=wire")
    receipt = publish_all(server, [{**event, "topic": "wire"}])
    assert next_event(client) == f"id: {receipt['ids'][0]}\n".encode() + expected
    client.close()


def test_retry_comes_before_the_id(server: ServerProcess) -> None:
    client = opened(server, "/events?topic=wire")
    receipt = publish_all(server, [{"topic": "wire", "data": 1, "retry": 250, "event": "e"}])
    assert next_event(client) == f"retry: 250\nid: {receipt['ids'][0]}\nevent: e\ndata: 1\n\n".encode()
    client.close()


def test_an_envelope(server: ServerProcess) -> None:
    client = opened(server, "/events?topic=wire&topic=also&envelope=1")
    events: list[dict[str, Any]] = [
        {"topic": "wire", "data": {"a": 1.10}, "event": "e"},
        {"topic": ["wire", "other"], "data": 'text "é"\n'},
        {"topic": "also", "data": None},
    ]
    ids = publish_all(server, events)["ids"]
    expected = [
        {"id": ids[0], "topic": "wire", "event": "e", "data": {"a": 1.1}},
        {"id": ids[1], "topic": ["wire", "other"], "event": None, "data": 'text "é"\n'},
        {"id": ids[2], "topic": "also", "event": None, "data": None},
    ]
    received = b""
    while received.count(b"\n\n") < 3:
        received += next_event(client)
    blocks = received.split(b"\n\n")[:3]
    assert [block.split(b"\n")[0] for block in blocks] == [f"id: {id}".encode() for id in ids]
    assert b"event: e\n" in blocks[0]
    lines = [block.split(b"\n")[-1] for block in blocks]
    assert [json.loads(line.removeprefix(b"data: ")) for line in lines] == expected
    client.close()


def test_who_gets_what(server: ServerProcess) -> None:
    queries = {
        "": ["a", "ab", "b", "created", "both"],
        "?topic=*": ["a", "ab", "b", "created", "both"],
        "?topic=a": ["a", "created", "both"],
        "?topic=a*": ["a", "ab", "created", "both"],
        "?topic=a&topic=b": ["a", "b", "created", "both"],
        "?topic=A": [],
        "?event=created": ["created"],
        "?event=message": ["a", "ab", "b", "both"],
        "?topic=a&event=created&event=message": ["a", "created", "both"],
        "?topic=b&event=created": [],
    }
    clients = {query: opened(server, f"/events{query}") for query in queries}
    publish_all(
        server,
        [
            {"topic": "a", "data": "a"},
            {"topic": "ab", "data": "ab"},
            {"topic": "b", "data": "b"},
            {"topic": "a", "data": "created", "event": "created"},
            {"topic": ["a", "b"], "data": "both"},
            {"topic": ["a", "b", "A"], "data": "end"},
            {"topic": ["a", "b", "A"], "data": "end", "event": "created"},
        ],
    )
    for query, expected in queries.items():
        received = b""
        while b"data: end\n" not in received:
            received += next_event(clients[query])
        got = [line.removeprefix(b"data: ").decode() for line in received.split(b"\n") if line.startswith(b"data: ")]
        assert got[: got.index("end")] == expected, query
        clients[query].close()


def test_heartbeats_keep_their_interval(server: ServerProcess) -> None:
    client = opened(server)
    times = []
    for _ in range(6):
        next_chunk(client)
        times.append(time.monotonic())
    gaps = [after - before for before, after in pairwise(times)]
    # A busy machine may hold up any of them, and not all.
    assert sum(gaps) / len(gaps) > 0.7 * BEAT_SECONDS, gaps
    assert min(gaps) < 1.5 * BEAT_SECONDS, gaps
    client.close()


def test_a_heartbeat_moves_the_position_of_a_quiet_listener(server: ServerProcess) -> None:
    client = opened(server, "/events?topic=quiet")
    before = matches(HEARTBEAT, next_chunk(client))["id"]
    receipt = publish(server, "loud", "x")
    wait_until(lambda: matches(HEARTBEAT, next_chunk(client))["id"] == receipt["id"].encode(), what="the new position")
    assert before != receipt["id"].encode()
    client.close()
    # It comes back with it and has missed nothing.
    again = opened(server, "/events?topic=loud", f"Last-Event-ID: {receipt['id']}")
    publish(server, "loud", "y")
    assert b"data: y\n" in next_event(again)
    again.close()


def test_comments_fire_no_event_and_move_the_position(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, heartbeat__interval_seconds=0.1, heartbeat__format="comment") as quiet:
        client = opened(quiet, "/events?topic=quiet")
        first = matches(rb": heartbeat\nid: (%b)\n\n" % POSITION, next_chunk(client))[1]
        receipt = publish(quiet, "loud", "x")
        wait_until(lambda: next_chunk(client) == f": heartbeat\nid: {receipt['id']}\n\n".encode(), what="the position")
        assert first != receipt["id"].encode()
        client.close()


# How it ends. Each with its reason counted and logged, and the slot returned.


def half_close(client: RawClient) -> None:
    client.socket.shutdown(socket.SHUT_WR)
    client.to_end()


def shout(amount: int) -> bytes:
    return b"X" * amount


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("how", ["close", "reset", "half-close", "stray bytes, then close", "stray bytes, half-close"])
def test_a_client_that_leaves(server: ServerProcess, watch: Watch, version: str, how: str) -> None:
    client = RawClient(server.port).get("/events?topic=bye", "User-Agent: leaver", version=version)
    client.until(b'"connected"')
    publish(server, "bye", "x" * 100)
    client.until(b"x\n\n")
    if how.startswith("stray"):
        client.socket.sendall(b"stray bytes\r\n\r\n")
    if how == "reset":
        client.reset()
    elif how.endswith("half-close"):
        half_close(client)
        client.close()
    else:
        client.close()
    (line,) = watch.expect(client=1)
    assert line["remote_ip"] == "127.0.0.1"
    assert line["events"] == 1
    assert line["bytes"] > 100
    assert 0 <= line["seconds"] < 15
    connected = server.wait_for_log("events.connected", connection=line["connection"])
    assert (connected["user_agent"], connected["topics"], connected["replay"]) == ("leaver", ["bye"], "none")


def test_a_client_that_leaves_before_its_answer(server: ServerProcess, watch: Watch) -> None:
    for _ in range(50):
        RawClient(server.port).get("/events").reset()
    for _ in range(50):
        client = RawClient(server.port).get("/events")
        client.socket.shutdown(socket.SHUT_WR)
        client.to_end()
        client.close()
    wait_until(lambda: watch.open == 0 and metrics(server)["connections"] == 0, what="no stream")
    opened_ = metrics(server)["connections_opened_total"] - watch.before["connections_opened_total"]
    assert watch.closed.get("client", 0) + watch.closed.get("write_error", 0) == opened_ <= 100


def test_two_pipelined_requests_are_one_stream(server: ServerProcess, watch: Watch) -> None:
    """The second one must neither open a stream nor leave a slot behind when the client has gone."""
    request = b"GET /events?topic=pipe HTTP/1.1\r\nHost: x\r\n\r\n"
    client = RawClient(server.port)
    client.socket.sendall(request + request)
    client.until(b'"connected"')
    publish(server, "pipe", "once")
    client.until(b"data: once\n\n")
    client.until(b'"heartbeat"')
    assert client.received.count(b"data: once") == 1
    assert client.received.count(b"HTTP/1.1 200") == 1
    assert watch.open == 1
    client.close()
    watch.expect(client=1)
    for _ in range(20):
        client = RawClient(server.port)
        client.socket.sendall(request + request)
        client.close()
    wait_until(lambda: watch.open == 0, what="no stream")
    assert metrics(server)["connections"] == 0


def test_a_request_before_the_stream_is_answered(server: ServerProcess, watch: Watch) -> None:
    client = RawClient(server.port)
    client.socket.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    client.until(b'{"status": "ok"}')
    client.until(b'"connected"')
    client.close()
    watch.expect(client=1)


def test_a_few_stray_bytes_are_forgotten(server: ServerProcess, watch: Watch) -> None:
    client = opened(server, "/events?topic=stray")
    for _ in range(8):
        client.socket.sendall(shout(MAX_STRAY_BYTES // 8))
        next_chunk(client)
    publish(server, "stray", "still here")
    assert b"still here" in next_event(client)
    client.close()
    watch.expect(client=1)


def test_a_client_that_does_not_stop_talking_is_closed(server: ServerProcess, watch: Watch) -> None:
    client = opened(server)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        client.socket.sendall(shout(64 * 1024 * 1024))
    client.close()
    watch.expect(client=1)


def test_a_get_with_a_body(server: ServerProcess, watch: Watch) -> None:
    client = RawClient(server.port)
    client.socket.sendall(b"GET /events?topic=body HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabc")
    client.socket.sendall(b"de")
    client.until(b'"connected"')
    publish(server, "body", "x")
    client.until(b"data: x\n\n")
    client.close()
    watch.expect(client=1)


def test_a_request_byte_by_byte(server: ServerProcess, watch: Watch) -> None:
    client = RawClient(server.port)
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n":
        client.socket.sendall(bytes([byte]))
    client.until(b'"connected"')
    client.close()
    watch.expect(client=1)


def test_an_expired_token_ends_its_stream_on_time(tmp_path: Path) -> None:
    """Not at the next heartbeat, not at the next event: nobody waits for these here."""
    with ServerProcess(
        tmp_path, heartbeat__interval_seconds=3600, auth__jwt__algorithms=["HS256"], auth__jwt__secret=SECRET,
        auth__jwt__leeway_seconds=0,
    ) as server:  # fmt: skip
        expired(server)


def expired(server: ServerProcess) -> None:
    watch = Watch(server)
    expires = time.time() + 3
    token = jwt.encode({"sub": "ann", "exp": expires, "qgstream": {"subscribe": ["*"]}}, SECRET)
    client = opened(server, "/events", f"Authorization: Bearer {token}")
    payload = next_chunk(client)
    assert time.time() >= expires
    fields = payload.decode().splitlines()
    assert re.fullmatch(r"retry: \d+", fields[0])
    assert 3000 <= int(fields[0].removeprefix("retry: ")) <= 6000
    message = json.loads(fields[1].removeprefix("data: "))
    assert (message["event"], message["reason"]) == ("closing", "token_expired")
    assert client.to_end() == b"0\r\n\r\n"  # a clean end of the chunked body
    client.close()
    watch.expect(token_expired=1)


def test_a_key_does_not_expire(server: ServerProcess, watch: Watch) -> None:
    client = opened(server, f"/events?access_token={KEY}")
    assert all(b"heartbeat" in next_chunk(client) for _ in range(3))
    client.close()
    watch.expect(client=1)
    assert KEY not in server.log_path.read_text()


# What cannot be provoked from outside at will.


class BrokenStream(IOStream):
    """Its first read finds a broken TLS record. From outside that read is only now and then the stream's first."""

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        raise ssl.SSLError(1, "wrong version number")


@pytest.mark.gen_test
async def test_a_stream_that_breaks_in_its_birth_is_closed_like_any_other() -> None:
    hub = Hub()
    await hub.start()
    ours, theirs = socket.socketpair()
    subscription = Subscription(patterns=frozenset({"a"}))
    connection = hub.adopt(
        BrokenStream(ours), subscription, hub.open(subscription, None), ip="", client_key="", user_agent=""
    )
    for _ in range(3):
        await asyncio.sleep(0)
    assert connection.reason == "client"
    assert (len(hub.registry), len(hub.router)) == (0, 0)
    theirs.close()
    await hub.stop()
