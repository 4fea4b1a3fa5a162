"""Nothing left to make a socket of: who is there is served, who comes waits, and the loop does not spin."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.hostile.observing import ask, cpu_seconds, descriptors, metrics
from tests.publishing import publish
from tests.serving import RawClient, ServerProcess, wait_until


@contextmanager
def descriptors_left(server: ServerProcess, count: int) -> Iterator[None]:
    """The process may open so many more."""
    pid = server.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    is_open = descriptors(server)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (is_open + count, limits[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it has left
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def test_without_descriptors_nobody_gets_in_and_nobody_else_notices(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, heartbeat__interval_seconds=0.2)
    try:
        stream = RawClient(server.port).get("/events?topic=a")
        stream.until(b'"connected"')
        publisher = RawClient(server.port)  # kept alive
        body = b'{"topic": "a", "data": "meanwhile"}'
        head = (
            b"POST /events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer test-key\r\nContent-Type: application/json\r\n"
        )
        request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        publisher.socket.sendall(request)
        publisher.until(b"subscribers")
        with descriptors_left(server, 3):
            waiting = [RawClient(server.port).get("/events?topic=a") for _ in range(40)]
            server.wait_for_log("server.out_of_sockets")
            used, began, lines = cpu_seconds(server), time.monotonic(), len(server.lines())
            publisher.socket.sendall(request)
            stream.received = b""
            stream.until(b"data: meanwhile")
            server.wait_for_log("server.out_of_sockets", count=3)  # so it looks again, and not all the time
            seconds = time.monotonic() - began
            assert len(server.lines()) - lines < 10 + 3 * seconds
            assert cpu_seconds(server) - used < 0.5 + seconds / 4
        for client in waiting:
            client.until(b'"connected"')
        assert publish(server, "a", "for all")["subscribers"] == 41
        for client in [*waiting, stream, publisher]:
            client.close()
        wait_until(lambda: metrics(server)["connections"] == 0, what="no stream")
        assert ask(server, "GET", "/health")[0].status == 200
        server.stop(expect=("server.out_of_sockets",))
    finally:
        if server.process.poll() is None:
            server.kill()


def test_it_leaves_while_nothing_can_be_opened(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path)
    try:
        with descriptors_left(server, 1):
            waiting = [RawClient(server.port).get("/events") for _ in range(5)]
            server.wait_for_log("server.out_of_sockets")
            server.stop(expect=("server.out_of_sockets",))
        for client in waiting:
            client.close()
    finally:
        if server.process.poll() is None:
            server.kill()
