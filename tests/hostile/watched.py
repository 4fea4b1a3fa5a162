"""`python watched.py FILE serve ...` is `qgstream serve ...` whose loop writes down how long it was held.

The event loop asks its selector once a turn what it has to do. So the time from one answer of the selector to the next
question is how long that turn held the loop. FILE gets two numbers of eight bytes: the longest turn in seconds of CPU
time of the loop's thread, and the longest turn in seconds of wall-clock time. CPU time does not depend on what else the
machine does. Nothing of this is in the product: the selector is replaced before qgstream is imported.
"""

from __future__ import annotations

import mmap
import runpy
import selectors
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

LONGEST = struct.Struct("dd")


class Turns:
    """The longest turn since somebody wrote zeros into the file."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), LONGEST.size)

    def reset(self) -> None:
        """Forget what was."""
        LONGEST.pack_into(self._map, 0, 0.0, 0.0)

    def longest(self) -> tuple[float, float]:
        """CPU seconds and wall-clock seconds."""
        cpu, wall = LONGEST.unpack_from(self._map)
        return cpu, wall

    def add(self, cpu: float, wall: float) -> None:
        """One more turn."""
        longest = self.longest()
        if cpu > longest[0] or wall > longest[1]:
            LONGEST.pack_into(self._map, 0, max(cpu, longest[0]), max(wall, longest[1]))


def watching(turns: Turns) -> Callable[[], selectors.BaseSelector]:
    """What makes the selector of a loop."""

    class Watching(selectors.DefaultSelector):
        began: tuple[float, float] | None = None

        def select(self, timeout: float | None = None) -> Any:
            if self.began is not None and threading.current_thread() is threading.main_thread():
                turns.add(thread_time() - self.began[0], perf_counter() - self.began[1])
            events = super().select(timeout)
            self.began = thread_time(), perf_counter()
            return events

    return Watching


if __name__ == "__main__":
    _, _file, *_arguments = sys.argv
    sys.argv[1:] = _arguments
    del sys.path[0]  # the folder of this file, whose modules must not hide others
    selectors.DefaultSelector = watching(Turns(Path(_file)))  # type: ignore[assignment,misc]
    runpy.run_module("qgstream", run_name="__main__", alter_sys=True)
