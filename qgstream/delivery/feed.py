"""A feed: the encoded chunks of one subscription, and the cursors into them. No socket.

Subscribers with equal subscriptions share one feed. A feed only holds chunks that some subscriber does not have yet. So
a feed is empty while its subscribers keep up.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from itertools import accumulate
from typing import Any, Generic, Protocol, TypeVar

from qgstream.events.subscription import Subscription

# The maximum size of one send: four times a socket's buffer (limits.send_buffer_bytes). Without a maximum, a long
# backlog would be copied again for each 64 KiB that a slow reader takes.
MAX_JOIN_BYTES = 256 * 1024


class Follower(Protocol):
    """A subscriber, as far as a feed knows it: `parked_at` is where a parked subscriber will continue."""

    parked_at: int


F = TypeVar("F", bound=Follower)


_NOBODY: AbstractSet[Any] = frozenset()


def _with(some: AbstractSet[F], one: F) -> AbstractSet[F]:
    if not isinstance(some, set):
        return {one}
    some.add(one)
    return some


def _without(some: AbstractSet[F], one: F) -> AbstractSet[F]:
    if isinstance(some, set):
        some.discard(one)
    return some or _NOBODY


class Feed(Generic[F]):
    """Chunks `first` to `end` of a sequence that starts at 0; a cursor is the number of the next chunk to send.

    `subscribers` are live (a dict, because it has an order). `parked` has the live ones whose socket is full.
    `replaying` has those that will join when they have read the log. `end_bytes` is the total length of all chunks ever
    appended.
    """

    __slots__ = (
        "subscription", "first", "end", "end_bytes", "subscribers", "parked", "replaying", "behind_since", "reached",
        "_chunks", "_starts",
    )  # fmt: skip

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.first = 0
        self.end = 0
        self.end_bytes = 0
        self.subscribers: dict[F, None] = {}
        # An empty one is the shared `_NOBODY`: a set takes 0.2 KiB, and 10 000 users have 10 000 feeds.
        self.parked: AbstractSet[F] = _NOBODY
        self.replaying: AbstractSet[F] = _NOBODY
        # `Fanout` sets these: since when a round is due or in progress, and the end of the last round. All subscribers
        # that are not parked have the chunks before this end.
        self.behind_since: float | None = None
        self.reached = 0
        self._chunks: list[bytes] = []
        self._starts: list[int] = []  # where each chunk starts, in bytes since the beginning

    def __len__(self) -> int:
        """The number of subscribers, live and replaying."""
        return len(self.subscribers) + len(self.replaying)

    def park(self, subscriber: F) -> None:
        """Note that the socket of a live subscriber is full."""
        self.parked = _with(self.parked, subscriber)

    def unpark(self, subscriber: F) -> None:
        """Note that the socket has room again, or that the subscriber has left."""
        self.parked = _without(self.parked, subscriber)

    def begin_replay(self, subscriber: F) -> None:
        """Note that a subscriber replays, and will join."""
        self.replaying = _with(self.replaying, subscriber)

    def end_replay(self, subscriber: F) -> None:
        """Note that a replaying subscriber has joined, or left."""
        self.replaying = _without(self.replaying, subscriber)

    def append(self, chunk: bytes) -> None:
        """Add the next chunk."""
        self._chunks.append(chunk)
        self._starts.append(self.end_bytes)
        self.end += 1
        self.end_bytes += len(chunk)

    def extend(self, chunks: Sequence[bytes], size_bytes: int) -> None:
        """Add the next chunks. `size_bytes` is their total size."""
        if len(chunks) == 1:
            self._chunks += chunks
            self._starts.append(self.end_bytes)
            self.end += 1
            self.end_bytes += size_bytes
            return
        starts = list(accumulate(map(len, chunks), initial=self.end_bytes))
        starts.pop()
        self._chunks += chunks
        self._starts += starts
        self.end += len(chunks)
        self.end_bytes += size_bytes

    def join(self, cursor: int, max_bytes: int = MAX_JOIN_BYTES) -> tuple[bytes, int]:
        """Return the joined chunks from `cursor` on, and the cursor after them.

        They are at least one chunk, and at most `max_bytes` unless a single chunk is larger.
        """
        index = cursor - self.first
        if cursor == self.end - 1:
            return self._chunks[index], self.end  # the usual case: one event, no copy
        if self.end_bytes - self._starts[index] <= max_bytes:
            return b"".join(self._chunks[index:] if index else self._chunks), self.end
        stop, size = index + 1, len(self._chunks[index])
        while size + len(self._chunks[stop]) <= max_bytes:
            size += len(self._chunks[stop])
            stop += 1
        return b"".join(self._chunks[index:stop]), self.first + stop

    def split(self, cursor: int, taken_bytes: int) -> tuple[int, memoryview]:
        """Find the first chunk that was not sent completely, after a send of `taken_bytes` from `cursor` on.

        Returns the cursor after this chunk, and the rest of the chunk.
        """
        index = cursor - self.first
        while taken_bytes >= len(self._chunks[index]):
            taken_bytes -= len(self._chunks[index])
            index += 1
        return self.first + index + 1, memoryview(self._chunks[index])[taken_bytes:]

    def bytes_before(self, cursor: int) -> int:
        """Return the length of all chunks before `cursor`. The feed must still hold the chunk at `cursor`."""
        return self.end_bytes if cursor == self.end else self._starts[cursor - self.first]

    @property
    def held_bytes(self) -> int:
        """The size of the chunks that the feed holds."""
        return self.end_bytes - self._starts[0] if self._starts else 0

    def forget(self, reached: int) -> None:
        """Drop the chunks before `reached`, except chunks that parked subscribers need. All others have them."""
        needed = reached
        if self.parked:
            needed = min(reached, *[subscriber.parked_at for subscriber in self.parked])
        if needed == self.end:
            self._chunks.clear()
            self._starts.clear()
            self.first = needed
        elif needed > self.first:
            del self._chunks[: needed - self.first]
            del self._starts[: needed - self.first]
            self.first = needed
