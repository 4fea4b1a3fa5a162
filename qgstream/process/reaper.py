"""Waits for orphans. Process 1, as a server is in a container, becomes the parent of each process that loses its own.

A process that has ended stays in the table of processes, as a zombie, until its parent waits for it. Nobody else would
wait for orphans, and the table would fill up. Children that this process started itself are not touched: the code that
started them waits for them, and wants to know how they ended.
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
# A zombie that may be a child of our own is left to those who started it for so long.
PATIENCE_SECONDS = 60.0


class _Zombie(NamedTuple):
    pid: int
    session: int


class Reaper:
    """Looks once a second for children that have ended, and waits for those that this process has not started."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._seen: dict[int, float] = {}  # since when, by process
        self._timer = Timer(self.look, EVERY_SECONDS)

    def start(self) -> None:
        """Begin, on the running loop."""
        self._timer.start()

    def stop(self) -> None:
        """Look no more."""
        self._timer.stop()

    def look(self) -> None:
        """Once."""
        try:
            # WNOWAIT: it stays, whoever it is. This is all there is to do in most seconds of most servers.
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
        # A child that this process started is of its session, or has made one of its own, which has its number. Any
        # other session is that of a program which was started here, and whose own child it was.
        if zombie.session not in (os.getsid(0), zombie.pid):
            return True
        # Of the rest nobody can tell. Those who start programs wait for them, if not for long.
        return os.getpid() == 1 and now - self._seen[zombie.pid] >= PATIENCE_SECONDS

    def _zombies(self) -> Iterator[_Zombie]:
        ours = str(os.getpid())
        for folder in self._proc.iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                # proc(5): the name of the program may hold anything, so what follows is read from its last bracket.
                state, parent, _, session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            except (OSError, ValueError):
                continue  # it has gone meanwhile
            if state == "Z" and parent == ours:
                yield _Zombie(int(folder.name), int(session))
