"""HTTP/1.1 as it is spoken: each row of `http_table` on a raw socket, against one real server."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator

import pytest

from tests.hostile.http_table import CLOSED, HEALTH, OK, PATHS, TABLE, Row, get, post
from tests.hostile.observing import metrics, resident_bytes
from tests.serving import RawClient, ServerProcess, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Its end checks that nothing of all this was an error or a warning."""
    with ServerProcess(tmp_path_factory.mktemp("server"), auth__admin_keys={"boss": "admin-key"}) as server:
        yield server


def receive(client: RawClient, answers: int) -> list[int]:
    """The statuses of so many answers, with the body of each but a stream's."""
    statuses = []
    at = 0
    for _ in range(answers):
        while (end := client.received.find(b"\r\n\r\n", at)) < 0:
            receive_more(client)
        head = client.received[at:end]
        statuses.append(int(head[9:12]))
        at = end + 4
        length = re.search(rb"\r\nContent-Length: ([0-9]+)", head)
        size = int(length[1]) if length else 0
        while len(client.received) < at + size:
            receive_more(client)
        at += size
    return statuses


def receive_more(client: RawClient) -> None:
    more = client.socket.recv(65536)
    assert more, f"the server closed; got {client.received[-2000:]!r}"
    client.received += more


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_a_row(server: ServerProcess, row: Row) -> None:
    expected = [status for status in row.answers if status != CLOSED]
    client = RawClient(server.port)
    client.socket.sendall(row.said)
    assert receive(client, len(expected)) == expected, client.received
    if CLOSED in row.answers:
        client.to_end()
    elif b"text/event-stream" in client.received:
        client.until(b'"connected"')
    else:
        client.socket.sendall(get(b"/health", b"Connection: close"))
        assert client.to_end().endswith(OK)
    client.close()
    for piece in row.pieces:
        assert piece in client.received, (piece, client.received[:2000])
    said_behind = CLOSED not in row.answers and b"text/event-stream" not in client.received
    assert len(re.findall(rb"HTTP/1\.1 [0-9]{3} ", client.received)) == len(expected) + said_behind


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_its_body(server: ServerProcess, path: bytes) -> None:
    received = {}
    for method in (b"GET", b"HEAD"):
        client = RawClient(server.port)
        client.socket.sendall(get(path, b"Authorization: Bearer admin-key", b"Connection: close", method=method))
        head, _, body = client.to_end().partition(b"\r\n\r\n")
        client.close()
        names = [line.partition(b":")[0] for line in head.split(b"\r\n")[1:]]
        received[method] = (head.split(b"\r\n")[0], sorted(names), body)
    assert received[b"HEAD"][:2] == received[b"GET"][:2]
    assert received[b"HEAD"][2] == b""
    assert received[b"GET"][2]


def test_a_refused_head_has_no_body(server: ServerProcess) -> None:
    client = RawClient(server.port)
    client.socket.sendall(get(b"/health", b"nothing", method=b"HEAD"))
    received = client.to_end()
    client.close()
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("layers", [1, 2])
def test_a_bomb_costs_no_memory(server: ServerProcess, layers: int) -> None:
    """A gigabyte of zeros in a megabyte, and that in a few kilobytes: none of it is held, and nobody waits for it."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(1024)) + compressor.flush()
    for _ in range(layers - 1):
        bomb = gzip.compress(bomb)
    before = resident_bytes(server)
    for _ in range(5):
        client = RawClient(server.port)
        client.socket.sendall(post(b"Content-Encoding: gzip", body=bomb))
        assert receive(client, 1) == [413 if layers == 1 else 400]
        client.close()
    assert resident_bytes(server) - before < 24 << 20


def test_nothing_is_left_of_it(server: ServerProcess) -> None:
    wait_until(lambda: metrics(server)["connections"] == 0, what="no stream")
    client = RawClient(server.port)
    client.socket.sendall(HEALTH)
    client.until(OK)
    client.close()
