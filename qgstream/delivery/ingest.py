"""Ingest: takes publications from the broker into the window, in the order of the log and in slices."""

from __future__ import annotations

from asyncio import Future, get_running_loop
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from qgstream.delivery.slices import Slices
from qgstream.events.publication import Publication
from qgstream.logs import log

# Publications with so many topics are taken between two looks at the clock: about a third of a millisecond.
TOPICS_PER_LOOK = 64
# A shorter batch is taken in the turn of the loop in which it arrived: for example 512 publications of one topic.
LOOKS_AT_ONCE = 8


class Ingest:
    """Gives publications to `take` in parts.

    The largest batch, 10 000 events with 64 topics each, makes 640 000 entries in the window, which blocked the loop
    for a second. So a job for `Slices` takes a long batch, and later publications queue behind it. After each part, the
    window and the feeds are in the same state as if only this part had arrived. The steps of `after` run after each
    part. If `take` or `after` raises, `failed` is called.
    """

    def __init__(
        self,
        slices: Slices,
        take: Callable[[Sequence[Publication]], None],
        failed: Callable[[], None],
        after: Callable[[], Iterable[None]] = tuple,
    ) -> None:
        self._slices = slices
        self._take = take
        self._after = after
        self._failed = failed
        self._queue: deque[Sequence[Publication] | Callable[[], None]] = deque()

    def add(self, publications: Sequence[Publication]) -> None:
        """Take these publications after the queued ones."""
        self._queue.append(publications)
        if len(self._queue) == 1:
            self._slices.begin(self._run(), LOOKS_AT_ONCE, is_awaited=True)

    def call(self, callback: Callable[[], None]) -> None:
        """Call back as soon as everything that is queued now was taken. With an empty queue, call back at once."""
        if self._queue:
            self._queue.append(callback)
        else:
            callback()

    async def done(self) -> None:
        """Wait until everything that is queued now was taken."""
        if self._queue:
            future: Future[None] = get_running_loop().create_future()
            self.call(lambda: None if future.done() else future.set_result(None))
            await future

    def _run(self) -> Iterator[None]:
        while self._queue:
            entry = self._queue[0]
            try:
                if callable(entry):
                    entry()
                else:
                    yield from self._take_in_parts(entry)
            except Exception:
                # An error in the server: the window may lack a part of the log.
                log.exception("arrivals.failed")
                self._failed()
            self._queue.popleft()
            if self._queue:
                yield  # many short entries together take long

    def _take_in_parts(self, publications: Sequence[Publication]) -> Iterator[None]:
        start = topics = 0
        for end, publication in enumerate(publications, 1):
            topics += len(publication.topics)
            if topics >= TOPICS_PER_LOOK and end < len(publications):
                self._take(publications[start:end])
                start, topics = end, 0
                yield
                yield from self._after()
        self._take(publications[start:])
        yield from self._after()
