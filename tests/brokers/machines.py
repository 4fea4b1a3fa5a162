"""Servers of engines, started for the tests, and what can happen to them: hung, killed, back again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.deploy.programs import free_port
from tests.serving import looks

SECONDS = 60.0  # how long a failure takes
NATS = ("nats-server", "--addr", "127.0.0.1", "--port", "{port}", "--jetstream", "--store_dir", "{folder}")
# It says no while it loads its data.
REDIS_HELLO = (b"PING\r\n", b"+PONG")
# Every command is on the disk before it is answered.
REDIS = (
    "redis-server", "--bind", "127.0.0.1", "--port", "{port}", "--dir", "{folder}", "--save", "", "--appendonly", "yes",
    "--appendfsync", "always",
)  # fmt: skip


class Machine:
    """An engine's server on a port of the loopback, in a process group of its own so that its children share its fate.

    `command` may hold `{port}` and `{folder}`. What it keeps in its folder is there again after a restart. One that
    takes connections before it serves is asked something first: `hello` is what, and how its answer begins.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, *, environment: Mapping[str, str] | None = None,
        seconds: float = SECONDS, hello: tuple[bytes, bytes] | None = None,
    ) -> None:  # fmt: skip
        self.port = free_port()
        self.folder = folder
        self._command = [word.format(port=self.port, folder=folder) for word in command]
        self._environment = environment or {}
        self._seconds = seconds
        self._hello = hello
        self._log_path = folder / "output.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again, and return when it serves."""
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder,
                env={**os.environ, **self._environment}, start_new_session=True,
            )  # fmt: skip
        try:
            for _ in looks(self._seconds):
                if self.serves():
                    return
                assert self._process.poll() is None, f"{self._command} has ended:\n{self.log[-4000:]}"
            raise AssertionError(f"{self._command} does not serve:\n{self.log[-4000:]}")
        except BaseException:
            self.kill()
            raise

    def serves(self) -> bool:
        """Whether it takes requests."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                if self._hello is None:
                    return True
                connection.sendall(self._hello[0])
                return connection.recv(100).startswith(self._hello[1])
        except OSError:
            return False

    @property
    def log(self) -> str:
        """What it said."""
        return self._log_path.read_text(errors="replace")

    def hang(self) -> None:
        """SIGSTOP: connections stay, nothing answers. Its threads stop one by one, and one more answer may come before
        the last has: this returns when all have."""
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        deadline = time.monotonic() + self._seconds
        while any(state != "T" for state in self._states(self._process.pid)):
            assert time.monotonic() < deadline, f"{self._command} goes on"
            time.sleep(0.001)

    @staticmethod
    def _states(process: int) -> list[str]:
        """The state of each thread: the word behind the name, which stands in parentheses."""
        threads = Path(f"/proc/{process}/task").glob("*/stat")
        return [thread.read_text().rpartition(")")[2].split()[0] for thread in threads]

    def go_on(self) -> None:
        """SIGCONT"""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, children too. Does nothing when it does not run."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def heal(self) -> None:
        """Have it serve, whatever happened to it."""
        if self._process is None or self._process.poll() is not None:
            self.start()
        else:
            self.go_on()

    def stop(self) -> None:
        """SIGTERM, and wait until it has gone as it should."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(self._seconds)
        finally:
            self.kill()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            assert self._process.poll() is not None
