"""Which messages of a stream repeat an earlier one. Pure.

RabbitMQ appends whatever it gets, so readers leave repetitions out, and every reader must leave out the same ones,
wherever it began to read. So what decides lies near the message itself: it is a repetition if a message with the same
key is among those that its publisher could not know of. A server of ours says how far it had seen (it publishes no key
that it knows); of all others the last `REACH` messages count, if both say when they were published.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from qgstream.brokers.base import IDEMPOTENCY_SECONDS
from qgstream.brokers.rabbitmq.messages import Entry

# Messages before another in which its key may be: what must be read again to judge one that is read by itself.
REACH = 1000
# Positions of repetitions that are remembered; older ones are found out again when they are asked for.
MAX_REPEATED = 10_000


@dataclass(slots=True)
class _Copy:
    """The newest message with a key, and the position of the one that counts."""

    position: int
    at: float | None
    first: int


def reach_of(entry: Entry) -> int:
    """The position behind which copies of its key count."""
    return max(entry.slip.seen if entry.slip is not None else 0, entry.position - 1 - REACH)


class Repeats:
    """Looks at the stream in order. `since` is the position from behind which its judgement is sure."""

    def __init__(self, since: int) -> None:
        self.since = since
        self.up_to = since
        # In the order of their positions. Not a plain dict: to find its first entry, Python walks all deleted ones.
        self._copies: OrderedDict[str, _Copy] = OrderedDict()
        self._repeated: set[int] = set()

    def take(self, entry: Entry) -> int | None:
        """The next message; the position of the first one if it is a repetition."""
        self.up_to = entry.position
        if entry.key is None:
            return None
        copies = self._copies
        copy = copies.pop(entry.key, None)
        is_repeated = copy is not None and copy.position > reach_of(entry) and _is_within(copy, entry)
        first = copy.first if copy is not None and is_repeated else entry.position
        copies[entry.key] = _Copy(entry.position, entry.at, first)
        while next(iter(copies.values())).position < entry.position - REACH:
            copies.popitem(last=False)
        if not is_repeated:
            return None
        if len(self._repeated) == MAX_REPEATED:
            self._repeated.clear()
            self.since = entry.position - 1
        self._repeated.add(entry.position)
        return first

    def knows(self, after: int, up_to: int) -> bool:
        """Whether it has looked at everything between these positions, and all that decides about it."""
        return self.since <= after and up_to <= self.up_to

    def is_repeated(self, entry: Entry) -> bool:
        """Whether a message that it knows is a repetition."""
        return entry.position in self._repeated


def first_needed(entries: Iterable[Entry], after: int) -> int:
    """The position from behind which to read, to judge these messages, which begin behind `after`."""
    return min([after, *(reach_of(entry) for entry in entries if entry.key is not None)])


def _is_within(copy: _Copy, entry: Entry) -> bool:
    if entry.slip is not None:
        return True  # what it could not know of is moments old
    return entry.at is not None and copy.at is not None and abs(entry.at - copy.at) < IDEMPOTENCY_SECONDS
