"""An index of names by prefix. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sortedcontainers import SortedList


class PrefixIndex:
    """A set of names that is sorted late, when a prefix is asked for, and a few names at a time.

    So `add` and `discard` cost a publisher one operation on a set (0.1 µs), and no search in the sorted list (3 µs):
    one batch may bring 640 000 new topics. Before `count` and `under`, call `settle` until it returns True.
    """

    __slots__ = ("_sorted", "_added", "_discarded")

    def __init__(self) -> None:
        # The names are those of `_sorted` without `_discarded`, and those of `_added`.
        self._sorted: SortedList[str] = SortedList()
        self._added: set[str] = set()
        self._discarded: set[str] = set()

    def add(self, name: str) -> None:
        """Add a name that is not in the set."""
        if name in self._discarded:
            self._discarded.remove(name)
        else:
            self._added.add(name)

    def discard(self, name: str) -> None:
        """Drop a name that is in the set."""
        if name in self._added:
            self._added.remove(name)
        else:
            self._discarded.add(name)

    def settle(self, most: int) -> bool:
        """Apply at most so many pending additions and removals. Return True if none is pending any more."""
        for _ in range(min(most, len(self._discarded))):
            self._sorted.remove(self._discarded.pop())
            most -= 1
        for _ in range(min(most, len(self._added))):
            self._sorted.add(self._added.pop())
        return not self._added and not self._discarded

    def count(self, prefix: str) -> int:
        """Return the number of names that start with `prefix`, in O(log n)."""
        start, stop = self._range(prefix)
        return stop - start

    def under(self, prefix: str) -> Iterator[str]:
        """Yield the names that start with `prefix`, in order."""
        yield from self._sorted.islice(*self._range(prefix))

    def some_under(self, prefix: str, after: str | None, most: int) -> list[str]:
        """Return the first `most` names that start with `prefix`, or the first `most` of them after the name `after`.

        Names may come and go between two calls.
        """
        start, stop = self._range(prefix)
        if after is not None:
            start = self._sorted.bisect_right(after)
        return list(self._sorted.islice(start, min(stop, start + most)))

    def _range(self, prefix: str) -> tuple[int, int]:
        start: int = self._sorted.bisect_left(prefix)
        end = _end(prefix)
        return start, len(self._sorted) if end is None else self._sorted.bisect_left(end)


def _end(prefix: str) -> str | None:
    """Return the smallest string above all strings that start with `prefix`; None if there is none."""
    stem = prefix.rstrip("\U0010ffff")
    return stem[:-1] + chr(ord(stem[-1]) + 1) if stem else None
