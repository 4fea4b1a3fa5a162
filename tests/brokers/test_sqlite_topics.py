"""The index of a log's topics in its file: right whatever is appended, trimmed and edited, and made for older files."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from qgstream.brokers.base import MAX_READ_BYTES, Forgotten, Selection
from qgstream.brokers.sqlite import file
from qgstream.brokers.sqlite.file import SCHEMA_VERSION
from qgstream.brokers.sqlite.log import MOST_TOPICS, Log, Reader
from qgstream.events.history import HistorySettings
from qgstream.events.publication import Publication
from qgstream.events.topics import matches_any

ExpectLog = Callable[[str], None]
NAMES = ("a", "a/1", "a/2", "b", "ж", "\U0010ffff")
PATTERNS = [
    ("a",),
    ("a*",),
    ("a/*", "b"),
    ("b", "nobody"),
    ("nobody*",),
    ("ж*",),
    ("\U0010ffff*",),
    ("*",),
    ("a", "a*"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    log = Log(path, HistorySettings(max_events=10**6), now=0, unix_now=0)
    yield log
    log.close()


@pytest.fixture
def reader(log: Log) -> Iterator[Reader]:
    reader = Reader(log.path)
    yield reader
    reader.close()


def append(log: Log, *events: tuple[str, ...], size: int = 2) -> None:
    log.append([(log.newest + n, Publication(names, b"1" * size)) for n, names in enumerate(events, 1)], 0)


def selected(reader: Reader, after: int, limit: int, patterns: tuple[str, ...]) -> list[int]:
    """The offsets of all that it finds, a page after the other."""
    found: list[int] = []
    while True:
        selection = reader.select(after, limit, patterns)
        assert selection is not None
        assert len(selection.publications) <= limit
        found += [publication.offset for publication in selection.publications]
        if selection.end is None:
            return found
        assert selection.end > after
        after = selection.end


def index_of(path: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT topic, offset FROM topics ORDER BY offset, topic").fetchall()


def rows_of(path: Path) -> list[tuple[str, int]]:
    """What the index should hold, by a plain reading of the rows."""
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT offset, topics FROM log ORDER BY offset").fetchall()
    return [(name, offset) for offset, topics in rows for name in sorted(set(json.loads(topics)))]


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_what_a_look_through_the_log_finds(log: Log, reader: Reader, path: Path, seed: int) -> None:
    random = Random(seed)
    for _ in range(5):
        append(log, *[tuple(random.sample(NAMES, random.randint(1, 3))) for _ in range(random.randint(1, 30))])
        log.keep(HistorySettings(max_events=random.choice([20, 60, 10**6])))
        while log.trim(0):
            pass
        assert index_of(path) == rows_of(path)
        (forgotten,) = log._db.execute("SELECT max(forgotten) FROM shelves").fetchone()
        for patterns in PATTERNS:
            for after in {forgotten, random.randint(forgotten, log.newest), log.newest}:
                every = reader.read(after, 10**6, ())
                wanted = [p.offset for p in every if any(matches_any(patterns, topic) for topic in p.topics)]
                for limit in (1, 3, 256):
                    assert selected(reader, after, limit, patterns) == wanted
        if forgotten:
            with pytest.raises(Forgotten):
                reader.select(forgotten - 1, 10, ("a",))


def test_it_ends_behind_what_it_has_looked_at(log: Log, reader: Reader) -> None:
    assert reader.select(0, 10, ("a",)) == Selection([], None)
    append(log, ("a",), ("b",), ("a",), ("b",))
    first = reader.select(0, 1, ("a",))
    assert first is not None
    assert (len(first.publications), first.end) == (1, 1)
    rest = reader.select(1, 10, ("a",))
    assert rest is not None
    assert ([p.offset for p in rest.publications], rest.end) == ([3], 4)
    assert reader.select(0, 10, ("nobody",)) == Selection([], 4)
    assert reader.select(4, 10, ("a",)) == Selection([], None)


def test_it_is_bounded_in_bytes(log: Log, reader: Reader) -> None:
    append(log, *[("a",)] * 5, size=MAX_READ_BYTES // 2)
    selection = reader.select(0, 256, ("a",))
    assert selection is not None
    assert ([p.offset for p in selection.publications], selection.end) == ([1, 2], 2)
    assert selected(reader, 0, 256, ("a",)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("patterns", [("mine",), ("mine", "news/*"), ("min*",)])
def test_an_old_id_on_a_quiet_topic_does_not_read_the_log(log: Log, reader: Reader, patterns: tuple[str, ...]) -> None:
    append(log, ("mine",), *[(f"user/{n}",) for n in range(20_000)], ("mine",))
    steps = [0]

    def step() -> None:
        steps[0] += 1

    reader._db.set_progress_handler(step, 100)  # of SQLite's own instructions
    assert selected(reader, 0, 256, patterns) == [1, 20_002]
    assert steps[0] < 20
    steps[0] = 0
    reader.read(0, 20_002, patterns)
    assert steps[0] > 1000


def test_for_a_prefix_of_many_topics_the_log_is_read(log: Log, reader: Reader) -> None:
    append(log, *[(f"user/{n}",) for n in range(MOST_TOPICS + 1)])
    assert reader.select(0, 256, ("user/*",)) is None
    assert reader.select(0, 256, ("user/1*",)) is not None


def test_rows_that_somebody_has_edited_are_found_where_they_are_now(
    log: Log, reader: Reader, path: Path, expect_log: ExpectLog
) -> None:
    expect_log("broker.skipped")
    append(log, ("a",), ("a",), ("a",), ("b", "a"), ("b",))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE log SET topics = '[\"b\"]' WHERE offset = 1")
        db.execute("UPDATE log SET topics = 'no JSON' WHERE offset = 2")
        db.execute("UPDATE log SET topics = x'00ff' WHERE offset = 3")
        db.execute("UPDATE log SET data = 5 WHERE offset = 4")
        db.execute("DELETE FROM log WHERE offset = 5")
    assert selected(reader, 0, 256, ("a",)) == []
    assert selected(reader, 0, 256, ("b",)) == [1]


def as_version_1(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for name in ("log_added", "log_removed", "log_changed"):
            db.execute(f"DROP TRIGGER {name}")
        db.execute("DROP TABLE topics")
        db.execute("PRAGMA user_version = 1")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def version_of(path: Path) -> int:
    """As another qgstream finds it: in the file itself."""
    return int.from_bytes(path.read_bytes()[60:64])


def test_a_log_of_version_1_gets_the_index(path: Path) -> None:
    log = Log(path, HistorySettings(), now=0, unix_now=0)
    append(log, ("a",), ("a", "b"), ("b",), ("a",))
    epoch = log.epoch
    log.close()
    as_version_1(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE log SET topics = '[' WHERE offset = 4")  # what cannot be read is in nobody's way
    assert version_of(path) == 1
    for _ in range(2):
        log = Log(path, HistorySettings(), now=0, unix_now=0)
        assert version_of(path) == SCHEMA_VERSION
        assert (log.epoch, index_of(path)[:4]) == (epoch, [("a", 1), ("a", 2), ("b", 2), ("b", 3)])
        append(log, ("a",))
        assert index_of(path)[-1] == ("a", log.newest)
        log.close()


def test_a_migration_that_fails_leaves_the_log_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(path, HistorySettings(), now=0, unix_now=0)
    append(log, ("a",), ("b",))
    log.close()
    as_version_1(path)
    with monkeypatch.context() as patch:
        patch.setattr(file, "TOPICS", (*file.TOPICS, "SELECT no_such_function()"))
        with pytest.raises(OSError, match="no_such_function"):
            Log(path, HistorySettings(), now=0, unix_now=0)
    assert version_of(path) == 1
    log = Log(path, HistorySettings(), now=0, unix_now=0)
    assert index_of(path) == [("a", 1), ("b", 2)]
    log.close()
