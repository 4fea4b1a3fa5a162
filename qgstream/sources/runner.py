"""Runs sources: the events that a source yields go into the hub. One task for each source; a source that fails is
restarted."""

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

# The pause between a failure and the next try, doubling from the first value to the second. A source's server may be
# down for a long time, and then one log line a minute is enough.
RESTART_FIRST_SECONDS = 0.5
RESTART_LIMIT_SECONDS = 60.0
# A source that ran this long has recovered, and its next failure counts as the first.
STEADY_SECONDS = 60.0
# The time between two log lines about refused events.
SAY_EVERY_SECONDS = 60.0
# A list goes into the log in parts of this size, at about 30 us an event. A source that never waits lets other tasks
# run after this time.
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
        self._namespace = namespace(
            "source", self.name
        )  # derived from its name: in several processes it is one publisher
        self._backoff = backoff or Backoff(first_seconds=RESTART_FIRST_SECONDS, limit_seconds=RESTART_LIMIT_SECONDS)
        self._leaving = self._publishing = False
        self._task: asyncio.Task[None] | None = None
        self._refused = 0  # not logged yet
        self._said_at = -SAY_EVERY_SECONDS
        self._turned_at = 0.0
        hub.metrics.knows_source(self.name)

    def start(self) -> None:
        """Start on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self.run(), name=f"source {self.name}")

    @property
    def is_running(self) -> bool:
        """Whether the source was started and has not ended."""
        return self._task is not None and not self._task.done()

    def leave(self) -> None:
        """Stop soon. Events on their way into the log are stored, and the generator may clean up."""
        self._leaving = True
        if self._task is not None and not self._publishing:
            self._task.cancel()

    def stop(self, *, late: bool = True) -> None:
        """Stop now; `late` says that the source had its time to stop."""
        if self._task is not None and not self._task.done():
            if late:
                log.warning("source.stuck", extra={"source": self.name})
            self._task.cancel()

    async def run(self) -> None:
        """Run the source until it is over, and again after each failure."""
        while not self._leaving:
            began = time.monotonic()
            try:
                with self._hub.metrics.source_runs(self.name):
                    log.info("source.started", extra={"source": self.name})
                    async with aclosing(cast(Events, self._source.events())) as events:
                        await self._take_all(events)
            except (Exception, asyncio.CancelledError) as error:  # from a user's code, which must not end the server
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
            self._publishing = True  # yielded events are stored even if the server is draining
            try:
                for start in range(0, len(items), MAX_PART):
                    await self._take(items[start : start + MAX_PART])
            finally:
                self._publishing = False
            if self._leaving:
                return
            await self._turn()

    async def _take(self, items: Sequence[object], *, tell: bool = True) -> None:
        """Store the items, however long that takes; the source is asked for more afterwards. `tell` is called with the
        items that are no events."""
        publications = self._checked(items, tell=tell)
        patience = Backoff()
        while publications:
            try:
                await self._hub.publish_all(publications)
            except Unavailable:
                # The broker logs when it went down and when it is back.
                await asyncio.sleep(patience.seconds())
                # Again with the whole part: the result of the others is unknown, and the log may contain them.
                publications = self._checked(items, tell=False)
            except (BadRequest, TooLarge) as error:  # the broker can never accept one of these events
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
    """Return whether this task was cancelled. A source may also wait for a task of its own that was cancelled."""
    task = asyncio.current_task()
    return task is not None and bool(task.cancelling())


class Intakes:
    """The sources of one server."""

    def __init__(self, hub: Hub, sources: Sequence[Source]) -> None:
        self._intakes = [Intake(hub, source) for source in sources]

    @property
    def running(self) -> bool:
        """Whether one of the sources has not ended."""
        return any(intake.is_running for intake in self._intakes)

    def start(self) -> None:
        """Start all sources."""
        for intake in self._intakes:
            intake.start()

    def leave(self) -> None:
        """Stop all sources soon."""
        for intake in self._intakes:
            intake.leave()

    def stop(self, *, late: bool = True) -> None:
        """Stop now the sources that have not ended; `late` says that they had their time."""
        for intake in self._intakes:
            intake.stop(late=late)
