"""Ten thousand conversations that nearly follow the grammar, against one real server, and what is left of them.

`FUZZ_SEEDS=10000 pytest tests/hostile/test_fuzz.py` holds all of them; a run of everything, a part.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qgstream.wire.sse import Event, Parser
from tests.hostile.grammar import ADMIN_KEY, Talk, talk
from tests.hostile.observing import ask, body_of, descriptors, metrics, resident_bytes
from tests.serving import KEY, RawClient, ServerProcess, wait_until

MIB = 1024 * 1024
FUZZ_SEEDS = int(os.environ.get("FUZZ_SEEDS", "1500"))
PUBLISH = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
AT_ONCE = 24
# Less than any time that the server gives a client: whoever ends later was forgotten and not closed.
HANG_SECONDS = 60.0
# 501 is for a method, and 505 for a version, that nobody here knows.
SERVERS_FAULT = re.compile(rb"HTTP/1\.1 5(?!01|05)")


async def hold(port: int, seed: int, conversation: Talk) -> bytes:
    """Say it and return what came back."""
    loop = asyncio.get_running_loop()
    received = b""
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in conversation.pieces:
                await loop.sock_sendall(sock, piece)
                await asyncio.sleep(0)
            if conversation.is_whole:
                while b"\r\n\r\n" not in received:
                    more = await loop.sock_recv(sock, 65536)
                    assert more, f"seed {seed}: closed without an answer to {conversation.said[:300]!r}"
                    received += more
            if conversation.end == "wait":
                sock.shutdown(socket.SHUT_WR)
                while more := await loop.sock_recv(sock, 65536):
                    received += more
            elif conversation.end == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        except (ConnectionResetError, BrokenPipeError):
            assert not conversation.is_whole or received, f"seed {seed}: reset instead of an answer"
        except OSError:  # of shutdown, when the server has reset it before
            if conversation.is_whole:
                raise
    return received


async def hold_all(port: int, seeds: Iterable[int]) -> Counter[str]:
    """All of these, some at once; the statuses that came of them."""
    statuses: Counter[str] = Counter()
    waiting = iter(seeds)

    async def work() -> None:
        for seed in waiting:
            conversation = talk(seed)
            try:
                async with asyncio.timeout(HANG_SECONDS):
                    received = await hold(port, seed, conversation)
            except TimeoutError:
                pytest.fail(f"seed {seed}: no end of {conversation}")
            assert received[:9] in (b"HTTP/1.1 ", b""), (seed, received)
            assert not SERVERS_FAULT.search(received), (seed, conversation, received)
            statuses[received[9:12].decode()] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return statuses


def read_to_the_end(witness: RawClient) -> list[Event]:
    """What was published, until the last of it, or the end."""
    parts, last = [witness.received], b""
    while b"data: the end\n" not in last and (part := witness.socket.recv(1024 * 1024)):
        parts.append(part)
        last = last[-100:] + part
    witness.received = b"".join(parts)
    return [event for event in Parser().feed(body_of(witness)) if not event.data.startswith('{"event": ')]


def test_nothing_that_nearly_is_a_request_does_harm(tmp_path: Path) -> None:
    settings = {
        "auth__admin_keys": {"boss": ADMIN_KEY}, "history__max_events": 200, "heartbeat__interval_seconds": 1,
        "limits__max_backlog_bytes": 64 * MIB,
    }  # fmt: skip
    with ServerProcess(tmp_path, **settings) as server:  # type: ignore[arg-type]  # `port` and `scheme` are no settings
        before = descriptors(server)
        warm = min(500, FUZZ_SEEDS // 4)
        asyncio.run(hold_all(server.port, range(warm)))
        resident = resident_bytes(server)
        # Somebody looks on: everything that was published, and nothing that was only said.
        witness = RawClient(server.port).get("/events")
        witness.until(b'"connected"')
        before_these = metrics(server)["events_published_total"]
        with ThreadPoolExecutor(1) as pool, witness.socket:  # in this order: closing it ends the reading
            reading = pool.submit(read_to_the_end, witness)
            statuses = asyncio.run(hold_all(server.port, range(warm, FUZZ_SEEDS)))
            print(statuses)
            published = metrics(server)["events_published_total"] - before_these
            answer, _ = ask(server, "POST", "/events", body=b'{"topic": "end", "data": "the end"}', headers=PUBLISH)
            assert answer.status == 200
            seen = reading.result(60)
        # There was something to go wrong with: all of these were met.
        assert {"", "200", "204", "400", "401", "404", "405"} <= statuses.keys(), statuses
        # Each is one event with what was published: nothing in one became another.
        assert published / 2 < len(seen) <= published + 1  # the rest was private
        assert not [event for event in seen if event.data == "injected" or event.event.startswith("{")]
        wait_until(lambda: metrics(server)["connections"] == 0, what="no stream")
        now = metrics(server)
        ended = sum(value for name, value in now.items() if name.startswith("connections_closed_total{"))
        assert now["connections_opened_total"] == ended
        assert (now["topics"], now["backlog_bytes"]) == (0, 0)
        wait_until(lambda: descriptors(server) <= before, what="free descriptors")
        assert resident_bytes(server) - resident < 12 * MIB
        assert "Traceback" not in server.log_path.read_text()


def test_a_seed_says_the_same_every_time() -> None:
    assert [talk(seed) for seed in range(50)] == [talk(seed) for seed in range(50)]
    ends = Counter(talk(seed).end for seed in range(200))
    assert ends.keys() == {"wait", "close", "reset"}
