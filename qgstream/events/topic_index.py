"""What a window holds of each topic, in the log's order. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from operator import attrgetter

from qgstream.events.pattern_sets import PatternSet
from qgstream.events.prefix_index import PrefixIndex
from qgstream.events.publication import Publication

# More publications than this are merged as they are needed, and not sorted first: about a millisecond.
MOST_SORTED = 4096

_GONE = Publication((), b"")
_offset = attrgetter("offset")


class _Entries(list[Publication]):
    """Several publications of one topic. Those before the index `start` are gone, and `_GONE` stands for each."""

    __slots__ = ("start",)

    start: int


class TopicIndex:
    """The held publications by topic.

    Adding and discarding take O(1) for each topic of a publication when the oldest one of the topic goes first, as
    nearly all do. A topic with one publication, which may be the case for 100 000 topics, has no list of its own.
    """

    __slots__ = ("_of", "_outlived", "_prefix_index")

    def __init__(self) -> None:
        self._of: dict[str, Publication | _Entries] = {}
        # The topics whose newest publication is gone although an older one is held, which has a longer age limit.
        self._outlived: set[str] = set()
        self._prefix_index = PrefixIndex()

    def __len__(self) -> int:
        """How many topics something is held of."""
        return len(self._of)

    def __contains__(self, topic: str) -> bool:
        return topic in self._of

    # Keeping it.

    def add(self, publication: Publication) -> None:
        """Take the log's next publication."""
        of = self._of
        for topic in publication.topics:
            held = of.get(topic)
            if held is None:
                of[topic] = publication
                self._prefix_index.add(topic)
            elif isinstance(held, _Entries):
                held.append(publication)
            else:
                of[topic] = entries = _Entries((held, publication))
                entries.start = 0
        if self._outlived:
            self._outlived.difference_update(publication.topics)

    def discard(self, publication: Publication) -> None:
        """Let go of a publication that was added."""
        of = self._of
        for topic in publication.topics:
            held = of[topic]
            if not isinstance(held, _Entries):
                self._drop(topic)
                continue
            start = held.start
            if held[start] is publication:
                held[start] = _GONE
                start = held.start = start + 1
                if start == len(held):
                    self._drop(topic)
                elif start + start > len(held):
                    del held[:start]
                    held.start = 0
            else:
                index = bisect_left(held, publication.offset, start, key=_offset)
                if index == len(held) - 1:
                    self._outlived.add(topic)
                del held[index]

    def _drop(self, topic: str) -> None:
        del self._of[topic]
        self._prefix_index.discard(topic)
        self._outlived.discard(topic)

    # Asking it.

    def newest_on(self, topic: str) -> Publication | None:
        """The newest publication of a topic, if that is held."""
        held = self._of.get(topic)
        if topic in self._outlived:
            return None
        return held[-1] if isinstance(held, _Entries) else held

    def sort(self, most: int) -> bool:
        """Prepare for patterns that are prefixes, at the cost of at most so many topics; True when that is done."""
        return self._prefix_index.settle(most)

    def topics_under(self, patterns: PatternSet, most: int) -> list[str] | None:
        """The topics that the patterns cover and of which something is held; None if they are more than `most`.

        The cost is what is found, and a search for each pattern. Call `sort` first, unless the patterns are names or
        `*`.
        """
        found: list[str] = []
        for pattern in patterns:
            if not pattern.endswith("*"):
                found += [pattern] if pattern in self._of else []
            elif pattern == "*":
                return list(self._of) if len(self._of) <= most else None
            elif len(found) + self._prefix_index.count(pattern[:-1]) <= most:
                found += self._prefix_index.under(pattern[:-1])
            else:
                return None
        return found if len(found) <= most else None

    def count_under(self, patterns: PatternSet) -> int:
        """About how many topics the patterns cover. Call `sort` first, as for `topics_under`."""
        if patterns.is_everything:
            return len(self._of)
        return sum([self._prefix_index.count(p[:-1]) if p.endswith("*") else p in self._of for p in patterns])

    def some_topics_under(self, patterns: PatternSet, most: int) -> Iterator[list[str]]:
        """What `topics_under` finds, at most so many topics at a time: others may come and go in between."""
        for pattern in patterns:
            if pattern == "*":
                topics = list(self._of)
                yield from [topics[start : start + most] for start in range(0, len(topics), most)]
                continue
            if not pattern.endswith("*"):
                yield [pattern]
                continue
            after = None
            while names := self._prefix_index.some_under(pattern[:-1], after, most):
                yield names
                after = names[-1]

    def after(self, offset: int, topics: Iterable[str], most: int) -> Sequence[Publication]:
        """The first `most` publications after an offset that have one of these topics, each once, oldest first.

        A search for each topic, and what is found.
        """
        parts: list[Sequence[Publication]] = []
        total = 0
        for topic in topics:
            held = self._of.get(topic)
            if isinstance(held, _Entries):
                if held[-1].offset > offset:
                    start = bisect_right(held, offset, held.start, key=_offset)
                    parts.append(held[start : start + most])
                    total += len(parts[-1])
            elif held is not None and held.offset > offset:
                parts.append((held,))
                total += 1
        if len(parts) < 2:
            return parts[0] if parts else ()
        found: list[Publication] = []
        last = None
        for publication in _in_order(parts, total):
            if publication is not last:  # else it has two of these topics
                if len(found) == most:
                    break
                found.append(publication)
                last = publication
        return found


def _in_order(parts: Sequence[Sequence[Publication]], total: int) -> Iterable[Publication]:
    if total > MOST_SORTED:
        return merge(*parts, key=_offset)
    return sorted([publication for part in parts for publication in part], key=_offset)
