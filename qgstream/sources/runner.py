"""Intake: what sources yield goes into the hub, one task for each source, and a source that fails is begun again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from typing import cast

from qgstream.backoff import Backoff
from qgstream.errors import BadRequest, TooLarge, Unavailable
from qgstream.events.namespaces import namespace
from qgstream.events.publication import Publication
from qgstream.hub import Hub
from qgstream.logs import log
from qgstream.sources.base import Events, Function, Restart, Source, SourceFailed, as_draft, check_function
from qgstream.talkers import data_bytes

# Between a failure and the next try, doubling from the one to the other: whatever a source leans on may be away for
# long, and then a line of log a minute says enough.
RESTART_FIRST_SECONDS = 0.5
RESTART_LIMIT_SECONDS = 60.0
# A source that ran this long has recovered, and its next failure is a first one.
STEADY_SECONDS = 60.0
# Between two lines of the log about what was refused.
SAY_EVERY_SECONDS = 60.0
# A list goes into the log in parts of this size, at about 30 us an event, and a source that never waits for anything
# lets the loop turn after this long.
MAX_PART = 100
MAX_TURN_SECONDS = 0.002


async def run_source(hub: Hub, events: Function, *, name: str | None = None, restart: Restart = "on-failure") -> None:
    """Publish what an async generator function yields, until it ends or this task is cancelled.

    After a failure, the function is called again; the failure is logged and counted.

    Args:
        hub: The hub to publish through.
        events: The function. `functools.partial` gives it arguments.
        name: What the log and the metrics call it; by default the name of the function.
        restart: `"always"` calls the function again when it has come to its end, too.

    Raises:
        ConfigError: `events` is no async generator function.

    Example::

        from collections.abc import AsyncIterator

        import qgstream

        async def prices() -> AsyncIterator[qgstream.Draft]:
            yield qgstream.Draft("prices", {"price": 7}, event="changed")

        hub = qgstream.Hub()
        await hub.start()
        await qgstream.run_source(hub, prices)
        await hub.stop()
    """
    function = events.func if isinstance(events, partial) else events
    label = name or str(getattr(function, "__name__", "source"))
    await Intake(hub, Source(label, check_function(events, label), restart)).run()


class Intake:
    """One source and its runs."""

    def __init__(self, hub: Hub, source: Source, *, backoff: Backoff | None = None) -> None:
        self.name = source.name
        self._hub = hub
        self._source = source
        self._namespace = namespace("source", self.name)  # of its name: in several processes it is one publisher
        self._backoff = backoff or Backoff(first_seconds=RESTART_FIRST_SECONDS, limit_seconds=RESTART_LIMIT_SECONDS)
        self._leaving = self._publishing = False
        self._task: asyncio.Task[None] | None = None
        self._refused = 0  # and not told of yet
        self._said_at = -SAY_EVERY_SECONDS
        self._turned_at = 0.0
        hub.metrics.knows_source(self.name)

    def start(self) -> None:
        """Run, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self.run(), name=f"source {self.name}")

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not come to its end."""
        return self._task is not None and not self._task.done()

    def leave(self) -> None:
        """End soon. What is on its way into the log gets there, and the generator may clean up."""
        self._leaving = True
        if self._task is not None and not self._publishing:
            self._task.cancel()

    def stop(self, *, late: bool = True) -> None:
        """End now; `late` says that it had its time."""
        if self._task is not None and not self._task.done():
            if late:
                log.warning("source.stuck", extra={"source": self.name})
            self._task.cancel()

    async def run(self) -> None:
        """Run the source until it is over, again after each failure."""
        while not self._leaving:
            began = time.monotonic()
            try:
                with self._hub.metrics.source_runs(self.name):
                    log.info("source.started", extra={"source": self.name})
                    async with aclosing(cast(Events, self._source.events())) as events:
                        await self._take_all(events)
            except (Exception, asyncio.CancelledError) as error:  # of somebody else's code, and the server outlives it
                if isinstance(error, asyncio.CancelledError) and _was_cancelled():
                    raise
                delay = self._delay(began)
                self._hub.metrics.source_failed(self.name)
                facts = {"source": self.name, "restart_seconds": round(delay, 3)}
                if isinstance(error, SourceFailed):
                    log.error("source.failed", extra=facts | {"reason": str(error)})
                else:
                    log.exception("source.failed", extra=facts)
            else:
                if self._source.restart != "always":
                    break
                delay = self._delay(began)
                log.info("source.ended", extra={"source": self.name, "restart_seconds": round(delay, 3)})
            if not self._leaving:
                await asyncio.sleep(delay)
        log.info("source.ended", extra={"source": self.name})

    def _delay(self, began: float) -> float:
        if time.monotonic() - began >= STEADY_SECONDS:
            self._backoff.reset()
        return self._backoff.seconds()

    async def _take_all(self, events: Events) -> None:
        async for item in events:
            items = item if isinstance(item, list | tuple) else [item]
            self._publishing = True  # what was yielded is not dropped because the server leaves
            try:
                for start in range(0, len(items), MAX_PART):
                    await self._take(items[start : start + MAX_PART])
            finally:
                self._publishing = False
            if self._leaving:
                return
            await self._turn()

    async def _take(self, items: Sequence[object], *, tell: bool = True) -> None:
        """Into the log, however long that takes; the source is not asked for more before. `tell`: of those that are no
        events."""
        publications = self._checked(items, tell=tell)
        patience = Backoff()
        while publications:
            try:
                await self._hub.publish_all(publications)
            except Unavailable:
                # The broker says in the log when it went and when it is back.
                await asyncio.sleep(patience.seconds())
                # Anew: what became of the others is not known, and the log may hold them.
                publications = self._checked(items, tell=False)
            except (BadRequest, TooLarge) as error:  # the broker can never take one of them
                if len(items) == 1:
                    self._refuse(str(error))
                    break
                for item in items:
                    await self._take([item], tell=False)
                return
            else:
                self._hub.metrics.source_brought(self.name, len(publications))
                size = data_bytes(publication.data for publication in publications)
                self._hub.talkers.brought("source", self.name, len(publications), size, time.monotonic())
                break
        await self._turn()

    async def _turn(self) -> None:
        if time.monotonic() - self._turned_at > MAX_TURN_SECONDS:
            await asyncio.sleep(0)
            self._turned_at = time.monotonic()

    def _checked(self, items: Sequence[object], *, tell: bool) -> list[Publication]:
        publications = []
        for item in items:
            try:
                one = as_draft(item)
                publications.append(one.publication(self._hub.limits.max_event_bytes, namespace=self._namespace))
            except (BadRequest, TooLarge) as error:
                if tell:
                    self._refuse(str(error))
        return publications

    def _refuse(self, reason: str) -> None:
        self._hub.metrics.source_refused(self.name)
        self._refused += 1
        now = time.monotonic()
        self._hub.talkers.refused_source(self.name, now)
        if now - self._said_at >= SAY_EVERY_SECONDS:
            log.warning("source.refused", extra={"source": self.name, "reason": reason, "count": self._refused})
            self._said_at, self._refused = now, 0


def _was_cancelled() -> bool:
    """Whether somebody cancelled this task; a source may also wait for one of its own that was cancelled."""
    task = asyncio.current_task()
    return task is not None and bool(task.cancelling())


class Intakes:
    """The sources of one server."""

    def __init__(self, hub: Hub, sources: Sequence[Source]) -> None:
        self._intakes = [Intake(hub, source) for source in sources]

    @property
    def running(self) -> bool:
        """Whether one of them has not come to its end."""
        return any(intake.is_running for intake in self._intakes)

    def start(self) -> None:
        """Begin all of them."""
        for intake in self._intakes:
            intake.start()

    def leave(self) -> None:
        """End all of them soon."""
        for intake in self._intakes:
            intake.leave()

    def stop(self, *, late: bool = True) -> None:
        """End those that have not ended, now; `late` says that they had their time."""
        for intake in self._intakes:
            intake.stop(late=late)
