"""WebSockets that come and go in every way, and say whatever comes to mind: afterwards nothing of them is left."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.hostile.observing import Watch, descriptors, metrics, resident_bytes
from tests.publishing import publish
from tests.serving import RawClient, ServerProcess, wait_until
from tests.wire.test_websocket_frames import said

CLIENTS = 500
AT_ONCE = 16
HANDSHAKE = (
    b"GET /ws?topic=t HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
CONNECTED = b'"event": "connected"'


def stay(client: RawClient, source: random.Random) -> None:
    client.socket.sendall(HANDSHAKE)
    client.until(CONNECTED)


def leave_at_once(client: RawClient, source: random.Random) -> None:
    client.socket.sendall(HANDSHAKE)


def reset_at_once(client: RawClient, source: random.Random) -> None:
    client.socket.sendall(HANDSHAKE)
    client.reset()


def stay_and_reset(client: RawClient, source: random.Random) -> None:
    stay(client, source)
    client.reset()


def say_goodbye(client: RawClient, source: random.Random) -> None:
    stay(client, source)
    client.socket.sendall(said(8, b"\x03\xe8"))
    assert client.to_end().endswith(b"\x88\x02\x03\xe8")


def say_goodbye_and_reset(client: RawClient, source: random.Random) -> None:
    stay(client, source)
    client.socket.sendall(said(8, b"\x03\xe8"))
    client.reset()


def shake_hands_twice(client: RawClient, source: random.Random) -> None:
    client.socket.sendall(HANDSHAKE + HANDSHAKE)
    client.to_end()


def say_half(client: RawClient, source: random.Random) -> None:
    stay(client, source)
    client.socket.sendall(said(9, b"x" * 100)[: source.randrange(1, 105)])


def promise_much(client: RawClient, source: random.Random) -> None:
    stay(client, source)
    client.socket.sendall(b"\x82\xff\x7f" + b"\xff" * 7 + b"x" * source.randrange(100_000))
    client.to_end()


def ping_a_lot(client: RawClient, source: random.Random) -> None:
    stay(client, source)
    client.socket.sendall(said(9, source.randbytes(50)) * 3000)  # 168 KB
    client.to_end()


def talk_nonsense(client: RawClient, source: random.Random) -> None:
    stay(client, source)
    for _ in range(source.randrange(1, 9)):
        kind = source.randrange(4)
        if kind == 0:
            client.socket.sendall(source.randbytes(source.randrange(1, 300)))
        else:
            head = source.choice([0x80, 0x80, 0, 0xF0])
            client.socket.sendall(said(source.randrange(16), source.randbytes(source.randrange(130)), head=head))


WAYS: list[Callable[[RawClient, random.Random], None]] = [
    stay, leave_at_once, reset_at_once, stay_and_reset, say_goodbye, say_goodbye_and_reset, shake_hands_twice, say_half,
    promise_much, ping_a_lot, talk_nonsense, talk_nonsense, talk_nonsense,
]  # fmt: skip


def come_and_go(port: int, number: int) -> None:
    source = random.Random(number)
    client = RawClient(port)
    try:
        WAYS[number % len(WAYS)](client, source)
    except (ConnectionResetError, BrokenPipeError):
        pass  # as rude as we are
    finally:
        client.close()


def test_nothing_is_left_of_five_hundred_clients(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, heartbeat__interval_seconds=0.1) as server:
        watch = Watch(server)
        before = descriptors(server)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            done = pool.map(lambda number: come_and_go(server.port, number), range(CLIENTS))
            for number, _ in enumerate(done):
                if number % 50 == 0:
                    publish(server, "t", "x" * 2000)
        # A request of a client that has left may not have been read yet. Its socket is one until it has.
        wait_until(
            lambda: metrics(server)["connections"] == 0 and descriptors(server) <= before, what="no stream, no socket"
        )
        now = metrics(server)
        opened = now["connections_opened_total"]
        assert CLIENTS * 0.7 < opened <= CLIENTS
        assert now['connections_opened_by_transport_total{transport="websocket"}'] == opened
        assert sum(watch.closed.values()) == opened
        assert watch.closed.keys() <= {"client", "write_error"}
        assert (now["topics"], now["backlog_bytes"], now["backlog_largest_bytes"]) == (0, 0, 0)
        wait_until(lambda: len(watch.disconnected()) == opened, what="the last line in the log")
        codes = {line.get("close_code") for line in watch.disconnected()}
        assert {None, 1000, 1002, 1003, 1008, 1009} <= codes


def test_unfinished_frames_take_little_memory(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, heartbeat__interval_seconds=600) as server:
        clients = [RawClient(server.port) for _ in range(150)]
        for client in clients:
            stay(client, random.Random())
        before = resident_bytes(server)
        unfinished = b"\x82\xfe\x10\x00" + os.urandom(4) + b"x" * 4000  # of 4096
        for client in clients:
            client.socket.sendall(unfinished)
        # Who comes later is heard later: what they said is there when this one is answered.
        last = RawClient(server.port)
        stay(last, random.Random())
        last.socket.sendall(said(9, b"heard?"))
        last.until(b"\x8a\x06heard?")
        assert metrics(server)["connections"] == 151
        assert resident_bytes(server) - before < 150 * 12_000
        for client in clients:
            client.socket.sendall(b"x" * 200)
            assert b"\x88" in client.to_end()[-80:]
            client.close()
        last.close()
        wait_until(lambda: metrics(server)["connections"] == 0, what="no stream")
