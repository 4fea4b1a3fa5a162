"""The common part of all engines behind a network.

An engine is a subclass of `Remote` that implements only its own protocol: connecting, the bounds of the log, reading,
following and appending. `Remote` does everything else: it returns from `append` after the publication was delivered,
reconnects to the engine, and delivers in order, exactly once, and never with a silent gap.

To write an engine:

- Parse the URL in `from_url` (with `brokers.options`) and call `Remote.__init__`.
- Set `failures` to the exceptions of the engine's library, and `refusals` to those exceptions that mean: the engine can
  be reached but does not accept events (full, read-only).
- Implement the methods under "The engine's protocol". They may be called again at any time after a failure, including
  `connect` and `disconnect`. Each call has `timeout_seconds`; after this time the call is cancelled, which counts as a
  failure.
- `follow` must yield a page, possibly empty, every `pulse_seconds`, and only if the engine has really responded. This
  is how a hanging engine is detected that does not close its connection.
- While this process is behind, `follow` is not resumed. Bound the data that the engine sends meanwhile.
- Create publications with `draft.received` within `skips.read`; `draft.received` raises `InvalidField` for values that
  no stream can carry. Omit unreadable entries, but include them in `up_to` of the page.
- Implement `standing`, `vouch` and `sign_off` for an engine that can be restored to an older log (`brokers.vouching`).
  While the engine follows the log, it must also remove the signature of another process (`vouch`).
- Raise `Replaced` when the engine reports another log than that of `self.epoch`, and `Forgotten` when entries were
  trimmed before they were read. `follow`, `read_after` and `send` may raise both.
"""

from __future__ import annotations

import asyncio
import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Collection, Coroutine, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from typing import Any, ClassVar, NamedTuple, TypeVar

from qgstream.backoff import Backoff
from qgstream.brokers.base import DEFAULT_TIMEOUT_SECONDS, Broker, Forgotten, Opened, Sink
from qgstream.brokers.skips import Skips
from qgstream.brokers.vouching import Standing, settle
from qgstream.errors import BadRequest, Unavailable
from qgstream.events.draft import MAX_EVENTS_PER_BATCH, MAX_TOPICS_PER_EVENT
from qgstream.events.history import HistorySettings
from qgstream.events.publication import Position, Publication
from qgstream.logs import LogThrottle, log, scrub
from qgstream.reasons import ResetReason

# The page size of `before`, and a good page size for an engine's `follow`: a few milliseconds of the event loop.
PAGE_EVENTS = 256
# The number of publications that `send` encodes, or passes to the library, at a time.
MADE_AT_ONCE = 64
# The maximum time between two pages of `follow`; at least two pages must fit into the timeout.
MAX_PULSE_SECONDS = 2.0

# After this time without another error, the tail counts as recovered, and the next error starts with the shortest
# delay.
STEADY_SECONDS = 60.0

_T = TypeVar("_T")
_MAX_REASON = 10_000  # the part that is searched for secrets
_USERINFO = re.compile(r"//[^/@\s]*@")


class Bounds(NamedTuple):
    """The bounds of the log: it holds everything after the offset `forgotten`, up to `newest`.

    In an empty log both are equal, and `newest` is the last assigned offset, or 0.
    """

    epoch: str
    forgotten: int
    newest: int


class LogPage(NamedTuple):
    """A part of the log, oldest first, up to the offset `up_to`.

    `up_to` is greater than the offset of the last publication if the entries after that publication were skipped.
    """

    publications: Sequence[Publication]
    up_to: int


class Placed(NamedTuple):
    """The offset of a publication. `is_new` is False if its idempotency key was published before, at this offset. The
    time is in Unix seconds."""

    offset: int
    is_new: bool
    published_at: float


class Replaced(Exception):
    """The engine has another log than the opened log: deleted and created anew, or restored to an older state."""


class Remote(Broker, ABC):
    """A broker whose log is in an engine that other processes use too, and that may be away for a time.

    One task follows the log for the whole process and delivers to the sink. `append` returns when that task has
    delivered the appended publications. When the engine is lost, the task reconnects with growing, jittered delays. It
    then continues after the last delivered publication if the log still has the next one; otherwise it calls `lost` of
    the sink.
    """

    # The name in log lines and errors: the plain name of the scheme.
    name: ClassVar[str]
    # The exceptions of the engine's library. Any other exception is a bug in the engine's module: it is logged with a
    # traceback, and the tail continues.
    failures: ClassVar[tuple[type[Exception], ...]] = (OSError, EOFError)
    # The exceptions that mean: the engine can be reached but does not accept events. `probe` runs until the engine
    # accepts events again.
    refusals: ClassVar[tuple[type[Exception], ...]] = ()
    # The limits of a batch. The engine must store such a batch and return it to the tail in a part of the usual
    # timeout. A larger batch is refused before it is sent, because after a timeout it is unknown what the log holds.
    max_batch_events: ClassVar[int] = MAX_EVENTS_PER_BATCH
    max_batch_topics: ClassVar[int] = MAX_EVENTS_PER_BATCH * MAX_TOPICS_PER_EVENT

    def __init__(
        self, place: str, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, secrets: Collection[str] = ()
    ) -> None:
        """`place` is the engine's address for log lines and errors, without credentials. `secrets` are never shown."""
        self.place = place
        self.timeout_seconds = timeout_seconds
        self.pulse_seconds = min(MAX_PULSE_SECONDS, timeout_seconds / 2)
        self.history = HistorySettings()
        self.epoch = ""
        self.newest = 0  # the offset that was last delivered or skipped
        self.skips = Skips(self.name, self.explain)
        self._mistakes = LogThrottle()
        self._after_mistake = Backoff()
        self._mistaken_at = -STEADY_SECONDS
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)
        self._sink: Sink | None = None
        self._is_open = False
        self._away: str | None = None  # why the engine cannot be reached
        self._is_behind = False  # the tail waits until this process has processed the delivered publications
        self._refusal: str | None = None  # why the engine does not accept events
        self._backoff = Backoff()
        self._tasks: set[asyncio.Task[None]] = set()
        self._appends = 0
        self._answered = asyncio.Event()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap, by offset
        self._turns = count()
        # the query for the bounds, shared by all callers that wait for them
        self._looking: asyncio.Task[Bounds] | None = None
        self._has_asked = False  # whether that task has sent its query to the engine

    # The engine's protocol.

    @abstractmethod
    async def connect(self) -> None:
        """Connect, and create the log if there is none.

        Called again after each `disconnect`. Also called while the connection works: then only create the log if there
        is none.
        """

    @abstractmethod
    async def disconnect(self) -> None:
        """Close the connection in any state. Raises nothing but `failures`."""

    @abstractmethod
    async def bounds(self) -> Bounds:
        """Return the current bounds of the log."""

    async def peek(self) -> Bounds:
        """Return the bounds for a client whose id is not delivered here yet.

        Must not write: any client can send such ids. The default suits engines whose `bounds` only reads.
        """
        return await self.bounds()

    @abstractmethod
    async def renew(self, epoch: str, ended: int | None = None) -> None:
        """Give the log a new epoch, unless it already has another epoch than this one.

        Called when an engine was restored without its newest events although the epoch is unchanged. For `ended` see
        `Vouching.renew`.
        """

    async def standing(self) -> Standing:
        """See `Vouching.standing`. The default suits engines that cannot be restored to an older log."""
        return Standing(self.epoch)

    async def vouch(self) -> None:
        """See `Vouching.vouch`."""
        return

    async def sign_off(self) -> None:
        """Write where the log ends now (the signature). A process that continues to follow the log removes the
        signature."""
        return

    async def has(self, offset: int) -> bool:  # noqa: ARG002
        """Whether the log still has the event that was delivered at this offset, which is within the `bounds`.

        An engine that may assign offsets twice, or that accepts events of others in between, detects here that it was
        restored to an older log.
        """
        return True

    async def before(self, end: int, forgotten: int) -> tuple[Sequence[Publication], int]:
        """Return some of the newest publications up to `end`, oldest first, and the offset after which they start (less
        than `end`).

        The default suits engines whose offsets have no gaps.
        """
        start = max(forgotten, end - PAGE_EVENTS)
        found: list[Publication] = []
        at = start
        while at < end:
            page = await self.read_after(at, end - at)
            if page.up_to <= at:
                break
            found += page.publications
            at = page.up_to
        return [publication for publication in found if publication.offset <= end], start

    @abstractmethod
    async def read_after(self, after: int, limit: int) -> LogPage:
        """Return the log after an offset: at most `limit` publications and about `MAX_READ_BYTES`.

        `up_to` is `after` when there is no more. Raises `Forgotten` when an entry after the offset was trimmed.
        """

    @abstractmethod
    def follow(self, after: int) -> AsyncGenerator[LogPage, None]:
        """Yield the log after an offset, and then everything that is appended. See the module's docstring."""

    @abstractmethod
    async def send(self, publications: Sequence[Publication]) -> Sequence[Placed]:
        """Append the publications, and return the place of each when the engine has stored them as safely as it can.

        Does not change the publications. Raises `errors.TooLarge` or `errors.NotStorable` for publications that this
        engine can never store, before sending anything if possible. Such an error is the publisher's fault and says
        nothing about the engine.
        """

    async def probe(self) -> None:
        """Raise one of `failures` if the engine still does not accept events. Appends nothing."""
        return

    # Helpers for engines.

    async def _turn(self, done: int) -> None:
        """Yield to the event loop after each `MADE_AT_ONCE` publications of a batch: about 2 ms with few topics."""
        if done and not done % MADE_AT_ONCE:
            await asyncio.sleep(0)

    def explain(self, error: Exception | str) -> str:
        """Describe an error without credentials."""
        text = (str(error) or type(error).__name__)[:_MAX_REASON]
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        # Foreign text may contain lone surrogates, which a log line cannot.
        return scrub(_USERINFO.sub("//", text))[:500].encode(errors="backslashreplace").decode()

    # Opening and closing.

    @property
    def skipped(self) -> int:
        """See `Broker.skipped`."""
        return self.skips.count

    @property
    def is_up(self) -> bool:
        """False while the engine is away, hangs, or refuses events."""
        return self._is_open and self._away is None and self._refusal is None

    def keep(self, history: HistorySettings) -> None:
        """Apply changed history settings."""
        self.history = history

    async def open(self, sink: Sink, history: HistorySettings) -> Opened:
        """Connect, and start to follow the log from its end. Raises `errors.Unavailable`."""
        self.history = history
        try:
            await self._ask(self.connect())
            if not await settle(self, self._ask):
                log.warning("broker.unvouched", extra={"broker": self.name, "place": self.place})
            bounds, standing = await self._ask(self.bounds()), await self._ask(self.standing())
            self.epoch, self.newest = bounds.epoch, bounds.newest
            recent, forgotten = await self._recent(bounds)
        except BaseException:
            await self._let_go()
            raise
        self._sink = sink
        self._is_open = True
        self._start(self._run())
        newest = recent[-1].offset if recent else bounds.newest
        return Opened(Position(bounds.epoch, newest), recent, forgotten, earlier=standing.earlier)

    async def check(self) -> None:
        """See `Broker.check`. Raises `errors.Unavailable`."""
        try:
            await self._ask(self.connect())
        finally:
            await self._let_go()

    async def _look(self) -> Bounds:
        await self.connect()
        return await self.bounds()

    async def _recent(self, bounds: Bounds) -> tuple[Sequence[Publication], int]:
        """Return the newest publications, up to the size of the window, and the offset after which they start."""
        recent: deque[Publication] = deque()
        size_bytes, end = 0, bounds.newest
        oldest = time.time() - longest_seconds(self.history)
        forgotten = bounds.forgotten
        while end > forgotten:
            found, start = await self._ask(self.before(end, bounds.forgotten))
            # A whole page: the date of one entry, from any writer, says nothing about older entries.
            if found and all(publication.published_at < oldest for publication in found):
                forgotten = end
                break
            for publication in reversed(found):
                size_bytes += publication.size_bytes
                if len(recent) == self.history.max_events or size_bytes > self.history.max_bytes:
                    forgotten = publication.offset
                    break
                recent.appendleft(publication)
            end = start
        while recent and recent[0].published_at < oldest:
            forgotten = recent.popleft().offset
        return recent, forgotten

    async def close(self) -> None:
        """Finish pending calls of `append` (within the timeout), stop, and disconnect."""
        if not self._is_open:
            return
        self._is_open = False
        while self._appends:
            self._answered.clear()
            await self._answered.wait()
        pending: set[asyncio.Task[Any]] = {*self._tasks, *([self._looking] if self._looking is not None else [])}
        while pending:
            # Cancelled repeatedly: up to Python 3.11 `wait_for`, which libraries use, swallows a cancellation that
            # arrives at the same time as its result.
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=0.2)
        if self._away is None:
            with suppress(*self.failures):
                async with asyncio.timeout(self.timeout_seconds):
                    await self.sign_off()
        await self._let_go()
        self._sink = None

    async def _let_go(self) -> None:
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await self.disconnect()
        except self.failures:
            return  # the engine is already gone
        except Exception as error:  # noqa: BLE001
            self._mistake(error)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._mistake(error)

    def _mistake(self, error: BaseException) -> None:
        """Log an unexpected exception. The broker continues."""
        if self._mistakes.is_due():
            said = {"broker": self.name, "reason": self.explain(repr(error))}
            log.error("broker.failed", extra=said, exc_info=error)

    # The tail.

    async def _run(self) -> None:
        """Follow the log for ever; after a failure, continue where it stopped."""
        is_sure = True  # `open` has just checked the log
        while True:
            try:
                if not is_sure:
                    await self._resume()
                    self._came_back()
                await self._follow()
            except (Forgotten, Replaced):
                pass  # the connection works, and `_resume` finds the cause
            except self.failures as error:
                self._went_away(error)
                await self._let_go()
            except Exception as error:  # noqa: BLE001
                self._mistake(error)
                self._went_away(f"a bug in qgstream: {error!r}")
                await self._let_go()
                await asyncio.sleep(self._seconds_after_mistake())
            is_sure = False
            await asyncio.sleep(self._backoff.seconds())

    def _seconds_after_mistake(self) -> float:
        # The delay keeps growing even if there is a good page between two errors.
        now = time.monotonic()
        if now - self._mistaken_at > STEADY_SECONDS:
            self._after_mistake.reset()
        self._mistaken_at = now
        return self._after_mistake.seconds()

    async def _follow(self) -> None:
        pages = self.follow(self.newest)
        try:
            while True:
                try:
                    async with asyncio.timeout(self.timeout_seconds):
                        page = await anext(pages)
                except StopAsyncIteration:
                    raise ConnectionError("the engine ended the connection") from None
                self._take(page)
                self._backoff.reset()
                if page.publications:
                    await self._room()
                    # pages that are already there must not block the event loop one after the other
                    await asyncio.sleep(0)
        finally:
            await pages.aclose()

    async def _room(self) -> None:
        """Wait without a time limit while this process is behind: the engine stores the log better than this process's
        memory.

        This method does not wait for callers that wait for the tail. A publish of this process that is under way
        finishes when the tail continues, or gets a 503 after its timeout. Later publishes wait in `Hub.room` before
        they are sent.
        """
        if self._sink is not None:
            self._is_behind = True
            try:
                await self._sink.room()
            finally:
                self._is_behind = False

    def _take(self, page: LogPage) -> None:
        fresh = page.publications
        if fresh and fresh[0].offset <= self.newest:
            fresh = [publication for publication in fresh if publication.offset > self.newest]
        self.newest = max(self.newest, page.up_to)
        if fresh and self._sink is not None:
            self._sink.deliver(fresh)
        self._wake()

    async def _resume(self) -> None:
        """Reconnect, and find out what happened to the log meanwhile."""
        async with asyncio.timeout(self.timeout_seconds):
            bounds = await self._look()
        if bounds.epoch == self.epoch and not await self._goes_on(bounds):
            async with asyncio.timeout(self.timeout_seconds):
                await self.renew(self.epoch)
                bounds = await self.bounds()
        if bounds.epoch != self.epoch:
            self._lose(Position(bounds.epoch, bounds.newest), "epoch_changed")
        elif bounds.forgotten > self.newest:
            self._lose(Position(bounds.epoch, bounds.forgotten), "too_old")
        async with asyncio.timeout(self.timeout_seconds):
            await self.vouch()

    async def _goes_on(self, bounds: Bounds) -> bool:
        """Whether the log still continues from the last delivered publication, with all publications appended since."""
        if bounds.newest < self.newest:
            return False
        async with asyncio.timeout(self.timeout_seconds):
            return self.newest <= bounds.forgotten or await self.has(self.newest)

    def _lose(self, position: Position, reason: ResetReason) -> None:
        if position.epoch != self.epoch:
            # Publications that were sent to the lost log, or to the new log without being delivered, never reached this
            # process.
            for _, _, future in self._waiting:
                if not future.done():
                    future.set_exception(Replaced())
            self._waiting.clear()
        self.epoch, self.newest = position
        if self._sink is not None:
            self._sink.lost(position, reason)
        self._wake()

    def _went_away(self, error: Exception | str) -> None:
        was_up = self.is_up
        if isinstance(error, TimeoutError) and not str(error):
            self._away = f"was silent for {self.timeout_seconds:g} s"
        else:
            self._away = self.explain(error)
        self._say(was_up, self._away)

    def _came_back(self) -> None:
        was_up, self._away = self.is_up, None
        self._say(was_up, "")

    def _say(self, was_up: bool, reason: str) -> None:
        if was_up and not self.is_up:
            log.error("broker.down", extra={"broker": self.name, "place": self.place, "reason": reason})
        elif self.is_up and not was_up:
            log.info("broker.up", extra={"broker": self.name, "place": self.place})

    # Publishing.

    async def append(self, publications: Sequence[Publication]) -> Sequence[int]:
        """See `Broker.append`."""
        self._check()
        self._check_batch(publications)
        self._appends += 1
        try:
            placed = await self._ask(self._append(publications))
        finally:
            self._appends -= 1
            self._answered.set()
        for publication, place in zip(publications, placed, strict=True):
            if place.is_new:
                publication.offset, publication.published_at = place.offset, place.published_at
        return [place.offset for place in placed]

    async def _append(self, publications: Sequence[Publication]) -> Sequence[Placed]:
        epoch = self.epoch
        try:
            placed = await self.send(publications)
        except self.refusals as error:
            if self._refusal is None and not await self._takes_others():
                self._refused(error)
            raise
        if epoch != self.epoch:
            raise Replaced
        await self._came_by(max(place.offset for place in placed))
        return placed

    def _check_batch(self, publications: Sequence[Publication]) -> None:
        events, topics = len(publications), sum([len(publication.topics) for publication in publications])
        for got, limit, what in (
            (events, self.max_batch_events, "events"), (topics, self.max_batch_topics, "topics of all its events"),
        ):  # fmt: skip
            if got > limit:
                raise BadRequest(
                    f"got a batch with {got} {what}, expected at most {limit} for {self.name}",
                    code="too_many_events",
                )

    async def _takes_others(self) -> bool:
        """Whether the engine accepts other events although it refused some. Then only the publisher gets an error."""
        try:
            await self.probe()
        except self.failures:
            return False
        except Exception as error:  # noqa: BLE001
            self._mistake(error)
            return False
        return True

    async def _came_by(self, offset: int) -> None:
        """Wait until the tail has delivered everything up to this offset."""
        if offset > self.newest:
            future = asyncio.get_running_loop().create_future()
            heappush(self._waiting, (offset, next(self._turns), future))
            await future

    def _wake(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.newest:
            _, _, future = heappop(self._waiting)
            if not future.done():
                future.set_result(None)

    def _refused(self, error: Exception) -> None:
        if self._refusal is None:
            was_up, self._refusal = self.is_up, self.explain(error)
            self._say(was_up, self._refusal)
            self._start(self._ask_until_it_takes())

    async def _ask_until_it_takes(self) -> None:
        backoff = Backoff()
        while self._refusal is not None:
            await asyncio.sleep(backoff.seconds())
            try:
                async with asyncio.timeout(self.timeout_seconds):
                    await self.probe()
            except self.failures as error:
                self._refusal = self.explain(error)
            except Exception as error:  # noqa: BLE001
                self._mistake(error)
            else:
                was_up, self._refusal = self.is_up, None
                self._say(was_up, "")

    # Reading.

    async def read(self, after: int, limit: int, topics: Collection[str] = ()) -> Sequence[Publication]:  # noqa: ARG002
        """See `Broker.read`. Returns nothing that the sink has not received yet, which a stream would receive twice."""
        self._check()
        while after < self.newest:
            page = await self._ask(self.read_after(after, limit))
            found = [publication for publication in page.publications if publication.offset <= self.newest]
            if found or page.up_to <= after:
                return found
            after = page.up_to
        return ()

    async def reach(self, offset: int) -> bool:
        """See `Broker.reach`."""
        if offset <= self.newest:
            return True
        self._check()
        epoch, bounds = self.epoch, await self._ask(self._bounds_for(offset))
        if not epoch == self.epoch == bounds.epoch:
            return False
        await self._ask(self._came_by(min(offset, bounds.newest)))
        return epoch == self.epoch and offset <= bounds.newest

    async def _bounds_for(self, offset: int) -> Bounds:
        """Return the bounds for a client with this offset. All waiting callers share one query.

        Another process may have delivered the offset a moment ago. So the result of a query sent before this call
        cannot rule out that the offset exists; in that case the query is sent again.
        """
        looking = self._looking
        if looking is not None and not looking.done() and self._has_asked:
            with suppress(*self.failures):
                bounds = await _shielded(looking)
                if offset <= bounds.newest:
                    return bounds
        # At this point, a running task has not sent its query yet.
        if self._looking is None or self._looking.done():
            self._has_asked = False
            self._looking = asyncio.get_running_loop().create_task(self._look_again())
            # the exception may come after all callers have gone
            self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await _shielded(self._looking)

    async def _look_again(self) -> Bounds:
        self._has_asked = True
        async with asyncio.timeout(self.timeout_seconds):
            return await self.peek()

    # Timeouts and errors of queries.

    def _check(self) -> None:
        if not self._is_open:
            raise self._unavailable("is not open")
        if self._away is not None:
            raise self._unavailable(self._away)

    async def _ask(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        try:
            async with asyncio.timeout(self.timeout_seconds):
                return await coroutine
        except TimeoutError as error:
            what = self.explain(error) if str(error) else f"was silent for {self.timeout_seconds:g} s"
            raise self._unavailable(
                "sends events faster than this server can process them" if self._is_behind else what
            ) from None
        except Replaced:
            raise self._unavailable("has replaced its log") from None
        except self.failures as error:
            raise self._unavailable(self.explain(error)) from None

    def _unavailable(self, what: str) -> Unavailable:
        return Unavailable(f"{self.name} at {self.place}: {what}", retry_after_seconds=1, code="broker_down")


async def _shielded(task: asyncio.Task[_T]) -> _T:
    """Return the result of a task that others wait for too. Raises `ConnectionError` when the broker was closed
    meanwhile."""
    await asyncio.wait((task,))
    if task.cancelled():
        raise ConnectionError("is not open")
    return task.result()


def longest_seconds(history: HistorySettings) -> float:
    """Return the longest retention of any topic, in seconds."""
    return max([history.max_age_seconds, *(topic.max_age_seconds or 0 for topic in history.topics)])
