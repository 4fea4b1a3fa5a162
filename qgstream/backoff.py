"""Backoff: the delay before the next attempt to reach an engine that is away."""

from __future__ import annotations

from random import Random

FIRST_SECONDS = 0.1
LIMIT_SECONDS = 5.0


class Backoff:
    """Delays that double from `first_seconds` up to `limit_seconds`.

    Each delay is jittered between half of its value and the whole, so that servers that lost their engine at the same
    time do not reconnect at the same time.
    """

    def __init__(
        self,
        *,
        first_seconds: float = FIRST_SECONDS,
        limit_seconds: float = LIMIT_SECONDS,
        random: Random | None = None,
    ) -> None:
        self._first = first_seconds
        self._limit = limit_seconds
        self._random = random or Random()
        self._next = first_seconds

    def seconds(self) -> float:
        """Return the next delay."""
        delay, self._next = self._next, min(2 * self._next, self._limit)
        return self._random.uniform(delay / 2, delay)

    def reset(self) -> None:
        """Start again with the shortest delay, after a success."""
        self._next = self._first
