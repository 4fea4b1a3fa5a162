"""A bad line: what is late or lost comes all the same, and a peer that is gone is seen to be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.networks import Line, NotPermittedHere
from tests.hostile.observing import Watch, data_of, descriptors, metrics
from tests.publishing import publish
from tests.serving import RawClient, ServerProcess, wait_until

SETTINGS: dict[str, Any] = {
    "server__host": "0.0.0.0",
    "heartbeat__interval_seconds": 0.3,
    "limits__tcp_user_timeout_seconds": 3,
    "limits__max_backlog_bytes": 64 * 1024 * 1024,
}


@pytest.fixture
def line() -> Iterator[Line]:
    """Two networks. Where nobody may make them nothing is tested, which no program that could be installed changes."""
    try:
        line = Line()
    except NotPermittedHere as error:
        pytest.skip(f"not permitted here: network namespaces: {error}")
    with line:
        yield line


def serve(tmp_path: Path, **settings: Any) -> ServerProcess:
    return ServerProcess(tmp_path, **(SETTINGS | settings))


def connect(server: ServerProcess, *, receive_buffer: int | None = None) -> RawClient:
    client = RawClient(server.port, host=Line.HERE, receive_buffer=receive_buffer)
    client.get("/events?topic=a").until(b'"connected"')
    return client


def test_with_300_ms_and_one_packet_in_twenty_lost_everything_comes_once(line: Line, tmp_path: Path) -> None:
    line.delay_seconds, line.loss = 0.15, 0.05  # there and back is 0.3 s
    # Its own retransmissions may be lost again and again, and none of these peers is gone.
    server = line.here.run(lambda: serve(tmp_path, limits__tcp_user_timeout_seconds=60))
    try:
        watch = line.here.run(Watch, server)
        clients = [line.there.run(connect, server) for _ in range(5)]
        sent = [f"{number:03}" + "x" * 3000 for number in range(24)]
        for data in sent:
            line.here.run(publish, server, "a", data)
        for client in clients:
            client.until(sent[-1].encode() + b"\n\n")
            assert data_of(client) == sent
        assert line.lost > 3
        client.until(b'"heartbeat"')
        assert line.here.run(lambda: watch.closed) == {}
        for client in clients:
            client.close()
        line.here.run(lambda: watch.expect(client=5))
        line.here.run(server.stop)
    finally:
        if server.process.poll() is None:
            server.kill()


def test_a_peer_that_vanishes_is_released_within_the_timeout(line: Line, tmp_path: Path) -> None:
    """No FIN and no RST: a cable was pulled. What was sent since is not acknowledged."""
    server = line.here.run(serve, tmp_path)
    try:
        watch = line.here.run(Watch, server)
        clients = [line.there.run(connect, server) for _ in range(10)]
        before = descriptors(server)
        line.is_cut = True
        lines = line.here.run(lambda: watch.expect(timeout=10))
        assert len(lines) == 10
        wait_until(lambda: descriptors(server) <= before - 10)
        assert line.here.run(metrics, server)["backlog_bytes"] == 0
        for client in clients:
            client.close()
        line.here.run(server.stop)
    finally:
        if server.process.poll() is None:
            server.kill()


def test_a_line_that_comes_back_in_time_is_nothing(line: Line, tmp_path: Path) -> None:
    server = line.here.run(lambda: serve(tmp_path, limits__tcp_user_timeout_seconds=60))
    try:
        watch = line.here.run(Watch, server)
        client = line.there.run(connect, server)
        line.is_cut = True
        for number in range(5):
            line.here.run(publish, server, "a", f"in the dark {number}")
        wait_until(lambda: line.lost >= 5, what="lost packets")
        line.is_cut = False
        client.until(b"in the dark 4")
        assert data_of(client) == [f"in the dark {number}" for number in range(5)]
        assert line.here.run(lambda: watch.closed) == {}
        client.close()
        line.here.run(server.stop)
    finally:
        if server.process.poll() is None:
            server.kill()


def test_a_window_of_zero_is_held_for_the_timeout_and_no_longer(line: Line, tmp_path: Path) -> None:
    """A peer that answers every probe and takes nothing: it lives, so only its timeout ends it."""
    server = line.here.run(serve, tmp_path)
    try:
        watch = line.here.run(Watch, server)
        stalled = line.there.run(lambda: connect(server, receive_buffer=4096))
        live = line.there.run(connect, server)
        for number in range(40):
            line.here.run(publish, server, "a", f"{number:04}" + "x" * 20_000)
            live.until(f"data: {number:04}x".encode())
        (gone,) = line.here.run(lambda: watch.expect(timeout=1, left=1))
        assert gone["seconds"] >= 3
        live.close()
        line.here.run(lambda: watch.expect(timeout=1, client=1))
        stalled.close()
        line.here.run(server.stop)
    finally:
        if server.process.poll() is None:
            server.kill()
