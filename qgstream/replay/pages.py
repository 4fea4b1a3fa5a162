"""Pages of the log, encoded: what replays send. Shared, because after an outage everybody asks for the same ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from qgstream.events.history import Window
from qgstream.events.pattern_sets import pattern_set
from qgstream.events.publication import Publication
from qgstream.events.subscription import Subscription

# A page ends at a multiple of this many publications, wherever its reader started, so that readers meet; and it is how
# many are looked at between two turns of the loop by a filter that wants none of them.
PAGE_PUBLICATIONS = 256
# One send of a replay at most (unless a single event is larger), and what a stalled replay keeps alive of it
# (benchmarks/replay_pages.py).
PAGE_BYTES = 64 * 1024
# Kept for others: 128 pages are at most 8 MB.
CACHED_PAGES = 128


@dataclass(frozen=True, slots=True)
class ReplayPage:
    """The frames of `events` publications as one; the next page starts after the offset `end`."""

    data: bytes
    events: int
    end: int


class ReplayPages:
    """Makes pages, and remembers the ones that nothing can be added to."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._cache: OrderedDict[tuple[Subscription, frozenset[str], int], ReplayPage] = OrderedDict()

    def after(self, subscription: Subscription, offset: int) -> ReplayPage:
        """What the subscription wants of the log after `offset`. A page whose `end` is the log's newest is the last.

        While the window has topics to sort first, the page is empty and ends at `offset`.
        """
        # What is private may change, and a page that was made before must not be sent after that.
        key = (subscription, subscription.private_topics.patterns, offset)
        page = self._cache.get(key)
        if page is not None:
            self._cache.move_to_end(key)
            return page
        window = self._window
        part = window.page_of(pattern_set(subscription.patterns), offset, PAGE_PUBLICATIONS)
        if part is None:
            return ReplayPage(b"", 0, offset)
        page = self.of(subscription, part.publications, part.end)
        if page.end < window.newest:
            self._cache[key] = page
            if len(self._cache) > CACHED_PAGES:
                self._cache.popitem(last=False)
        return page

    def of(self, subscription: Subscription, publications: Iterable[Publication], end: int = 0) -> ReplayPage:
        """The first of these publications, as many as fit. The page's `end` is the last one looked at, or `end` when
        all of them fit."""
        frames: list[bytes] = []
        size = looked_at = 0
        for publication in publications:
            if subscription.wants(publication):
                frame = subscription.frame(publication, self._window.epoch, {})
                if frames and size + len(frame) > PAGE_BYTES:
                    end = looked_at
                    break
                frames.append(frame)
                size += len(frame)
            looked_at = publication.offset
        return ReplayPage(b"".join(frames), len(frames), end or looked_at)
