"""A timer that goes by the monotonic clock, whatever happens to the other one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from qgstream.logs import Seldom, log


class Timer:
    """Calls `callback` every so many seconds on the running loop, from `start` to `stop`.

    Tornado's PeriodicCallback goes by the wall clock: when that is stepped back by an hour, as it is on machines that
    find out the time only then, it is silent for an hour.

    The moments at which a call is due are `start` and whole intervals after it, however late a call comes. One that
    comes a whole interval late stands for the others that were due meanwhile: `missed` of them are not made up for.
    """

    def __init__(self, callback: Callable[[], object], seconds: float) -> None:
        self._callback = callback
        self._seconds = seconds
        self._next: asyncio.TimerHandle | None = None
        # Of the call that is under way, or was the last.
        self.late_seconds = 0.0
        self.missed = 0
        self._failures = Seldom()

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
        # Before the call, which may stop it, and may fail: the next one comes all the same.
        self.late_seconds = max(0.0, loop.time() - due)
        self.missed = int(self.late_seconds // self._seconds)
        self._call_at(due + self._seconds * (1 + self.missed), loop)
        try:
            self._callback()
        except Exception:
            if self._failures.is_due():  # some call 20 times a second
                log.exception("timer.failed")
