"""The durable embedded log: a file on this machine's disk, for one process. No other server is needed."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self, TypeVar
from urllib.parse import parse_qsl, unquote

from pydantic import ValidationError

from qgstream.backoff import Backoff
from qgstream.brokers.base import DEFAULT_TIMEOUT_SECONDS, Broker, Opened, Selection, Sink
from qgstream.brokers.idempotency import IdempotencyKeys
from qgstream.brokers.skips import Skips
from qgstream.brokers.sqlite.file import look
from qgstream.brokers.sqlite.log import Log, Reader
from qgstream.brokers.sqlite.names import Displaced
from qgstream.errors import ConfigError, NotStorable, Unavailable
from qgstream.events.history import HistorySettings
from qgstream.events.publication import Publication
from qgstream.logs import LogThrottle, log
from qgstream.validation import describe

# The limit of the queue of publishes. Above it the disk is too slow, and new publishes are refused at once.
MAX_QUEUE_BYTES = 64 * 1024 * 1024
# The limit of one transaction, unless a single batch is larger.
MAX_GROUP_BYTES = 8 * 1024 * 1024
# The time between two runs of trimming.
TRIM_SECONDS = 1.0
# The time between two checks whether the files still exist, while no publish arrives.
LOOK_SECONDS = 0.25
T = TypeVar("T")

_RETENTION = ("max_events", "max_bytes", "max_age_seconds")


@dataclass(eq=False)
class _Job:
    """A batch in the writer's queue."""

    publications: Sequence[Publication]
    done: asyncio.Future[Sequence[int]]
    size_bytes: int
    given_up: bool = False
    offsets: list[int] = field(default_factory=list)


class SqliteBroker(Broker):
    """A log in a SQLite file. An acknowledged publish is on disk; kill -9 and power failures lose none.

    One thread writes. Publishes that arrive while this thread waits for the disk go into its next transaction together:
    16 publishers wait for one or two syncs, not for 16. `retention` replaces limits of the history settings for the
    file alone, so that the log on disk can go further back than the window in memory.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        retention: dict[str, float] | None = None,
    ) -> None:
        self.path = Path(path)
        self._timeout_seconds = timeout_seconds
        self._retention = retention or {}
        self._file: Log | None = None
        self._sink: Sink | None = None
        self._keys = IdempotencyKeys()
        self._skips = Skips("sqlite")
        self._mistakes = LogThrottle()
        self._new_history: HistorySettings | None = None
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._queue_bytes = 0
        self._failed = False
        self._displaced: str | None = None  # what happened to the files; permanent, until the log is opened again
        self._writing_since: float | None = None
        self._looked_at = 0.0

    @classmethod
    def from_url(cls, url: str, *, timeout_seconds: float) -> Self:
        """Create a broker for `sqlite:///var/lib/qgstream/events.db`, or for a path below the working directory:
        `sqlite://events.db`.

        The query may set `max_events`, `max_bytes` and `max_age_seconds` of the file. Raises `ConfigError`.
        """
        path, _, query = url.partition("://")[2].partition("?")
        if not path or path.endswith("/"):
            raise ConfigError([f"broker.url: got {url!r}, expected sqlite:///path/of/a/file"])
        retention = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name not in _RETENTION:
                raise ConfigError([f"broker.url: got the option {name!r}, expected one of {', '.join(_RETENTION)}"])
            try:
                HistorySettings.model_validate({name: value})
            except ValidationError as error:
                said = describe(error.errors(include_url=False)[0], repr(value))
                raise ConfigError([f"broker.url: {name}: {said}"]) from None
            retention[name] = float(value)
        return cls(unquote(path), timeout_seconds=timeout_seconds, retention=retention)

    @property
    def is_up(self) -> bool:
        """Whether the log can be written.

        False while the disk is full, broken, or silent for longer than the timeout. Permanently False after the files
        were removed or replaced.
        """
        since = self._writing_since
        stuck = since is not None and time.monotonic() - since > self._timeout_seconds
        return self._file is not None and self._displaced is None and not self._failed and not stuck

    @property
    def is_shared(self) -> bool:
        """False: the file belongs to one process."""
        return False

    @property
    def skipped(self) -> int:
        """See `Broker.skipped`."""
        return self._skips.count

    # Opening and closing.

    async def open(self, sink: Sink, history: HistorySettings) -> Opened:
        """Open the file, or create it. Raises `OSError` for an unusable file, and leaves this file unchanged."""
        self._file, self._reader, opened = await asyncio.to_thread(self._open, history)
        self._displaced = None
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._readers = ThreadPoolExecutor(1, "qgstream-sqlite-read")
        # A daemon thread, so that a program can exit without closing its hub. Events that are not on disk are not
        # acknowledged.
        self._writer = threading.Thread(
            target=self._write, args=(self._file,), name="qgstream-sqlite-write", daemon=True
        )  # fmt: skip
        self._writer.start()
        return opened

    async def check(self) -> None:
        """See `Broker.check`. Raises `OSError`, or `InUse` if another process has the log. Changes nothing."""
        await asyncio.to_thread(look, self.path)

    def _open(self, history: HistorySettings) -> tuple[Log, Reader, Opened]:
        now = time.time()
        with ExitStack() as stack:
            file = Log(self.path, self._for_file(history), self._skips)
            stack.callback(file.close)
            try:
                # Opened now and not at the first read: by then the name may refer to another file.
                reader = Reader(file.path, self._skips)
                stack.callback(reader.close)
                file.check_names()
                for key, at, offset in file.keys(now):
                    self._keys.remember(key, time.monotonic() - (now - at), offset)
                opened = file.opened(history, now)
            except (sqlite3.Error, Displaced) as error:
                raise OSError(f"{self.path}: cannot be read: {error}") from error
            stack.pop_all()
            return file, reader, opened

    def _for_file(self, history: HistorySettings) -> HistorySettings:
        return HistorySettings.model_validate(history.model_dump() | self._retention)

    def keep(self, history: HistorySettings) -> None:
        """Apply these history settings in the writer's thread."""
        self._new_history = self._for_file(history)

    async def close(self) -> None:
        """Write the queue, and close the file."""
        file, self._file = self._file, None
        if file is None:
            return
        self._queue.put(None)
        await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        self._reader.close()
        await asyncio.to_thread(file.close)
        await asyncio.sleep(0)  # the writer's last results are delivered and returned
        self._sink = None

    # Publishing.

    async def append(self, publications: Sequence[Publication]) -> Sequence[int]:
        """See `Broker.append`."""
        self._check_open()
        if self._queue_bytes > MAX_QUEUE_BYTES:
            raise self._unavailable(f"does not keep up: {self._queue_bytes} bytes wait for it")
        size_bytes = sum([len(p.data) + sum(map(len, p.topics)) for p in publications])
        job = _Job(publications, asyncio.get_running_loop().create_future(), size_bytes)
        self._queue_bytes += size_bytes
        self._queue.put(job)
        try:
            return await asyncio.wait_for(job.done, self._timeout_seconds)
        except TimeoutError:
            job.given_up = True
            raise self._unavailable(f"was silent for {self._timeout_seconds:g} s") from None

    def _check_open(self) -> None:
        if self._file is None:
            raise self._unavailable("is not open")
        if self._displaced is not None:
            raise self._unavailable(self._displaced)

    def _unavailable(self, what: str) -> Unavailable:
        return Unavailable(f"the log on disk {what}", retry_after_seconds=1, code="broker_down")

    def _settle(self, jobs: Sequence[_Job], fresh: Sequence[Publication]) -> None:
        """Runs on the event loop: deliver the events that are on disk now, then return from their `append` calls."""
        try:
            if fresh and self._sink is not None:
                self._sink.deliver(fresh)
        finally:
            for job in jobs:
                self._queue_bytes -= job.size_bytes
                if not job.done.done():
                    job.done.set_result(job.offsets)

    def _refuse(self, jobs: Sequence[_Job], error: Exception) -> None:
        for job in jobs:
            self._queue_bytes -= job.size_bytes
            if not job.done.done():
                job.done.set_exception(error)

    # The writer's thread.

    def _write(self, file: Log) -> None:
        backoff = Backoff()
        trim_at = self._looked_at = time.monotonic()
        while True:
            wait = backoff.seconds() if self._failed else max(0.0, trim_at - time.monotonic())
            jobs, is_last = self._next(file, TRIM_SECONDS if self._displaced is not None else wait)
            if jobs:
                self._commit(file, jobs)
            elif self._failed and self._displaced is None:
                self._probe(file)
            if not self._failed and self._displaced is None:
                backoff.reset()
                if time.monotonic() >= trim_at:
                    trim_at = time.monotonic() + (0 if self._trim(file) else TRIM_SECONDS)
            if is_last:
                return

    def _next(self, file: Log, wait_seconds: float) -> tuple[list[_Job], bool]:
        """See `_take`. While waiting, check the files."""
        until = time.monotonic() + wait_seconds
        while True:
            now = time.monotonic()
            if self._displaced is None and now - self._looked_at >= LOOK_SECONDS:
                self._look(file)
            left = max(0.0, until - now)
            jobs, is_last = self._take(min(left, LOOK_SECONDS))
            if jobs or is_last or left <= LOOK_SECONDS:
                return jobs, is_last

    def _mistake(self, error: Exception) -> None:
        """Log an unexpected exception. The thread continues, because no other thread writes."""
        if self._mistakes.is_due():
            log.error("broker.failed", extra={"broker": "sqlite", "reason": repr(error)[:500]}, exc_info=error)

    def _take(self, wait_seconds: float) -> tuple[list[_Job], bool]:
        """Return the waiting jobs that fit into one transaction, and whether the end was requested."""
        jobs: list[_Job] = []
        size_bytes = 0
        try:
            job = self._queue.get(timeout=wait_seconds) if wait_seconds else self._queue.get_nowait()
            while job is not None:
                jobs.append(job)
                size_bytes += job.size_bytes
                if size_bytes > MAX_GROUP_BYTES:
                    return jobs, False
                job = self._queue.get_nowait()
        except Empty:
            return jobs, False
        return jobs, True

    def _commit(self, file: Log, jobs: list[_Job]) -> None:
        now, unix_now = time.monotonic(), time.time()
        fresh: list[tuple[int, Publication]] = []
        try:
            fresh = self._numbered(file, jobs, now)
            refusal = self._refusal(file, fresh, unix_now)
        except Exception as error:  # noqa: BLE001  # it is the events: what no draft would let through
            if len(jobs) == 1:
                self._call(self._refuse, jobs, NotStorable(f"the log on disk cannot store this event: {error}"))
            else:  # an invalid event of one job must not fail the others
                for job in jobs:
                    self._commit(file, [job])
            return
        if refusal is not None:
            self._call(self._refuse, jobs, self._unavailable(refusal))
            return
        # In this thread, because it takes 5 ms on the event loop. The publisher is waiting in any case.
        for offset, publication in fresh:
            publication.offset, publication.published_at = offset, unix_now
            if publication.idempotency_key is not None:
                self._keys.remember(publication.idempotency_key, now, offset)
        self._call(self._settle, jobs, [publication for _, publication in fresh])

    def _numbered(self, file: Log, jobs: list[_Job], now: float) -> list[tuple[int, Publication]]:
        """Assign offsets, also in the jobs; return the events to write with their offsets."""
        newest, new_keys = file.newest, IdempotencyKeys()
        fresh: list[tuple[int, Publication]] = []
        for job in jobs:
            if job.given_up:  # the publisher already got a 503, so do not publish the event
                continue
            job.offsets = []
            for publication in job.publications:
                key = publication.idempotency_key
                if key is not None:
                    first = self._keys.first_offset(key, now) or new_keys.first_offset(key, now)
                    if first is not None:
                        job.offsets.append(first)
                        continue
                    new_keys.remember(key, now, newest + 1)
                newest += 1
                job.offsets.append(newest)
                fresh.append((newest, publication))
        return fresh

    def _refusal(self, file: Log, fresh: Sequence[tuple[int, Publication]], now: float) -> str | None:
        """Write the events. Return the problem, or None if they are on disk under the log's name. Raises errors caused
        by the events."""
        if self._displaced is not None:
            return self._displaced
        self._writing_since = time.monotonic()
        try:
            file.check_names()
            if fresh:
                file.append(fresh, now)
                # The files may have been removed meanwhile, and acknowledged events must be found under the log's name.
                file.check_names()
                self._came_up()
        except Displaced as error:
            self._was_displaced(error)
        except sqlite3.Error as error:
            if _is_of_events(error):
                raise
            self._look(file)  # without its files SQLite also fails, but does not know the reason
            if self._displaced is None:
                self._went_down(error)
                return f"cannot be written: {error}"
        finally:
            self._writing_since = None
        return self._displaced

    def _look(self, file: Log) -> None:
        """Check whether the files still exist."""
        self._looked_at = self._writing_since = time.monotonic()  # a silent disk does not respond here either
        try:
            file.check_names()
        except Displaced as error:
            self._was_displaced(error)
        except Exception as error:  # noqa: BLE001
            self._mistake(error)
        finally:
            self._writing_since = None

    def _probe(self, file: Log) -> None:
        try:
            file.probe()
        except Displaced as error:
            self._was_displaced(error)
            return
        except sqlite3.Error:
            return
        except Exception as error:  # noqa: BLE001
            self._mistake(error)
            return
        self._came_up()

    def _trim(self, file: Log) -> bool:
        """Trim. Return whether there is more to do at once."""
        try:
            history = self._new_history
            if history is not None:
                file.keep(history)  # if it fails, it is retried
                if self._new_history is history:
                    self._new_history = None
            return file.trim(time.monotonic())
        except sqlite3.Error as error:
            log.warning("broker.trim_failed", extra={"broker": "sqlite", "reason": str(error)})
            return False
        except Exception as error:  # noqa: BLE001
            self._mistake(error)
            return False

    def _was_displaced(self, error: Displaced) -> None:
        # Permanent, even if the file returns under its name: another program may have changed it meanwhile. A program
        # that opens the file under another name does not find its WAL, and overwrites what the WAL contains.
        if self._displaced is None:
            self._displaced = error.what
            log.error("broker.down", extra={"broker": "sqlite", "place": str(self.path), "reason": str(error)})

    def _went_down(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            log.error("broker.down", extra={"broker": "sqlite", "place": str(self.path), "reason": str(error)})

    def _came_up(self) -> None:
        if self._failed:
            self._failed = False
            log.info("broker.up", extra={"broker": "sqlite", "place": str(self.path)})

    def _call(self, callback: object, *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)  # type: ignore[arg-type]
        except RuntimeError:
            return  # the event loop has ended, and with it all callers

    # Reading.

    async def read(self, after: int, limit: int, topics: Collection[str] = ()) -> Sequence[Publication]:
        """See `Broker.read`."""
        return await self._ask(self._reader.read, after, limit, tuple(topics))

    @property
    def selects(self) -> bool:
        """The file has an index by topic."""
        return True

    async def select(self, after: int, limit: int, topics: Collection[str]) -> Selection | None:
        """See `Broker.select`."""
        return await self._ask(self._reader.select, after, limit, tuple(topics))

    async def _ask(self, ask: Callable[[int, int, tuple[str, ...]], T], *question: Any) -> T:
        self._check_open()
        try:
            reading = asyncio.get_running_loop().run_in_executor(self._readers, ask, *question)
            return await asyncio.wait_for(reading, self._timeout_seconds)
        except TimeoutError:
            raise self._unavailable(f"was silent for {self._timeout_seconds:g} s") from None
        except sqlite3.Error as error:
            raise self._unavailable(f"cannot be read: {error}") from error


def _is_of_events(error: Exception) -> bool:
    """Whether the event that could not be written is the cause, and not the file: a size or a type that SQLite cannot
    store."""
    if isinstance(error, sqlite3.DataError | sqlite3.InterfaceError):
        return True
    # Python 3.12 and newer raise ProgrammingError for a type.
    return not isinstance(error, sqlite3.Error) or "Error binding parameter" in str(error)
