"""The drain: the streams end one by one, in random order, at an even pace, told when to come back."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from pydantic import Field

from qgstream.hub import Hub
from qgstream.logs import log
from qgstream.settings import Section

_STEP_SECONDS = 0.05
_SAY_EVERY_SECONDS = 2.0
# After the window, for goodbyes that are on their way to those that read. The others have had their time.
LINGER_SECONDS = 1.0


class DrainSettings(Section):
    """`[drain]`: how a server leaves."""

    seconds: float = Field(20, ge=0, le=3600, description="Over which the streams are told to go, evenly spread.")
    notice_seconds: float = Field(
        0, ge=0, le=600, description="Between /ready turning 503 and the listeners closing: what a balancer needs."
    )


async def drain(hub: Hub, seconds: float, cut: asyncio.Event) -> None:
    """End every stream over `seconds`; events go on to those that remain.

    Each gets a `retry:` spread over the same window, so that its clients do not come back as one either. Setting `cut`
    ends it at once. What is stalled at the end is cut.
    """
    leaving = list(hub.registry)
    hub.random.shuffle(leaving)
    total = len(leaving)
    began = said = time.monotonic()
    log.info("drain.started", extra={"connections": total, "seconds": seconds})
    while leaving and not cut.is_set():
        now = time.monotonic()
        share = min(1.0, (now - began) / seconds) if seconds else 1.0
        while len(leaving) > total * (1 - share):
            retry_seconds = hub.limits.retry_seconds + hub.random.random() * seconds
            hub.end(leaving.pop(), "drain", retry_ms=int(retry_seconds * 1000))
        if now - said >= _SAY_EVERY_SECONDS:
            said = now
            log.info("drain.progress", extra={"left": len(hub.registry), "seconds": round(now - began, 1)})
        await wait(cut, _STEP_SECONDS)
    deadline = time.monotonic() + LINGER_SECONDS
    while len(hub.registry) and time.monotonic() < deadline and not cut.is_set():
        await wait(cut, _STEP_SECONDS)
    stalled = list(hub.registry)
    for connection in stalled:
        connection.close("drain")
    log.info("drain.finished", extra={"cut": len(stalled), "seconds": round(time.monotonic() - began, 1)})


async def wait(cut: asyncio.Event, seconds: float) -> None:
    """Wait `seconds`, or until `cut` is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(cut.wait(), seconds)
