"""Dispatch: from the log to the feeds, in the log's order and in slices."""

from __future__ import annotations

from asyncio import Future, get_running_loop
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

from qgstream.delivery.fanout import Fanout
from qgstream.delivery.feed import Feed
from qgstream.delivery.router import Router
from qgstream.delivery.slices import Slices
from qgstream.delivery.subscriber import Subscriber
from qgstream.events.publication import Publication
from qgstream.logs import log
from qgstream.wire.framing import Message

# Feeds and publications that a walk visits between two looks at the clock: about a tenth of a millisecond.
VISITS_PER_LOOK = 64
# A walk of fewer looks is made in the turn of the loop that began it. To wait for the next turn would cost more.
LOOKS_AT_ONCE = 8
# Looks of a walk in slices for which rounds wait, about a tenth of a second. If rounds began after each slice of the
# walk, each stream would get each event of a batch with a send of its own: 300 events for 3 000 streams took 14.7 s of
# CPU time instead of 2. The feeds hold at most so many chunks more meanwhile, about 70 bytes each.
LOOKS_HELD = 1500


class _Entry(NamedTuple):
    """A part of the queue: a walk that yields at each look, and the memory that the walk keeps."""

    walk: Iterator[None]
    size_bytes: int


class Dispatch:
    """Gives each publication to the feeds that want it.

    A batch of 300 events for 3 000 streams, each with a topic of its own and a shared one, is 900 000 appends. The loop
    must get to other work during that walk. So the walk is a job for `Slices`, and later publications queue behind it.

    While the queue is not empty, the feeds are behind the log. A subscriber that has read the log up to its end then
    joins its feed through `call`, in its turn: everything that is queued before its turn was in the log it has read.
    """

    def __init__(self, router: Router, fanout: Fanout, slices: Slices) -> None:
        self._router = router
        self._fanout = fanout
        self._slices = slices
        self._queue: deque[_Entry] = deque()
        self.queued_bytes = 0

    @property
    def is_idle(self) -> bool:
        """Whether the feeds have everything that the log has."""
        return not self._queue

    def deliver(self, publications: Sequence[Publication], epoch: str) -> None:
        """Dispatch publications of the log `epoch`, in their order."""
        size_bytes = sum([publication.size_bytes for publication in publications])
        self._add(self._deliver(publications, epoch), size_bytes)

    def tell(self, message: Message) -> None:
        """Send one of the server's own messages to every live subscriber, behind what is queued."""
        self._add(self._tell(message), 0)

    def call(self, callback: Callable[[], None]) -> None:
        """Call back when the feeds have everything that is queued now: at once while nothing is."""
        if self._queue:
            self._add(_calling(callback), 0)
        else:
            callback()

    def fail(self) -> None:
        """A fault of ours may have cost any subscriber something: all of them come back, and replay it."""
        for feed in list(self._router):
            self._fanout.fail(feed)

    async def done(self) -> None:
        """Return when the feeds have everything that is queued now."""
        if self._queue:
            future: Future[None] = get_running_loop().create_future()
            self.call(lambda: None if future.done() else future.set_result(None))
            await future

    async def audience(self, publications: Iterable[Publication]) -> int:
        """How many subscribers want any of these publications."""
        return await self._slices.result(self._audience(publications), looks_at_once=LOOKS_AT_ONCE)

    # The walks.

    def _add(self, walk: Iterator[None], size_bytes: int) -> None:
        self._queue.append(_Entry(walk, size_bytes))
        self.queued_bytes += size_bytes
        if len(self._queue) == 1:
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
                # A fault of ours. Which feeds have the publication is not known, so every stream returns and replays.
                log.exception("dispatch.failed")
                self.fail()
            self._queue.popleft()
            self.queued_bytes -= entry.size_bytes
            if self._queue:
                yield  # many short walks are long together

    def _deliver(self, publications: Sequence[Publication], epoch: str) -> Iterator[None]:
        made: dict[int, bytes] = {}
        made_of: Publication | None = None

        def append(feed: Feed[Subscriber], publication: Publication) -> None:
            nonlocal made, made_of
            if made_of is not publication:
                made, made_of = {}, publication
            self._fanout.append(feed, feed.subscription.frame(publication, epoch, made))

        yield from self._visit(publications, append)

    def _visit(
        self, publications: Iterable[Publication], visit: Callable[[Feed[Subscriber], Publication], None]
    ) -> Iterator[None]:
        """Visit each feed that wants one of the publications, once for each that it wants."""
        visits = 0
        for publication in publications:
            for feed in self._router.find(publication):
                visit(feed, publication)
                visits += 1
                if visits >= VISITS_PER_LOOK:
                    visits = 0
                    yield
            visits += 1  # a publication that no feed wants is not free either
            if visits >= VISITS_PER_LOOK:
                visits = 0
                yield

    def _tell(self, message: Message) -> Iterator[None]:
        for visits, feed in enumerate(list(self._router), 1):
            self._fanout.append(feed, feed.subscription.framing.frame(message))
            if not visits % VISITS_PER_LOOK:
                yield

    def _audience(self, publications: Iterable[Publication]) -> Generator[None, None, int]:
        feeds: set[Feed[Subscriber]] = set()
        yield from self._visit(publications, lambda feed, _: feeds.add(feed))
        return sum(map(len, feeds))


def _calling(callback: Callable[[], None]) -> Iterator[None]:
    yield from ()
    callback()
