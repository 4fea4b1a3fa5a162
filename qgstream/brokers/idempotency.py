"""Idempotency keys: what was published under each, for as long as a publisher may try again. Pure."""

from __future__ import annotations

from qgstream.brokers.base import IDEMPOTENCY_SECONDS

# A bound for publishers that make up a key for every event at full speed: about 20 MB.
MAX_KEYS = 100_000


class Keys:
    """The first offset of each key of the last five minutes. Time is an argument, in Unix seconds."""

    def __init__(self) -> None:
        self._offsets: dict[str, tuple[float, int]] = {}  # in the order of their time

    def first_offset(self, key: str, now: float) -> int | None:
        """Where the key was published first, unless that is too long ago."""
        found = self._offsets.get(key)
        return found[1] if found is not None and now - found[0] < IDEMPOTENCY_SECONDS else None

    def remember(self, key: str, now: float, offset: int) -> None:
        """The key was published now."""
        offsets = self._offsets
        offsets.pop(key, None)  # an expired one goes to the end again
        offsets[key] = (now, offset)
        while offsets:
            oldest = next(iter(offsets))
            if now - offsets[oldest][0] < IDEMPOTENCY_SECONDS and len(offsets) <= MAX_KEYS:
                break
            del offsets[oldest]
