"""The embedded broker: the log is this process's own, and ends with it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from typing import Self

from qgstream.brokers.base import Broker, Forgotten, Opened, Sink
from qgstream.brokers.idempotency import Keys
from qgstream.errors import Unavailable
from qgstream.publication import Position, Publication
from qgstream.window import HistorySettings


class MemoryBroker(Broker):
    """Gives offsets and delivers in the same call. What can be replayed is what the hub's window holds."""

    def __init__(self) -> None:
        # A new epoch for each life: an id of an earlier one is answered `epoch_changed`, never taken for one of ours.
        self.position = Position(secrets.token_hex(5), 0)
        self._newest = 0
        self._sink: Sink | None = None
        self._keys = Keys()

    @classmethod
    def from_url(cls, url: str, *, timeout_seconds: float) -> Self:  # noqa: ARG003  # as all brokers are made
        """`memory://`"""
        return cls()

    @property
    def is_up(self) -> bool:
        """Always, once opened."""
        return self._sink is not None

    async def open(self, sink: Sink, history: HistorySettings) -> Opened:  # noqa: ARG002  # the window is the log
        """Start at the beginning of a new log."""
        self._sink = sink
        return Opened(self.position, (), self.position.offset)

    async def append(self, publications: Sequence[Publication]) -> Sequence[int]:
        """Append; never waits, so a batch is never interleaved with another."""
        if self._sink is None:
            raise Unavailable("the broker is not open", retry_after_seconds=1, code="broker_down")
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
                self._keys.remember(key, now, self._newest + 1)
            self._newest += 1
            publication.offset = self._newest
            publication.published_at = unix_now
            offsets.append(self._newest)
            fresh.append(publication)
        if fresh:
            self._sink.deliver(fresh)
        return offsets

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
