"""Fan-out: rounds over the subscribers of a feed. A subscriber gets everything new in one send."""

from __future__ import annotations

from asyncio import Future, get_running_loop
from collections.abc import Callable, Generator, Iterator, Sequence
from time import perf_counter

from qgstream.delivery.feed import Feed
from qgstream.delivery.slices import Slices
from qgstream.delivery.subscriber import PARKED, Subscriber
from qgstream.limits import LimitSettings
from qgstream.logs import log
from qgstream.metrics import Metrics

# The number of sends between two looks at the clock: about a third of a millisecond.
SENDS_PER_LOOK = 32
# The number of subscribers that are closed, or checked, between two looks. To close one takes about 0.1 ms.
DROPS_PER_LOOK = 4
CHECKS_PER_LOOK = 256

# The maximum number of feeds whose rounds wait for `release`. To start so many rounds takes about 4 ms.
MAX_HELD = 8192

# The round of a feed with at most so many subscribers is one step, in one job with other such feeds. A job has about as
# many sends as a slice, so that replays and rounds take turns as with larger feeds.
FEW = 8
FEEDS_PER_JOB = 64

# How often the rounds update the metrics while they do not end.
TELL_SECONDS = 0.1

# A cursor that no subscriber has.
NOWHERE = PARKED - 1


class Fanout:
    """Runs rounds over the feeds that have new chunks.

    A round starts in the turn of the loop after the publish. It sends each subscriber all chunks from its cursor on.
    Subscribers that the round has not visited yet also get chunks that are published meanwhile, in the same send. The
    others get these chunks together in the next round. So batches grow under load, and nothing waits without load.
    """

    def __init__(
        self,
        slices: Slices,
        metrics: Metrics,
        limits: Callable[[], LimitSettings],
        drop: Callable[[Subscriber], None],
        fail: Callable[[Subscriber], None] | None = None,
    ) -> None:
        self._slices = slices
        self._metrics = metrics
        self._limits = limits
        self._drop = drop  # a slow consumer
        self._fail = fail or drop  # a subscriber that may lack an event after an error in the server
        # The bytes that each feed holds for parked subscribers, as of its last `_weigh`, and their sum.
        self._lagging: dict[Feed[Subscriber], int] = {}
        self._lagging_bytes = 0
        self._unsettled: dict[Feed[Subscriber], None] = {}
        self._is_settling = False
        self._small: list[Feed[Subscriber]] | None = None  # the small feeds whose job has not started
        self._held: list[Feed[Subscriber]] | None = None  # the feeds whose rounds wait for `release`
        self._over: dict[Subscriber, float] = {}  # those over max_backlog_bytes, and since when
        self._due = 0
        self._delivered = self._delivered_bytes = 0
        self._longest_round = self._longest_lag = 0.0
        self._told_at = 0.0
        self._unserved_bytes = 0
        self._waiting: list[Future[None]] = []

    # For publishes.

    def append(self, feed: Feed[Subscriber], chunk: bytes) -> None:
        """Add a chunk to a feed, and start a round."""
        if not feed.subscribers:
            return  # replaying subscribers read the log
        feed.append(chunk)
        self._unserved_bytes += len(chunk)
        if feed.behind_since is None:
            self._due += 1
            self._start(feed)

    def extend(self, feed: Feed[Subscriber], chunks: Sequence[bytes], size_bytes: int) -> None:
        """Add several chunks to a feed, and start a round. `size_bytes` is their total size."""
        if not feed.subscribers:
            return
        feed.extend(chunks, size_bytes)
        self._unserved_bytes += size_bytes
        if feed.behind_since is None:
            self._due += 1
            self._start(feed)

    def fail(self, feed: Feed[Subscriber]) -> None:
        """Close the subscribers of a feed after an error in the server, so that they reconnect and replay."""
        for subscriber in list(feed.subscribers):
            self._fail(subscriber)

    def hold(self) -> None:
        """Let new rounds wait for `release`. Rounds in progress continue."""
        if self._held is None:
            self._held = []

    def release(self) -> None:
        """Start the waiting rounds."""
        held, self._held = self._held, None
        for feed in held or ():
            self._begin(feed)

    async def room(self) -> None:
        """Wait while the rounds in progress have more than `max_total_backlog_bytes` of new chunks to send.

        So publishers slow down to the rate at which this process can send, and do not slow down other streams.
        """
        while self._unserved_bytes > self._limits().max_total_backlog_bytes:
            future: Future[None] = get_running_loop().create_future()
            self._waiting.append(future)
            await future

    # The rounds.

    def _start(self, feed: Feed[Subscriber]) -> None:
        feed.behind_since = perf_counter()
        if self._held is not None and len(self._held) < MAX_HELD:
            self._held.append(feed)
        else:
            self._begin(feed)

    def _begin(self, feed: Feed[Subscriber]) -> None:
        if len(feed.subscribers) > FEW:
            self._slices.add(self._guarded_round(feed))
        elif self._small is not None and len(self._small) < FEEDS_PER_JOB:
            self._small.append(feed)
        else:
            self._small = [feed]
            self._slices.add(self._small_rounds(self._small))

    def _small_rounds(self, feeds: list[Feed[Subscriber]]) -> Iterator[None]:
        """Run the rounds of several small feeds, with a look at the clock after `SENDS_PER_LOOK` sends.

        With a separate job for each feed, a delivery to a stream with its own feed took twice as long.
        """
        if self._small is feeds:
            self._small = None  # later feeds go into another job
        visits, began = 0, perf_counter()
        for feed in feeds:
            # Each subscriber takes at most one send, and a visit to a feed has a cost, too.
            visits += len(feed.subscribers) or 1
            try:
                self._small_round(feed, began)
            except Exception:
                log.exception("fanout.round_failed")
                self._round_failed(feed)
            if visits >= SENDS_PER_LOOK:
                visits = 0
                yield

    def _guarded_round(self, feed: Feed[Subscriber]) -> Iterator[None]:
        try:
            yield from self._round(feed)
        except Exception:
            log.exception("fanout.round_failed")
            self._round_failed(feed)

    def _round_failed(self, feed: Feed[Subscriber]) -> None:
        # An error in the server. The subscribers may lack an event: they are closed, reconnect and replay.
        self.fail(feed)
        self._rest(feed)

    def _small_round(self, feed: Feed[Subscriber], began: float) -> None:
        """Do the same as `_round`, without a turn of the loop in between."""
        end = reached = feed.end
        # HOT PATH if each user has a topic.
        for subscriber in list(feed.subscribers):
            cursor = subscriber.cursor
            if not PARKED < cursor < end:
                continue
            data, sent = feed.join(cursor)
            if sent < reached:
                reached = sent
            try:
                taken = subscriber.send(data)
            except BlockingIOError:
                taken = 0
            except OSError as error:
                subscriber.fail(error)
                continue
            self._delivered_bytes += taken
            if taken == len(data):
                subscriber.cursor = sent
                self._delivered += sent - cursor
            else:
                subscriber.stop_short(cursor, taken)
                self._delivered += subscriber.parked_at - cursor
        if feed.end == reached and not feed.parked and feed not in self._lagging:
            feed.forget(reached)
            feed.reached = reached
            now = perf_counter()
            self._note(now - began, now - (feed.behind_since or began))
            if self._due == 1 or now - self._told_at > TELL_SECONDS:
                self._tell(now)
            self._rest(feed)
        else:
            self._finish(feed, reached, began, again=feed.end > reached)

    def _round(self, feed: Feed[Subscriber]) -> Iterator[None]:
        began = perf_counter()
        target = reached = feed.end
        delivered = delivered_bytes = sends = events = size = 0
        start, end, data = NOWHERE, 0, b""
        # HOT PATH: one system call and a dozen bytecodes for each subscriber (benchmarks/write_paths.py).
        for visit, subscriber in enumerate(list(feed.subscribers), 1):
            cursor = subscriber.cursor
            if cursor != start:
                if cursor == PARKED or cursor == feed.end:
                    continue
                delivered += sends * events
                delivered_bytes += sends * size
                data, end = feed.join(cursor)
                start, size, events, sends = cursor, len(data), end - cursor, 0
                reached = min(reached, end)
            try:
                taken = subscriber.send(data)
            except BlockingIOError:
                taken = 0
            except OSError as error:
                subscriber.fail(error)
                continue
            if taken == size:
                subscriber.cursor = end
                sends += 1
            else:
                subscriber.stop_short(start, taken)
                delivered += subscriber.parked_at - start
                delivered_bytes += taken
            if not visit % SENDS_PER_LOOK:
                yield
                start = NOWHERE  # include what was published meanwhile
        self._delivered += delivered + sends * events
        self._delivered_bytes += delivered_bytes + sends * size
        self._finish(feed, reached, began, again=feed.end > min(target, reached))

    def _finish(self, feed: Feed[Subscriber], reached: int, began: float, *, again: bool) -> None:
        now = perf_counter()
        self._note(now - began, now - (feed.behind_since or began))
        if self._due == 1 or now - self._told_at > TELL_SECONDS:
            self._tell(now)
        feed.reached = reached
        feed.forget(reached)
        if feed.parked or feed in self._lagging:
            self._weigh(feed)  # now: to find the slowest subscriber, all feeds must be weighed
            self.settle(feed)
        if again:
            if feed.subscribers:
                self._start(feed)
                return
            feed.forget(feed.end)  # the last subscriber left during the round
        self._rest(feed)

    def _note(self, round_seconds: float, lag_seconds: float) -> None:
        if round_seconds > self._longest_round:
            self._longest_round = round_seconds
        if lag_seconds > self._longest_lag:
            self._longest_lag = lag_seconds

    def _rest(self, feed: Feed[Subscriber]) -> None:
        feed.behind_since = None
        self._due -= 1
        if not self._due:
            self._unserved_bytes = 0
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    def _tell(self, now: float) -> None:
        # Not in each round: with one feed for each of 10 000 users, that would cost as much as half a send.
        self._metrics.delivered(self._delivered, self._delivered_bytes)
        self._metrics.fanned_out(self._longest_round, self._longest_lag)
        self._delivered = self._delivered_bytes = 0
        self._longest_round = self._longest_lag = 0.0
        self._told_at = now

    # Slow consumers.

    def has_room(self, subscriber: Subscriber) -> None:
        """Send a parked subscriber what it has missed: its socket has room again."""
        self._metrics.delivered(0, subscriber.rest_bytes)  # its event was counted when its first part went out
        subscriber.unpark()
        self.flush(subscriber)
        self.settle(subscriber.feed)

    def flush(self, subscriber: Subscriber) -> None:
        """Send a live subscriber its new chunks now, without a round."""
        if subscriber.cursor != PARKED:
            self._metrics.delivered(*subscriber.serve())

    def settle(self, feed: Feed[Subscriber]) -> None:
        """Soon, close the slow consumers of a feed and free chunks: a subscriber fell behind, caught up or left."""
        # Settle a feed once for all subscribers of a turn. To settle checks all parked subscribers, and after a stalled
        # uplink they all have room at once: one by one, 4 000 of them blocked the loop for 2.7 s. One job settles one
        # feed after the other: two jobs would each close a subscriber for the same bytes.
        self._unsettled[feed] = None
        if not self._is_settling:
            self._is_settling = True
            self._slices.add(self._settle_all())

    def _settle_all(self) -> Iterator[None]:
        try:
            while True:
                while self._unsettled:
                    feed, _ = self._unsettled.popitem()
                    yield from self._settle(feed)
                    yield
                # Only now: before all feeds are settled, the sum still counts subscribers that have caught up.
                if not (yield from self._shed_worst()):
                    return
        finally:
            self._is_settling = False

    def _settle(self, feed: Feed[Subscriber]) -> Iterator[None]:
        yield from self._check(feed)
        feed.forget(_reached(feed))
        self._weigh(feed)

    def _shed_worst(self) -> Generator[None, None, bool]:
        """If the feeds hold too much, free something of the feed that holds most. Return whether it freed anything.

        There may be nothing to free: then the next round will send the rest.
        """
        if self._lagging_bytes <= self._limits().max_total_backlog_bytes:
            return False
        worst = max(self._lagging, key=self._lagging.__getitem__)
        return (yield from self._shed(worst))

    def _shed(self, feed: Feed[Subscriber]) -> Generator[None, None, bool]:
        """Free something of what a feed holds. Return whether it freed anything."""
        weight, reached = self._lagging[feed], _reached(feed)
        feed.forget(reached)
        self._weigh(feed)
        if self._lagging.get(feed) != weight:
            return True  # some have caught up, or left, since the last `_weigh`
        # Close all subscribers at the same cursor together: the feed holds its chunks until the last of them is gone.
        furthest = min([subscriber.parked_at for subscriber in feed.parked])
        behind = [s for s in feed.parked if s.parked_at == furthest]
        if furthest >= reached:
            behind = [s for s in behind if s.rest_bytes and furthest == feed.first]
        for drops, subscriber in enumerate(behind, 1):
            if subscriber in feed.parked and subscriber.parked_at == furthest:  # it may have left in the last turn
                self._drop(subscriber)
            if not drops % DROPS_PER_LOOK:
                yield
        feed.forget(_reached(feed))
        self._weigh(feed)
        return bool(behind)

    def _weigh(self, feed: Feed[Subscriber]) -> None:
        # A running sum: to add up a thousand lagging feeds in each of a thousand rounds made a publish take 0.1 s.
        self._lagging_bytes -= self._lagging.pop(feed, 0)
        if feed.parked:
            # The chunk before the first is also in memory, if a socket has taken only a part of it.
            rest = max([s.rest_bytes for s in feed.parked if s.parked_at == feed.first], default=0)
            self._lagging[feed] = feed.held_bytes + rest
            self._lagging_bytes += feed.held_bytes + rest

    def _check(self, feed: Feed[Subscriber]) -> Iterator[None]:
        # A burst that is larger than a socket's buffer parks all subscribers for a moment. Only a subscriber that stays
        # behind is a slow consumer.
        limits, now = self._limits(), perf_counter()
        for checks, subscriber in enumerate(list(feed.parked), 1):
            if not checks % CHECKS_PER_LOOK:
                yield
            if subscriber not in feed.parked:
                continue  # it caught up or left in the last turn of the loop
            if subscriber.backlog_bytes <= limits.max_backlog_bytes:
                self._over.pop(subscriber, None)
            elif now - self._over.setdefault(subscriber, now) >= limits.backlog_grace_seconds:
                self._drop(subscriber)
                yield

    def check_slow(self) -> None:
        """Close subscribers that were too far behind for too long.

        A timer calls this: a stalled reader causes no event.
        """
        if not self._over:
            return
        for feed in {subscriber.feed for subscriber in self._over}:
            self.settle(feed)
        for subscriber in [s for s in self._over if s not in s.feed.parked]:
            del self._over[subscriber]

    @property
    def slow(self) -> Iterator[Subscriber]:
        """The subscribers whose socket is full."""
        for feed in self._lagging:
            yield from feed.parked


def _reached(feed: Feed[Subscriber]) -> int:
    """Return the cursor up to which all subscribers that are not parked have everything."""
    return feed.end if feed.behind_since is None else feed.reached
