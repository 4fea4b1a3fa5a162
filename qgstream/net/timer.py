"""A periodic callback on the monotonic clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tornado.ioloop import IOLoop, PeriodicCallback

from qgstream.logs import LogThrottle, log


class Timer(PeriodicCallback):
    """Calls `callback`, a plain function, once per interval on the running loop, from `start` to `stop`.

    Tornado's PeriodicCallback uses the wall clock. If that clock is stepped back by an hour, Tornado's callback does
    not run for an hour.

    A call is due at `start` plus each whole multiple of the interval, independent of late calls. A call that is more
    than one interval late replaces the calls that were due meanwhile: `missed` counts the skipped calls.
    """

    def __init__(self, callback: Callable[[], object], seconds: float) -> None:
        super().__init__(callback, seconds * 1000)  # type: ignore[arg-type]  # what it returns is not looked at
        self._seconds = seconds
        # The delay of the current or the most recent call.
        self.late_seconds = 0.0
        self.missed = 0
        self._failures = LogThrottle()

    def start(self) -> None:
        """Start; the first call comes after one interval."""
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
        # Scheduled before the call, because the call may stop this timer or raise: the next call must come all the
        # same.
        self._schedule_next()
        try:
            self.callback()
        except Exception:
            if self._failures.is_due():  # some timers run 20 times a second
                log.exception("timer.failed")
