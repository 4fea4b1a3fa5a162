"""Names in order, by prefix. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sortedcontainers import SortedList


class PrefixIndex:
    """A set of names that is sorted when somebody asks for a prefix, a few names at a time.

    Adding and discarding cost a publisher one operation on a set (0.1 µs), not a search in the order (3 µs): one batch
    may bring 640 000 new topics. Call `settle` until it returns True before `count` and `under`.
    """

    __slots__ = ("_sorted", "_added", "_discarded")

    def __init__(self) -> None:
        # The names are those of `_sorted` without `_discarded`, and those of `_added`.
        self._sorted: SortedList[str] = SortedList()
        self._added: set[str] = set()
        self._discarded: set[str] = set()

    def add(self, name: str) -> None:
        """Take a name that is not in the set."""
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
        """Sort in, or out, at most so many names; True when all are sorted."""
        for _ in range(min(most, len(self._discarded))):
            self._sorted.remove(self._discarded.pop())
            most -= 1
        for _ in range(min(most, len(self._added))):
            self._sorted.add(self._added.pop())
        return not self._added and not self._discarded

    def count(self, prefix: str) -> int:
        """How many names begin with `prefix`, in O(log n)."""
        start, stop = self._range(prefix)
        return stop - start

    def under(self, prefix: str) -> Iterator[str]:
        """The names that begin with `prefix`, in order."""
        yield from self._sorted.islice(*self._range(prefix))

    def some_under(self, prefix: str, after: str | None, most: int) -> list[str]:
        """The first `most` of these names, or of those after one of them: the others may change in between."""
        start, stop = self._range(prefix)
        if after is not None:
            start = self._sorted.bisect_right(after)
        return list(self._sorted.islice(start, min(stop, start + most)))

    def _range(self, prefix: str) -> tuple[int, int]:
        start: int = self._sorted.bisect_left(prefix)
        end = _end(prefix)
        return start, len(self._sorted) if end is None else self._sorted.bisect_left(end)


def _end(prefix: str) -> str | None:
    """The least string above all that begin with `prefix`; None when there is none."""
    stem = prefix.rstrip("\U0010ffff")
    return stem[:-1] + chr(ord(stem[-1]) + 1) if stem else None
