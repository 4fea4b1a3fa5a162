"""A batch of publications for the feeds: selects and encodes the publications of each subscription. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from qgstream.events.publication import Publication
from qgstream.events.subscription import Subscription
from qgstream.events.topics import matches_any


class Chunks(NamedTuple):
    """The chunks that a subscription gets of a batch, and for each chunk the index of its publication."""

    chunks: Sequence[bytes]
    indexes: Sequence[int]
    size_bytes: int


_NO_CHUNKS = Chunks((), (), 0)


class Batch:
    """Publications of one log, by the patterns of the subscriptions that want them.

    A feed gets all of its events of a batch at once. The batch selects and frames public events once for all feeds with
    the same pattern, filter and framing. Otherwise 3 000 feeds that want 300 events would need 900 000 checks.
    """

    def __init__(self, publications: Sequence[Publication], epoch: str) -> None:
        self.by_pattern: dict[str, list[int]] = {}  # indexes, in order
        self._publications = publications
        self._epoch = epoch
        self._has_private = any(publication.private for publication in publications)
        self._last: Subscription | None = None
        self._last_chunks = _NO_CHUNKS
        self._made: list[dict[int, bytes]] = [{} for _ in publications]
        self._open: dict[tuple[str, frozenset[str], frozenset[str]], list[int] | None] = {}
        self._chunks: dict[tuple[str, int, frozenset[str], frozenset[str]], Chunks] = {}

    def ask(self, index: int, pattern: str) -> None:
        """Note that a feed asks for a publication with this pattern. Call this in the order of the publications."""
        asked = self.by_pattern.setdefault(pattern, [])
        if not asked or asked[-1] != index:
            asked.append(index)

    def patterns_of(self, subscription: Subscription) -> list[str]:
        """Return the patterns of a subscription that match any of the publications."""
        by_pattern = self.by_pattern
        return [pattern for pattern in subscription.patterns or ("*",) if pattern in by_pattern]

    def wanted(self, subscription: Subscription, pattern: str) -> list[int]:
        """Return the indexes of the publications that match the pattern and that the subscription wants."""
        found = self._public(subscription, pattern)
        if found is not None:
            return found
        return [index for index in self.by_pattern[pattern] if subscription.wants(self._publications[index])]

    def _public(self, subscription: Subscription, pattern: str) -> list[int] | None:
        """Return the same as `wanted` if grants have no effect on the result; otherwise None."""
        private, events = subscription.private_topics.patterns, subscription.events
        if not private and not events and not self._has_private:
            return self.by_pattern[pattern]
        key = pattern, private, events
        if key not in self._open:
            asked = self.by_pattern[pattern]
            publications = [self._publications[index] for index in asked]
            if any(p.private or (private and any(matches_any(private, topic) for topic in p.topics))
                   for p in publications):  # fmt: skip
                self._open[key] = None
            elif events:
                fits = [(publication.event or "message") in events for publication in publications]
                self._open[key] = [index for index, fit in zip(asked, fits, strict=True) if fit]
            else:
                self._open[key] = asked
        return self._open[key]

    def chunks(self, subscription: Subscription, patterns: Sequence[str]) -> Chunks:
        """Return the chunks for a subscription. `patterns` is the result of `patterns_of`."""
        parts = [part for pattern in patterns if (part := self._chunks_of(subscription, pattern)).chunks]
        if len(parts) == 1:
            return parts[0]
        found = {index: chunk for part in parts for chunk, index in zip(part.chunks, part.indexes, strict=True)}
        indexes = sorted(found)
        return _summed([found[index] for index in indexes], indexes)

    def chunks_on(self, subscription: Subscription, pattern: str) -> Chunks:
        """Return the chunks for a subscription of which only one pattern matches the batch."""
        # HOT PATH if each user has a topic: most subscriptions equal the previous one, which `turn` resets.
        last = self._last
        if (
            last is not None
            and subscription.framing is last.framing
            and subscription.envelope is last.envelope
            and subscription.events is last.events
            and subscription.private_topics is last.private_topics
        ):
            return self._last_chunks
        found = self._chunks_of(subscription, pattern)
        if self._public(subscription, pattern) is not None:
            self._last, self._last_chunks = subscription, found
        return found

    def turn(self) -> None:
        """Reset the cache of `chunks_on`: another pattern is next, or other work may have changed private topics."""
        self._last = None

    def _chunks_of(self, subscription: Subscription, pattern: str) -> Chunks:
        key = (
            pattern, subscription.framing + 2 * subscription.envelope, subscription.events,
            subscription.private_topics.patterns,
        )  # fmt: skip
        found = self._chunks.get(key)
        if found is None:
            indexes = self._public(subscription, pattern)
            if indexes is None:
                return self._framed(subscription, self.wanted(subscription, pattern))
            found = self._chunks[key] = self._framed(subscription, indexes)
        return found

    def _framed(self, subscription: Subscription, indexes: Sequence[int]) -> Chunks:
        publications, epoch, made = self._publications, self._epoch, self._made
        return _summed([subscription.frame(publications[index], epoch, made[index]) for index in indexes], indexes)


def _summed(chunks: Sequence[bytes], indexes: Sequence[int]) -> Chunks:
    return Chunks(chunks, indexes, sum(map(len, chunks)))
