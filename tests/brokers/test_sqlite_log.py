"""The file's log when its shelves change: in short transactions, and never with a mark that says too little."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from qgstream.brokers.base import Forgotten
from qgstream.brokers.sqlite import log as sqlite_log
from qgstream.brokers.sqlite.log import TRIM_EVENTS, Log, Reader
from qgstream.events.history import HistorySettings, TopicHistory
from qgstream.events.publication import Publication

TOPICS = ("a", "b", "c")
SETTINGS = [
    HistorySettings(),
    HistorySettings(max_events=15),
    HistorySettings(topics=(TopicHistory(pattern="a", max_age_seconds=3),), max_events=12),
    HistorySettings(
        topics=(TopicHistory(pattern="b", max_age_seconds=3), TopicHistory(pattern="a", max_age_seconds=9))
    ),
    HistorySettings(topics=(TopicHistory(pattern="c", store=False), TopicHistory(pattern="b", max_age_seconds=5))),
    HistorySettings(topics=(TopicHistory(pattern="*", max_age_seconds=6),), max_events=20),
]
OTHER = HistorySettings(topics=(TopicHistory(pattern="b", max_age_seconds=3), TopicHistory(pattern="c", store=False)))


def append(log: Log, *events: tuple[str, ...], now: float = 0) -> None:
    log.append([(log.newest + n, Publication(topics, b"{}")) for n, topics in enumerate(events, 1)], now)


def settle(log: Log, now: float = 0) -> int:
    """Trim until there is nothing left to do; how many steps that took."""
    steps = 1
    while log.trim(now):
        steps += 1
    return steps


def shelves(log: Log) -> list[tuple[int, int]]:
    return log._db.execute("SELECT offset, shelf FROM log ORDER BY offset").fetchall()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    log = Log(path, HistorySettings(), now=0, unix_now=0)
    yield log
    log.close()


@pytest.mark.parametrize("topics", [1, 64])
def test_rows_change_their_shelf_in_short_transactions(log: Log, topics: int) -> None:
    count = 3 * TRIM_EVENTS + 1 if topics == 1 else 100
    names = tuple(f"x/{number}" for number in range(topics - 1))
    append(log, *[(TOPICS[n % 3], *(names if n % 3 < 2 else ())) for n in range(count)])
    before = log._db.total_changes
    log.keep(OTHER)
    assert log._db.total_changes - before < 10  # it is the marks alone
    append(log, ("b",), ("c",), ("a",))
    steps, more = 0, True
    while more:
        before = log._db.total_changes
        more = log.trim(0)
        steps += 1
        # Of a row that is deleted the entries of its topics are, too.
        assert log._db.total_changes - before <= 2 * (TRIM_EVENTS // (topics // 2 + 1) + 1)
    assert steps >= 4
    on_shelf = {"a": 2, "b": 0 if topics == 1 else 2}
    expected = [(n + 1, on_shelf[TOPICS[n % 3]]) for n in range(count) if n % 3 < 2]
    assert shelves(log) == [*expected, (count + 1, 0), (count + 3, 2)]
    assert (log.events, log.size_bytes) == log._db.execute("SELECT count(*), sum(size) FROM log").fetchone()


def test_nothing_is_trimmed_by_the_number_of_a_shelf_that_is_gone(log: Log) -> None:
    log.keep(HistorySettings(topics=(TopicHistory(pattern="a", max_age_seconds=1000),)))
    append(log, *[("a",)] * (2 * TRIM_EVENTS))
    append(log, *[("b",)] * TRIM_EVENTS)
    log.trim(0)  # from here on their age is known
    log.keep(HistorySettings(topics=(TopicHistory(pattern="b", max_age_seconds=3),)))
    settle(log, now=100)
    assert shelves(log) == [(n + 1, 1) for n in range(2 * TRIM_EVENTS)]


def test_a_process_that_is_killed_in_the_middle_leaves_the_rest_to_the_next(path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from tests.brokers.test_sqlite_log import *
log = Log(Path({str(path)!r}), HistorySettings(), now=0, unix_now=0)
append(log, *[(TOPICS[n % 3],) for n in range(4 * TRIM_EVENTS)])
log.keep(OTHER)
assert log.trim(0) and log.trim(0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parent.parent.parent
    ended = subprocess.run([sys.executable, "-c", program], cwd=root, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    log = Log(path, OTHER, now=0, unix_now=0)
    moved = [offset for offset, shelf in shelves(log) if shelf]
    assert moved
    assert max(moved) < 2 * TRIM_EVENTS + 1, "it was killed too late"
    settle(log)
    assert shelves(log) == [(n + 1, 2 - 2 * (n % 3)) for n in range(4 * TRIM_EVENTS) if n % 3 < 2]
    assert settle(log) == 1
    log.close()


@pytest.mark.parametrize("seed", range(8))
def test_a_reader_is_told_of_what_is_missing_at_every_moment(
    path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(sqlite_log, "TRIM_EVENTS", 4)
    random, now, events = Random(seed), 0.0, list[tuple[str, ...]]()
    settings = SETTINGS[0]
    log = Log(path, settings, now=now, unix_now=now)
    reader = Reader(path)
    for _ in range(120):
        now += random.choice([0, 0.5, 1])
        match random.choice(["append", "append", "keep", "trim", "trim", "trim", "open"]):
            case "append":
                fresh = [tuple(random.sample(TOPICS, random.choice([1, 1, 2]))) for _ in range(random.randint(1, 9))]
                append(log, *fresh, now=now)
                events += fresh
            case "keep":
                log.keep(settings := random.choice(SETTINGS))
            case "trim":
                log.trim(now)
            case "open":
                log.close()
                settings = random.choice([settings, *SETTINGS])
                log = Log(path, settings, now=now, unix_now=now)
        check(reader, settings, events)
    settle(log, now)
    check(reader, settings, events)
    for offset, shelf in shelves(log):
        assert shelf == sqlite_log._shelf(settings, events[offset - 1])
    reader.close()
    log.close()


def check(reader: Reader, settings: HistorySettings, events: list[tuple[str, ...]]) -> None:
    for asked in (("a",), ("b",), ("c",), ("a", "c"), ("*",)):
        for after in range(0, len(events) + 1, 1 + len(events) // 20):
            try:
                found = {publication.offset for publication in reader.read(after, 10_000, asked)}
            except Forgotten:
                continue
            # A topic without history is missed by nobody.
            kept = {
                t for t in TOPICS if list(settings.retention_classes_of_event([t])) and ("*" in asked or t in asked)
            }
            missing = {n for n, topics in enumerate(events, 1) if n > after and kept & set(topics)} - found
            assert not missing, json.dumps(sorted(missing))
