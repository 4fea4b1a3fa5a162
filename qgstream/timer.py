"""A timer that goes by the monotonic clock, whatever happens to the other one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Timer:
    """Calls `callback` every so many seconds on the running loop, from `start` to `stop`.

    Tornado's PeriodicCallback goes by the wall clock: when that is stepped back by an hour, as it is on machines that
    find out the time only then, it is silent for an hour. A call that comes too late is not made up for.
    """

    def __init__(self, callback: Callable[[], object], seconds: float) -> None:
        self._callback = callback
        self._seconds = seconds
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; the first call comes after one interval."""
        loop = asyncio.get_running_loop()
        self._call_at(loop.time() + self._seconds, loop)

    def stop(self) -> None:
        """Call no more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def is_running(self) -> bool:
        """Whether there will be a call."""
        return self._next is not None

    def _call_at(self, due: float, loop: asyncio.AbstractEventLoop) -> None:
        self._next = loop.call_at(due, self._run, due, loop)

    def _run(self, due: float, loop: asyncio.AbstractEventLoop) -> None:
        # Before the call, which may stop it, and may fail: the loop says so, and the next one comes all the same.
        late = loop.time() - due
        self._call_at(due + self._seconds * (1 + max(0.0, late) // self._seconds), loop)
        self._callback()
