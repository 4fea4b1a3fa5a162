"""Sets of patterns, made for many look-ups of names. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import lru_cache

from qgstream.events.topics import covers, matches


class PatternSet:
    """The patterns of a set, in order, without patterns that another pattern of the set covers.

    No pattern means every name. `covers` takes O(log n) for n patterns: a publisher may name 64 topics, and a
    subscriber 64 patterns.
    """

    __slots__ = ("is_everything", "has_prefix", "_patterns", "_stems")

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns: list[str] = []
        self._stems: list[str] = []
        # In this order, all patterns that a prefix covers come directly after the prefix.
        for stem, _, pattern in sorted((p.removesuffix("*"), not p.endswith("*"), p) for p in patterns or ("*",)):
            if not self._patterns or not matches(self._patterns[-1], stem):
                self._stems.append(stem)
                self._patterns.append(pattern)
        self.is_everything = self._patterns[0] == "*"
        self.has_prefix = any(pattern.endswith("*") for pattern in self._patterns)

    def __iter__(self) -> Iterator[str]:
        return iter(self._patterns)

    def covers(self, pattern: str) -> bool:
        """Return whether one of the patterns of the set covers `pattern`, which may also be a name."""
        # Finds the greatest stem that is not above this one. If a prefix covers this one, all stems between the two
        # would start with the prefix, and the set has no such stems.
        index = bisect_right(self._stems, pattern.removesuffix("*")) - 1
        return index >= 0 and covers(self._patterns[index], pattern)


@lru_cache(maxsize=256)
def pattern_set(patterns: frozenset[str]) -> PatternSet:
    """Return the set of these patterns. The sets that were used last are cached."""
    return PatternSet(patterns)


def narrowed(grants: frozenset[str], patterns: frozenset[str]) -> frozenset[str]:
    """Return patterns for the names that both the grants and the patterns of a subscriber cover.

    No grants mean no names. No patterns mean every name.
    """
    if not grants:
        return grants
    granted, asked = pattern_set(grants), pattern_set(patterns)
    return frozenset([g for g in granted if asked.covers(g)] + [p for p in asked if granted.covers(p)])
