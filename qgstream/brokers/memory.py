"""The embedded broker: the log is this process's own, and ends with it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection, Sequence
from typing import Self

from qgstream.brokers.base import Broker, Forgotten, Opened, Sink
from qgstream.brokers.idempotency import Keys
from qgstream.errors import Unavailable
from qgstream.events.history import HistorySettings
from qgstream.events.publication import Position, Publication

# Events of a batch that are appended in one turn of the loop. Each may have a key: 4 us.
APPENDED_AT_ONCE = 256


class MemoryBroker(Broker):
    """Gives offsets and delivers in the same call. What can be replayed is what the hub's window holds."""

    def __init__(self) -> None:
        # A new epoch for each life: an id of an earlier one is answered `epoch_changed`, never taken for one of ours.
        self.position = Position(secrets.token_hex(5), 0)
        self._newest = 0
        self._sink: Sink | None = None
        self._keys = Keys()
        self._turn = asyncio.Lock()  # a long batch has it, for as long as it takes

    @classmethod
    def from_url(cls, url: str, *, timeout_seconds: float) -> Self:  # noqa: ARG003  # as all brokers are made
        """`memory://`"""
        return cls()

    @property
    def is_up(self) -> bool:
        """Always, once opened."""
        return self._sink is not None

    @property
    def is_shared(self) -> bool:
        """Never: the log is this process's own."""
        return False

    async def open(self, sink: Sink, history: HistorySettings) -> Opened:  # noqa: ARG002  # the window is the log
        """Start at the beginning of a new log."""
        self._sink = sink
        return Opened(self.position, (), self.position.offset)

    async def append(self, publications: Sequence[Publication]) -> Sequence[int]:
        """Append. A batch is never interleaved with another: what comes while a long one is under way waits for it."""
        if len(publications) > APPENDED_AT_ONCE or self._turn.locked():
            # A task of its own: once begun, it is appended whole, also when nobody waits for it any more.
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
        """Give offsets behind `newest`: those of all, and the publications that were not appended before."""
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
        """Nothing is kept besides the hub's window."""
        if after < self._newest:
            raise Forgotten(after, self._newest)
        return ()

    async def close(self) -> None:
        """Forget the log."""
        self._sink = None
