"""Evictions: some open streams end over a period, at an even pace, while the server continues to serve."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from qgstream.errors import Conflict
from qgstream.hub import Hub
from qgstream.logs import log
from qgstream.net.timer import Timer

DEFAULT_SECONDS = 30.0
MAX_SECONDS = 3600.0
# The limit on evictions under way. Each one holds the ids of its streams.
MAX_EVICTIONS = 16
_TICK_SECONDS = 0.05
_CLOSINGS = 4  # between two looks at the clock; a closing message takes about 50 us

Cause = Literal["shed", "topic", "maintenance"]


@dataclass(slots=True)
class Eviction:
    """One eviction under way: `total` streams out of `ids` will end, and `waiting` of these have not been told yet."""

    id: int
    cause: Cause
    seconds: float
    ids: list[int]
    total: int
    waiting: int
    began: float = field(default_factory=time.monotonic)
    is_walking: bool = False

    def document(self) -> dict[str, object]:
        """Return the eviction as JSON for operators."""
        return {
            "id": self.id,
            "cause": self.cause,
            "connections": self.total,
            "waiting": self.waiting,
            "seconds": self.seconds,
            "age_seconds": round(time.monotonic() - self.began, 3),
        }


class Evictions:
    """Ends the streams of each eviction in random order, with the reason `drain` and a short jittered `retry:`.

    One timer serves all evictions and runs only while there is one. The closing messages are sent in slices.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._under_way: dict[int, Eviction] = {}
        self._timer = Timer(self._tick, _TICK_SECONDS)
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._under_way)

    def __iter__(self) -> Iterator[Eviction]:
        return iter(list(self._under_way.values()))

    def get(self, id: int) -> Eviction | None:
        """Return the eviction with this id, if it is under way."""
        return self._under_way.get(id)

    def check(self, cause: Cause) -> None:
        """Raise `Conflict` when no further eviction with this cause can begin now."""
        if len(self._under_way) >= MAX_EVICTIONS:
            raise Conflict(
                "evictions", f"got {len(self._under_way)} evictions under way, expected at most {MAX_EVICTIONS}"
            )
        # Two such evictions would share some streams, and so end fewer streams than requested.
        same = [eviction.id for eviction in self._under_way.values() if eviction.cause == cause == "shed"]
        if same:
            raise Conflict("evictions", f"streams are being shed already: cancel eviction {same[0]} first")

    def begin(self, ids: list[int], seconds: float, cause: Cause, *, count: int | None = None) -> Eviction:
        """End `count` of the streams with these ids (None: all of them) over `seconds`. Raises `Conflict` as `check`
        does.

        The eviction keeps and changes the list `ids`. A stream that ends by itself in the meantime counts.
        """
        self.check(cause)
        self._last_id += 1
        total = len(ids) if count is None else min(count, len(ids))
        eviction = Eviction(self._last_id, cause, seconds, ids, total, total)
        self._under_way[eviction.id] = eviction
        log.info(
            "eviction.started",
            extra={"eviction": eviction.id, "cause": cause, "connections": eviction.total, "seconds": seconds},
        )
        if not self._timer.is_running():
            self._timer.start()
        return eviction

    def cancel(self, eviction: Eviction) -> int:
        """Cancel the eviction: streams that have not been told yet stay open. Returns their number."""
        self._finish(eviction)
        return eviction.waiting

    def stop(self) -> None:
        """Stop the timer: the server has stopped."""
        self._under_way.clear()
        self._timer.stop()

    def _tick(self) -> None:
        now = time.monotonic()
        for eviction in self:
            if eviction.is_walking:
                continue  # the loop is behind: the next run catches up
            share = min(1.0, (now - eviction.began) / eviction.seconds) if eviction.seconds else 1.0
            due = eviction.waiting - int(eviction.total * (1 - share))
            if due > 0:
                eviction.is_walking = True
                self._hub.slices.add(self._walk(eviction, due))
            elif not eviction.waiting:
                self._finish(eviction)

    def _walk(self, eviction: Eviction, due: int) -> Iterator[None]:
        ids, random = eviction.ids, self._hub.random
        try:
            for visit in range(1, due + 1):
                if eviction.id not in self._under_way:
                    break
                # In random order: clients that connected together do not reconnect together.
                place = random.randrange(len(ids))
                ids[place], ids[-1] = ids[-1], ids[place]
                eviction.waiting -= 1
                connection = self._hub.registry.get(ids.pop())
                if connection is not None:
                    self._hub.end(connection, "drain")
                if not visit % _CLOSINGS:
                    yield
        finally:
            eviction.is_walking = False

    def _finish(self, eviction: Eviction) -> None:
        if self._under_way.pop(eviction.id, None) is not None:
            seconds = round(time.monotonic() - eviction.began, 1)
            log.info(
                "eviction.finished",
                extra={"eviction": eviction.id, "cause": eviction.cause, "stayed": eviction.waiting,
                       "seconds": seconds},
            )  # fmt: skip
        if not self._under_way:
            self._timer.stop()
