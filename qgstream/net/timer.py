"""A periodic callback that goes by the monotonic clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tornado.ioloop import IOLoop, PeriodicCallback

from qgstream.logs import Seldom, log


class Timer(PeriodicCallback):
    """Calls `callback`, a plain function, every so many seconds on the running loop, from `start` to `stop`.

    Tornado's own PeriodicCallback goes by the wall clock. When that clock is stepped back by an hour, Tornado's is
    silent for an hour.

    A call is due at `start` plus each whole multiple of the interval, however late a call comes. A call that comes more
    than one interval late stands for the calls that were due meanwhile: `missed` of them are not made up for.
    """

    def __init__(self, callback: Callable[[], object], seconds: float) -> None:
        super().__init__(callback, seconds * 1000)  # type: ignore[arg-type]  # what it returns is not looked at
        self._seconds = seconds
        # Of the call that is under way, or was the last.
        self.late_seconds = 0.0
        self.missed = 0
        self._failures = Seldom()

    def start(self) -> None:
        """Begin; the first call comes after one interval."""
        self.io_loop = IOLoop.current()
        self._running = True
        self._next_timeout = asyncio.get_running_loop().time()
        self._schedule_next()

    def _schedule_next(self) -> None:
        if self._running:
            loop = asyncio.get_running_loop()
            self._update_next(loop.time())
            self._timeout = loop.call_at(self._next_timeout, self._call)

    def _call(self) -> None:
        self.late_seconds = max(0.0, asyncio.get_running_loop().time() - self._next_timeout)
        self.missed = int(self.late_seconds // self._seconds)
        # Before the call, which may stop this timer, and may fail: the next call comes all the same.
        self._schedule_next()
        try:
            self.callback()
        except Exception:
            if self._failures.is_due():  # some call 20 times a second
                log.exception("timer.failed")
