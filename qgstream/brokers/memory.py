"""The embedded broker: the log is in the memory of this process, and ends with the process."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection, Sequence
from typing import Self

from qgstream.brokers.base import Broker, Forgotten, Opened, Sink
from qgstream.brokers.idempotency import IdempotencyKeys
from qgstream.errors import Unavailable
from qgstream.events.history import HistorySettings
from qgstream.events.publication import Position, Publication

# The number of events of a batch that are appended in one turn of the loop. Each event may have a key: 4 us.
APPENDED_AT_ONCE = 256


class MemoryBroker(Broker):
    """Assigns offsets and delivers in the same call. Replays are possible only within the hub's window."""

    def __init__(self) -> None:
        # A new epoch at each start: an id of an earlier start gets `epoch_changed`, and is never taken for an id of
        # this log.
        self.position = Position(secrets.token_hex(5), 0)
        self._newest = 0
        self._sink: Sink | None = None
        self._keys = IdempotencyKeys()
        self._turn = asyncio.Lock()  # held by a long batch while it is appended

    @classmethod
    def from_url(cls, url: str, *, timeout_seconds: float) -> Self:  # noqa: ARG003  # as all brokers are made
        """Create a broker for `memory://`."""
        return cls()

    @property
    def is_up(self) -> bool:
        """True once the broker is open."""
        return self._sink is not None

    @property
    def is_shared(self) -> bool:
        """False: the log belongs to this process."""
        return False

    async def open(self, sink: Sink, history: HistorySettings) -> Opened:  # noqa: ARG002  # the window is the log
        """Start a new log."""
        self._sink = sink
        return Opened(self.position, (), self.position.offset)

    async def append(self, publications: Sequence[Publication]) -> Sequence[int]:
        """Append. Batches never interleave: a batch waits until an earlier long batch is complete."""
        if len(publications) > APPENDED_AT_ONCE or self._turn.locked():
            # A separate task: once started, the whole batch is appended even if its caller is cancelled.
            task = asyncio.get_running_loop().create_task(self._append_in_turn(publications))
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            return await asyncio.shield(task)
        offsets, fresh = self._number(publications, self._newest)
        self._deliver(fresh)
        return offsets

    async def _append_in_turn(self, publications: Sequence[Publication]) -> Sequence[int]:
        async with self._turn:
            offsets: list[int] = []
            fresh: list[Publication] = []
            for start in range(0, len(publications), APPENDED_AT_ONCE):
                if start:
                    await asyncio.sleep(0)
                part = publications[start : start + APPENDED_AT_ONCE]
                numbers, new = self._number(part, self._newest + len(fresh))
                offsets += numbers
                fresh += new
            self._deliver(fresh)
            return offsets

    def _number(self, publications: Sequence[Publication], newest: int) -> tuple[list[int], list[Publication]]:
        """Assign offsets after `newest`. Return the offset of each publication, and the publications that are new."""
        self._check()
        now, unix_now = time.monotonic(), time.time()
        offsets: list[int] = []
        fresh: list[Publication] = []
        for publication in publications:
            key = publication.idempotency_key
            if key is not None:
                first = self._keys.first_offset(key, now)
                if first is not None:
                    offsets.append(first)
                    continue
                self._keys.remember(key, now, newest + 1)
            newest += 1
            publication.offset = newest
            publication.published_at = unix_now
            offsets.append(newest)
            fresh.append(publication)
        return offsets, fresh

    def _deliver(self, fresh: Sequence[Publication]) -> None:
        self._check()
        if fresh and self._sink is not None:
            self._newest = fresh[-1].offset
            self._sink.deliver(fresh)

    def _check(self) -> None:
        if self._sink is None:
            raise Unavailable("the broker is not open", retry_after_seconds=1, code="broker_down")

    async def read(
        self,
        after: int,
        limit: int,  # noqa: ARG002
        topics: Collection[str] = (),  # noqa: ARG002
    ) -> Sequence[Publication]:
        """Raise `Forgotten`: only the hub's window holds publications."""
        if after < self._newest:
            raise Forgotten(after, self._newest)
        return ()

    async def close(self) -> None:
        """Drop the log."""
        self._sink = None
