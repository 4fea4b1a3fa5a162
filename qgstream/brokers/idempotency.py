"""Idempotency keys: what was published under each, for as long as a publisher may try again. Pure."""

from __future__ import annotations

from collections import OrderedDict

from qgstream.brokers.base import IDEMPOTENCY_SECONDS

# A bound for publishers that make up a key for every event at full speed: about 30 MB.
MAX_KEYS = 100_000
# Each new key makes the memory forget at most so many old ones: when 100 000 expire together, nobody waits for that.
FORGOTTEN_AT_ONCE = 2


class Keys:
    """The first offset of each key of the last five minutes.

    Time is an argument, by a clock that nobody sets: a step of it would make an event come twice, or keep one out.
    """

    def __init__(self) -> None:
        # In the order of their time. Not a plain dict: to find its first entry, Python walks all that were deleted, and
        # with 100 000 keys a new one cost 463 us instead of 4.
        self._offsets: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._offsets)

    def first_offset(self, key: str, now: float) -> int | None:
        """Where the key was published first, unless that is too long ago."""
        found = self._offsets.get(key)
        return found[1] if found is not None and now - found[0] < IDEMPOTENCY_SECONDS else None

    def remember(self, key: str, now: float, offset: int) -> None:
        """The key was published now."""
        offsets = self._offsets
        offsets.pop(key, None)  # an expired one goes to the end again
        offsets[key] = (now, offset)
        for _ in range(FORGOTTEN_AT_ONCE):
            oldest_at = offsets[next(iter(offsets))][0]
            if now - oldest_at < IDEMPOTENCY_SECONDS and len(offsets) <= MAX_KEYS:
                break
            offsets.popitem(last=False)
