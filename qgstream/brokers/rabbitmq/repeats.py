"""Detects messages of a stream that repeat an earlier message. Pure.

RabbitMQ appends every message, so readers skip repetitions, and every reader must skip the same ones, wherever it
started to read. So the decision uses only nearby messages: a message is a repetition if a message with the same key is
among those that its publisher could not know. A qgstream server states how far it had read (it never publishes a key
that it knows). For all other publishers the last `REACH` messages count, if both messages state their time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from qgstream.brokers.base import IDEMPOTENCY_SECONDS
from qgstream.brokers.rabbitmq.messages import Entry

# The number of messages before a message in which its key may occur. To judge a single message, these must be read
# again.
REACH = 1000
# The number of remembered repetitions; older ones are detected again when needed.
MAX_REPEATED = 10_000


@dataclass(slots=True)
class _Copy:
    """The newest message with a key, and the position of the first message with this key."""

    position: int
    at: float | None
    first: int


def reach_of(entry: Entry) -> int:
    """Return the position after which copies of the entry's key count."""
    return max(entry.slip.seen if entry.slip is not None else 0, entry.position - 1 - REACH)


class Repeats:
    """Examines the stream in order. Decisions are certain after the position `since`."""

    def __init__(self, since: int) -> None:
        self.since = since
        self.up_to = since
        # In the order of positions. An OrderedDict, because finding the first entry of a plain dict walks over all
        # deleted entries.
        self._copies: OrderedDict[str, _Copy] = OrderedDict()
        self._repeated: set[int] = set()

    def take(self, entry: Entry) -> int | None:
        """Examine the next message. Return the position of the first message with its key if the message is a
        repetition."""
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
        """Whether all messages between these positions, and all messages that decide about them, were examined."""
        return self.since <= after and up_to <= self.up_to

    def is_repeated(self, entry: Entry) -> bool:
        """Whether an examined message is a repetition."""
        return entry.position in self._repeated


def first_needed(entries: Iterable[Entry], after: int) -> int:
    """Return the position after which to read, to judge these messages, which start after `after`."""
    return min([after, *(reach_of(entry) for entry in entries if entry.key is not None)])


def _is_within(copy: _Copy, entry: Entry) -> bool:
    if entry.slip is not None:
        return True  # the messages that its publisher could not know are recent
    return entry.at is not None and copy.at is not None and abs(entry.at - copy.at) < IDEMPOTENCY_SECONDS
