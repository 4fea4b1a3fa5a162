"""Two thousand clients that come and go in every way: afterwards nothing of them is left."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.hostile.observing import Watch, descriptors, metrics, resident_bytes
from tests.publishing import publish
from tests.serving import RawClient, ServerProcess, wait_until

CLIENTS = 2000
AT_ONCE = 24
SLOTS = 12


def read(client: RawClient) -> None:
    """The beginning of a stream, or the whole of a refusal."""
    client.until(b"\r\n\r\n")
    if b"chunked" in client.received:
        client.until(b"\n\n")


def stay(client: RawClient, request: bytes) -> None:
    client.socket.sendall(request)
    read(client)


def leave_at_once(client: RawClient, request: bytes) -> None:
    client.socket.sendall(request)


def reset_at_once(client: RawClient, request: bytes) -> None:
    client.socket.sendall(request)
    client.reset()


def stay_and_reset(client: RawClient, request: bytes) -> None:
    stay(client, request)
    client.reset()


def half_close_at_once(client: RawClient, request: bytes) -> None:
    client.socket.sendall(request)
    client.socket.shutdown(socket.SHUT_WR)
    client.to_end()


def stay_and_half_close(client: RawClient, request: bytes) -> None:
    stay(client, request)
    client.socket.shutdown(socket.SHUT_WR)
    client.to_end()


def say_it_twice(client: RawClient, request: bytes) -> None:
    client.socket.sendall(request + request)


def say_it_twice_and_stay(client: RawClient, request: bytes) -> None:
    client.socket.sendall(request + request)
    read(client)


def say_too_much(client: RawClient, request: bytes) -> None:
    client.socket.sendall(request)
    client.socket.sendall(b"x" * 200_000)


def say_half(client: RawClient, request: bytes) -> None:
    client.socket.sendall(request[: len(request) // 2])


def say_nothing(client: RawClient, request: bytes) -> None:
    client.reset() if len(request) % 2 else client.close()


def ask_for_the_head(client: RawClient, request: bytes) -> None:
    client.socket.sendall(request.replace(b"GET", b"HEAD"))
    client.until(b"\r\n\r\n")


def be_wrong(client: RawClient, request: bytes) -> None:
    client.socket.sendall(request.replace(b"topic=", b"topic=*"))
    client.until(b"\r\n\r\n")


def speak_http_1_0(client: RawClient, request: bytes) -> None:
    client.socket.sendall(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
    client.until(b"\r\n\r\n")


WAYS: list[Callable[[RawClient, bytes], None]] = [
    stay, leave_at_once, reset_at_once, stay_and_reset, half_close_at_once, stay_and_half_close, say_it_twice,
    say_it_twice_and_stay, say_too_much, say_half, say_nothing, ask_for_the_head, be_wrong, speak_http_1_0,
]  # fmt: skip


def come_and_go(port: int, number: int) -> None:
    """One client, in one of many ways."""
    source = random.Random(number)
    accept = source.choice(["Accept: text/event-stream\r\n", ""])
    resume = source.choice(["Last-Event-ID: nonsense\r\n", "Last-Event-ID: earliest\r\n", "", ""])
    request = f"GET /events?topic=t{source.randrange(9)} HTTP/1.1\r\nHost: x\r\n{accept}{resume}\r\n"
    client = RawClient(port)
    try:
        source.choice(WAYS)(client, request.encode())
    except (ConnectionResetError, BrokenPipeError):
        pass  # as rude as we are
    finally:
        client.close()


def test_nothing_is_left_of_two_thousand_clients(tmp_path: Path) -> None:
    with ServerProcess(
        tmp_path, limits__max_connections=SLOTS, heartbeat__interval_seconds=0.1, history__max_events=100
    ) as server:
        watch = Watch(server)
        before = descriptors(server)
        done = threading.Event()

        def publish_all_the_time() -> None:
            while not done.is_set():
                for number in range(9):
                    publish(server, f"t{number}", "x" * 2000)

        publisher = threading.Thread(target=publish_all_the_time)
        publisher.start()
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda number: come_and_go(server.port, number), range(CLIENTS)))
        finally:
            done.set()
            publisher.join()

        # A request of a client that has left may not have been read yet. Its socket is one until it has.
        wait_until(
            lambda: metrics(server)["connections"] == 0 and descriptors(server) <= before, what="no stream, no socket"
        )
        now = metrics(server)
        opened = now["connections_opened_total"] - watch.before["connections_opened_total"]
        assert 100 < opened < CLIENTS
        assert watch.rejected.keys() == {"max_connections"}
        assert sum(watch.closed.values()) == opened
        assert watch.closed.keys() <= {"client", "write_error"}
        assert now["connection_age_seconds_count"] == opened
        assert now["topics"] == 0
        assert (now["backlog_bytes"], now["backlog_largest_bytes"]) == (0, 0)
        # Each that opened has its two lines in the log, and no other.
        wait_until(lambda: len(watch.disconnected()) == opened, what="the last line in the log")
        lines = server.lines()
        came = [line["connection"] for line in lines if line["event"] == "events.connected"]
        went = [line["connection"] for line in watch.disconnected()]
        assert sorted(came) == sorted(went) == list(range(1, int(opened) + 1))
        # Each slot can be had again, and each descriptor is free.
        clients = [RawClient(server.port).get("/events") for _ in range(SLOTS)]
        for client in clients:
            client.until(b'"connected"')
        assert metrics(server)["connections"] == SLOTS
        for client in clients:
            client.close()
        wait_until(lambda: descriptors(server) <= before, what="free descriptors")


def test_a_reset_leaves_nothing_in_memory(tmp_path: Path) -> None:
    """The stream and what it was doing stayed until the collector came: with its thresholds that is a long time."""
    with ServerProcess(tmp_path) as server:

        def come_and_reset(count: int) -> None:
            for _ in range(count):
                client = RawClient(server.port).get("/events")
                client.until(b'"connected"')
                client.reset()
            wait_until(lambda: metrics(server)["connections"] == 0, what="no stream")

        come_and_reset(100)
        before = resident_bytes(server)
        come_and_reset(400)
        assert resident_bytes(server) - before < 1024 * 1024
