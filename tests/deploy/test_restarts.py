"""Two processes behind a proxy with our files: restarts, crashes and hangs, as the clients see them."""

from __future__ import annotations

import asyncio
import http.client
import re
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.brokers.machines import REDIS, REDIS_HELLO, Machine
from tests.deploy.edges import IDLE_SECONDS, Edge
from tests.deploy.eventsources import Crowd, EventSource, until
from tests.deploy.programs import free_port
from tests.hostile.certificates import make_certificate
from tests.publishing import publish
from tests.serving import KEY, ServerProcess, wait_until

STREAMS = 24
RETRY_SECONDS = 0.2
NEVER = 3600.0
EVERY = ["nginx", "haproxy", "caddy"]


class Site:
    """Two processes that share a broker, each with a port of its own, and the proxy in front."""

    def __init__(
        self, kind: str, program: Path, folder: Path, certificate: tuple[Path, Path], url: str, stack: ExitStack,
        *, others: Sequence[int] = (), **options: Any,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._url = url
        self._stack = stack
        self._ports = [(free_port(), free_port()) for _ in range(2)]
        self.servers = [self._start(number) for number in range(2)]
        to = [*others, *(port for port, _ in self._ports)]
        check = [*others, *(admin for _, admin in self._ports)]
        self.edge = stack.enter_context(Edge(kind, program, folder, certificate, to=to, check=check, **options))
        self.certificate = certificate[0]

    def _start(self, number: int) -> ServerProcess:
        port, admin_port = self._ports[number]
        server = ServerProcess(
            self._folder, port=port, admin__port=admin_port, broker__url=self._url, drain__seconds=1,
            limits__retry_seconds=RETRY_SECONDS, heartbeat__interval_seconds=IDLE_SECONDS / 4,
            server__trusted_proxies=["127.0.0.1"],
        )  # fmt: skip
        self._stack.callback(server.kill)  # which does nothing to one that has ended
        return server

    async def restart(self, number: int) -> None:
        """As systemd does it: SIGTERM, wait until it has left, start."""
        await asyncio.to_thread(self.servers[number].stop)
        await self.start(number)

    async def start(self, number: int) -> None:
        """Start one that has ended."""
        self.servers[number] = await asyncio.to_thread(self._start, number)

    def crowd(self, count: int = STREAMS) -> Crowd:
        return Crowd(self.edge.port, self.certificate, count)

    def streams(self) -> list[int]:
        """Open streams of each process."""
        return [open_streams(server) for server in self.servers]

    def answer(
        self, path: str = "/events", *, accept: str = "text/event-stream", body: bytes | None = None, key: str = KEY
    ) -> Answer:  # fmt: skip
        """Ask once. Of a stream, what comes first."""
        tls = ssl.create_default_context(cafile=self.certificate)
        connection = http.client.HTTPSConnection("localhost", self.edge.port, timeout=60, context=tls)
        headers = {
            "Accept": accept,
            "Authorization": f"Bearer {key}" if key else "",
            "Content-Type": "application/json",
        }
        with closing(connection), ExitStack() as stack:
            connection.request("GET" if body is None else "POST", path, body, headers)
            found = stack.enter_context(connection.getresponse())
            return (
                found.status,
                found.headers.get("Content-Type", ""),
                found.readline() if found.chunked else found.read(),
            )


Answer = tuple[int, str, bytes]
MakeSite = Callable[..., Site]


def open_streams(server: ServerProcess) -> int:
    return metric(server, "qgstream_connections")


def metric(server: ServerProcess, name: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.admin_port or 0, timeout=60)
    try:
        connection.request("GET", "/metrics")
        found = re.search(rf"^{name} (\S+)$", connection.getresponse().read().decode(), re.MULTILINE)
        assert found
        return int(float(found[1]))
    finally:
        connection.close()


@pytest.fixture
def make_site(tmp_path: Path, require_program: Callable[[str], Path]) -> Iterator[MakeSite]:
    require_program("redis-server")
    folder = tmp_path / "redis"
    folder.mkdir()
    machine = Machine(REDIS, folder, hello=REDIS_HELLO)
    with ExitStack() as stack:
        stack.callback(machine.kill)
        machine.start()

        def make(kind: str, **options: Any) -> Site:
            url = f"redis://127.0.0.1:{machine.port}/0"
            return Site(kind, require_program(kind), tmp_path, make_certificate(tmp_path), url, stack, **options)

        yield make


def well(crowd: Sequence[EventSource]) -> None:
    """Nobody was stopped for good, sent away by the proxy, or told that something was lost."""
    assert [one.stopped for one in crowd if one.stopped] == []
    assert sum(one.sent_away for one in crowd) == 0
    assert [one.resets for one in crowd if one.resets] == []


@pytest.mark.parametrize("kind", EVERY)
def test_a_rolling_restart_brings_every_stream_back(make_site: MakeSite, kind: str) -> None:
    site = make_site(kind)

    async def check() -> None:
        async with site.crowd() as crowd:
            for number in range(2):
                before = sum(one.opened for one in crowd)
                moving = open_streams(site.servers[number])
                assert moving
                await asyncio.to_thread(publish, site.servers[1 - number], "numbers", number, event="number")
                await site.restart(number)
                await until(lambda: sum(one.opened for one in crowd) >= before + moving, "those who had to go")  # noqa: B023
            await until(lambda: sum(site.streams()) == STREAMS, "every stream")
            await asyncio.to_thread(publish, site.servers[0], "numbers", 2, event="number")
            await until(lambda: all(len(one.numbers) >= 3 for one in crowd), "every event")
            assert [one.numbers for one in crowd] == [[0, 1, 2]] * STREAMS
            well(crowd)
            # The one that came back gets the newcomers, until both have as many.
            with_few, with_many = sorted(site.streams())
            back = min(site.servers, key=open_streams)
            while not metric(back, "qgstream_connections_opened_total"):  # the proxy may have to find out first
                await asyncio.to_thread(site.answer)
            await until(lambda: sum(site.streams()) == STREAMS, "the end of those that only asked")
            async with site.crowd(with_many - with_few) as newcomers:
                assert site.streams() == [with_many, with_many]
                well(newcomers)

    asyncio.run(check())


@pytest.mark.parametrize("kind", EVERY)
def test_the_other_process_takes_the_clients_of_one_that_was_killed(make_site: MakeSite, kind: str) -> None:
    # No check helps: what counts is what the proxy does in the seconds before.
    site = make_site(kind, check_seconds=NEVER)

    async def check() -> None:
        async with site.crowd() as crowd:
            site.servers[0].kill()
            await until(lambda: open_streams(site.servers[1]) == STREAMS, "every stream")
            well(crowd)
            await site.start(0)
            site.servers[1].kill()
            await until(lambda: open_streams(site.servers[0]) == STREAMS, "every stream, back again")
            well(crowd)

    asyncio.run(check())


@pytest.mark.parametrize("kind", EVERY)
def test_an_eventsource_never_hears_that_nobody_is_there(make_site: MakeSite, kind: str) -> None:
    site = make_site(kind, check_seconds=NEVER)
    assert site.answer()[:2] == (200, "text/event-stream; charset=utf-8")
    for server in site.servers:
        server.kill()
    for _ in range(5):
        status, content_type, body = site.answer()
        assert (status, content_type) == (200, "text/event-stream"), body
        assert re.fullmatch(rb"retry: \d{4,5}\n\n", body)
    status, content_type, _ = site.answer(accept="*/*", body=b"{}")
    assert 500 <= status <= 504
    assert content_type != "text/event-stream"


class Dying:
    """A server that is ready, and dies when it has read a request."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                request = b""
                while b"\r\n\r\n" not in request and (more := connection.recv(65536)):
                    request += more
                if request.startswith(b"GET /ready"):
                    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
                elif request:
                    self.requests.append(request)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.mark.parametrize("kind", EVERY)
def test_a_process_that_dies_with_the_request_is_not_the_last_word(make_site: MakeSite, kind: str) -> None:
    dying = Dying()
    try:
        site = make_site(kind, others=[dying.port], check_seconds=NEVER)

        def is_asked() -> bool:
            return any(request.startswith(b"GET /events") for request in dying.requests)

        number = 0
        while number < 6 or not is_asked():  # which of those that are free is asked first is chance
            number += 1
            status, content_type, body = site.answer()
            assert (status, content_type.split(";")[0]) == (200, "text/event-stream")
            # HAProxy tells it to come back, and the others have asked the next server by then.
            assert kind == "haproxy" or content_type.endswith("charset=utf-8"), body
        # A publish may have been taken by then: it is not sent to a second one.
        wait_until(
            lambda: site.answer(accept="*/*", body=b'{"topic": "a", "data": 1}')[0] >= 500, what="a publish lost"
        )
        publishes = [request for request in dying.requests if request.startswith(b"POST")]
        assert len(publishes) == 1
    finally:
        dying.close()


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_a_reload_of_the_proxy_goes_unnoticed(make_site: MakeSite, kind: str) -> None:
    site = make_site(kind, check_seconds=NEVER)

    async def check() -> None:
        async with site.crowd() as crowd:
            # Of a server that is away the new process of the proxy knows nothing yet.
            site.servers[0].kill()
            await until(lambda: open_streams(site.servers[1]) == STREAMS, "every stream")
            await until(lambda: all(one.is_open for one in crowd), "every stream")
            opened = sum(one.opened for one in crowd)
            for _ in range(3):
                site.edge.reload()
                for _ in range(4):
                    status, content_type, _ = await asyncio.to_thread(site.answer)
                    assert (status, content_type) == (200, "text/event-stream; charset=utf-8")
            assert sum(one.opened for one in crowd) == opened, "a stream was cut"
            well(crowd)

    asyncio.run(check())


@pytest.mark.parametrize("kind", EVERY)
def test_a_process_that_hangs_loses_its_streams_and_gets_no_newcomers(make_site: MakeSite, kind: str) -> None:
    site = make_site(kind, idle_seconds=IDLE_SECONDS)

    async def check() -> None:
        async with site.crowd() as crowd:
            hung = site.servers[0].process
            hung.send_signal(signal.SIGSTOP)
            try:
                await until(lambda: open_streams(site.servers[1]) == STREAMS, "every stream at the other")
                async with site.crowd(4) as newcomers:
                    well(newcomers)
                assert [one.stopped for one in crowd if one.stopped] == []
            finally:
                hung.send_signal(signal.SIGCONT)

    asyncio.run(check())


@pytest.mark.parametrize("kind", EVERY)
def test_a_token_of_12_kilobytes_fits_the_url(make_site: MakeSite, kind: str) -> None:
    site = make_site(kind)
    token = "t" * 12_288
    status, _, body = site.answer(f"/events?access_token={token}", accept="*/*", key="")
    assert (status, b"unknown_key" in body) == (401, True), body
    assert site.answer(f"/events?later={token}")[0] == 200


def test_the_log_of_nginx_names_the_servers_that_were_asked(make_site: MakeSite) -> None:
    site = make_site("nginx")
    site.servers[0].kill()
    here, there = (f"127.0.0.1:{server.port}" for server in site.servers)
    for _ in range(3):
        assert site.answer("/client.js")[0] == 200
    wait_until(lambda: site.edge.access_log.read_text().count("\n") >= 3, what="three lines")
    # least_conn begins with the one that has fewest, and goes on when that refuses.
    assert f'"{here}, {there}" "502, 200"' in site.edge.access_log.read_text()


def test_haproxy_answers_floods_and_questions_itself(make_site: MakeSite) -> None:
    site = make_site("haproxy")
    tls = ssl.create_default_context(cafile=site.certificate)
    connection = http.client.HTTPSConnection("localhost", site.edge.port, timeout=60, context=tls)

    def status(path: str, accept: str) -> int:
        connection.request("GET", path, headers={"Accept": accept})
        answer = connection.getresponse()
        answer.read()
        return answer.status

    # What is not public is answered 404, and counts. Many at once: they have to come within ten seconds.
    request = b"GET /not-there HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"
    with (
        socket.create_connection(("127.0.0.1", site.edge.port), timeout=60) as plain,
        tls.wrap_socket(plain, server_hostname="localhost") as flood,
    ):
        for _ in range(20):
            flood.sendall(request * 50)
            answers = b""
            while answers.count(b"HTTP/1.1 404 ") < 50:
                more = flood.recv(65536)
                assert more, answers
                answers += more
    assert status("/not-there", "*/*") == 404
    assert status("/client.js", "*/*") == 429
    # An EventSource is told to come back, as always.
    assert status("/events", "text/event-stream") == 200
    connection.close()
    assert b"used:1" in asked(site.edge.stats_socket, "show table edge").split(b"\n")[0]
    table = asked(site.edge.stats_socket, "show table edge")
    assert re.search(rb"key=::ffff:127.0.0.1 .*http_req_rate\(10000\)=1\d\d\d", table), table


def asked(path: Path, question: str) -> bytes:
    """What HAProxy says on its stats socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(question.encode() + b"\n")
        answer = b""
        while more := connection.recv(65536):
            answer += more
        return answer
