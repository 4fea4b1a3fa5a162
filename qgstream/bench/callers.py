"""Callers: a request that is sent repeatedly, and the time until each response."""

from __future__ import annotations

import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from threading import Event, Thread

from qgstream.bench.histogram import Histogram
from qgstream.bench.subjects import Subject

ANSWER_SECONDS = 30.0
_CONTENT_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: *chunked")


class Caller(Thread):
    """Sends the request that `request()` makes, `rate` times a second; without a rate, as soon as the last response has
    arrived.

    A call that is due during another call is late, not left out. `stop` ends the caller after its current call.
    """

    def __init__(
        self, subject: Subject, request: Callable[[], bytes], *, rate: float | None, seconds: float,
        keep_alive: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(daemon=True)  # a server that never responds must not keep the command from ending
        self._subject = subject
        self._request = request
        self._rate = rate
        self._seconds = seconds
        self._keep_alive = keep_alive
        self._socket: socket.socket | None = None
        self._stopped = Event()
        self.answered = 0
        self.failed = 0
        self.failures: Counter[str] = Counter()
        self.latencies = Histogram()
        self.took_seconds = 0.0
        self.answer = b""  # the body of the last answer

    def run(self) -> None:
        """Call until the time is over or `stop` was called."""
        began = time.monotonic()
        calls = 0
        while True:
            due = began + calls / self._rate if self._rate else time.monotonic()
            if due >= began + self._seconds or time.monotonic() >= began + self._seconds:
                break
            if self._stopped.wait(max(0.0, due - time.monotonic())):
                break
            self._call()
            calls += 1
        self.took_seconds = time.monotonic() - began
        self._hang_up()

    def stop(self) -> None:
        """Make no further calls."""
        self._stopped.set()

    def _call(self) -> None:
        began = time.monotonic()
        try:
            status = self._exchange(self._request())
        except OSError as error:
            self._hang_up()
            status = error.strerror or str(error) or type(error).__name__
        if status.startswith("2"):
            self.answered += 1
            self.latencies.add(time.monotonic() - began)
        else:
            self.failed += 1
            self.failures[status] += 1
        if not self._keep_alive:
            self._hang_up()

    def _exchange(self, request: bytes) -> str:
        if self._socket is None:
            self._socket = socket.create_connection((self._subject.host, self._subject.port), ANSWER_SECONDS)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(request)
        received = b""
        while not _is_complete(received):
            more = self._socket.recv(1024 * 1024)
            if not more:
                raise ConnectionError("closed without a response")
            received += more
        self.answer = received.partition(b"\r\n\r\n")[2]
        return received[9:12].decode("latin-1")

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _is_complete(received: bytes) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return False
    if _CHUNKED.search(head):
        return body.endswith(b"0\r\n\r\n")
    length = _CONTENT_LENGTH.search(head)
    return length is None or len(body) >= int(length[1])
