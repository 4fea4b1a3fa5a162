"""Dispatch: gives the publications of the log to the feeds, in the order of the log and in slices."""

from __future__ import annotations

from asyncio import Future, get_running_loop
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import repeat

from qgstream.delivery.batch import Batch
from qgstream.delivery.fanout import Fanout
from qgstream.delivery.feed import Feed
from qgstream.delivery.router import Router
from qgstream.delivery.slices import Slices
from qgstream.delivery.subscriber import Subscriber
from qgstream.events.publication import Publication
from qgstream.logs import log
from qgstream.wire.framing import Message

# A walk visits so many feeds and publications between two looks at the clock: about a tenth of a millisecond.
VISITS_PER_LOOK = 64
# A walk with fewer looks is completed in the turn of the loop that started it. To wait for the next turn would cost
# more.
LOOKS_AT_ONCE = 8
# Rounds wait during so many looks of a walk, about a tenth of a second. If rounds started after each slice of the walk,
# each stream would get each event of a batch with a separate send: 300 events for 3 000 streams took 14.7 s of CPU time
# instead of 2 s. Meanwhile the feeds hold at most so many chunks more, about 70 bytes each.
LOOKS_HELD = 1500


# The maximum number of publications in one walk: to frame so many takes about a millisecond.
PUBLICATIONS_PER_WALK = 256
# To check so many feeds one by one costs as much as to make a batch of one publication.
FEW_FEEDS = 16
# So many chunks cost as much as one visit, if a feed gets many at once.
_CHUNKS_PER_VISIT = 8


class _Entry:
    """An entry of the queue: a walk that yields at each look, and the memory that the walk holds.

    While the walk has not started, later publications may be added to `publications`.
    """

    __slots__ = ("walk", "size_bytes", "publications", "epoch")

    def __init__(
        self, walk: Iterator[None], size_bytes: int = 0, publications: list[Publication] | None = None, epoch: str = ""
    ) -> None:
        self.walk = walk
        self.size_bytes = size_bytes
        self.publications = publications
        self.epoch = epoch


class Dispatch:
    """Gives each publication to the feeds that want it.

    A batch of 300 events for 3 000 streams, each with its own topic and a shared one, is 900 000 appends. The loop must
    get to other work during this walk. So the walk is a job for `Slices`, and later publications queue behind it.

    While the queue is not empty, the feeds are behind the log. A subscriber that has read the log up to its end then
    joins its feed through `call`. It joins in turn: it has read everything that is queued before it.
    """

    def __init__(self, router: Router, fanout: Fanout, slices: Slices) -> None:
        self._router = router
        self._fanout = fanout
        self._slices = slices
        self._queue: deque[_Entry] = deque()
        self.queued_bytes = 0

    @property
    def is_idle(self) -> bool:
        """Whether the feeds have everything in the log."""
        return not self._queue

    def deliver(self, publications: Sequence[Publication], epoch: str) -> None:
        """Dispatch publications of the log `epoch`, in their order."""
        last = self._queue[-1] if len(self._queue) > 1 else None  # the walk of the first entry is in progress
        if (
            last is not None and last.publications is not None and last.epoch == epoch
            and len(last.publications) + len(publications) <= PUBLICATIONS_PER_WALK
        ):  # fmt: skip
            last.publications += publications
            size_bytes = _size_bytes(publications)
            last.size_bytes += size_bytes
            self.queued_bytes += size_bytes
            return
        self._add(*[
            self._delivery(publications[start : start + PUBLICATIONS_PER_WALK], epoch)
            for start in range(0, len(publications), PUBLICATIONS_PER_WALK)
        ])  # fmt: skip

    def _delivery(self, publications: Sequence[Publication], epoch: str) -> _Entry:
        batch = list(publications)
        return _Entry(self._deliver(batch, epoch), _size_bytes(batch), batch, epoch)

    def tell(self, message: Message) -> None:
        """Send one of the server's own messages to every live subscriber, after the queued publications."""
        self._add(_Entry(self._tell(message)))

    def call(self, callback: Callable[[], None]) -> None:
        """Call back as soon as the feeds have everything that is queued now. With an empty queue, call back at once."""
        if self._queue:
            self._add(_Entry(_calling(callback)))
        else:
            callback()

    def fail(self) -> None:
        """Close all streams after an error in the server: any may lack an event. They reconnect and replay it."""
        for feed in list(self._router):
            self._fanout.fail(feed)

    async def done(self) -> None:
        """Wait until the feeds have everything that is queued now."""
        if self._queue:
            future: Future[None] = get_running_loop().create_future()
            self.call(lambda: None if future.done() else future.set_result(None))
            await future

    async def audience(self, publications: Sequence[Publication]) -> int:
        """Return how many subscribers want any of these publications."""
        return await self._slices.result(self._audience(publications), looks_at_once=LOOKS_AT_ONCE)

    # The walks.

    def _add(self, *entries: _Entry) -> None:
        was_idle = self.is_idle
        self._queue += entries
        self.queued_bytes += sum([entry.size_bytes for entry in entries])
        if was_idle and entries:
            self._slices.begin(self._run(), LOOKS_AT_ONCE)

    def _run(self) -> Iterator[None]:
        for looks, _ in enumerate(self._walk(), 1):
            if not looks % LOOKS_HELD:
                self._fanout.release()
            if looks >= LOOKS_AT_ONCE:
                self._fanout.hold()
            yield
        self._fanout.release()

    def _walk(self) -> Iterator[None]:
        while self._queue:
            entry = self._queue[0]
            try:
                yield from entry.walk
            except Exception:
                # An error in the server. Dispatch does not know which feeds have the publication. So every stream is
                # closed; it reconnects and replays.
                log.exception("dispatch.failed")
                self.fail()
            self._queue.popleft()
            self.queued_bytes -= entry.size_bytes
            if self._queue:
                yield  # many short walks together take long

    def _deliver(self, publications: Sequence[Publication], epoch: str) -> Iterator[None]:
        """Go feed by feed, so that each feed gets all of its events at once and sends them together."""
        few = self._few(publications)
        if few is not None:
            made: dict[int, bytes] = {}
            for feed in few:
                self._fanout.append(feed, feed.subscription.frame(publications[0], epoch, made))
            return
        batch = Batch(publications, epoch)
        yield from self._ask(batch, publications)
        visits, extend = 0, self._fanout.extend
        for pattern in batch.by_pattern:
            batch.turn()
            for feed, patterns in self._asking(batch, pattern):
                visits += 1
                if feed.subscribers:
                    subscription = feed.subscription
                    chunks, _, size_bytes = (
                        batch.chunks(subscription, patterns) if patterns else batch.chunks_on(subscription, pattern)
                    )
                    if chunks:
                        extend(feed, chunks, size_bytes)
                        visits += len(chunks) // _CHUNKS_PER_VISIT
                if visits >= VISITS_PER_LOOK:
                    visits = 0
                    yield
                    batch.turn()

    def _few(self, publications: Sequence[Publication]) -> list[Feed[Subscriber]] | None:
        """Return the feeds that want a single publication, if they are few: a batch would cost more than it saves."""
        if len(publications) != 1:
            return None
        publication, router = publications[0], self._router
        found: list[Feed[Subscriber]] = []
        for topic in publication.topics:
            for pattern in router.patterns(topic):
                feeds = router.asking(pattern)
                if len(feeds) > FEW_FEEDS:
                    return None
                found += [f for f in feeds if f.subscription.accepts(publication, topic)]
        if len(found) < 2:
            return found
        return list(dict.fromkeys(found)) if len(found) <= VISITS_PER_LOOK else None

    def _ask(self, batch: Batch, publications: Iterable[Publication]) -> Iterator[None]:
        """Note in the batch which patterns ask for each publication."""
        visits, router = 0, self._router
        for index, publication in enumerate(publications):
            for topic in publication.topics:
                for pattern in router.patterns(topic):
                    batch.ask(index, pattern)
                visits += 1
            if visits >= VISITS_PER_LOOK:
                visits = 0
                yield

    def _asking(self, batch: Batch, pattern: str) -> Iterator[tuple[Feed[Subscriber], Sequence[str]]]:
        """Yield each feed of which this pattern matches some of the batch.

        If several patterns of a feed match, the feed comes with all of them, and only for the first.
        """
        feeds = self._router.asking(pattern)
        if len(batch.by_pattern) == 1:
            yield from zip(feeds, repeat(()))
            return
        for feed in feeds:
            patterns = batch.patterns_of(feed.subscription)
            if len(patterns) == 1:
                yield feed, ()
            elif pattern == patterns[0]:
                yield feed, patterns

    def _tell(self, message: Message) -> Iterator[None]:
        for visits, feed in enumerate(list(self._router), 1):
            self._fanout.append(feed, feed.subscription.framing.frame(message))
            if not visits % VISITS_PER_LOOK:
                yield

    def _audience(self, publications: Sequence[Publication]) -> Generator[None, None, int]:
        few = self._few(publications)
        if few is not None:
            return sum(map(len, few))
        batch = Batch(publications, "")
        yield from self._ask(batch, publications)
        count = visits = 0
        for pattern in batch.by_pattern:
            for feed, patterns in self._asking(batch, pattern):
                subscription = feed.subscription
                if batch.wanted(subscription, pattern) or any(batch.wanted(subscription, each) for each in patterns):
                    count += len(feed)
                visits += 1
                if not visits % VISITS_PER_LOOK:
                    yield
        return count


def _size_bytes(publications: Sequence[Publication]) -> int:
    return sum([publication.size_bytes for publication in publications])


def _calling(callback: Callable[[], None]) -> Iterator[None]:
    yield from ()
    callback()
