"""Reads pages of the broker's log for replays that start before the window of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from cachetools import TTLCache

from qgstream.brokers.base import Broker, Forgotten
from qgstream.events.history import Window
from qgstream.events.pattern_sets import PatternSet, pattern_set
from qgstream.events.publication import Publication
from qgstream.events.topic_index import TopicIndex
from qgstream.replay.pages import PAGE_PUBLICATIONS

# The bounds of the cache of pages. After an outage all clients ask for the same pages.
CACHED_BYTES = 16 * 1024 * 1024
CACHED_PAGES = 64
# How long a page stays in the cache. The broker trims its log meanwhile. A replay that starts with a page of trimmed
# events would be closed at its next page.
CACHE_SECONDS = 10.0
# Maximum number of concurrent reads: a storm of reconnecting clients must not become a storm at the broker.
MAX_READS = 4

# The bounds of the cache of pages that an engine selected for some topics. Each is small, and few clients share it.
SELECTED_BYTES = 4 * 1024 * 1024
SELECTED_PAGES = 4096
# The reader looks through at most so many pages without an event of its topics. Then the loop gets to other work.
PAGES_AT_ONCE = 32

# The epoch, the start offset, the patterns of the retention classes; and the topics of a page that an engine selected.
_Key = tuple[str, int, tuple[str | None, ...], frozenset[str] | None]


@dataclass(frozen=True)
class LogRange:
    """All events of the log up to the offset `end` that may be replayed. The next range starts at `end`.

    `end` is None if the log holds no more events.
    """

    publications: Sequence[Publication]
    end: int | None

    def part(self, offset: int, patterns: PatternSet) -> LogRange:
        """Return the publications after an offset that match these patterns."""
        if patterns.is_everything:
            return LogRange([p for p in self.publications if p.offset > offset], self.end)
        topics = self._topics.topics_under(patterns, len(self._topics)) or ()
        return LogRange(self._topics.after(offset, topics, len(self.publications)), self.end)

    @cached_property
    def _topics(self) -> TopicIndex:
        """An index of the topics, built once for all readers of this range."""
        index = TopicIndex()
        for publication in self.publications:
            index.add(publication)
        while not index.sort(PAGE_PUBLICATIONS):
            pass
        return index

    @property
    def size_bytes(self) -> int:
        """The approximate memory of the publications, in bytes."""
        return sum([publication.size_bytes for publication in self.publications])


class LogReader:
    """Reads ranges of the log. Readers that ask for the same range at about the same time share one read."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._pages: TTLCache[_Key, LogRange] = TTLCache(CACHED_BYTES, CACHE_SECONDS, getsizeof=_size_in_cache)
        self._selected: TTLCache[_Key, LogRange] = TTLCache(SELECTED_BYTES, CACHE_SECONDS, getsizeof=_size_of_selected)
        self._reads: dict[_Key, asyncio.Task[LogRange]] = {}
        self._at_broker: set[_Key] = set()  # the reads that have a slot
        self._slots = asyncio.Semaphore(MAX_READS)
        self._expiry: asyncio.TimerHandle | None = None

    async def after(self, offset: int, patterns: frozenset[str], window: Window) -> LogRange:
        """Return the log after an offset, for a subscription to these patterns.

        The range reaches at least to the first matching event, unless this event is more than `PAGES_AT_ONCE` pages
        away. Raises the errors of `Broker.read`.
        """
        asked = pattern_set(patterns)
        for _ in range(PAGES_AT_ONCE):
            page = await self._page_after(offset, patterns, window)
            part = page.part(offset, asked)
            if part.publications or part.end is None:
                break
            offset = part.end
        return part

    async def _page_after(self, offset: int, patterns: frozenset[str], window: Window) -> LogRange:
        # Pages start at multiples of `PAGE_PUBLICATIONS`, so that readers with different offsets share them. In a log
        # with gaps between its offsets, a page that starts earlier may also reach beyond the offset.
        start = offset - offset % PAGE_PUBLICATIONS
        earlier = None if self._selects(patterns) else self._nearest(offset, patterns, window)
        for begin in dict.fromkeys((start if earlier is None else earlier, start)):
            if begin == offset:
                break
            try:
                page = await self._page(begin, patterns, window)
            except Forgotten:
                continue  # the log may have lost only events before the offset
            if page.end is None or page.end > offset:
                return page
        return await self._page(offset, patterns, window)

    def _selects(self, patterns: frozenset[str]) -> bool:
        return self._broker.selects and not pattern_set(patterns).is_everything

    def _nearest(self, offset: int, patterns: frozenset[str], window: Window) -> int | None:
        """Return the start of the last page before an offset, among pages that are cached or being read."""
        # Reads that wait for a slot do not count. A storm has thousands of them, and each client would search them all.
        epoch, _, retention_classes, _ = self._key(0, patterns, window)
        known = (*self._pages, *self._at_broker)
        starts = [key[1] for key in known if key[0] == epoch and key[2] == retention_classes and key[1] <= offset]
        return max(starts, default=None)

    def _key(self, start: int, patterns: frozenset[str], window: Window) -> _Key:
        # Which events are gone depends only on the retention classes. So subscriptions with the same ones share pages.
        topics = patterns if self._selects(patterns) else None
        retention_classes = tuple([each.pattern for each in window.retention_classes_of(patterns)])
        return window.epoch, start, retention_classes, topics

    def _cache(self, key: _Key) -> TTLCache[_Key, LogRange]:
        return self._pages if key[3] is None else self._selected

    async def _page(self, start: int, patterns: frozenset[str], window: Window) -> LogRange:
        is_shared = self._key(start, patterns, window) in self._reads
        page = await self._shared(start, patterns, window)
        if page.end is None and is_shared:
            # The shared read may have started before the wanted events were appended. A new read has them.
            page = await self._shared(start, patterns, window)
        return page

    async def _shared(self, start: int, patterns: frozenset[str], window: Window) -> LogRange:
        key = self._key(start, patterns, window)
        page = self._cache(key).get(key)
        if page is not None:
            return page
        task = self._reads.get(key)
        if task is None:
            task = self._reads[key] = asyncio.get_running_loop().create_task(self._read(key, start, patterns, window))
            task.add_done_callback(lambda task: self._done(key, task))
        return await asyncio.shield(task)

    async def _read(self, key: _Key, start: int, patterns: frozenset[str], window: Window) -> LogRange:
        async with self._slots:
            self._at_broker.add(key)
            try:
                if key[3] is not None:
                    selection = await self._broker.select(start, PAGE_PUBLICATIONS, patterns)
                    if selection is not None:
                        return LogRange([p for p in selection.publications if window.stores(p)], selection.end)
                found = await self._broker.read(start, PAGE_PUBLICATIONS, patterns)
            finally:
                self._at_broker.discard(key)
        if not found:
            return LogRange((), None)
        return LogRange([publication for publication in found if window.stores(publication)], found[-1].offset)

    def _done(self, key: _Key, task: asyncio.Task[LogRange]) -> None:
        del self._reads[key]
        # Do not cache an error, nor the last page of the log, which grows.
        if task.cancelled() or task.exception() is not None or task.result().end is None:
            return
        with suppress(ValueError):  # the page is larger than the whole cache
            self._cache(key)[key] = task.result()
        if self._expiry is None:
            self._expire()

    def _expire(self) -> None:
        """Free expired pages, even while no client reads."""
        self._pages.expire()
        self._selected.expire()
        self._expiry = None
        if self._pages or self._selected:
            self._expiry = asyncio.get_running_loop().call_later(CACHE_SECONDS, self._expire)

    async def close(self) -> None:
        """Cancel the reads in progress."""
        if self._expiry is not None:
            self._expiry.cancel()
        tasks = list(self._reads.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _size_in_cache(page: LogRange) -> int:
    return max(page.size_bytes, CACHED_BYTES // CACHED_PAGES)


def _size_of_selected(page: LogRange) -> int:
    return max(page.size_bytes, SELECTED_BYTES // SELECTED_PAGES)
