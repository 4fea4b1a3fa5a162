"""A clock: something to look at, and a pulse for pages that want one."""

from __future__ import annotations

import asyncio
import time

from qgstream.logs import utc_iso
from qgstream.sources.base import Draft, Events
from qgstream.sources.lines import Seconds


async def clock(*, topic: str = "clock", event: str | None = None, interval_seconds: Seconds = 1) -> Events:
    """The time, `{"time": ...}`, at once and then at every whole multiple of the interval. No tick is made up for."""
    while True:
        yield Draft(topic, {"time": utc_iso(time.time())}, event)
        due = (time.time() // interval_seconds + 1) * interval_seconds
        # Timers may come a hair too early; and a clock that was set back is not waited for.
        while 0 < (wait := due - time.time()) <= interval_seconds:  # noqa: ASYNC110  # it is the time that is waited for
            await asyncio.sleep(wait)
