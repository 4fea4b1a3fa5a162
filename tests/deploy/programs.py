"""Programs that stand around the server: started with the files of deploy/, with ports and paths of this run."""

from __future__ import annotations

import itertools
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.serving import looks

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
SECONDS = 60.0  # how long a failure takes


# Sockets that take any port get theirs from 32768 on, so none of these is taken between the question and its use. Each
# worker of pytest-xdist has a share of its own, and begins somewhere in it, because another run may go on beside this.
_FIRST, _SHARE, _WORKERS = 10_240, 1_400, 16
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_PLACES = itertools.count(random.randrange(_SHARE))


def free_port() -> int:
    """A port that nobody listens on, for a program that cannot say which one it took, or has to take it again."""
    while True:
        port = _FIRST + _WORKER * _SHARE + next(_PLACES) % _SHARE
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def rewritten(path: Path, changes: Mapping[str, str]) -> str:
    """The text of a file with what differs in this run. Each of the changes must find what it changes."""
    text = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text, f"{path.name} has no {old!r}"
        text = text.replace(old, new)
    return text


class Program:
    """A program in the foreground, its output in one file, until the end of the block."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log_path: Path,
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.log_path = log_path
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})}, cwd=folder,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_for_port(self, port: int, *, seconds: float = SECONDS) -> None:
        """Return when somebody listens there. Otherwise the program is ended, as no block has begun that would."""
        try:
            for _ in looks(seconds):
                if self._listens(port):
                    return
                assert self.process.poll() is None, f"{self.process.args!r} has ended:\n{self.log[-4000:]}"
            raise AssertionError(f"{self.process.args!r} does not listen:\n{self.log[-4000:]}")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    @staticmethod
    def _listens(port: int) -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Curl:
    """A stream as curl receives it, headers included, with the moment at which each piece came."""

    def __init__(self, *arguments: str | Path) -> None:
        # --no-buffer: curl itself would gather.
        self._process = subprocess.Popen(
            ["curl", "--silent", "--show-error", "--no-buffer", "--include", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.received = b""
        self.has_ended = False
        self._change = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while piece := os.read(self._process.stdout.fileno(), 65536):
            with self._change:
                self.received += piece
                self._change.notify_all()
        with self._change:
            self.has_ended = True
            self._change.notify_all()

    def until(self, expected: bytes, *, count: int = 1, seconds: float = SECONDS) -> float:
        """Wait until `expected` has come `count` times; the moment at which that was seen (monotonic seconds)."""
        with self._change:
            self._change.wait_for(lambda: self.received.count(expected) >= count or self.has_ended, seconds)
            assert self.received.count(expected) >= count, f"no {expected!r} in {self.received[-2000:]!r}"
            return time.monotonic()

    def to_end(self, *, seconds: float = SECONDS) -> bytes:
        """Everything, until the other side has closed."""
        with self._change:
            assert self._change.wait_for(lambda: self.has_ended, seconds), f"no end after {self.received[-2000:]!r}"
            return self.received

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
