"""What somebody's strain costs a server, and what others wait for it meanwhile."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from tests.hostile.watched import LONGEST, Turns
from tests.serving import KEY, RawClient, ServerProcess

# Only decides how long a failure takes: the first release held its loop for half a minute.
PATIENCE_SECONDS = 300.0


class WatchedServer(ServerProcess):
    """A server whose loop writes down its longest turn. `python`: the interpreter that has the qgstream to measure."""

    def __init__(self, tmp_path: Path, *, python: str = sys.executable, **settings: Any) -> None:
        self._python = python
        self._file = tmp_path / f"turns-{time.monotonic_ns()}"
        self._file.write_bytes(bytes(LONGEST.size))
        self.turns = Turns(self._file)
        super().__init__(tmp_path, **settings)

    def command(self) -> list[str]:
        return [self._python, str(Path(__file__).with_name("watched.py")), str(self._file)]

    def memory(self, name: str) -> int:
        """A field of /proc/PID/status in bytes: `VmRSS`, or `VmHWM`, its peak."""
        found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024

    def cpu_seconds(self) -> float:
        """What its main thread has used."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9

    def forget_peak(self) -> None:
        """The peak begins at what is resident now (proc(5): `clear_refs`)."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


class SlowlyReadServer(WatchedServer):
    """Its log goes through a small pipe, whose reader takes some time for each line."""

    seconds_a_line = 0.04

    def open_log(self) -> BinaryIO:
        read, write = os.pipe()
        threading.Thread(target=self._copy, args=(read,), daemon=True).start()
        return os.fdopen(write, "wb")

    def _copy(self, read: int) -> None:
        with os.fdopen(read, "rb", buffering=0) as source, self.log_path.open("wb", buffering=0) as log:
            rest = b""
            while more := source.read(1024):
                *lines, rest = (rest + more).split(b"\n")
                for line in lines:
                    log.write(line + b"\n")
                    if b"events." in line:
                        time.sleep(self.seconds_a_line)


class Others:
    """The process of others.py: `longest` has its waits at the end of the block."""

    def __init__(self, server: ServerProcess, *, has_stream: bool) -> None:
        self.longest: dict[str, float] = {}
        arguments = [str(server.port), str(server.process.pid), KEY, *([] if has_stream else ["health"])]
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("others.py")), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout
        assert self._process.stdout.readline() == "begun\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is not None:
            self._process.kill()
        out, _ = self._process.communicate(timeout=PATIENCE_SECONDS)
        if kind is None:
            assert self._process.returncode == 0, "somebody else was not served"
            self.longest = json.loads(out)


@dataclass
class Scene:
    """A server, and what clients do to it."""

    server: WatchedServer
    folder: Path
    is_full: bool
    # What the strain itself has seen, such as the longest silence of a stream.
    seen: dict[str, float] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    def many(self, full: int, part: int) -> int:
        """How many of them; the tests are content with a part."""
        return full if self.is_full else part

    def client(self, **options: Any) -> RawClient:
        """One that is closed at the end."""
        client = RawClient(self.server.port, timeout_seconds=PATIENCE_SECONDS, **options)
        self.stack.enter_context(closing(client))
        return client

    def request(self, method: str, target: str, *headers: str, body: bytes = b"", expect: int = 200) -> bytes:
        """One whole request, and the body of its answer."""
        with closing(RawClient(self.server.port, timeout_seconds=PATIENCE_SECONDS)) as client:
            lines = [f"{method} {target} HTTP/1.1", "Host: tests", "Connection: close", f"Content-Length: {len(body)}"]
            try:
                client.socket.sendall("\r\n".join([*lines, *headers, "", ""]).encode() + body)
                head = client.until(b"\r\n\r\n")
                client.to_end()
            except (ConnectionResetError, BrokenPipeError):
                assert expect >= 400  # refused before all of it was read
                return client.received
            assert not expect or head.startswith(b"HTTP/1.1 %d " % expect), (head, client.received[-500:])
            return client.received.partition(b"\r\n\r\n")[2]

    def publish(self, *lines: str, expect: int = 200) -> bytes:
        """A batch of events, each as JSON; returns the body of the answer."""
        headers = (f"Authorization: Bearer {KEY}", "Content-Type: application/x-ndjson")
        return self.request("POST", "/events", *headers, body="\n".join(lines).encode(), expect=expect)

    def fill(self, count: int, line: Callable[[int], str], *, at_once: int = 1000) -> None:
        """Publish `line(0)`, `line(1)` ... in batches."""
        for first in range(0, count, at_once):
            self.publish(*map(line, range(first, min(first + at_once, count))))

    @staticmethod
    def read_until(client: RawClient, expected: bytes) -> None:
        """Read on, and forget what was read, until this comes."""
        rest = client.received
        while expected not in rest:
            more = client.socket.recv(1024 * 1024)
            assert more, f"the server closed before {expected!r}; got {rest[-500:]!r}"
            rest = rest[-len(expected) :] + more
        client.received = b""


Steps = Iterator[None]


@dataclass(frozen=True)
class Strain:
    """What is tried: `run` prepares, yields once, and does it."""

    name: str
    run: Callable[[Scene], Steps]
    settings: Mapping[str, object]
    server: type[WatchedServer] = WatchedServer
    has_stream: bool = True
    # What the settings say, as docs/tuning-limits.md calculates, for the part that the tests do: memory in MiB; and how
    # long one turn of the loop and others may wait, in seconds of the server's CPU time. The first number is a body
    # of `limits.max_body_bytes`.
    memory_mib: float = 8
    turn_seconds: float = 0.02
    wait_seconds: float = 0.1
    # Starts a broker's engine in a folder, and is its URL.
    engine: Callable[[Path], AbstractContextManager[str]] | None = None


@dataclass(frozen=True)
class Measured:
    """Seconds and bytes.

    `memory` is the peak above the idle server. `hold_cpu` and `hold` are the longest turn of the loop. The waits are
    those of others.py; `cpu` is the CPU time of the server's main thread until they were over.
    """

    memory: int
    hold_cpu: float
    hold: float
    health: float
    health_cpu: float
    stream: float
    stream_cpu: float
    cpu: float
    seen: Mapping[str, float]


def measure(strain: Strain, folder: Path, *, is_full: bool, python: str = sys.executable) -> Measured:
    """Do it to a server of its own."""
    settings = {
        key: value.format(folder=folder) if isinstance(value, str) else value for key, value in strain.settings.items()
    }
    (folder / "qgstream.toml").touch()
    with ExitStack() as stack:
        if strain.engine is not None:
            settings["broker__url"] = stack.enter_context(strain.engine(folder))
        server = strain.server(folder, python=python, **settings)
        stack.callback(server.kill)  # what it says of all this is the business of other tests
        scene = Scene(server, folder, is_full)
        stack.push(scene.stack)
        idle = server.memory("VmRSS")
        steps = strain.run(scene)
        next(steps)
        with Others(server, has_stream=strain.has_stream) as others:
            server.forget_peak()
            server.turns.reset()
            began = server.cpu_seconds()
            next(steps, None)
            cpu = server.cpu_seconds() - began
            peak = server.memory("VmHWM")
            hold_cpu, hold = server.turns.longest()
    return Measured(memory=peak - idle, hold_cpu=hold_cpu, hold=hold, cpu=cpu, seen=scene.seen, **others.longest)
