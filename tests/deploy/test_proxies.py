"""The proxies in front, with our files: events pass at once, quiet streams stay, the server sees its clients."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest
from websockets.sync.client import connect
from websockets.typing import Origin

from qgstream.http.client import minified_version
from tests.deploy.edges import IDLE_SECONDS, Edge, MakeEdge
from tests.deploy.programs import free_port
from tests.hostile.certificates import make_certificate
from tests.publishing import publish
from tests.serving import KEY, ServerProcess, looks, wait_until
from tests.signing import SECRET

QUIET = 3600  # no heartbeat pushes anything through while a test runs


@pytest.fixture(params=["nginx", "haproxy", "caddy"])
def make_edge(
    request: pytest.FixtureRequest, tmp_path: Path, require_program: Callable[[str], Path]
) -> Iterator[MakeEdge]:
    """An edge of this kind in front of a server; all of them are gone at the end."""
    require_program("curl")
    program = require_program(request.param)
    certificate = make_certificate(tmp_path)
    with ExitStack() as stack:

        def make(server: ServerProcess, *, idle_seconds: float | None = None) -> Edge:
            edge = Edge(
                request.param, program, tmp_path / f"{request.param}-{server.port}", certificate,
                to=[server.port], check=[server.admin_port or 0], idle_seconds=idle_seconds,
            )  # fmt: skip
            return stack.enter_context(edge)

        yield make


def serve(tmp_path: Path, **settings: object) -> ServerProcess:
    chosen: dict[str, Any] = {
        "heartbeat__interval_seconds": QUIET,
        "server__trusted_proxies": ["127.0.0.1"],
        **settings,
    }
    return ServerProcess(tmp_path, admin__port=free_port(), **chosen)


def open_streams(server: ServerProcess) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.admin_port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("qgstream_connections "))))


def test_the_program_finds_nothing_wrong_with_the_file(make_edge: MakeEdge, tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        edge = make_edge(server)
        done = subprocess.run(
            edge.check_command, capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        # Of the certificate and the port that this run gave it, Caddy has to say something.
        said = [line for line in done.stderr.splitlines() if "OCSP" not in line and "are disabled" not in line]
        assert not [line for line in said if "warn" in line.lower()], done.stderr


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_each_event_is_there_before_the_next_is_published(make_edge: MakeEdge, tmp_path: Path, version: str) -> None:
    with serve(tmp_path) as server, make_edge(server).open("/events?topic=orders", f"--http{version}") as stream:
        stream.until(b'"event": "connected"')
        assert stream.received.startswith(b"HTTP/2 200" if version == "2" else b"HTTP/1.1 200")
        took = []
        for number in range(20):
            published = time.monotonic()
            publish(server, "orders", f"event {number}!")
            # A proxy that gathers would wait for more, and there is no more before this one has come.
            took.append(stream.until(f"data: event {number}!".encode()) - published)
    # 100 ms are what the documentation promises. Of the quickest: any may fall into a pause of a machine that does
    # other things, while a proxy that holds back holds all of them. Usual is 1 ms; the worst of 600 was 12 ms.
    assert min(took) < 0.1, took


def test_large_events_publishing_and_ids_pass_whole(make_edge: MakeEdge, tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        edge = make_edge(server)
        first = publish(server, "orders", "first")["id"]
        large = "x" * 200_000
        body = tmp_path / "body"  # too long for an argument
        body.write_text(json.dumps({"topic": "orders", "data": large}))
        headers = ("--header", f"Authorization: Bearer {KEY}", "--header", "Content-Type: application/json")
        with edge.open("/events", *headers, "--data", f"@{body}", accept="*/*") as answer:
            assert b'"subscribers"' in answer.to_end()
        with edge.open("/events", "--header", f"Last-Event-ID: {first}") as stream:
            stream.until(f"data: {large}\n".encode())
            assert b'"replay": "complete"' in stream.received
            assert b"data: first" not in stream.received


def test_heartbeats_keep_an_idle_stream_past_the_timeout_of_the_proxy(make_edge: MakeEdge, tmp_path: Path) -> None:
    beats_a_second = 8
    with (
        serve(tmp_path) as quiet,
        serve(tmp_path, heartbeat__interval_seconds=1 / beats_a_second) as beating,
        make_edge(quiet, idle_seconds=IDLE_SECONDS).open("/events", "--http2") as cut,
        make_edge(beating, idle_seconds=IDLE_SECONDS).open("/events", "--http2") as kept,
    ):
        kept.until(b'"event": "heartbeat"', count=2 * IDLE_SECONDS * beats_a_second)
        assert not kept.has_ended
        # The timeout is in force: without heartbeats it ends the stream.
        cut.to_end()


def test_a_websocket_passes_past_the_timeout_of_the_proxy_and_leaves_with_its_client(
    make_edge: MakeEdge, tmp_path: Path
) -> None:
    with serve(tmp_path, heartbeat__interval_seconds=IDLE_SECONDS / 4, cors__allow_origins=[]) as server:
        edge = make_edge(server, idle_seconds=IDLE_SECONDS)
        url = f"wss://localhost:{edge.port}/ws?topic=orders&access_token={KEY}"
        tls = ssl.create_default_context(cafile=edge.certificate[0])
        # A page of this host: the server must be told which that is.
        page = Origin(f"https://localhost:{edge.port}")
        with connect(url, ssl=tls, proxy=None, origin=page, open_timeout=60, source_address=("127.0.0.2", 0)) as socket:
            messages = [json.loads(socket.recv(60)) for _ in range(1 + 2 * 4)]
            assert {message["data"]["event"] for message in messages} == {"connected", "heartbeat"}
            publish(server, "orders", {"value": "x" * 100_000})
            while "topic" not in (message := json.loads(socket.recv(60))):
                pass
            assert message["data"] == {"value": "x" * 100_000}
            assert server.wait_for_log("events.connected")["remote_ip"] == "127.0.0.2"
            assert open_streams(server) == 1
        line = server.wait_for_log("events.disconnected")
        assert (line["reason"], line["close_code"]) == ("client", 1000)
        wait_until(lambda: "/ws" in edge.access_log.read_text(), what="a line about /ws")
        assert KEY not in edge.access_log.read_text() + edge.log


def test_a_page_of_this_host_publishes_with_a_cookie(make_edge: MakeEdge, tmp_path: Path) -> None:
    """The browser says https, and the proxy speaks plain HTTP to the server."""
    settings = {
        "auth__jwt__algorithms": ["HS256"], "auth__jwt__secret": SECRET, "auth__jwt__cookie": "session",
    }  # fmt: skip
    with serve(tmp_path, cors__allow_origins=[], **settings) as server:
        edge = make_edge(server)
        token = jwt.encode({"sub": "ann", "exp": time.time() + 600, "qgstream": {"publish": ["*"]}}, SECRET)

        def ask(origin: str, *headers: str) -> bytes:
            more = [word for header in (*headers, f"Origin: {origin}") for word in ("--header", header)]
            with edge.open(
                "/events", "--header", f"Cookie: session={token}", "--header", "Content-Type: application/json",
                "--data", '{"topic": "orders", "data": 1}', *more, accept="*/*",
            ) as answer:  # fmt: skip
                return answer.to_end().partition(b"\r\n")[0].split()[1]

        def status(origin: str, *headers: str) -> bytes:
            # The server may refuse before it has the body. Then a proxy may reset the stream instead of passing it on.
            return next(word for _ in looks(60) if (word := ask(origin, *headers)).isdigit())

        own = f"https://localhost:{edge.port}"
        assert status(own) == b"200"
        for foreign in (f"http://localhost:{edge.port}", "https://localhost", f"https://evil.example:{edge.port}"):
            assert status(foreign) == b"403", foreign
        # What a client writes there is replaced.
        assert status(own, "X-Forwarded-Proto: http") == b"200"
        assert status(f"http://localhost:{edge.port}", "X-Forwarded-Proto: http") == b"403"


def test_limits_see_the_client_and_not_the_proxy(make_edge: MakeEdge, tmp_path: Path) -> None:
    with serve(tmp_path, limits__max_connections_per_ip=1) as server:
        edge = make_edge(server)
        with edge.open("/events", address="127.0.0.2") as one, edge.open("/events", address="127.0.0.3") as other:
            one.until(b'"event": "connected"')
            other.until(b'"event": "connected"')
            with edge.open("/events", "--header", "X-Forwarded-For: 127.0.0.9", address="127.0.0.2") as again:
                assert b"max_connections_per_ip" in again.to_end()
        connected = [server.wait_for_log("events.connected", count=count)["remote_ip"] for count in (1, 2)]
        assert sorted(connected) == ["127.0.0.2", "127.0.0.3"]


def test_who_leaves_the_proxy_leaves_the_server(make_edge: MakeEdge, tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        edge = make_edge(server)
        with edge.open("/events", "--http2") as stream:
            stream.until(b'"event": "connected"')
            assert open_streams(server) == 1
        # Nothing is published and no heartbeat is due: it is the proxy that says so.
        server.wait_for_log("events.disconnected", reason="client")
        wait_until(lambda: open_streams(server) == 0, what="no stream")


def test_when_nobody_is_there_an_eventsource_is_told_to_come_back(make_edge: MakeEdge, tmp_path: Path) -> None:
    server = serve(tmp_path)
    edge = make_edge(server)
    with edge.open("/events") as stream:
        stream.until(b'"event": "connected"')
        server.stop()

    def answer() -> bytes:
        with edge.open("/events", "--header", "Origin: https://www.example.com") as away:
            return away.to_end()

    # HAProxy asks the server for itself, and believes the second answer.
    wait_until(lambda: b" 200" in answer().partition(b"\r\n")[0], what="a 200 from the edge itself")
    head, _, body = answer().partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert headers[b"content-type"] == b"text/event-stream"
    assert headers[b"access-control-allow-origin"] == b"https://www.example.com"
    assert body.startswith(b"retry: ")
    assert body.endswith(b"\n\n")
    assert 5000 <= int(body.split()[1]) <= 13_000
    retries = {answer().split()[-1] for _ in range(20)}
    assert len(retries) > 1, "all would come back in the same second"
    # Over HTTP/2 HAProxy may reset the request that it has not read to its end.
    with edge.open("/events", "--http1.1", "--data", "{}", accept="application/json") as refused:
        assert b" 50" in refused.to_end().partition(b"\r\n")[0]


def test_only_streams_and_the_client_are_public_and_tokens_stay_out_of_the_log(
    make_edge: MakeEdge, tmp_path: Path
) -> None:
    with serve(tmp_path) as server:
        edge = make_edge(server)
        for path in ("/metrics", "/admin/limits", "/ready", "/", "/client-x/../admin/limits", "/clients.js"):
            with edge.open(path) as answer:
                assert b" 404" in answer.to_end().partition(b"\r\n")[0], path
        for path in ("/client.js", "/client.min.js", f"/client-{minified_version()}.min.js"):
            with edge.open(path) as answer:
                assert b"extends EventTarget" in answer.to_end(), path
        with edge.open(f"/client-{'0' * 16}.min.js") as answer:  # of another version
            assert b" 307" in answer.to_end().partition(b"\r\n")[0]
        with edge.open("/events?access_token=very-secret", accept="*/*") as answer:
            answer.to_end()
        wait_until(lambda: "/events" in edge.access_log.read_text(), what="a line about /events")
        assert "very-secret" not in edge.access_log.read_text() + edge.log
