"""Idempotency keys: the offset published under each key, for as long as a publisher may retry. Pure."""

from __future__ import annotations

from collections import OrderedDict

from qgstream.brokers.base import IDEMPOTENCY_SECONDS

# The limit for publishers that use a new key for every event at full speed: about 30 MB.
MAX_KEYS = 100_000
# Each new key removes at most this many expired keys. If 100 000 keys expire together, no publish waits for the
# removal.
FORGOTTEN_AT_ONCE = 2


class IdempotencyKeys:
    """The first offset of each key of the last five minutes.

    The time is an argument, from a clock that is never set: a clock step would publish an event twice, or drop an
    event.
    """

    def __init__(self) -> None:
        # In the order of time. An OrderedDict, because finding the first entry of a plain dict walks over all deleted
        # entries: with 100 000 keys, a new key cost 463 us instead of 4.
        self._offsets: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._offsets)

    def first_offset(self, key: str, now: float) -> int | None:
        """Return the first offset of the key, unless it has expired."""
        found = self._offsets.get(key)
        return found[1] if found is not None and now - found[0] < IDEMPOTENCY_SECONDS else None

    def remember(self, key: str, now: float, offset: int) -> None:
        """Record that the key was published now."""
        offsets = self._offsets
        offsets.pop(key, None)  # an expired key moves to the end
        offsets[key] = (now, offset)
        for _ in range(FORGOTTEN_AT_ONCE):
            oldest_at = offsets[next(iter(offsets))][0]
            if now - oldest_at < IDEMPOTENCY_SECONDS and len(offsets) <= MAX_KEYS:
                break
            offsets.popitem(last=False)
