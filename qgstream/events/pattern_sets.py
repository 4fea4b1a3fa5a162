"""Sets of patterns that are asked about one name after another. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import lru_cache

from qgstream.events.topics import covers, matches


class PatternSet:
    """The patterns of a set that no other pattern of the set covers, in order. No pattern means every name.

    `covers` takes O(log n) for n patterns: a publisher may name 64 topics, and a subscriber 64 patterns.
    """

    __slots__ = ("is_everything", "has_prefix", "_patterns", "_stems")

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns: list[str] = []
        self._stems: list[str] = []
        # In this order, everything that a prefix covers stands directly behind the prefix.
        for stem, _, pattern in sorted((p.removesuffix("*"), not p.endswith("*"), p) for p in patterns or ("*",)):
            if not self._patterns or not matches(self._patterns[-1], stem):
                self._stems.append(stem)
                self._patterns.append(pattern)
        self.is_everything = self._patterns[0] == "*"
        self.has_prefix = any(pattern.endswith("*") for pattern in self._patterns)

    def __iter__(self) -> Iterator[str]:
        return iter(self._patterns)

    def covers(self, pattern: str) -> bool:
        """Whether one of the patterns covers the name, or the other pattern."""
        # The greatest stem that is not above this one. When a prefix covers this one, all between the two begins
        # with the prefix, and such stems are not in the set.
        index = bisect_right(self._stems, pattern.removesuffix("*")) - 1
        return index >= 0 and covers(self._patterns[index], pattern)


@lru_cache(maxsize=256)
def pattern_set(patterns: frozenset[str]) -> PatternSet:
    """The set of these patterns; the sets that were used last are remembered."""
    return PatternSet(patterns)


def narrowed(grants: frozenset[str], patterns: frozenset[str]) -> frozenset[str]:
    """What of these grants matters to a subscriber of these patterns: patterns for the names that both cover.

    No grants are no names; no patterns are every name.
    """
    if not grants:
        return grants
    granted, asked = pattern_set(grants), pattern_set(patterns)
    return frozenset([g for g in granted if asked.covers(g)] + [p for p in asked if granted.covers(p)])
