"""HTTPS: a stream works as well as plain, and strangers at the port do no harm and make no noise."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import ssl
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import jwt
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.hostile.certificates import TlsClient, make_certificate
from tests.hostile.observing import Watch, ask, data_of, metrics
from tests.serving import KEY, RawClient, ServerProcess, wait_until
from tests.signing import SECRET

HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate[0])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]) -> Iterator[ServerProcess]:
    with ServerProcess(
        tmp_path_factory.mktemp("server"),
        scheme="https",
        server__certfile=str(certificate[0]),
        server__keyfile=str(certificate[1]),
        heartbeat__interval_seconds=0.2,
        limits__max_backlog_bytes=300_000,
        limits__tcp_user_timeout_seconds=60,
    ) as server:
        yield server


def publish(server: ServerProcess, tls: ssl.SSLContext, topic: str, data: object) -> dict[str, object]:
    answer, body = ask(
        server, "POST", "/events", body=json.dumps({"topic": topic, "data": data}).encode(), headers=HEADERS, tls=tls
    )
    assert answer.status == 200, body
    parsed: dict[str, object] = json.loads(body)
    return parsed


def test_a_stream_and_its_events(server: ServerProcess, tls: ssl.SSLContext) -> None:
    watch = Watch(server, tls=tls)
    client = TlsClient(server.port, tls).get("/events?topic=a")
    assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
    client.until(b'"connected"')
    assert publish(server, tls, "a", "hello")["subscribers"] == 1
    client.until(b"data: hello\n\n")
    client.until(b'"heartbeat"')
    client.close()
    (line,) = watch.expect(client=1)
    assert line["events"] == 1


def test_a_page_of_this_host_publishes_with_a_cookie(
    tmp_path: Path, certificate: tuple[Path, Path], tls: ssl.SSLContext
) -> None:
    """Over TLS the server's own origin is https."""
    with ServerProcess(
        tmp_path, scheme="https", server__certfile=str(certificate[0]), server__keyfile=str(certificate[1]),
        cors__allow_origins=[], auth__jwt__algorithms=["HS256"], auth__jwt__secret=SECRET, auth__jwt__cookie="session",
    ) as server:  # fmt: skip
        token = jwt.encode({"sub": "ann", "exp": time.time() + 600, "qgstream": {"publish": ["*"]}}, SECRET)
        for scheme, status in (("https", 200), ("http", 403)):
            headers = {
                "Cookie": f"session={token}", "Content-Type": "application/json", "Host": f"localhost:{server.port}",
                "Origin": f"{scheme}://localhost:{server.port}",
            }  # fmt: skip
            body = json.dumps({"topic": "a", "data": 1}).encode()
            assert ask(server, "POST", "/events", body=body, headers=headers, tls=tls)[0].status == status


def test_a_websocket(server: ServerProcess, tls: ssl.SSLContext) -> None:
    watch = Watch(server, tls=tls)
    url = f"wss://localhost:{server.port}/ws?topic=ws"
    with connect(url, ssl=tls, proxy=None, open_timeout=60, max_size=None) as socket:
        assert json.loads(socket.recv(60))["data"]["event"] == "connected"
        sent = ["x" * 200_000 + str(number) for number in range(4)]
        for data in sent:
            publish(server, tls, "ws", data)
        received: list[str] = []
        while len(received) < len(sent):
            message = json.loads(socket.recv(60))
            received += [message["data"]] if "topic" in message else []
        assert received == sent
        assert socket.ping().wait(60)
        socket.send("hello?")
        with suppress(ConnectionClosed):
            while True:
                socket.recv(60)
        assert (socket.close_code, "no messages" in (socket.close_reason or "")) == (1003, True)
    (line,) = watch.expect(client=1)
    assert (line["events"], line["close_code"]) == (4, 1003)


def test_large_events_arrive_whole_and_in_order(server: ServerProcess, tls: ssl.SSLContext) -> None:
    client = TlsClient(server.port, tls).get("/events?topic=large")
    client.until(b'"connected"')
    sent = []
    for number in range(6):
        data = hashlib.sha256(bytes([number])).hexdigest() * 4000  # 256 000 bytes, not to be compressed away
        sent.append(data)
        publish(server, tls, "large", data)
        client.until(data[-64:].encode() + b"\n\n")
    assert data_of(client) == sent
    client.close()


def test_many_small_events_arrive_in_order(server: ServerProcess, tls: ssl.SSLContext) -> None:
    clients = [TlsClient(server.port, tls).get("/events?topic=small") for _ in range(5)]
    for client in clients:
        client.until(b'"connected"')
    batch = b"\n".join(b'{"topic": "small", "data": %d}' % number for number in range(5000))
    answer, _ = ask(
        server, "POST", "/events", body=batch, headers=HEADERS | {"Content-Type": "application/x-ndjson"}, tls=tls
    )
    assert answer.status == 200
    for client in clients:
        client.until(b"data: 4999\n\n")
        assert data_of(client) == [str(number) for number in range(5000)]
        client.close()


def test_a_slow_reader_hurts_only_itself(server: ServerProcess, tls: ssl.SSLContext) -> None:
    watch = Watch(server, tls=tls)
    stalled = TlsClient(server.port, tls, receive_buffer=4096).get("/events?topic=slow")
    stalled.until(b'"connected"')
    live = [TlsClient(server.port, tls).get("/events?topic=slow") for _ in range(3)]
    for client in live:
        client.until(b'"connected"')
    took = []
    for number in range(25):
        began = time.monotonic()
        publish(server, tls, "slow", f"{number:02}" + "x" * 40_000)
        for client in live:
            client.until(f"data: {number:02}x".encode())
        took.append(time.monotonic() - began)
    assert statistics.median(took) < 2  # of any single one the machine may be the reason
    wait_until(lambda: metrics(server, tls=tls)["backlog_bytes"] == 0, what="the shedding")
    # Told so, behind what was on its way, when it reads on.
    assert b'"reason": "slow_consumer"' in stalled.until(b'"reason": "slow_consumer"}\n\n')
    assert stalled.to_end().endswith(b"0\r\n\r\n")
    numbers = [int(data[:2]) for data in data_of(stalled)]
    assert numbers == list(range(len(numbers)))  # whole events, none missing before the end
    stalled.close()
    watch.expect(slow_consumer=1, left=3)
    for client in live:
        client.close()
    watch.expect(slow_consumer=1, client=3)


@pytest.mark.parametrize("how", ["close", "reset", "TCP half-close", "broken record", "close_notify"])
def test_a_client_that_leaves(server: ServerProcess, tls: ssl.SSLContext, how: str) -> None:
    watch = Watch(server, tls=tls)
    client = TlsClient(server.port, tls).get("/events")
    client.until(b'"connected"')
    if how == "reset":
        client.reset()
    elif how == "TCP half-close":
        client.plain.shutdown(socket.SHUT_WR)
    elif how == "broken record":
        client.plain.sendall(b"this is no TLS record at all")
    elif how == "close_notify":
        assert isinstance(client.socket, ssl.SSLSocket)
        client.socket.settimeout(0.05)
        with suppress(TimeoutError, ssl.SSLError):
            client.socket.unwrap()  # the server closes without a notice of its own
    if how != "reset":
        client.close()
    watch.expect(client=1)


def test_a_broken_record_right_behind_the_request(server: ServerProcess, tls: ssl.SSLContext) -> None:
    """Now and then the read that finds it is the stream's first, in the middle of its birth."""
    watch = Watch(server, tls=tls)
    for _ in range(40):
        client = TlsClient(server.port, tls).get("/events?topic=broken")
        client.plain.sendall(b"this is no TLS record at all")
        with suppress(ssl.SSLError, ConnectionResetError):
            client.to_end()
        client.close()
    wait_until(lambda: watch.open == 0 and metrics(server, tls=tls)["topics"] == 0, what="no stream")
    opened = metrics(server, tls=tls)["connections_opened_total"] - watch.before["connections_opened_total"]
    assert watch.closed.get("client", 0) == opened


def test_a_broken_record_behind_a_request_that_was_answered(server: ServerProcess, tls: ssl.SSLContext) -> None:
    """Now and then the read that finds it is the one that would begin the next request."""
    for _ in range(40):
        client = TlsClient(server.port, tls).get("/health")
        client.plain.sendall(b"this is no TLS record at all")
        with suppress(ssl.SSLError, ConnectionResetError):
            client.to_end()
        client.close()
    assert ask(server, "GET", "/health", tls=tls)[0].status == 200


# The end. RFC 8446, 6.1: without close_notify a client cannot tell an end from a cut; `TlsClient` raises for one.


def to_clean_end(client: TlsClient) -> bytes:
    received = client.to_end()
    client.close()
    return received


ANSWERS = [
    pytest.param(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b'{"status": "ok"}\n', id="close"),
    pytest.param(b"GET /health HTTP/1.0\r\n\r\n", b'{"status": "ok"}\n', id="HTTP/1.0"),
    pytest.param(b"nonsense\r\n\r\n", b"}}\n", id="a refused request"),
    pytest.param(
        b"POST /events HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", b"}}\n", id="401"
    ),
    pytest.param(
        b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + b"x" * 100_000, b"}\n", id="more behind"
    ),
    pytest.param(b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"}}\n", id="no WebSocket"),
]


@pytest.mark.parametrize(("said", "last"), ANSWERS)
def test_an_answer_ends_cleanly(server: ServerProcess, tls: ssl.SSLContext, said: bytes, last: bytes) -> None:
    client = TlsClient(server.port, tls)
    client.socket.sendall(said)
    assert to_clean_end(client).endswith(last)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("tls_version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_streams_and_idle_connections_end_cleanly(
    tmp_path: Path, certificate: tuple[Path, Path], version: str, tls_version: ssl.TLSVersion
) -> None:
    """In a drain, and over a limit; for a WebSocket, and for a connection that waits for its next request."""
    context = ssl.create_default_context(cafile=certificate[0])
    context.minimum_version = context.maximum_version = tls_version
    with ServerProcess(
        tmp_path, scheme="https", server__certfile=str(certificate[0]), server__keyfile=str(certificate[1]),
        limits__max_connections=2,
    ) as server:  # fmt: skip
        stream = TlsClient(server.port, context).get("/events", version=version)
        stream.until(b'"connected"')
        socket = TlsClient(server.port, context).get(
            "/ws", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==",
        )  # fmt: skip
        socket.until(b'"connected"')
        idle = TlsClient(server.port, context).get("/health")
        idle.until(b'{"status": "ok"}')
        rejected = TlsClient(server.port, context).get("/events", "Accept: text/event-stream", version=version)
        assert b'"rejected"' in to_clean_end(rejected)
        refused = TlsClient(server.port, context).get("/events", version=version)
        assert b'"max_connections"' in to_clean_end(refused)
        server.process.send_signal(signal.SIGTERM)
        assert b'"closing"' in to_clean_end(stream)
        socket.until(b'"closing"')
        socket.socket.sendall(bytes.fromhex("88820000000003e9"))  # its close frame, masked with zeros
        to_clean_end(socket)
        to_clean_end(idle)


def test_who_has_not_taken_everything_is_not_told_that_it_ends(server: ServerProcess, tls: ssl.SSLContext) -> None:
    """Nothing is sent behind what the server gave up on sending: the cut can be seen."""
    watch = Watch(server, tls=tls)
    client = TlsClient(server.port, tls, receive_buffer=4096).get("/events?topic=cut")
    client.until(b'"connected"')
    for number in range(25):
        publish(server, tls, "cut", f"{number:02}" + "x" * 40_000)
    watch.expect(slow_consumer=1)  # closed five seconds after the goodbye that it does not take
    with pytest.raises(ssl.SSLEOFError):
        client.to_end()
    client.close()


# The protocol.


@pytest.mark.parametrize(
    ("offered", "selected"),
    [(["h2", "http/1.1"], "http/1.1"), (["http/1.1"], "http/1.1"), ([], None), (["spdy/1", "http/1.1"], "http/1.1")],
)
def test_http_1_1_is_spoken(
    server: ServerProcess, certificate: tuple[Path, Path], offered: list[str], selected: str | None
) -> None:
    context = ssl.create_default_context(cafile=certificate[0])
    if offered:
        context.set_alpn_protocols(offered)
    client = TlsClient(server.port, context).get("/health", "Connection: close")
    assert isinstance(client.socket, ssl.SSLSocket)
    assert client.socket.selected_alpn_protocol() == selected
    assert to_clean_end(client).endswith(b'{"status": "ok"}\n')


def hello(*offered: str) -> bytes:
    context = ssl.create_default_context()
    context.set_alpn_protocols(offered)
    said = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), said, server_hostname="localhost").do_handshake()
    return said.read()


@pytest.mark.parametrize("offered", [["h2"], ["h2", "h3"], ["acme-tls/1"], ["HTTP/1.1"]])
@pytest.mark.parametrize("at", [None, 1, 5, 50, -1])
def test_who_offers_another_protocol_is_told_so(server: ServerProcess, offered: list[str], at: int | None) -> None:
    """RFC 7301, 3.2. However the ClientHello is cut: those of today do not fit one packet."""
    client = RawClient(server.port)
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    said = hello(*offered)
    client.socket.sendall(said[:at])
    if at is not None:
        ask_for_a_turn(server)  # the first piece was looked at
        client.socket.sendall(said[at:])
    assert client.to_end() == b"\x15\x03\x03\x00\x02\x02\x78"  # a fatal alert, 120
    client.close()


def ask_for_a_turn(server: ServerProcess) -> None:
    client = RawClient(server.port)
    client.socket.sendall(b"this is no TLS record at all")
    with suppress(ConnectionResetError):
        client.to_end()
    client.close()


def test_openssl_names_the_alert(server: ServerProcess, certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(cafile=certificate[0])
    context.set_alpn_protocols(["h2"])
    with pytest.raises(ssl.SSLError, match="no application protocol"):
        TlsClient(server.port, context)


GARBAGE = [
    pytest.param(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n", id="plain HTTP"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\xff\xff\xff" + b"\xaa" * 600, id="half a handshake"),
    pytest.param(b"\0" * 1000, id="zeros"),
    pytest.param(b"\x80\x2e\x01\x00\x02" + b"\0" * 50, id="SSL 2"),
    pytest.param(b"\x15\x03\x03\x00\x02\x02\x28", id="an alert"),
    pytest.param(b"", id="nothing"),
]


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("how", ["wait", "close", "reset"])
def test_strangers_at_the_port(server: ServerProcess, tls: ssl.SSLContext, garbage: bytes, how: str) -> None:
    """Any of these would write a warning or a traceback, and anybody can say them as often as they like."""
    for _ in range(5):
        client = RawClient(server.port)
        client.socket.sendall(garbage)
        if how == "reset":
            client.reset()
        elif how == "wait" and garbage and not garbage.startswith(b"\x16"):
            with suppress(ConnectionResetError):
                client.to_end()
            client.close()
        else:
            client.close()
    assert ask(server, "GET", "/health", tls=tls)[0].status == 200


def test_strangers_who_speak_tls(server: ServerProcess, tls: ssl.SSLContext) -> None:
    untrusting = ssl.create_default_context()
    with pytest.raises(ssl.SSLCertVerificationError):
        TlsClient(server.port, untrusting)
    nothing_in_common = ssl.create_default_context()
    nothing_in_common.check_hostname = False
    nothing_in_common.verify_mode = ssl.CERT_NONE
    nothing_in_common.maximum_version = ssl.TLSVersion.TLSv1_2
    nothing_in_common.set_ciphers("RSA+AES128")  # the certificate has no RSA key
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        TlsClient(server.port, nothing_in_common)
    assert ask(server, "GET", "/health", tls=tls)[0].status == 200


def test_a_renewed_certificate_is_taken_without_dropping_a_stream(tmp_path: Path) -> None:
    certfile, keyfile = make_certificate(tmp_path)
    first = ssl.create_default_context(cafile=certfile)
    with ServerProcess(
        tmp_path, scheme="https", server__certfile=str(certfile), server__keyfile=str(keyfile)
    ) as server:
        client = TlsClient(server.port, first).get("/events?topic=a")
        client.until(b'"connected"')
        make_certificate(tmp_path)  # the same files anew
        second = ssl.create_default_context(cafile=certfile)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("config.reloaded")
        with pytest.raises(ssl.SSLCertVerificationError):
            TlsClient(server.port, first)
        assert publish(server, second, "a", "still here")["subscribers"] == 1
        client.until(b"still here")
        client.close()
