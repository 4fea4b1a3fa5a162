"""How long to wait before an engine that is away is tried again."""

from __future__ import annotations

from random import Random

FIRST_SECONDS = 0.1
LIMIT_SECONDS = 5.0


class Backoff:
    """Delays that double from `first_seconds` up to `limit_seconds`, each jittered from half of itself to the whole: N
    servers that lost their engine in the same moment do not come back to it in the same moment."""

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
        """The next delay."""
        delay, self._next = self._next, min(2 * self._next, self._limit)
        return self._random.uniform(delay / 2, delay)

    def reset(self) -> None:
        """It was reached: the next time begins anew."""
        self._next = self._first
