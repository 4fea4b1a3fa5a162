"""The drain: streams end one by one, in random order and at an even pace; each is told when to reconnect."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Literal

from pydantic import Field

from qgstream.brokers.base import Broker
from qgstream.hub import Hub
from qgstream.limits import RETRY_JITTER
from qgstream.logs import log
from qgstream.settings import Section

_STEP_SECONDS = 0.05
_SAY_EVERY_SECONDS = 2.0
# Extra time after the drain for closing messages that are still being sent to clients that read. Clients that stall
# have had their time.
FLUSH_SECONDS = 1.0

DrainRetry = Literal["auto", "short", "spread"]


class DrainSettings(Section):
    """`[drain]`: how a server stops."""

    seconds: float = Field(20, ge=0, le=3600, description="Time over which the server ends the streams, evenly spread.")
    notice_seconds: float = Field(
        0,
        ge=0,
        le=600,
        description="Time between /ready becoming 503 and the close of the listeners, for balancers that need it.",
    )
    retry: DrainRetry = Field(
        "auto",
        description="`retry:` of a stream that ends. 'short': limits.retry_seconds and up to 20 % more, if another "
        "process takes the clients. 'spread' adds a random part of `seconds`, for a single process. 'auto' is 'spread' "
        "with memory:// and sqlite://, and 'short' with a broker that processes share.",
    )


def is_spread(retry: DrainRetry, broker: Broker) -> bool:
    """Return whether `retry:` is spread, because no other server can take the clients until this server is back."""
    return retry == "spread" or (retry == "auto" and not broker.is_shared)


async def drain(hub: Hub, seconds: float, cut: asyncio.Event, *, retry: DrainRetry = "auto") -> None:
    """End every stream over `seconds`; the remaining streams still receive events.

    The ends are spread evenly, so the clients reconnect evenly, each after its `retry:`. A single server has no other
    server that could take these clients. Then `retry:` is spread over `seconds` as well, so that the clients do not all
    reconnect at the start of the new process. Setting `cut` ends the drain at once. At the end, stalled streams are
    cut.
    """
    spread_seconds = hub.limits.retry_seconds * RETRY_JITTER
    if is_spread(retry, hub.broker):
        spread_seconds = max(spread_seconds, seconds)
    leaving = list(hub.registry)
    hub.random.shuffle(leaving)
    total = len(leaving)
    began = said = time.monotonic()
    log.info("drain.started", extra={"connections": total, "seconds": seconds})
    while leaving and not cut.is_set():
        now = time.monotonic()
        share = min(1.0, (now - began) / seconds) if seconds else 1.0
        while len(leaving) > total * (1 - share):
            retry_seconds = hub.limits.retry_seconds + hub.random.random() * spread_seconds
            hub.end(leaving.pop(), "drain", retry_ms=int(retry_seconds * 1000))
        if now - said >= _SAY_EVERY_SECONDS:
            said = now
            log.info("drain.progress", extra={"left": len(hub.registry), "seconds": round(now - began, 1)})
        await wait(cut, _STEP_SECONDS)
    deadline = time.monotonic() + FLUSH_SECONDS
    while len(hub.registry) and time.monotonic() < deadline and not cut.is_set():
        await wait(cut, _STEP_SECONDS)
    stalled = list(hub.registry)
    hub.is_cutting = True
    for connection in stalled:
        connection.close("drain")
    hub.is_cutting = False
    log.info("drain.finished", extra={"cut": len(stalled), "seconds": round(time.monotonic() - began, 1)})


async def wait(cut: asyncio.Event, seconds: float) -> None:
    """Wait `seconds`, or until `cut` is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(cut.wait(), seconds)
