"""The durable log in its file: append, read, trim. Synchronous, without an event loop."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from qgstream.brokers.ages import Ages
from qgstream.brokers.base import IDEMPOTENCY_SECONDS, MAX_READ_BYTES, Forgotten, Opened, Selection
from qgstream.brokers.skips import Skips
from qgstream.brokers.sqlite.file import (
    check,
    check_pair,
    connect,
    create,
    lock,
    note_pair,
    note_reached,
    reached,
    transaction,
    upgrade,
)
from qgstream.brokers.sqlite.names import Displaced, LogNames, identity_of
from qgstream.errors import InvalidField
from qgstream.events.draft import received
from qgstream.events.history import HistorySettings, TopicHistory
from qgstream.events.pattern_sets import pattern_set
from qgstream.events.publication import Position, Publication
from qgstream.logs import log

# The number of events deleted in one transaction, which publishes wait for (a few milliseconds).
TRIM_EVENTS = 500
# The number of pages of 4 KiB returned to the file system at a time, when more than a quarter of the file is unused.
_VACUUM_PAGES = 1000
# After this many consecutive rows that are too old, the search stops.
OLD_ROWS = 256
# The approximate size of an event in the file beside its data: its row, its indexes and unused space.
ROW_BYTES = 120
# The events of so many topics are looked up, which takes a few milliseconds; of more, the log is read instead.
MOST_TOPICS = 512
# SQLite holds any type in any column, and a person may have edited a row: the casts guarantee numbers.
_SIZE, _DATE = "CAST(size AS INTEGER)", "CAST(published_at AS REAL)"
_COLUMNS = "offset, published_at, topics, event, retry_ms, is_json, private, data"


class Log:
    """The open log. One thread at a time may write; `Reader` has a separate connection.

    Events belong to the retention classes of `HistorySettings` (called shelves in the file). The file records up to
    which offset each class was trimmed.
    """

    def __init__(
        self,
        path: Path,
        history: HistorySettings,
        skips: Skips | None = None,
        *,
        now: float | None = None,
        unix_now: float | None = None,
    ) -> None:
        """Open the log, or create a new one.

        Raises `OSError` for a file that is in use, is not a log, or is damaged, and does not change such a file.
        `skips` counts the unreadable rows. The times are for tests; see `trim`.
        """
        self._skips = skips or Skips("sqlite")
        path = Path(os.path.abspath(path))  # noqa: PTH100  # a program may change its folder; links stay links
        self.path = real = path.resolve()  # two links to one file use one lock
        with ExitStack() as stack:
            held = lock(real)
            stack.callback(os.close, held)
            try:
                if not real.exists():
                    create(real)
                check_pair(real, held)
                check(real)
                opened = identity_of(real)
                self._db = connect(real, "rw")
                stack.callback(self._db.close)
                upgrade(self._db)
                # In WAL mode only FULL syncs at every commit. With NORMAL a power failure loses what was acknowledged
                # since the last checkpoint.
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute(f"PRAGMA journal_size_limit = {64 * 1024 * 1024}")
                self.epoch, self.newest = self._state(path)
                self._opened_at = time.time() if unix_now is None else unix_now
                self._ages = Ages(self.newest, time.monotonic() if now is None else now)
                count = f"SELECT count(*), ifnull(sum({_SIZE}), 0) FROM log"  # noqa: S608
                self.events, self.size_bytes = self._db.execute(count).fetchone()
                # Rows between these two offsets may still be in the retention classes of earlier settings.
                self._reshelving = self._begun_to_reshelve()
                self.keep(history)
                self._names = LogNames(path, real)
                if identity_of(real) != opened:
                    raise OSError(f"{path}: was replaced while it was opened")
                self._lock = held
                self._see_whether_it_went_back()
                note_pair(real, held)
            except sqlite3.Error as error:
                raise OSError(f"{path}: cannot be opened as a log of events: {error}") from error
            self._resources = stack.pop_all()

    def _state(self, path: Path) -> tuple[str, int]:
        found = self._db.execute("SELECT epoch, newest FROM state").fetchall()
        (last,) = self._db.execute("SELECT ifnull(max(offset), 0) FROM log").fetchone()
        if len(found) != 1 or not isinstance(found[0][0], str) or not isinstance(found[0][1], int):
            raise OSError(
                f"{path}: is damaged: the table state holds {found!r:.200}, expected one epoch and one offset"
            )
        if last > found[0][1]:
            # A row that a person has inserted after the end would collide with the next event.
            self._db.execute("UPDATE state SET newest = ?", (last,))
        return found[0][0], max(found[0][1], last)

    def close(self) -> None:
        """Close the file."""
        self._note_reached()
        self._resources.close()

    def _see_whether_it_went_back(self) -> None:
        """Give the log a new epoch if an older copy has replaced it, because it would assign offsets a second time."""
        epoch, newest = reached(self._lock)
        if epoch == self.epoch and newest > self.newest:
            self.epoch = secrets.token_hex(5)
            with transaction(self._db) as db:
                db.execute("UPDATE state SET epoch = ?", (self.epoch,))
            log.warning("broker.unvouched", extra={"broker": "sqlite", "place": str(self.path)})
        self._note_reached()

    def _note_reached(self) -> None:
        self._reached = self.epoch, self.newest
        with suppress(OSError):  # no room: the earlier record states less, and nothing false
            note_reached(self._lock, *self._reached)

    def check_names(self) -> None:
        """Raise `Displaced` if the log's name no longer refers to the open file."""
        self._names.check()

    def keep(self, history: HistorySettings) -> None:
        """Apply these history settings from now on. Raises `sqlite3.Error`."""
        shelves = json.dumps([(topic.pattern, topic.store) for topic in history.topics])
        (before,) = self._db.execute("SELECT shelves FROM state").fetchone()
        if shelves != before:
            with transaction(self._db) as db:
                self._begin_to_reshelve(db, len(history.topics) + 1, shelves, before)
            self._reshelving = (0, self.newest)
        self.history = history

    def _begin_to_reshelve(self, db: sqlite3.Connection, shelves_count: int, shelves: str, before: str) -> None:
        # Events trimmed from the old classes may concern any new class, so each new class starts with the largest
        # trimmed offset. Also, events that were never stored may be requested from now on. Readers use only these
        # offsets and never the class of a row, so they get correct results from this transaction on. `trim` moves the
        # rows to their new classes, a few at a time.
        (worst,) = db.execute("SELECT max(forgotten) FROM shelves").fetchone()
        if not all(stored for _, stored in json.loads(before)):
            worst = self.newest
        db.execute("DELETE FROM shelves")
        db.executemany("INSERT INTO shelves VALUES (?, ?)", [(shelf, worst) for shelf in range(shelves_count)])
        db.execute("CREATE TABLE IF NOT EXISTS reshelving (done INTEGER NOT NULL, until INTEGER NOT NULL)")
        db.execute("DELETE FROM reshelving")
        db.execute("INSERT INTO reshelving VALUES (0, ?)", (self.newest,))
        db.execute("UPDATE state SET shelves = ?", (shelves,))

    def _begun_to_reshelve(self) -> tuple[int, int] | None:
        """Return the work that a process left unfinished."""
        if self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'reshelving'").fetchone() is None:
            return None  # the classes never changed; a log of an older version has no such table
        found: tuple[int, int] | None = self._db.execute("SELECT done, until FROM reshelving").fetchone()
        return found

    def _reshelve(self, done: int, until: int) -> None:
        """Move some of the rows after the offset `done` to the retention classes of the settings."""
        query = (
            f"SELECT offset, shelf, {_SIZE}, topics FROM log "  # noqa: S608
            "WHERE offset > ? AND offset <= ? ORDER BY offset LIMIT ?"
        )
        moved, doomed, freed_bytes = [], [], 0
        looks = TRIM_EVENTS
        rows = self._db.execute(query, (done, until, TRIM_EVENTS)).fetchall()
        for offset, before, size, topics in rows:
            names = _names(topics) or [""]  # an unreadable row belongs to no topic, and stays
            shelf = _shelf(self.history, names)
            if shelf is None:
                doomed.append((offset,))
                freed_bytes += size
            elif shelf != before:
                moved.append((shelf, offset))
            done = offset
            looks -= len(names)
            if looks <= 0:
                break  # events with many topics need smaller transactions
        if looks > 0:
            done = until  # no more rows
        with transaction(self._db) as db:
            db.executemany("UPDATE log SET shelf = ? WHERE offset = ?", moved)
            db.executemany("DELETE FROM log WHERE offset = ?", doomed)
            if done < until:
                db.execute("UPDATE reshelving SET done = ?", (done,))
            else:
                db.execute("DELETE FROM reshelving")
        self._reshelving = (done, until) if done < until else None
        self.events -= len(doomed)
        self.size_bytes -= freed_bytes

    # Writing.

    def append(self, events: Sequence[tuple[int, Publication]], now: float) -> None:
        """Write these events at their offsets, all or none; they are on disk when this method returns.

        Raises `sqlite3.Error`, and `Displaced` if another process has written into the file.
        """
        rows, keys = [], []
        for offset, publication in events:
            if publication.idempotency_key is not None:
                keys.append((publication.idempotency_key, now, offset))
            shelf = _shelf(self.history, publication.topics)
            if shelf is not None:
                topics = json.dumps(publication.topics, ensure_ascii=False)
                size = len(publication.data) + 2 * len(topics) + ROW_BYTES  # topics: in the row and in their index
                rows.append((
                    offset, now, shelf, topics, publication.event, publication.retry_ms, publication.is_json,
                    publication.private, size, publication.data,
                ))  # fmt: skip
        newest = events[-1][0]
        with transaction(self._db) as db:
            # Stored separately from the rows, which may be trimmed or never stored: an offset must not be assigned
            # twice.
            self._move_on(db, newest)
            db.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            db.executemany("INSERT OR REPLACE INTO keys VALUES (?, ?, ?)", keys)
        self.newest = newest
        self.events += len(rows)
        self.size_bytes += sum(row[8] for row in rows)

    def _move_on(self, db: sqlite3.Connection, newest: int) -> None:
        update = "UPDATE state SET newest = ? WHERE newest = ? AND epoch = ?"
        if db.execute(update, (newest, self.newest, self.epoch)).rowcount != 1:
            raise Displaced(self.path, "was written by another process")

    def probe(self) -> None:
        """Write nothing new, and check whether writing reaches the disk. Raises the errors of `append`."""
        with transaction(self._db) as db:
            self._move_on(db, self.newest)

    def trim(self, now: float) -> bool:
        """Delete some events beyond the retention; return True while there may be more.

        Raises `sqlite3.Error`. `now` is the time of a clock that is never set, `time.monotonic`.
        """
        if self._reached != (self.epoch, self.newest):
            self._note_reached()
        self._ages.note(self.newest, now)
        # Events from before the file was opened have Unix times, which the steady clock continues.
        unix_now = self._opened_at + now - self._ages.began_at
        more = self._trim_old_keys(min(unix_now, time.time()))
        if self._reshelving is not None:
            self._reshelve(*self._reshelving)
            more = True
        else:
            more |= self._trim_shelves(now, unix_now)
        more |= self._trim_oldest()
        return more | self._shrink()

    def _trim_shelves(self, now: float, unix_now: float) -> bool:
        more = False
        for shelf in range(len(self.history.topics) + 1):
            age_seconds = _max_age_seconds(self.history, shelf)
            more |= self._trim_shelf(shelf, self._ages.older_than(age_seconds, now), unix_now - age_seconds)
        return more

    def _trim_old_keys(self, now: float) -> bool:
        oldest = now - IDEMPOTENCY_SECONDS
        if self._db.execute("SELECT 1 FROM keys WHERE at < ? LIMIT 1", (oldest,)).fetchone() is None:
            return False
        with transaction(self._db) as db:
            old = "SELECT key FROM keys WHERE at < ? LIMIT ?"
            return db.execute(f"DELETE FROM keys WHERE key IN ({old})", (oldest, TRIM_EVENTS)).rowcount == TRIM_EVENTS  # noqa: S608

    def _trim_shelf(self, shelf: int, up_to: int, oldest: float) -> bool:
        query = f"SELECT offset, {_SIZE}, topics, {_DATE} FROM log WHERE shelf = ? ORDER BY offset LIMIT ?"  # noqa: S608
        doomed = []
        for row in self._db.execute(query, (shelf, TRIM_EVENTS)):
            if row[0] > up_to and (row[0] > self._ages.first or row[3] >= oldest):
                break
            doomed.append(row[:3])
        return self._delete(doomed)

    def _trim_oldest(self) -> bool:
        events, size_bytes = self.events - self.history.max_events, self.size_bytes - self.history.max_bytes
        if events <= 0 and size_bytes <= 0:
            return False
        doomed = []
        query = f"SELECT offset, {_SIZE}, topics FROM log ORDER BY offset LIMIT ?"  # noqa: S608
        for row in self._db.execute(query, (TRIM_EVENTS,)):
            if events <= 0 and size_bytes <= 0:
                break
            doomed.append(row)
            events -= 1
            size_bytes -= row[1]
        return self._delete(doomed)

    def _delete(self, doomed: Sequence[tuple[int, int, str]]) -> bool:
        if not doomed:
            return False
        forgotten: dict[int, int] = {}
        looks, count = 2 * TRIM_EVENTS, 0
        for offset, _, topics in doomed:
            # A reader of another topic of this event misses the event too, and checks that topic's class. (Not the
            # class in the row: a row that was not moved yet has the number of an old class.)
            names = _names(topics)
            for concerned in self.history.retention_classes_of_event(names):
                forgotten[concerned] = offset
            count += 1
            looks -= len(names)
            if looks <= 0:
                break  # each topic is an entry of the index: of events with many there are fewer in one transaction
        more = len(doomed) == TRIM_EVENTS or count < len(doomed)
        doomed = doomed[:count]
        with transaction(self._db) as db:
            db.executemany("DELETE FROM log WHERE offset = ?", [row[:1] for row in doomed])
            update = "UPDATE shelves SET forgotten = max(forgotten, ?) WHERE shelf = ?"
            db.executemany(update, [(offset, shelf) for shelf, offset in forgotten.items()])
        self.events -= len(doomed)
        self.size_bytes -= sum(row[1] for row in doomed)
        return more

    def _shrink(self) -> bool:
        (unused,), (pages,) = (
            self._db.execute(f"PRAGMA {name}").fetchone() for name in ("freelist_count", "page_count")
        )
        if unused < _VACUUM_PAGES or unused <= pages // 4:
            return False
        self._db.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        return True

    # Reading.

    def opened(self, window: HistorySettings, now: float) -> Opened:
        """Return the state for a hub whose window has these limits."""
        recent: list[Publication] = []
        size_bytes, forgotten, old = 0, 0, 0
        oldest = now - max(_max_age_seconds(window, shelf) for shelf in range(len(window.topics) + 1))
        for row in self._db.execute(f"SELECT {_COLUMNS} FROM log ORDER BY offset DESC"):  # noqa: S608
            publication = self._skips.read(row[0], partial(_publication, row))
            if publication is None:
                continue
            size_bytes += publication.size_bytes
            # Several consecutive rows: the date of a single row, from an unknown clock, says nothing about older rows.
            old = old + 1 if publication.published_at < oldest else 0
            if len(recent) == window.max_events or size_bytes > window.max_bytes or old > OLD_ROWS:
                forgotten = publication.offset
                break
            recent.append(publication)
        while recent and recent[-1].published_at < oldest:
            forgotten = recent.pop().offset
        patterns = [*(topic.pattern for topic in self.history.topics), ""]
        marks = self._db.execute("SELECT shelf, forgotten FROM shelves").fetchall()
        forgotten_of = {patterns[shelf]: offset for shelf, offset in marks}
        return Opened(Position(self.epoch, self.newest), recent[::-1], forgotten, forgotten_of)

    def keys(self, now: float) -> Sequence[tuple[str, float, int]]:
        """Return the valid idempotency keys, oldest first: key, time, offset."""
        # Times in the future were written before the clock was set back.
        self._db.execute("UPDATE keys SET at = ? WHERE at > ?", (now, now))
        query = "SELECT key, CAST(at AS REAL), CAST(offset AS INTEGER) FROM keys WHERE at >= ? ORDER BY at"
        return self._db.execute(query, (now - IDEMPOTENCY_SECONDS,)).fetchall()


class Reader:
    """Reads an open log, concurrently with its writer. For one thread at a time. Raises `sqlite3.Error`."""

    def __init__(self, path: Path, skips: Skips | None = None) -> None:
        self._skips = skips or Skips("sqlite")
        self._db = connect(path, "ro")
        self._db.execute("SELECT newest FROM state").fetchone()  # opens all its files
        self._shelves = "[]"
        self._history = HistorySettings()

    def read(self, after: int, limit: int, topics: Collection[str]) -> Sequence[Publication]:
        """See `Broker.read`. Raises `Forgotten` and `sqlite3.Error`."""
        found: list[Publication] = []
        size_bytes = 0
        with transaction(self._db, "DEFERRED") as db:  # one transaction: nothing is trimmed in between
            self._check_marks(db, after, topics)
            query = f"SELECT {_COLUMNS} FROM log WHERE offset > ? ORDER BY offset"  # noqa: S608
            for row in db.execute(query, (after,)):
                publication = self._skips.read(row[0], partial(_publication, row))
                if publication is None:
                    continue
                size_bytes += len(publication.data)
                if found and size_bytes > MAX_READ_BYTES:
                    break
                found.append(publication)
                if len(found) == limit:
                    break
        return found

    def select(self, after: int, limit: int, topics: Collection[str]) -> Selection | None:
        """See `Broker.select`. Raises `Forgotten` and `sqlite3.Error`."""
        with transaction(self._db, "DEFERRED") as db:  # one look, as in `read`
            self._check_marks(db, after, topics)
            names = _covered(db, topics)
            if names is None:
                return None
            (newest,) = db.execute("SELECT newest FROM state").fetchone()
            query = "SELECT offset FROM topics WHERE topic = ? AND offset > ? ORDER BY offset LIMIT ?"
            offsets = sorted({offset for name in names for (offset,) in db.execute(query, (name, after, limit))})
            found: list[Publication] = []
            size_bytes, end = 0, after
            for offset in offsets[:limit]:
                row = db.execute(f"SELECT {_COLUMNS} FROM log WHERE offset = ?", (offset,)).fetchone()  # noqa: S608
                publication = self._skips.read(offset, partial(_publication, row)) if row is not None else None
                if publication is not None:
                    size_bytes += len(publication.data)
                    if found and size_bytes > MAX_READ_BYTES:
                        return Selection(found, end)
                    found.append(publication)
                end = offset
        if len(offsets) < limit:
            end = max(end, newest)
        return Selection(found, end if end > after else None)

    def _check_marks(self, db: sqlite3.Connection, after: int, topics: Collection[str]) -> None:
        marks = dict(db.execute("SELECT shelf, forgotten FROM shelves"))
        forgotten = max((marks[shelf] for shelf in self._look_up(db, topics)), default=0)
        if after < forgotten:
            raise Forgotten(after, forgotten)

    def _look_up(self, db: sqlite3.Connection, topics: Collection[str]) -> list[int]:
        (shelves,) = db.execute("SELECT shelves FROM state").fetchone()
        if shelves != self._shelves:  # the classes in the file, which the writer may just have changed
            entries = [TopicHistory(pattern=pattern, store=store) for pattern, store in json.loads(shelves)]
            self._shelves, self._history = shelves, HistorySettings(topics=tuple(entries))
        return self._history.retention_classes_of_patterns(topics)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()


def _covered(db: sqlite3.Connection, patterns: Collection[str]) -> list[str] | None:
    """The topics that the patterns cover; None if they are many, or everything."""
    found: list[str] = []
    for pattern in pattern_set(frozenset(patterns)):
        prefix = pattern.removesuffix("*")
        if prefix == pattern:
            found.append(pattern)
            continue
        query = "SELECT topic FROM topics WHERE topic >= ? LIMIT 1"
        row = db.execute(query, (prefix,)).fetchone()
        while row is not None and row[0].startswith(prefix):
            found.append(row[0])
            if len(found) > MOST_TOPICS:
                return None
            row = db.execute("SELECT topic FROM topics WHERE topic > ? LIMIT 1", (row[0],)).fetchone()
    return found


def _shelf(history: HistorySettings, topics: Sequence[str]) -> int | None:
    """Return the retention class of an event, or None if it is not stored: the topic with the longest retention
    decides."""
    shelves = history.retention_classes_of_event(topics)
    return max(shelves, key=lambda shelf: _max_age_seconds(history, shelf), default=None)


def _max_age_seconds(history: HistorySettings, shelf: int) -> float:
    exception = history.topics[shelf].max_age_seconds if shelf < len(history.topics) else None
    return exception or history.max_age_seconds


def _publication(row: tuple[int, Any, Any, Any, Any, Any, Any, Any]) -> Publication:
    """Parse a row. Raises `InvalidField`: a person may have edited the row, and SQLite stores any type in any
    column."""
    offset, published_at, topics, event, retry_ms, is_json, private, data = row
    if not isinstance(data, bytes):
        raise InvalidField("data", f"got {type(data).__name__}, expected bytes")
    if not isinstance(published_at, float | int):
        raise InvalidField("published_at", f"got {type(published_at).__name__}, expected a number")
    return received(
        _topics(topics), data, is_json=_flag("is_json", is_json), event=event, retry_ms=retry_ms,
        private=_flag("private", private), offset=offset, published_at=published_at,
    )  # fmt: skip


def _topics(text: object) -> list[Any]:
    try:
        topics = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        topics = None
    if not isinstance(topics, list):
        raise InvalidField("topics", f"got {str(text)[:100]!r}, expected a JSON list of names")
    return topics


def _names(text: object) -> list[str]:
    """Return the topics of a row, as far as they can be parsed."""
    with suppress(InvalidField):
        return [topic for topic in _topics(text) if isinstance(topic, str)]
    return []


def _flag(name: str, value: object) -> bool:
    if value not in (0, 1):
        raise InvalidField(name, f"got {str(value)[:100]!r}, expected 0 or 1")
    return bool(value)
