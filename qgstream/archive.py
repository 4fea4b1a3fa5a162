"""The log before the window: pages of the broker's, for replays that start further back than this process remembers."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qgstream.brokers.base import Broker, Forgotten
from qgstream.pages import PAGE_PUBLICATIONS
from qgstream.publication import Publication
from qgstream.window import Window

# Kept for others, because after an outage everybody asks for the same ones: 16 pages are at most about 16 MB.
CACHED_PAGES = 16
# For so long: a log is trimmed at its old end, and who begins in what is gone would be cut off at the next page.
CACHE_SECONDS = 10.0
# Reads under way at once: a storm of clients must not become a storm at the broker.
MAX_READS = 4

# Epoch, where it starts, and the shelves.
_Key = tuple[str, int, tuple[str | None, ...]]


@dataclass(frozen=True, slots=True)
class Stretch:
    """All that is to be replayed of the log up to the offset `end`, where the next stretch starts. `end` is None when
    the log holds no more."""

    publications: Sequence[Publication]
    end: int | None


class Archive:
    """Reads stretches, each once for all who ask for it at about the same time."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._reads: OrderedDict[_Key, tuple[asyncio.Task[Stretch], float]] = OrderedDict()
        self._slots = asyncio.Semaphore(MAX_READS)

    async def after(self, offset: int, patterns: Iterable[str], window: Window) -> Stretch:
        """The log after an offset, for a subscription to these patterns. Raises what `Broker.read` raises."""
        # Pages start at multiples, wherever their readers do, so that these share them. In a log whose offsets have
        # gaps that is not enough: there it is also asked whether a page that starts earlier goes so far.
        start = offset - offset % PAGE_PUBLICATIONS
        earlier = self._nearest(offset, patterns, window)
        for begin in dict.fromkeys((start if earlier is None else earlier, start)):
            if begin == offset:
                break
            try:
                page = await self._page(begin, patterns, window)
            except Forgotten:
                continue  # perhaps only what lies before the offset
            if page.end is None or page.end > offset:
                return Stretch([p for p in page.publications if p.offset > offset], page.end)
        return await self._page(offset, patterns, window)

    def _nearest(self, offset: int, patterns: Iterable[str], window: Window) -> int | None:
        """Where the last page that starts before an offset starts, of those that are here or under way."""
        epoch, _, shelves = self._key(0, patterns, window)
        starts = [key[1] for key in self._reads if key[0] == epoch and key[2] == shelves and key[1] <= offset]
        return max(starts, default=None)

    def _key(self, start: int, patterns: Iterable[str], window: Window) -> _Key:
        # What is forgotten depends on the shelves alone: subscriptions to the same ones share their pages too.
        return window.epoch, start, tuple([shelf.pattern for shelf in window.shelves_of(patterns)])

    async def _page(self, start: int, patterns: Iterable[str], window: Window) -> Stretch:
        is_shared = self._key(start, patterns, window) in self._reads
        page = await self._shared(start, patterns, window)
        if page.end is None and is_shared:
            # That read may have begun before what is asked for was appended. One that begins now does not.
            page = await self._shared(start, patterns, window)
        return page

    async def _shared(self, start: int, patterns: Iterable[str], window: Window) -> Stretch:
        key = self._key(start, patterns, window)
        loop = asyncio.get_running_loop()
        task, read_at = self._reads.pop(key, (None, 0.0))
        if task is None or loop.time() - read_at > CACHE_SECONDS:
            task, read_at = loop.create_task(self._read(start, tuple(patterns), window)), loop.time()
            task.add_done_callback(lambda task: self._done(key, task))
            if len(self._reads) >= CACHED_PAGES:
                self._drop_oldest()
        self._reads[key] = task, read_at
        return await asyncio.shield(task)

    async def _read(self, start: int, patterns: Sequence[str], window: Window) -> Stretch:
        async with self._slots:
            found = await self._broker.read(start, PAGE_PUBLICATIONS, patterns)
        if not found:
            return Stretch((), None)
        return Stretch([publication for publication in found if window.stores(publication)], found[-1].offset)

    def _done(self, key: _Key, task: asyncio.Task[Stretch]) -> None:
        # A failure is for those who waited for it, and the end of the log is no end for long.
        is_page = not task.cancelled() and task.exception() is None and task.result().end is not None
        if not is_page and key in self._reads and self._reads[key][0] is task:
            del self._reads[key]

    def _drop_oldest(self) -> None:
        for key, (task, _) in self._reads.items():
            if task.done():
                del self._reads[key]
                return

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = [task for task, _ in self._reads.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
