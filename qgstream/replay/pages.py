"""Encoded pages of the log, which replays send. Replays share pages: after an outage all clients ask for the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from qgstream.events.history import Window
from qgstream.events.pattern_sets import pattern_set
from qgstream.events.publication import Publication
from qgstream.events.subscription import Subscription

# A page ends at a multiple of this many publications, so that readers with different offsets share pages. A replay also
# filters at most so many publications in one turn of the loop.
PAGE_PUBLICATIONS = 256
# The maximum size of one send of a replay, unless a single event is larger. A stalled replay holds at most one page
# (benchmarks/replay_pages.py).
PAGE_BYTES = 64 * 1024
# The size of the cache: 128 pages are at most 8 MB.
CACHED_PAGES = 128


@dataclass(frozen=True, slots=True)
class ReplayPage:
    """The joined frames of `events` publications. The next page starts after the offset `end`."""

    data: bytes
    events: int
    end: int


class ReplayPages:
    """Encodes pages, and caches pages that are complete."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._cache: OrderedDict[tuple[Subscription, frozenset[str], int], ReplayPage] = OrderedDict()

    def after(self, subscription: Subscription, offset: int) -> ReplayPage:
        """Return the next page of a subscription, after `offset`. The last page ends at the newest offset of the log.

        If the window must sort topics first, the page is empty and ends at `offset`.
        """
        # A reload may change the private topics. Then an older page must not be sent any more.
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
        """Encode a page of the first of these publications, as many as fit.

        The page ends at `end` if all publications fit, and otherwise at the last publication that the page covers.
        """
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
