"""Orphans: as process 1 or subreaper a server leaves no zombies, and takes no child from those who started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NOT_PERMITTED
from tests.serving import wait_until

# Each program ends at once and leaves a child that ends a little later. The second child has a session of its own.
LEAVES_ONE = ["sh", "-c", "(setsid sh -c '(sleep 0.1; exit 5) & exit' ) & wait; echo left; exec sleep 600"]
LEAVES_A_LEADER = ["sh", "-c", "sh -c '(exec setsid sleep 0.1) & exit'; echo left; exec sleep 600"]

# Children of the server's own, by a source that looks after them late. One is of the server's session, and one is not.
FEEDS = """
import asyncio, os, subprocess, sys
from pathlib import Path

def is_zombie(child):
    return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

async def children(*, looks: int):
    children = [
        subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"], start_new_session=session)
        for session in (False, True)
    ]
    while not all(map(is_zombie, children)):
        await asyncio.sleep(0.05)
    await asyncio.sleep(looks)
    watched = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(8)")
    statuses = [*(child.wait() for child in children), await watched.wait()]
    Path("statuses").write_text(str(statuses))
    yield {"topic": "statuses", "data": statuses}
"""

# As process 1 of a container; in its own name, and with less patience.
AS_PROCESS_1 = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
HASTY = """
import sys
from qgstream.process import reaper
reaper.EVERY_SECONDS, reaper.PATIENCE_SECONDS = 0.1, float(sys.argv.pop(1))
from qgstream.cli import main
sys.exit(main())
"""
AS_SUBREAPER = """
import ctypes, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
sys.argv.pop(1)
from qgstream.cli import main
sys.exit(main())
"""


def source(command: list[str], name: str) -> dict[str, Any]:
    return {"use": "process", "name": name, "options": {"command": command}}


class Serving:
    """A server and its number, as it is known out here."""

    def __init__(self, process: subprocess.Popen[str], pid: int) -> None:
        self.process = process
        self.pid = pid

    def line(self, event: str, **fields: object) -> dict[str, Any]:
        """Wait for this line of the log."""
        assert self.process.stderr is not None
        for text in self.process.stderr:
            found: dict[str, Any] = json.loads(text)
            if found["event"] == event and fields.items() <= found.items():
                return found
        raise AssertionError(f"the process ended without {event}")

    def children(self) -> dict[int, str]:
        """The state of each child."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent, *_ = path.read_text().rpartition(")")[2].split()
            except (OSError, ValueError):
                continue
            if int(parent) == self.pid:
                found[int(path.parent.name)] = state
        return found


@contextmanager
def serving(
    tmp_path: Path, sources: list[dict[str, Any]], *, prefix: list[str], program: str, patience: float
) -> Iterator[Serving]:
    command = [*prefix, sys.executable, "-c", program, str(patience), "serve", "--port", "0"]
    environ = os.environ | {"QGSTREAM_SOURCES": json.dumps(sources), "QGSTREAM_LOG__LEVEL": "debug"}
    with subprocess.Popen(command, env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            server = Serving(process, process.pid)
            server.line("server.started")
            if prefix:
                (server.pid,) = server.children()
            yield server
            os.kill(server.pid, signal.SIGTERM)
            server.line("server.stopped")
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.fixture
def may_unshare() -> None:
    done = subprocess.run([*AS_PROCESS_1, "true"], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"{NOT_PERMITTED}{done.stderr.strip()}")


@pytest.mark.usefixtures("may_unshare")
def test_process_1_waits_for_orphans(tmp_path: Path) -> None:
    sources = [source(LEAVES_ONE, "one"), source(LEAVES_A_LEADER, "leader")]
    with serving(tmp_path, sources, prefix=AS_PROCESS_1, program=HASTY, patience=0.2) as server:
        for _ in range(2):
            server.line("process.reaped")
        wait_until(lambda: set(server.children().values()) == {"S"}, what="the orphans' end")
        assert len(server.children()) == 2  # the programs themselves


@pytest.mark.usefixtures("may_unshare")
def test_process_1_takes_no_status_from_those_who_wait(tmp_path: Path) -> None:
    (tmp_path / "feeds.py").write_text(FEEDS)
    own = {"import": "feeds:children", "name": "own", "options": {"looks": 2}}
    sources = [own, source(LEAVES_ONE, "one")]
    with serving(tmp_path, sources, prefix=AS_PROCESS_1, program=HASTY, patience=60) as server:
        server.line("process.reaped")
        server.line("source.ended", source="own")
        assert (tmp_path / "statuses").read_text() == "[7, 7, 8]"


def test_a_subreaper_waits_for_orphans_too(tmp_path: Path) -> None:
    with serving(tmp_path, [source(LEAVES_ONE, "one")], prefix=[], program=AS_SUBREAPER, patience=60) as server:
        server.line("process.reaped")
        wait_until(lambda: set(server.children().values()) == {"S"}, what="the orphan's end")
