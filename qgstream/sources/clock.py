"""A clock: events for a first try, and a pulse for pages."""

from __future__ import annotations

import asyncio
import time

from qgstream.logs import utc_iso
from qgstream.sources.base import Draft, Events
from qgstream.sources.lines import Seconds


async def clock(*, topic: str = "clock", event: str | None = None, interval_seconds: Seconds = 1) -> Events:
    """Yield the time, `{"time": ...}`, at once and then at every whole multiple of the interval. Missed ticks are
    skipped."""
    while True:
        yield Draft(topic, {"time": utc_iso(time.time())}, event)
        due = (time.time() // interval_seconds + 1) * interval_seconds
        # Timers may fire slightly early. After the clock was set back, the loop does not wait for the old time.
        while 0 < (wait := due - time.time()) <= interval_seconds:  # noqa: ASYNC110  # the loop waits for a time
            await asyncio.sleep(wait)
