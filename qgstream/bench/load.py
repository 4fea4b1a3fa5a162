"""The load: a process that opens streams and counts their events, `python -m qgstream.bench.load`.

Each line of standard input is a command, a JSON object with a `do`. The reply is a JSON object on standard output. The
process ends with its standard input. It costs little: one epoll and one shared buffer, and it searches the received
bytes for only one byte.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qgstream.bench.histogram import Histogram
from qgstream.bench.stamps import MARK, ages

# The most bytes of one read of a stream: what the kernel holds for the stream when this side is late.
BUFFER_BYTES = 256 * 1024
# How many streams are between connect and first byte at a time, as if this many clients connected at once.
INFLIGHT = 256
# The receive buffer of a stalled reader: small, so that the backlog is in the server and not in the kernel.
STALLED_BUFFER_BYTES = 2048
# The most streams from one source address, for which the kernel has about 28 000 ports. Only loopback has more than
# one.
STREAMS_PER_SOURCE = 20_000
# Linux, ip(7); Python has no name for this option. The port is chosen at connect, so other destinations may use it too.
_IP_BIND_ADDRESS_NO_PORT = 24


@dataclass(slots=True)
class _Opening:
    """A stream that has not received the first byte of its body yet."""

    sock: socket.socket
    number: int
    started_ns: int
    connected: bool = False
    received: bytes = b""


class Load:
    """The streams of one process, and the data that they received."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._buffer = bytearray(BUFFER_BYTES)
        self._sockets: dict[int, socket.socket] = {}  # all open sockets, also those that are opening
        self._receive: dict[int, Callable[[bytearray], int]] = {}  # of the sockets that are read
        self._opening: dict[int, _Opening] = {}
        self._waiting: deque[int] = deque()  # numbers of streams to open
        self._plan: dict[str, Any] = {}
        self._handshakes = Histogram()
        self._opened = self._failed = self._closed = self._bytes = 0
        self._failures: Counter[str] = Counter()
        self._begin({})

    # Commands.

    def command(self, line: str) -> dict[str, Any]:
        """Execute a command and return the reply."""
        told = json.loads(line)
        commands = {"open": self._open, "begin": self._begin, "status": self._status, "report": self._report}
        return (commands | {"close": self._close})[told["do"]](told)

    def _open(self, told: dict[str, Any]) -> dict[str, Any]:
        """Begin to open `streams` streams with `request`, in which `{n}` is the number of a stream, starting with
        `first`."""
        self._plan = told
        self._handshakes = Histogram()
        self._opened = self._failed = self._closed = 0
        self._failures.clear()
        self._waiting.extend(range(told["first"], told["first"] + told["streams"]))
        return {}

    def _begin(self, told: dict[str, Any]) -> dict[str, Any]:
        """Count deliveries from now on, and measure the latency in one of `sample_every` reads."""
        self._deliveries = 0
        self._latencies = Histogram()
        self._sample_every = self._until_sample = told.get("sample_every", 1)
        self._last_delivery_ns = time.monotonic_ns()
        return {}

    def _status(self, _told: dict[str, Any]) -> dict[str, Any]:
        return {
            "opened": self._opened, "failed": self._failed, "closed": self._closed, "deliveries": self._deliveries,
            "bytes": self._bytes, "last_delivery_ns": self._last_delivery_ns, "cpu_seconds": time.process_time(),
        }  # fmt: skip

    def _report(self, told: dict[str, Any]) -> dict[str, Any]:
        return self._status(told) | {
            "latencies": self._latencies.to_json(),
            "handshakes": self._handshakes.to_json(),
            "failures": dict(self._failures),
        }

    def _close(self, _told: dict[str, Any]) -> dict[str, Any]:
        """Close all streams with a reset: ten thousand sockets in TIME_WAIT would leave no ports for the next
        streams."""
        self._waiting.clear()
        for sock in self._sockets.values():
            _reset(sock)
        self._sockets.clear()
        self._receive.clear()
        self._opening.clear()
        return {}

    # The loop.

    def run(self, commands: int, replies: int) -> None:
        """Serve commands and streams until the commands end. Both arguments are file descriptors."""
        self._epoll.register(commands, select.EPOLLIN)
        pending = b""
        while True:
            self._start_some()
            ready = self._epoll.poll(-1, 1024)
            self._receive_all(ready)
            for fd, _event in ready:
                if fd == commands:
                    got = os.read(commands, 65536)
                    if not got:
                        return
                    *lines, pending = (pending + got).split(b"\n")
                    for line in lines:
                        os.write(replies, json.dumps(self.command(line.decode())).encode() + b"\n")
                elif fd in self._opening:
                    self._go_on_opening(self._opening[fd])

    def _receive_all(self, ready: list[tuple[int, int]]) -> None:
        # HOT PATH: this side must be cheaper than any server. Totals are kept in locals.
        receives, buffer, count, until_sample = self._receive, self._buffer, self._buffer.count, self._until_sample
        deliveries = received = 0
        for fd, _event in ready:
            receive = receives.get(fd)
            if receive is None:
                continue
            try:
                size = receive(buffer)
            except BlockingIOError:
                continue
            except OSError:
                size = 0
            if not size:
                self._lost(fd)
                continue
            received += size
            found = count(MARK, 0, size)
            if found:
                deliveries += found
                until_sample -= 1
                if until_sample <= 0:
                    until_sample = self._sample_every
                    self._sample(bytes(memoryview(buffer)[:size]))
        self._bytes += received
        self._until_sample = until_sample
        if deliveries:
            self._deliveries += deliveries
            self._last_delivery_ns = time.monotonic_ns()

    def _sample(self, received: bytes) -> None:
        # Every event of one read out of many: all reads are equally likely, and so are all events.
        for seconds in ages(received, time.monotonic_ns()):
            self._latencies.add(seconds)

    # Opening.

    def _start_some(self) -> None:
        while self._waiting and len(self._opening) < INFLIGHT:
            number = self._waiting.popleft()
            try:
                self._dial(number)
            except OSError as error:
                self._give_up(None, error.strerror or str(error))

    def _dial(self, number: int) -> None:
        plan = self._plan
        sock = socket.socket(plan["family"], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if number < plan["stalled"]:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, STALLED_BUFFER_BYTES)
            source = number // STREAMS_PER_SOURCE
            if source and plan["family"] == socket.AF_INET and plan["host"].startswith("127."):
                sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((f"127.0.0.{1 + source}", 0))
            status = sock.connect_ex((plan["host"], plan["port"]))
            if status not in (0, errno.EINPROGRESS):
                raise OSError(status, os.strerror(status))
            self._epoll.register(sock, select.EPOLLOUT)
        except OSError:
            sock.close()
            raise
        self._sockets[sock.fileno()] = sock
        self._opening[sock.fileno()] = _Opening(sock, number, time.monotonic_ns())

    def _go_on_opening(self, opening: _Opening) -> None:
        sock = opening.sock
        try:
            if not opening.connected:
                status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if status:
                    raise OSError(status, os.strerror(status))
                sock.send(self._plan["request"].replace("{n}", str(opening.number)).encode())
                opening.connected = True
                self._epoll.modify(sock, select.EPOLLIN)
                return
            got = sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._give_up(sock, error.strerror or str(error))
            return
        opening.received += got
        if not got:
            self._give_up(sock, "closed before the headers were complete")
        elif b"\r\n\r\n" in opening.received:
            self._opened_or_refused(opening)

    def _opened_or_refused(self, opening: _Opening) -> None:
        head, _, body = opening.received.partition(b"\r\n\r\n")
        status_line = head.partition(b"\r\n")[0].decode("latin-1")
        if " 200 " not in status_line + " " or b"text/event-stream" not in head.lower():
            self._give_up(opening.sock, f"got {status_line!r}")
            return
        self._handshakes.add((time.monotonic_ns() - opening.started_ns) / 1e9)
        self._opened += 1
        self._deliveries += body.count(MARK)
        self._bytes += len(body)
        del self._opening[opening.sock.fileno()]
        if opening.number < self._plan["stalled"]:
            self._epoll.unregister(opening.sock)
        else:
            self._receive[opening.sock.fileno()] = opening.sock.recv_into

    def _give_up(self, sock: socket.socket | None, why: str) -> None:
        self._failed += 1
        self._failures[why] += 1
        if sock is not None:
            del self._opening[sock.fileno()]
            del self._sockets[sock.fileno()]
            sock.close()

    def _lost(self, fd: int) -> None:
        """The server closed a stream."""
        self._closed += 1
        del self._receive[fd]
        self._sockets.pop(fd).close()


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def main() -> None:
    """Serve commands from standard input."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    Load().run(sys.stdin.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    main()
