"""Slow readers: what the bound on a backlog costs and buys, and how much is offered to a socket in one send.

`python benchmarks/ring_bounds.py`. First `limits.max_backlog_bytes`: among readers, some that never read. Then
`MAX_JOIN_BYTES` of qgstream/delivery/feed.py: readers that stopped for a while, and now read again.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable

from experiment import Experiment, tuned

from qgstream.bench.callers import Caller
from qgstream.bench.errors import BenchError
from qgstream.bench.session import Figures, Session
from qgstream.bench.stamps import MARK, stamped
from qgstream.bench.subjects import Subject
from qgstream.delivery.feed import MAX_JOIN_BYTES
from qgstream.hub import CLOSING_SECONDS
from qgstream.limits import LimitSettings

BOUNDS = {
    "grown_mib": "memory grown MiB",
    "dropped": "stalled readers dropped",
    "latency_p99_ms": "the others' p99 ms",
    "lost": "lost by the others",
    "cpu_us_per_delivery": "CPU us/delivery",
}
JOINS = {"seconds": "seconds to catch up", "cpu_us_per_event": "CPU us/event", "lost": "lost"}
CHOSEN = LimitSettings().max_backlog_bytes
PAYLOAD_BYTES, RATE = 5000, 100.0
SLEEPERS, SLEEP_EVENTS, SLEEP_PAYLOAD_BYTES = 50, 16_000, 500


def stalled(experiment: Experiment, bound: int) -> Figures:
    """One in ten never reads."""
    streams, slow = experiment.streams, experiment.streams // 10
    with (
        tuned(experiment.cores, {}, streams=streams, **{"limits.max_backlog_bytes": bound}) as subject,
        Session(subject, experiment.cores) as session,
    ):
        session.open(streams, stalled=slow)
        before = session.memory(streams) or 0.0
        figures = session.fan_out(RATE, experiment.seconds, PAYLOAD_BYTES)
        figures["grown_mib"] = ((session.memory(streams) or 0.0) - before) * streams / 1024
        time.sleep(CLOSING_SECONDS + 1)  # they do not take their goodbye either
        figures["dropped"] = subject.programs[0].said().count('"slow_consumer"')
        return figures


def catch_up(experiment: Experiment, join_bytes: int) -> Figures:
    """Readers fall behind by some megabytes, and then read."""
    settings = {"limits.max_backlog_bytes": 64 * 1024 * 1024, "limits.tcp_user_timeout_seconds": 0}
    changes: dict[str, object] = {"qgstream.delivery.feed:MAX_JOIN_BYTES": join_bytes}
    with tuned(experiment.cores, changes, streams=SLEEPERS, **settings) as subject:
        sleepers = [_sleeper(subject) for _ in range(SLEEPERS)]
        batch = [stamped(SLEEP_PAYLOAD_BYTES, 0)] * 500
        left = SLEEP_EVENTS // len(batch)

        def request() -> bytes:
            nonlocal left
            left -= 1
            if not left:
                publisher.stop()
            return subject.batch_request(batch)

        publisher = Caller(subject, request, rate=None, seconds=60)
        publisher.start()
        publisher.join()
        before, began = subject.usage(), time.monotonic()
        read = _read_all(sleepers, SLEEPERS * SLEEP_EVENTS)
        took, after = time.monotonic() - began, subject.usage()
        for sock in sleepers:
            sock.close()
    if before is None or after is None or not read:
        raise BenchError(f"{read} events were read: {dict(publisher.failures)}")
    return {
        "seconds": took,
        "cpu_us_per_event": (after.cpu_seconds - before.cpu_seconds) * 1e6 / read,
        "lost": SLEEPERS * SLEEP_EVENTS - read,
    }


def _sleeper(subject: Subject) -> socket.socket:
    sock = socket.create_connection((subject.host, subject.port))
    sock.sendall(subject.get_request().encode())
    received = b""
    while b"connected" not in received:
        received += sock.recv(65536)
    return sock


def _read_all(sockets: list[socket.socket], expected: int) -> int:
    poll = select.epoll()
    for sock in sockets:
        sock.setblocking(False)
        poll.register(sock, select.EPOLLIN)
    by_fd, buffer, read = {sock.fileno(): sock for sock in sockets}, bytearray(256 * 1024), 0
    while read < expected and (ready := poll.poll(5)):
        for fd, _event in ready:
            size = by_fd[fd].recv_into(buffer)
            read += buffer.count(MARK, 0, size)
            if not size:
                poll.unregister(fd)
    return read


def main() -> None:
    """Both bounds."""
    experiment = Experiment(__doc__ or "", streams=1000, seconds=5)

    def bounded(bound: int) -> Callable[[], Figures]:
        return lambda: stalled(experiment, bound)

    def joined(join_bytes: int) -> Callable[[], Figures]:
        return lambda: catch_up(experiment, join_bytes)

    def named(kib: int, chosen: int) -> str:
        return f"{kib} KiB" + (" (chosen)" if kib * 1024 == chosen else "")

    print("limits.max_backlog_bytes")
    bounds = {named(kib, CHOSEN): bounded(kib * 1024) for kib in (64, 256, 1024, 4096)}
    experiment.compare(bounds, BOUNDS, name="ring_bounds")
    print("\nMAX_JOIN_BYTES")
    joins = {named(kib, MAX_JOIN_BYTES): joined(kib * 1024) for kib in (16, 64, 256, 1024, 16384)}
    experiment.compare(joins, JOINS, name="ring_joins")


if __name__ == "__main__":
    main()
