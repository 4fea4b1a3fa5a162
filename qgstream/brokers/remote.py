"""What every engine on the other side of a network has in common, written once.

An engine is a subclass of `Remote` that has only its own words: how to connect, where its log begins and ends, how to
read, follow and append. Everything else is here: who waits for its own message, what happens while the engine is away,
and that nothing is delivered twice, out of order, or silently not at all.

To write one:

- Take the URL apart in `from_url` (`brokers.options` has what that needs) and call `Remote.__init__`.
- Set `failures` to what the engine's library raises when something goes wrong, and `refusals` to those of them with
  which an engine that can be reached refuses to take events (full, read-only).
- Write the methods under "The engine's own words". They may be called again at any time after a failure, `connect` and
  `disconnect` too. Each call has `timeout_seconds`; then it is cancelled, and that counts as a failure.
- `follow` must give a page, be it empty, every `pulse_seconds`, and only if the engine has really answered: that is how
  an engine is found out that hangs without closing anything.
- `follow` is left waiting while this process is behind. What the engine sends meanwhile must be bounded.
- Make publications with `draft.received`, which raises `InvalidField` for what no stream can carry, within
  `skips.read`: what cannot be read is left out, and `up_to` of the page goes beyond it.
- Write `standing`, `vouch` and `sign_off` for an engine that can come back with an older log (`brokers.vouching`); and
  while it follows the log, see that another process's signature is taken back (`vouch`).
- Whenever the engine tells that its log is not the one of `self.epoch` any more, raise `Replaced`; when something was
  trimmed before it was read, `Forgotten`. Both from wherever they are noticed: `follow`, `read_after`, `send`.
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
from qgstream.logs import Seldom, log, scrub
from qgstream.reasons import ResetReason

# What `before` reads at once, and what an engine's `follow` may best give at once: a few milliseconds of the loop.
PAGE_EVENTS = 256
# What `send` makes ready, or gives to the library, at once.
MADE_AT_ONCE = 64
# A sign of life comes at least so often, and twice within the timeout.
MAX_PULSE_SECONDS = 2.0

# A tail that ran this long after a mistake has recovered: the next one is a first one.
STEADY_SECONDS = 60.0

_T = TypeVar("_T")
_MAX_REASON = 10_000  # of what is looked through for secrets
_USERINFO = re.compile(r"//[^/@\s]*@")


class Bounds(NamedTuple):
    """What the log holds: everything after the offset `forgotten`, up to `newest`. Equal in an empty log, where
    `newest` is the offset that was given last, or 0."""

    epoch: str
    forgotten: int
    newest: int


class Page(NamedTuple):
    """A part of the log, oldest first. It ends at the offset `up_to`: behind its last publication when what follows
    that was skipped."""

    publications: Sequence[Publication]
    up_to: int


class Placed(NamedTuple):
    """Where a publication is. Not `is_new`: its key was published before, there. The time is in Unix seconds."""

    offset: int
    is_new: bool
    published_at: float


class Replaced(Exception):
    """The engine has another log than the one that was opened: deleted and made anew, or gone back in time."""


class Remote(Broker, ABC):
    """A broker whose log is in an engine that other processes use too, and that may go away and come back.

    One task follows the log, for the whole process, and delivers to the sink. `append` returns when that task has come
    by what was appended. When the engine is lost it is tried again with growing, jittered delays; then the task goes
    on behind the last thing it delivered, if the log still has that; else the sink is told `lost`.
    """

    # In the log, and for people: the scheme's plain name.
    name: ClassVar[str]
    # What the engine's library raises. Anything else is a mistake in the engine's file: the log has its trace, and the
    # tail goes on.
    failures: ClassVar[tuple[type[Exception], ...]] = (OSError, EOFError)
    # Those of them that mean: reached, and does not take events. It is asked with `probe` until it does.
    refusals: ClassVar[tuple[type[Exception], ...]] = ()
    # What a batch may hold, so that the engine takes it, and gives it back to the tail, in a part of the usual timeout.
    # A larger one is refused before anything of it is sent: when the timeout is over nobody knows what is in the log.
    max_batch_events: ClassVar[int] = MAX_EVENTS_PER_BATCH
    max_batch_topics: ClassVar[int] = MAX_EVENTS_PER_BATCH * MAX_TOPICS_PER_EVENT

    def __init__(
        self, place: str, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, secrets: Collection[str] = ()
    ) -> None:
        """`place` is the engine's address for people, without credentials. `secrets` never appear anywhere."""
        self.place = place
        self.timeout_seconds = timeout_seconds
        self.pulse_seconds = min(MAX_PULSE_SECONDS, timeout_seconds / 2)
        self.history = HistorySettings()
        self.epoch = ""
        self.newest = 0  # what was delivered last, or skipped
        self.skips = Skips(self.name, self.explain)
        self._mistakes = Seldom()
        self._after_mistake = Backoff()
        self._mistaken_at = -STEADY_SECONDS
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)
        self._sink: Sink | None = None
        self._is_open = False
        self._away: str | None = None  # why it cannot be reached
        self._is_behind = False  # the tail waits until this process has dealt with what it delivered
        self._refusal: str | None = None  # why it does not take events
        self._backoff = Backoff()
        self._tasks: set[asyncio.Task[None]] = set()
        self._appends = 0
        self._answered = asyncio.Event()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap, by offset
        self._turns = count()
        self._looking: asyncio.Task[Bounds] | None = None  # for the bounds, on behalf of all who wait for them
        self._has_asked = False  # whether that task has put its question to the engine

    # The engine's own words.

    @abstractmethod
    async def connect(self) -> None:
        """Be connected, and make the log if there is none. Called again after each `disconnect`, and sometimes when
        the connection is well: then do nothing but see that there is a log."""

    @abstractmethod
    async def disconnect(self) -> None:
        """Let go of the connection, in whatever state it is. Raises nothing but `failures`."""

    @abstractmethod
    async def bounds(self) -> Bounds:
        """What the log holds now."""

    async def peek(self) -> Bounds:
        """What `bounds` says, for a client with an id that did not come by yet. Must write nothing: anybody can send
        such ids. As written here it suits engines whose `bounds` only read."""
        return await self.bounds()

    @abstractmethod
    async def renew(self, epoch: str, ended: int | None = None) -> None:
        """The log is not what it was though its epoch is: an engine came back without its newest events. Give it
        another epoch, unless it has another one than this already. For `ended` see `Vouching.renew`."""

    async def standing(self) -> Standing:
        """See `Vouching.standing`. As written here it suits engines that cannot come back with an older log."""
        return Standing(self.epoch)

    async def vouch(self) -> None:
        """See `Vouching.vouch`."""
        return

    async def sign_off(self) -> None:
        """Write down that the log ends where it ends now. A process that goes on following it takes that back."""
        return

    async def has(self, offset: int) -> bool:  # noqa: ARG002
        """Whether the log still has the very event that was delivered at this offset, which `bounds` say it holds.

        An engine that gives offsets anew, or takes events of others between, finds out here that it went back in time.
        """
        return True

    async def before(self, end: int, forgotten: int) -> tuple[Sequence[Publication], int]:
        """Some of the newest publications up to `end`, oldest first, and the offset after which they begin (less than
        `end`). As written here it suits engines whose offsets have no gaps."""
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
    async def read_after(self, after: int, limit: int) -> Page:
        """The log after an offset: at most `limit` publications and about `MAX_READ_BYTES`. `up_to` is `after` when
        there is no more. Raises `Forgotten` when something after the offset was trimmed."""

    @abstractmethod
    def follow(self, after: int) -> AsyncGenerator[Page, None]:
        """The log after an offset, and everything that is appended, as it comes. See above."""

    @abstractmethod
    async def send(self, publications: Sequence[Publication]) -> Sequence[Placed]:
        """Append, and return where each is once they are as safe as the engine makes them. Touches none of them.

        Raises `errors.TooLarge` or `errors.NotStorable` for what this engine can never take, before anything is sent
        if that can be known: it is the publisher's own error, and says nothing of the engine.
        """

    async def probe(self) -> None:
        """Raise one of `failures` if the engine would still not take events, without appending one."""
        return

    # What engines may use.

    async def _turn(self, done: int) -> None:
        """Let others have the loop, whenever so many publications of a batch were made ready: 2 ms with few topics."""
        if done and not done % MADE_AT_ONCE:
            await asyncio.sleep(0)

    def explain(self, error: Exception | str) -> str:
        """What went wrong, without credentials."""
        text = (str(error) or type(error).__name__)[:_MAX_REASON]
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        # Foreign text may hold lone surrogates, which no line of the log can.
        return scrub(_USERINFO.sub("//", text))[:500].encode(errors="backslashreplace").decode()

    # Life.

    @property
    def skipped(self) -> int:
        """See `Broker.skipped`."""
        return self.skips.count

    @property
    def is_up(self) -> bool:
        """False while the engine is away, hangs, or refuses events."""
        return self._is_open and self._away is None and self._refusal is None

    def keep(self, history: HistorySettings) -> None:
        """The history settings were changed."""
        self.history = history

    async def open(self, sink: Sink, history: HistorySettings) -> Opened:
        """Connect, and begin to follow the log from its end. Raises `errors.Unavailable`."""
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
        """The newest publications, as many as the window takes, and the offset after which they begin."""
        recent: deque[Publication] = deque()
        size_bytes, end = 0, bounds.newest
        oldest = time.time() - longest_seconds(self.history)
        forgotten = bounds.forgotten
        while end > forgotten:
            found, start = await self._ask(self.before(end, bounds.forgotten))
            # A whole page: the date of one entry, whoever wrote it, says nothing of what lies before it.
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
        """Answer what was taken (for as long as the timeout), stop, and let go."""
        if not self._is_open:
            return
        self._is_open = False
        while self._appends:
            self._answered.clear()
            await self._answered.wait()
        pending: set[asyncio.Task[Any]] = {*self._tasks, *([self._looking] if self._looking is not None else [])}
        while pending:
            # Again and again: up to Python 3.11 `wait_for`, which libraries use, swallows a cancellation that comes in
            # the same moment as what it waited for.
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
            return  # nobody is there to say goodbye to
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
        """Say that something was raised which nobody reckoned with. It ends nothing for good."""
        if self._mistakes.is_due():
            said = {"broker": self.name, "reason": self.explain(repr(error))}
            log.error("broker.failed", extra=said, exc_info=error)

    # The tail.

    async def _run(self) -> None:
        """Follow the log, for ever; whatever breaks it, go on where it broke."""
        is_sure = True  # `open` has just looked
        while True:
            try:
                if not is_sure:
                    await self._resume()
                    self._came_back()
                await self._follow()
            except (Forgotten, Replaced):
                pass  # the connection is well, and `_resume` finds out
            except self.failures as error:
                self._went_away(error)
                await self._let_go()
            except Exception as error:  # noqa: BLE001
                self._mistake(error)
                self._went_away(f"a mistake in qgstream: {error!r}")
                await self._let_go()
                await asyncio.sleep(self._seconds_after_mistake())
            is_sure = False
            await asyncio.sleep(self._backoff.seconds())

    def _seconds_after_mistake(self) -> float:
        # Longer and longer, also when there is a good page between two of them.
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
                    await asyncio.sleep(0)  # a page that was there already must not hold the loop for the next one
        finally:
            await pages.aclose()

    async def _room(self) -> None:
        """Wait, for as long as it takes, while this process is behind: the engine holds the log better than its memory.

        It waits for nobody who waits for the tail. A publish of this process that is under way is answered when the
        tail goes on, or 503 after its timeout; the next ones wait in `Hub.room` before they are sent.
        """
        if self._sink is not None:
            self._is_behind = True
            try:
                await self._sink.room()
            finally:
                self._is_behind = False

    def _take(self, page: Page) -> None:
        fresh = page.publications
        if fresh and fresh[0].offset <= self.newest:
            fresh = [publication for publication in fresh if publication.offset > self.newest]
        self.newest = max(self.newest, page.up_to)
        if fresh and self._sink is not None:
            self._sink.deliver(fresh)
        self._wake()

    async def _resume(self) -> None:
        """Connect again, and see what became of the log meanwhile."""
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
        """Whether the log is one in which what was delivered is followed by what was appended since."""
        if bounds.newest < self.newest:
            return False
        async with asyncio.timeout(self.timeout_seconds):
            return self.newest <= bounds.forgotten or await self.has(self.newest)

    def _lose(self, position: Position, reason: ResetReason) -> None:
        if position.epoch != self.epoch:
            # What was sent to the log that is gone, or to the new one behind our back, came back to nobody here.
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

    # Publishing's side.

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
            (events, self.max_batch_events, "events"), (topics, self.max_batch_topics, "topics of its events together"),
        ):  # fmt: skip
            if got > limit:
                raise BadRequest(
                    f"got a batch with {got} {what}, expected at most {limit} at once for {self.name}",
                    code="too_many_events",
                )

    async def _takes_others(self) -> bool:
        """Whether the engine takes events, though it refused some. Those are then their publisher's affair alone."""
        try:
            await self.probe()
        except self.failures:
            return False
        except Exception as error:  # noqa: BLE001
            self._mistake(error)
            return False
        return True

    async def _came_by(self, offset: int) -> None:
        """Return when the tail has delivered everything up to this offset."""
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
        """See `Broker.read`. Nothing that the sink was not told of yet: that would reach a stream twice."""
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
        """The bounds, for a client that has this offset. All who wait share one question.

        Another process may have delivered the offset a moment ago. So an answer to a question that was asked before
        this call cannot deny that there is such an offset: then the question is asked once more.
        """
        looking = self._looking
        if looking is not None and not looking.done() and self._has_asked:
            with suppress(*self.failures):
                bounds = await _shielded(looking)
                if offset <= bounds.newest:
                    return bounds
        # Whatever question is under way here was asked after this call.
        if self._looking is None or self._looking.done():
            self._has_asked = False
            self._looking = asyncio.get_running_loop().create_task(self._look_again())
            self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())  # it may come too late
        return await _shielded(self._looking)

    async def _look_again(self) -> Bounds:
        self._has_asked = True
        async with asyncio.timeout(self.timeout_seconds):
            return await self.peek()

    # Every question has an answer in time.

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
            raise self._unavailable("has more than this server keeps up with" if self._is_behind else what) from None
        except Replaced:
            raise self._unavailable("has another log than a moment ago") from None
        except self.failures as error:
            raise self._unavailable(self.explain(error)) from None

    def _unavailable(self, what: str) -> Unavailable:
        return Unavailable(f"{self.name} at {self.place}: {what}", retry_after_seconds=1, code="broker_down")


async def _shielded(task: asyncio.Task[_T]) -> _T:
    """The result of a task that others wait for too. `ConnectionError` when the broker was closed meanwhile."""
    await asyncio.wait((task,))
    if task.cancelled():
        raise ConnectionError("is not open")
    return task.result()


def longest_seconds(history: HistorySettings) -> float:
    """The longest that any topic's events are kept."""
    return max([history.max_age_seconds, *(topic.max_age_seconds or 0 for topic in history.topics)])
