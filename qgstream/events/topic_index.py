"""An index of the publications in a window by topic, in the order of the log. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from operator import attrgetter

from qgstream.events.pattern_sets import PatternSet
from qgstream.events.prefix_index import PrefixIndex
from qgstream.events.publication import Publication

# Up to so many publications are sorted, which takes about a millisecond. More are merged lazily.
MOST_SORTED = 4096

_GONE = Publication((), b"")
_offset = attrgetter("offset")


class _Entries(list[Publication]):
    """Several publications of one topic. The entries before the index `start` are dropped, and are `_GONE`."""

    __slots__ = ("start",)

    start: int


class TopicIndex:
    """The publications of a window by topic.

    `add` takes O(1) for each topic of a publication. So does `discard` for the oldest publication of a topic, which is
    nearly always the one to discard. A topic with only one publication has no list: there may be 100 000 such topics.
    """

    __slots__ = ("_of", "_outlived", "_prefix_index")

    def __init__(self) -> None:
        self._of: dict[str, Publication | _Entries] = {}
        # Topics whose newest publication is dropped while an older one, with a longer age limit, is still in the
        # window.
        self._outlived: set[str] = set()
        self._prefix_index = PrefixIndex()

    def __len__(self) -> int:
        """The number of topics with at least one publication."""
        return len(self._of)

    def __contains__(self, topic: str) -> bool:
        return topic in self._of

    # Changing the index.

    def add(self, publication: Publication) -> None:
        """Add the next publication of the log."""
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
        """Remove a publication that was added."""
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

    # Searching the index.

    def newest_on(self, topic: str) -> Publication | None:
        """Return the newest publication of a topic, if the window still holds it."""
        held = self._of.get(topic)
        if topic in self._outlived:
            return None
        return held[-1] if isinstance(held, _Entries) else held

    def sort(self, most: int) -> bool:
        """Prepare for prefix patterns: sort at most so many topics. Return True if all topics are sorted."""
        return self._prefix_index.settle(most)

    def topics_under(self, patterns: PatternSet, most: int) -> list[str] | None:
        """Return the topics in the index that the patterns cover; None if there are more than `most`.

        The cost is one search for each pattern, plus the topics found. Call `sort` first, unless all patterns are names
        or `*`.
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
        """Return about how many topics the patterns cover. Call `sort` first, as for `topics_under`."""
        if patterns.is_everything:
            return len(self._of)
        return sum([self._prefix_index.count(p[:-1]) if p.endswith("*") else p in self._of for p in patterns])

    def some_topics_under(self, patterns: PatternSet, most: int) -> Iterator[list[str]]:
        """Yield the topics of `topics_under`, at most so many at a time. Topics may come and go between the steps."""
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
        """Return the first `most` publications after an offset that have one of these topics, each once, oldest first.

        The cost is one search for each topic, plus the publications found.
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
            if publication is not last:  # otherwise the publication has two of these topics
                if len(found) == most:
                    break
                found.append(publication)
                last = publication
        return found


def _in_order(parts: Sequence[Sequence[Publication]], total: int) -> Iterable[Publication]:
    if total > MOST_SORTED:
        return merge(*parts, key=_offset)
    return sorted([publication for part in parts for publication in part], key=_offset)
