"""Waits for orphans. Process 1, which a server is in a container, becomes the parent of each process that loses its own
parent.

A process that has ended stays in the process table, as a zombie, until its parent waits for it. No other process would
wait for orphans, and the table would fill up. The reaper does not touch the children that this process started itself:
the code that started them waits for them, and needs their exit status.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from qgstream.logs import log
from qgstream.net.timer import Timer

EVERY_SECONDS = 1.0
# How long a zombie that may be a child of this process is left to the code that started it.
PATIENCE_SECONDS = 60.0


class _Zombie(NamedTuple):
    pid: int
    session: int


class Reaper:
    """Checks once a second for ended children, and waits for those that this process has not started."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._seen: dict[int, float] = {}  # the time of the first sight, by process
        self._timer = Timer(self.look, EVERY_SECONDS)

    def start(self) -> None:
        """Start on the running loop."""
        self._timer.start()

    def stop(self) -> None:
        """Stop."""
        self._timer.stop()

    def look(self) -> None:
        """Check once."""
        try:
            # WNOWAIT: the zombie stays, whichever process it is. In most seconds of most servers, this call is the only
            # work.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            ended = None
        if ended is None:
            self._seen.clear()
            return
        now = time.monotonic()
        zombies = list(self._zombies())
        self._seen = {zombie.pid: self._seen.get(zombie.pid, now) for zombie in zombies}
        for zombie in zombies:
            if self._is_orphan(zombie, now):
                with suppress(ChildProcessError):
                    os.waitpid(zombie.pid, os.WNOHANG)
                    log.debug("process.reaped", extra={"pid": zombie.pid})

    def _is_orphan(self, zombie: _Zombie, now: float) -> bool:
        # A child that this process started is in its session, or in a session of its own, whose number is the child's.
        # Any other session belongs to a program that was started here, and the zombie was a child of that program.
        if zombie.session not in (os.getsid(0), zombie.pid):
            return True
        # The other cases cannot be told apart. The code that starts a program waits for it, but only for a short time.
        return os.getpid() == 1 and now - self._seen[zombie.pid] >= PATIENCE_SECONDS

    def _zombies(self) -> Iterator[_Zombie]:
        ours = str(os.getpid())
        for folder in self._proc.iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                # proc(5): the name of the program may contain any text, so the fields are read after its last bracket.
                state, parent, _, session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            except (OSError, ValueError):
                continue  # it has ended meanwhile
            if state == "Z" and parent == ours:
                yield _Zombie(int(folder.name), int(session))
