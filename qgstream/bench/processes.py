"""Starts processes, pins them to cores, and reads their usage from /proc."""

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
# How long a program may take to end by itself: when the tests measure coverage, the program writes its data in this
# time.
POLITE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Usage:
    """The resources that processes have used: CPU time since their start, and resident memory now."""

    cpu_seconds: float
    rss_bytes: int


def usage(pids: Iterable[int]) -> Usage:
    """Return the sum over some processes of this machine; raises `BenchError` when one has ended."""
    cpu_seconds, rss_bytes = 0.0, 0
    for pid in pids:
        try:
            # clock_getcpuclockid(3), which Python does not have: a process's CPU clock in nanoseconds. /proc/PID/stat
            # has the same time in hundredths of a second.
            cpu_seconds += time.clock_gettime(~pid << 3 | 2)
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError as error:
            raise BenchError(f"the CPU and memory of process {pid} cannot be read: {error.strerror}") from error
        rss_bytes += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:")) * 1024
    return Usage(cpu_seconds, rss_bytes)


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores for the server and for the load; the same core on a machine with only one."""

    server: frozenset[int]
    load: frozenset[int]

    @classmethod
    def divide(cls) -> Cores:
        """Return one core for the server, and the others for the load."""
        if not hasattr(os, "sched_setaffinity"):
            return cls(frozenset(), frozenset())
        first, *others = sorted(os.sched_getaffinity(0))
        return cls(frozenset({first}), frozenset(others or {first}))

    @property
    def are_shared(self) -> bool:
        """Whether the load takes time from the server: then absolute figures mean little."""
        return self.server == self.load


def pin(pid: int, cores: frozenset[int]) -> None:
    """Keep a process on some cores, where the system supports it (Linux); 0 is this process."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(pid, cores)


class Program:
    """A child process with pipes to its input and from its output; its standard error goes to a file.

    The child is in a session of its own, so Ctrl-C on the terminal does not reach it: the parent ends it.
    """

    def __init__(
        self, argv: Sequence[str], *, cores: frozenset[int] = frozenset(), environment: Mapping[str, str] | None = None
    ) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop()
        self._process = subprocess.Popen(  # noqa: S603  # the caller chose the command
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
        """Whether it is still running."""
        return self._process.poll() is None

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        try:
            self._input.write(line.encode() + b"\n")
            self._input.flush()
        except BrokenPipeError:
            raise self.ended() from None

    def hear(self) -> str:
        """Return the next line of its standard output; raises `BenchError` with its last output when it has ended."""
        line = self._output.readline()
        if not line.endswith(b"\n"):
            raise self.ended()
        return line.decode().rstrip("\n")

    def ended(self) -> BenchError:
        """Return the error to raise when it has ended."""
        status = self._process.wait(STOP_SECONDS)
        last_words = self.said().strip()[-2000:]
        return BenchError(f"{self.name} ended with status {status}" + (f":\n{last_words}" if last_words else ""))

    def said(self) -> str:
        """Return all that it has written to standard error so far."""
        # Never seek: the child writes at the position of this file.
        fd = self.errors.fileno()
        return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")

    def stop(self) -> None:
        """Ask it to end, and kill it if it does not."""
        self._process.terminate()
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(POLITE_SECONDS)
        finally:
            self._process.kill()  # does nothing if it has ended
            self._process.wait()
        self.errors.close()
        self._output.close()
        with suppress(BrokenPipeError):  # a line that it no longer read
            self._input.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
