"""A real server in a process of its own, and a raw client: what most tests of behaviour stand on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar, Self

KEY = "test-key"
# How long a failure takes, on a machine that does something else besides.
START_SECONDS = 60.0
SECONDS = 60.0


class ServerProcess:
    """`qgstream serve` on a free port of the loopback. Settings are dotted keys: `limits__max_connections=5`.

    `stop` asks it to leave and checks that it did, with exit status 0 and nothing said above `info` that `expect` does
    not name (by its `event`).
    """

    # What is run; a server with a fault of a test's own making is another program.
    program: ClassVar[tuple[str, ...]] = ("-m", "qgstream")

    def __init__(self, tmp_path: Path, *, port: int = 0, scheme: str = "http", **settings: object) -> None:
        self.scheme = scheme
        self.log_path = tmp_path / f"server-{time.monotonic_ns()}.log"
        self._log = self.open_log()
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("QGSTREAM_")} | {
            "QGSTREAM_AUTH__PUBLISH_KEYS": json.dumps([KEY]),
            "QGSTREAM_CORS__ALLOW_ORIGINS": '["*"]',
            "QGSTREAM_DRAIN__SECONDS": "0",
            # Beside localhost and the loopback: what raw requests of the tests have as `Host`.
            "QGSTREAM_SERVER__ALLOWED_HOSTS": '["x", "tests"]',
        }
        for key, value in settings.items():
            text = value if isinstance(value, str) else json.dumps(value)
            self.environment[f"QGSTREAM_{key.upper()}"] = text
        self.process = subprocess.Popen(
            [*self.command(), "serve", "--port", str(port)],
            stdout=subprocess.DEVNULL, stderr=self._log, env=self.environment,
        )  # fmt: skip
        try:
            started = self.wait_for_log("server.started", seconds=START_SECONDS)
        except BaseException:
            self.kill()
            raise
        self.port: int = started["port"]
        self.admin_port: int | None = started["admin_port"]

    def command(self) -> list[str]:
        """What `serve` and its flags are appended to."""
        return [sys.executable, *self.program]

    def open_log(self) -> BinaryIO:
        """What the server writes its log to."""
        return self.log_path.open("wb")

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def lines(self) -> list[dict[str, Any]]:
        """Every complete line of the log so far."""
        text = self.log_path.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait_for_log(self, event: str, *, count: int = 1, seconds: float = SECONDS, **fields: object) -> dict[str, Any]:
        """The `count`-th line with this event and these fields, as soon as it is there."""
        for _ in looks(seconds):
            has_ended = self.process.poll() is not None  # before its last words are read
            found = [line for line in self.lines() if line["event"] == event and fields.items() <= line.items()]
            if len(found) >= count:
                return found[count - 1]
            if has_ended:
                break
        raise AssertionError(f"no {event} {fields} in the log:\n{self.log_path.read_text()[-4000:]}")

    def kill(self) -> None:
        """kill -9"""
        self.process.kill()
        self.process.wait()
        self._log.close()

    def stop(self, *, expect: tuple[str, ...] = ()) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError("the server did not stop:\n" + self.log_path.read_text()[-4000:]) from None
        self._log.close()
        loud = [x for x in self.lines() if x["level"] not in ("debug", "info") and x["event"] not in expect]
        assert not loud, loud
        assert status == 0, self.log_path.read_text()[-4000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill()  # if it runs; its log is closed in any case, or a later test fails for that


class RawClient:
    """A socket that says exactly what it is told, and reads until what it waits for is there."""

    def __init__(
        self, port: int, *, host: str = "127.0.0.1", timeout_seconds: float = SECONDS, receive_buffer: int | None = None
    ) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout_seconds)
        self.socket.connect((host, port))
        self.received = b""

    def get(self, target: str, *headers: str, version: str = "1.1") -> Self:
        """Send a GET; the answer is read by `until`."""
        lines = [f"GET {target} HTTP/{version}", "Host: 127.0.0.1", *headers]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return self

    def until(self, expected: bytes) -> bytes:
        """Everything received up to and with `expected`, since the beginning."""
        while expected not in self.received:
            more = self.socket.recv(65536)
            assert more, f"the server closed before {expected!r}; got {self.received[-2000:]!r}"
            self.received += more
        return self.received[: self.received.index(expected) + len(expected)]

    def to_end(self) -> bytes:
        """Everything until the server closes."""
        while more := self.socket.recv(65536):
            self.received += more
        return self.received

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()


def wait_until(condition: Any, *, seconds: float = SECONDS, what: str = "the condition") -> None:
    """Return as soon as `condition()` is true."""
    assert any(condition() for _ in looks(seconds)), f"{what} did not come true in {seconds} s"


def looks(seconds: float) -> Iterator[None]:
    """When to look whether something has come true: often at first, and later at every tenth of the time waited.

    A look may ask a browser or read a whole log. Many of them would take the processor from what is waited for.
    """
    begun = time.monotonic()
    while (waited := time.monotonic() - begun) < seconds:
        yield
        time.sleep(min(max(0.01, waited / 10), 0.1))
    yield
