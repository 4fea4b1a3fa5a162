"""Processes that are started, pinned to cores, and read from /proc."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from qgstream.bench.errors import BenchError

STOP_SECONDS = 10.0
# How long a program may take to end by itself: what measures the tests' coverage in it writes its figures meanwhile.
POLITE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes have used: CPU time since they started, resident memory now."""

    cpu_seconds: float
    rss_bytes: int


def usage(pids: Iterable[int]) -> Usage:
    """The sum over some processes of this machine; raises `BenchError` when one is gone."""
    cpu_seconds, rss_bytes = 0.0, 0
    for pid in pids:
        try:
            # clock_getcpuclockid(3), which Python does not have: a process's CPU clock in nanoseconds. /proc/PID/stat
            # says the same in hundredths of a second.
            cpu_seconds += time.clock_gettime(~pid << 3 | 2)
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError as error:
            raise BenchError(f"the CPU and memory of process {pid} cannot be read: {error.strerror}") from error
        rss_bytes += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:")) * 1024
    return Usage(cpu_seconds, rss_bytes)


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores the server gets, and which the load; the same one where there is only one."""

    server: frozenset[int]
    load: frozenset[int]

    @classmethod
    def divide(cls) -> Cores:
        """One core for the server, the others for the load."""
        if not hasattr(os, "sched_setaffinity"):
            return cls(frozenset(), frozenset())
        first, *others = sorted(os.sched_getaffinity(0))
        return cls(frozenset({first}), frozenset(others or {first}))

    @property
    def are_shared(self) -> bool:
        """Whether the load takes time from the server: then absolute figures say little."""
        return self.server == self.load


def pin(pid: int, cores: frozenset[int]) -> None:
    """Keep a process on some cores, where the system can (Linux); 0 is this one."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(pid, cores)


class Program:
    """A child process with a pipe to its input and from its output; what it says as errors is kept in a file.

    It ignores the terminal's Ctrl-C, because it is in a session of its own: its parent ends it.
    """

    def __init__(
        self, argv: Sequence[str], *, cores: frozenset[int] = frozenset(), environment: Mapping[str, str] | None = None
    ) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop()
        self._process = subprocess.Popen(  # noqa: S603  # the caller's own words
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=environment,
            start_new_session=True,
        )  # fmt: skip
        self._input = cast("IO[bytes]", self._process.stdin)
        self._output = cast("IO[bytes]", self._process.stdout)
        self.name = " ".join(argv[1:4])
        pin(self._process.pid, cores)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        try:
            self._input.write(line.encode() + b"\n")
            self._input.flush()
        except BrokenPipeError:
            raise self.ended() from None

    def hear(self) -> str:
        """The next line of its standard output; raises `BenchError` with its last words when it has ended."""
        line = self._output.readline()
        if not line.endswith(b"\n"):
            raise self.ended()
        return line.decode().rstrip("\n")

    def ended(self) -> BenchError:
        """What to raise when it is not there any more."""
        status = self._process.wait(STOP_SECONDS)
        last_words = self.said().strip()[-2000:]
        return BenchError(f"{self.name} ended with status {status}" + (f":\n{last_words}" if last_words else ""))

    def said(self) -> str:
        """Everything it wrote as errors so far."""
        # Never seek: the child writes where this file stands.
        fd = self.errors.fileno()
        return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")

    def stop(self) -> None:
        """Ask it to end, and end it if it does not."""
        self._process.terminate()
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(POLITE_SECONDS)
        finally:
            self._process.kill()  # nothing, if it has ended
            self._process.wait()
        self.errors.close()
        self._output.close()
        with suppress(BrokenPipeError):  # a line that it did not read any more
            self._input.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
