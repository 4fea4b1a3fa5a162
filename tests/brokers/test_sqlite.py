"""The log on disk: what it refuses, what it keeps, and that it is safe when it says so."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from tornado.ioloop import IOLoop

from qgstream.brokers.base import Forgotten, open_broker
from qgstream.brokers.sqlite import broker as sqlite
from qgstream.brokers.sqlite import file as sqlite_file
from qgstream.brokers.sqlite import log as sqlite_log
from qgstream.brokers.sqlite.broker import SqliteBroker
from qgstream.brokers.sqlite.file import APPLICATION_ID
from qgstream.errors import ConfigError, NotStorable, Unavailable
from qgstream.events.history import HistorySettings, TopicHistory
from qgstream.events.publication import Publication
from tests.brokers.conftest import Tail
from tests.brokers.serving import Served, open_stream, take
from tests.conftest import ExpectLog
from tests.http.asking import until


class Disk:
    """A path for a log, and the brokers that were opened on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: list[Tail] = []

    async def open(self, history: HistorySettings | None = None, *, query: str = "", patience: float = 30.0) -> Tail:
        tail = Tail(open_broker(f"sqlite://{self.path}{query}", timeout_seconds=patience))
        tail.opened = await tail.broker.open(tail, history or HistorySettings())
        self._open.append(tail)
        return tail

    async def close(self) -> None:
        while self._open:
            await self._open.pop().broker.close()

    def files(self) -> dict[str, bytes]:
        """What is there, but for the lock and what SQLite makes to look (its index, and a WAL with nothing in it)."""
        return {
            path.name: path.read_bytes()
            for path in self.path.parent.iterdir()
            if not path.name.endswith(("-lock", "-shm")) and (not path.name.endswith("-wal") or path.stat().st_size)
        }


@pytest.fixture
def disk(io_loop: IOLoop, tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "events.db")
    yield disk
    io_loop.run_sync(disk.close)


def event(data: str = "{}", *topics: str, key: str | None = None) -> Publication:
    is_json = data.isdecimal() or data == "{}"
    return Publication(topics or ("a",), data.encode(), is_json=is_json, idempotency_key=key)


def is_up(tail: Tail) -> bool:
    return tail.broker.is_up


async def until_trimmed(tail: Tail, topics: tuple[str, ...] = (), *, to: int = 1) -> int:
    """How far the log has forgotten these topics, as soon as that is `to` or more."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            await tail.broker.read(0, 1, topics)
        except Forgotten as forgotten:
            if forgotten.after >= to:
                return forgotten.after
        await asyncio.sleep(0.05)
    raise AssertionError("nothing was trimmed")


# Where it is.


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///var/lib/qgstream/events.db", "/var/lib/qgstream/events.db"),
        ("sqlite://events.db", "events.db"),
        ("sqlite://data/my%20events%3F.db?max_events=5", "data/my events?.db"),
    ],
)
def test_a_url_names_a_file(url: str, path: str) -> None:
    broker = open_broker(url)
    assert isinstance(broker, SqliteBroker)
    assert broker.path == Path(path)
    assert not broker.is_up


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "expected sqlite:///path"),
        ("sqlite:///var/lib/", "expected sqlite:///path"),
        ("sqlite:///x?max_evnts=5", "'max_evnts', expected one of max_events"),
        ("sqlite:///x?max_events=many", "max_events: got 'many'"),
        ("sqlite:///x?max_age_seconds=0", "max_age_seconds: got '0'"),
        ("postgres://x", "the scheme 'postgres', expected one of memory, sqlite"),
    ],
)
def test_a_url_that_names_none_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"^broker\.url: ") as refused:
        open_broker(url)
    assert said in str(refused.value)


# What it does not take.


async def _a_log(disk: Disk, *, events: int = 200) -> bytes:
    tail = await disk.open()
    await tail.broker.append([event("x" * 500) for _ in range(events)])
    await disk.close()
    return disk.path.read_bytes()


def _of_another_program(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE state (epoch, newest)")
        db.commit()


def _of_the_future(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 3")


def _without_a_table(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE keys")


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"hello, world\n" * 1000), "is not a SQLite database"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "is not a SQLite database"),
        (_of_another_program, "of another program"),
        (_of_the_future, "is a log of version 3, expected at most 2: a newer qgstream made it"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20_000]), "is damaged"),
        (lambda path: path.write_bytes(b"".join((path.read_bytes()[:8192], b"\xff" * 8192, path.read_bytes()[16384:]))),
         "is damaged"),
        (_without_a_table, "is damaged"),
        (lambda path: path.rename(f"{path}-wal"), "is missing, but its events.db-wal is there"),
    ],
    ids=["empty", "text", "cut short", "foreign", "newer", "truncated", "overwritten", "a table less", "half of it"],
)  # fmt: skip
async def test_a_file_that_is_no_whole_log_is_refused_and_left_as_it_is(disk: Disk, spoil: object, said: str) -> None:
    await _a_log(disk)
    spoil(disk.path)  # type: ignore[operator]
    before = disk.files()
    for _ in range(2):  # refusing it is no reason to take it the next time
        with pytest.raises(OSError, match=r"events\.db: ") as refused:
            await disk.open()
        assert said in str(refused.value)
        assert disk.files() == before


@pytest.mark.gen_test
async def test_a_refused_file_may_be_moved_away(disk: Disk) -> None:
    await _a_log(disk)
    _without_a_table(disk.path)
    with pytest.raises(OSError, match="is damaged"):
        await disk.open()
    disk.path.rename(f"{disk.path}.damaged")
    assert (await disk.open()).opened.position.offset == 0


@pytest.mark.gen_test
async def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no/such: is not a directory"):
        await Disk(tmp_path / "no" / "such" / "events.db").open()


@pytest.mark.gen_test
async def test_a_log_belongs_to_one_process(disk: Disk) -> None:
    tail = await disk.open()
    with pytest.raises(OSError, match=f"is in use by the process {os.getpid()};"):
        await disk.open()
    await tail.broker.append([event()])
    await disk.close()
    await disk.open()


@pytest.mark.gen_test
async def test_a_creation_that_was_interrupted_is_begun_anew(disk: Disk) -> None:
    for name in ("events.db-new", "events.db-new-wal", "events.db-new-journal"):
        (disk.path.parent / name).write_bytes(b"half a log")
    tail = await disk.open()
    await tail.broker.append([event()])
    assert {path.name for path in disk.path.parent.iterdir()} == {
        "events.db", "events.db-wal", "events.db-shm", "events.db-lock",
    }  # fmt: skip
    with disk.path.open("rb") as file:
        assert file.read(72)[68:] == APPLICATION_ID.to_bytes(4), "whose it is stands in the file itself"
    assert disk.path.stat().st_mode & 0o077 == 0, "private events are for nobody else"


# Safe, and not slow.


@pytest.mark.gen_test
async def test_a_commit_waits_for_the_disk_and_sixteen_publishers_share_it(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    connect = sqlite_file.connect

    def traced(path: Path, mode: str) -> sqlite3.Connection:
        db = connect(path, mode)
        if mode == "rw":
            db.set_trace_callback(statements.append)
        return db

    monkeypatch.setattr(sqlite_log, "connect", traced)
    tail = await disk.open()
    assert "PRAGMA synchronous = FULL" in statements
    with closing(sqlite3.connect(disk.path)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    statements.clear()
    for _ in range(10):
        await asyncio.gather(*(tail.broker.append([event()]) for _ in range(16)))
    commits = statements.count("COMMIT")
    assert len(tail.delivered) == 160
    # While the first of sixteen is written the others wait, and go together.
    assert 10 <= commits <= 45, commits


@pytest.mark.gen_test
async def test_a_disk_that_says_nothing_is_not_waited_for_for_ever(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "LOCK_SECONDS", 60)  # the first write is stuck until the other lets go
    tail = await disk.open(patience=0.3)
    with closing(sqlite3.connect(disk.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # what a stuck disk looks like from here
        with pytest.raises(Unavailable, match=r"was silent for 0\.3 s") as refused:
            await tail.broker.append([event("1")])
        assert refused.value.code == "broker_down"
        await until(lambda: not is_up(tail))  # the write began a little later than the wait for it
        given_up = asyncio.create_task(tail.broker.append([event("2")]))
        with pytest.raises(Unavailable):
            await given_up
        other.execute("ROLLBACK")
    async with asyncio.timeout(60):
        while True:
            try:
                await tail.broker.append([event("3")])
                break
            except Unavailable:  # the first write is still waking up
                continue
    assert is_up(tail)
    data = [publication.data for publication in tail.delivered]
    assert b"2" not in data, "it was given up before its turn came"
    assert data.count(b"1") <= 1


@pytest.mark.gen_test
async def test_too_much_in_line_is_refused_at_once(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "MAX_QUEUE_BYTES", 1000)
    tail = await disk.open()
    first = asyncio.create_task(tail.broker.append([event("x" * 2000)]))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="does not keep up"):
        await tail.broker.append([event()])
    await first
    await tail.broker.append([event()])


@pytest.mark.gen_test
async def test_what_cannot_be_written_is_answered_and_the_next_can(disk: Disk) -> None:
    tail = await disk.open()
    # No draft lets these through; a program that makes its own publications could.
    bad: list[Any] = [
        Publication(("a",), b"", retry_ms=2**70),
        Publication(("\ud800",), b""),
        Publication(("a",), b"", event=cast(Any, object())),
        Publication(("a",), cast(Any, None)),
        Publication(("a",), b"", idempotency_key=cast(Any, [])),
    ]
    # What is published at the same time goes with the same transaction.
    told = await asyncio.gather(
        *(append for one in bad for append in (tail.broker.append([event("x")]), tail.broker.append([event(), one]))),
        return_exceptions=True,
    )
    assert [isinstance(one, NotStorable | TypeError) for one in told] == [False, True] * len(bad), told
    assert is_up(tail), "the disk is not to blame"
    await tail.broker.append([event("fine")])
    assert [p.data for p in tail.delivered] == [b"x"] * len(bad) + [b"fine"]
    assert tail.offsets == list(range(1, len(bad) + 2))
    broker: Any = tail.broker
    assert broker._queue_bytes == 0


@pytest.mark.gen_test
async def test_a_mistake_in_the_thread_that_writes_is_said_and_ends_nothing(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    expect_log("broker.failed")
    monkeypatch.setattr(sqlite, "TRIM_SECONDS", 0.001)
    tries: list[float] = []

    def fail(*_: object) -> bool:
        tries.append(time.monotonic())
        raise LookupError("nobody reckoned with this")

    monkeypatch.setattr(sqlite_log.Log, "trim", fail)
    tail = await disk.open()
    while len(tries) < 3:  # noqa: ASYNC110  # a thread tells nobody
        await asyncio.sleep(0.005)
    await tail.broker.append([event("fine")])
    assert len(tail.delivered) == 1
    (said,) = [record for record in caplog.records if record.getMessage() == "broker.failed"]
    assert said.exc_info


@pytest.mark.gen_test
async def test_a_sink_that_fails_costs_no_room_in_line(disk: Disk, expect_log: ExpectLog) -> None:
    expect_log("Exception in callback", logger="asyncio")
    tail = await disk.open()
    deliver, tail.deliver = tail.deliver, _fail  # type: ignore[method-assign,assignment]
    assert await tail.broker.append([event()]) == [1], "it is in the log"
    tail.deliver = deliver  # type: ignore[method-assign]
    assert await tail.broker.append([event()]) == [2]
    broker: Any = tail.broker
    assert broker._queue_bytes == 0


def _fail(_publications: object) -> None:
    raise LookupError


@pytest.mark.gen_test
async def test_a_row_behind_the_end_is_not_in_the_way(disk: Disk) -> None:
    await _a_log(disk, events=3)
    with closing(sqlite3.connect(disk.path)) as db:
        columns = "published_at, shelf, topics, event, retry_ms, is_json, private, size, data"
        db.execute(f"INSERT INTO log SELECT 9, {columns} FROM log LIMIT 1")
        db.commit()
    tail = await disk.open()
    assert tail.opened.position.offset == 9
    assert await tail.broker.append([event()]) == [10]
    await disk.close()
    for statement in ("UPDATE state SET newest = 'x'", "UPDATE state SET epoch = x'00'", "DELETE FROM state"):
        with closing(sqlite3.connect(disk.path)) as db:
            db.execute(statement)
            db.commit()
        with pytest.raises(OSError, match="is damaged"):
            await disk.open()


# What it keeps.


@pytest.mark.gen_test
async def test_it_forgets_by_count_by_bytes_and_by_age(disk: Disk) -> None:
    for history in (
        HistorySettings(max_events=10),
        HistorySettings(max_bytes=10 * (1000 + 150)),
        HistorySettings(max_age_seconds=0.2),
    ):
        tail = await disk.open(history)
        offsets = await tail.broker.append([event("x" * 1000) for _ in range(1200)])
        after = await until_trimmed(tail, to=offsets[-15])
        left = await tail.broker.read(after, 100)
        assert [publication.offset for publication in left] == [offset for offset in offsets if offset > after]
        await disk.close()


@pytest.mark.gen_test
async def test_the_file_may_keep_more_than_the_window(disk: Disk) -> None:
    tail = await disk.open(
        HistorySettings(max_events=10, max_age_seconds=0.1), query="?max_events=500&max_age_seconds=60"
    )
    await tail.broker.append([event() for _ in range(700)])
    assert await until_trimmed(tail) == 200
    assert len(await tail.broker.read(200, 1000)) == 500


@pytest.mark.gen_test
async def test_some_topics_live_shorter_and_nobody_else_misses_them(disk: Disk) -> None:
    chatter, noise = TopicHistory(pattern="chatter/*", max_age_seconds=0.2), TopicHistory(pattern="noise", store=False)
    history = HistorySettings(topics=(chatter, noise))
    tail = await disk.open(history)
    for n in range(30):
        await tail.broker.append([event(str(n), ("a", "chatter/1", "noise")[n % 3])])
    await tail.broker.append([event("both", "a", "chatter/1")])
    assert await until_trimmed(tail, ("chatter/*",), to=29) == 29
    kept = ["0", "3", "6", "9", "12", "15", "18", "21", "24", "27", "both"]
    for topic in ("a", "noise", "b/*"):
        assert [p.data.decode() for p in await tail.broker.read(0, 100, [topic])] == kept
    for patterns in ([], ["*"], ["chatter/1"], ["a", "chatter/2"]):
        with pytest.raises(Forgotten):
            await tail.broker.read(0, 100, patterns)
    await disk.close()
    opened = (await disk.open(history)).opened
    assert opened.forgotten_of == {"chatter/*": 29, "noise": 0, "": 0}
    assert (opened.position.offset, len(opened.recent), opened.forgotten) == (31, 11, 0)
    await disk.close()
    # Other exceptions: what was forgotten of any may be missed by any, and what was never stored by all.
    tail = await disk.open(HistorySettings(topics=(chatter,)))
    assert tail.opened.forgotten_of == {"chatter/*": 31, "": 31}
    with pytest.raises(Forgotten):
        await tail.broker.read(0, 100, ("noise",))


@pytest.mark.gen_test
async def test_settings_that_change_while_it_runs_hold(disk: Disk) -> None:
    tail = await disk.open()
    await tail.broker.append([event(str(n), "a" if n % 2 else "chatter") for n in range(20)])
    tail.broker.keep(HistorySettings(topics=(TopicHistory(pattern="chatter", max_age_seconds=0.1),)))
    await until_trimmed(tail, ("chatter",), to=19)
    assert len(await tail.broker.read(0, 100, ("a",))) == 10


@pytest.mark.gen_test
async def test_settings_that_the_disk_did_not_take_are_tried_again(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[..., None]
) -> None:
    expect_log("broker.trim_failed")
    tail = await disk.open()
    await tail.broker.append([event(str(n), "a" if n % 2 else "chatter") for n in range(20)])
    keep, refused = sqlite_log.Log.keep, list[HistorySettings]()

    def refuse_once(log: sqlite_log.Log, history: HistorySettings) -> None:
        if not refused:
            refused.append(history)
            raise sqlite3.OperationalError("database or disk is full")
        keep(log, history)

    monkeypatch.setattr(sqlite_log.Log, "keep", refuse_once)
    tail.broker.keep(HistorySettings(topics=(TopicHistory(pattern="chatter", max_age_seconds=0.1),)))
    assert await until_trimmed(tail, ("chatter",), to=19) == 19
    assert refused


@pytest.mark.gen_test
async def test_an_offset_is_never_given_twice(disk: Disk) -> None:
    history = HistorySettings(max_events=0, topics=(TopicHistory(pattern="noise", store=False),))
    offsets: list[int] = []
    for _ in range(3):
        tail = await disk.open(history)
        offsets += await tail.broker.append([event(), event("{}", "noise")])
        await until_trimmed(tail, ("a",), to=offsets[-2])
        await disk.close()
    assert offsets == [1, 2, 3, 4, 5, 6]


@pytest.mark.gen_test
async def test_a_file_that_was_large_gives_its_room_back(disk: Disk) -> None:
    tail = await disk.open()
    for _ in range(8):
        await tail.broker.append([event("x" * 100_000) for _ in range(20)])
    tail.broker.keep(HistorySettings(max_events=10))
    await until_trimmed(tail, to=150)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with closing(sqlite3.connect(disk.path)) as db:
            (pages,) = db.execute("PRAGMA page_count").fetchone()
        if pages < 2000:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{pages} pages")


@pytest.mark.gen_test
async def test_keys_are_forgotten_after_five_minutes(disk: Disk) -> None:
    tail = await disk.open()
    await tail.broker.append([event(key="old"), event(key="new")])
    await disk.close()
    with closing(sqlite3.connect(disk.path)) as db:
        db.execute("UPDATE keys SET at = at - 400 WHERE key = 'old'")
        db.commit()
    tail = await disk.open()
    assert list(await tail.broker.append([event(key="new"), event(key="old")])) == [2, 3]
    assert list(await tail.broker.append([event(key="old")])) == [3]


# Clocks that somebody sets.


def set_clock(monkeypatch: pytest.MonkeyPatch, by_seconds: float) -> None:
    true = time.clock_gettime
    monkeypatch.setattr(time, "time", lambda: true(time.CLOCK_REALTIME) + by_seconds)


async def looks(tail: Tail, monkeypatch: pytest.MonkeyPatch, count: int = 5) -> None:
    """Return when the file was looked through for what is too old so often."""
    trim, seen = sqlite_log.Log.trim, 0

    def noted(log: sqlite_log.Log, now: float) -> bool:
        nonlocal seen
        seen += 1
        return trim(log, now)

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_log.Log, "trim", noted)
        while seen < count:  # noqa: ASYNC110  # a thread tells nobody
            await asyncio.sleep(0.005)


@pytest.mark.gen_test
@pytest.mark.parametrize("step", [7200.0, -7200.0, 1e9])
async def test_a_clock_that_is_set_makes_nothing_too_old(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    monkeypatch.setattr(sqlite, "TRIM_SECONDS", 0.01)
    tail = await disk.open()
    await tail.broker.append([event()])
    await disk.close()
    tail = await disk.open()  # this one is of another life
    (keyed,) = await tail.broker.append([event(key="k")])
    set_clock(monkeypatch, step)
    await tail.broker.append([event()])
    await looks(tail, monkeypatch)
    assert list(await tail.broker.append([event(key="k")])) == [keyed]
    assert [p.offset for p in await tail.broker.read(0, 10)] == [1, 2, 3]
    (later,) = await tail.broker.append([event(key="later")])
    await looks(tail, monkeypatch)
    await disk.close()
    tail = await disk.open()
    assert list(await tail.broker.append([event(key="later")])) == [later]
    set_clock(monkeypatch, 0)
    await looks(tail, monkeypatch)
    assert list(await tail.broker.append([event(key="later")])) == [later]


@pytest.mark.gen_test
@pytest.mark.parametrize("step", [7200.0, -7200.0])
async def test_a_clock_that_is_set_keeps_what_comes_after(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    monkeypatch.setattr(sqlite, "TRIM_SECONDS", 0.01)
    tail = await disk.open()
    set_clock(monkeypatch, step)
    await tail.broker.append([event()])
    set_clock(monkeypatch, 0)
    await looks(tail, monkeypatch)
    await tail.broker.append([event()])
    assert [p.offset for p in await tail.broker.read(0, 10)] == [1, 2]


@pytest.mark.gen_test
@pytest.mark.parametrize("restart", [False, True])
async def test_what_is_from_the_future_is_not_kept_for_ever(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    set_clock(monkeypatch, 1e9)
    tail = await disk.open(HistorySettings(max_age_seconds=3600))
    await tail.broker.append([event(key="k"), event()])
    set_clock(monkeypatch, 0)
    await tail.broker.append([event()])
    if restart:
        await disk.close()
        tail = await disk.open(HistorySettings(max_age_seconds=3600))
        assert len(tail.opened.recent) == 3
        assert list(await tail.broker.append([event(key="k")])) == [1]
        with closing(sqlite3.connect(disk.path)) as db:
            (at,) = db.execute("SELECT at FROM keys WHERE key = 'k'").fetchone()
        assert abs(at - time.time()) < 60
    tail.broker.keep(HistorySettings(max_age_seconds=0.5))
    await until_trimmed(tail, to=3)


@pytest.mark.gen_test
async def test_the_date_of_one_row_says_nothing_of_the_others(disk: Disk) -> None:
    await _a_log(disk, events=20)
    for at in (1.0, 9e9):
        with closing(sqlite3.connect(disk.path)) as db:
            db.execute("UPDATE log SET published_at = ? WHERE offset IN (10, 15)", (at,))
            db.commit()
        assert len((await disk.open()).opened.recent) == 20
        await disk.close()
    with closing(sqlite3.connect(disk.path)) as db:
        db.execute("UPDATE log SET published_at = 1 WHERE offset < 5")
        db.commit()
    opened = (await disk.open()).opened
    assert (len(opened.recent), opened.forgotten) == (16, 4)


@pytest.mark.gen_test
async def test_after_a_restart_who_misses_what_was_short_lived_is_told_and_nobody_else(disk: Disk) -> None:
    history = HistorySettings(topics=(TopicHistory(pattern="chatter", max_age_seconds=0.1),))
    tail = await disk.open(history)
    epoch = tail.opened.position.epoch
    await tail.broker.append([event(str(n), "a" if n % 2 else "chatter") for n in range(20)])
    await until_trimmed(tail, ("chatter",), to=19)
    await disk.close()
    async with Served(open_broker(f"sqlite://{disk.path}"), history=history) as client:
        stream, replay, _ = await open_stream(client, "a", id=f"{epoch}-5")
        assert replay == "complete"
        assert [published.data for published in await take(stream, 8)] == [str(n) for n in range(5, 20, 2)]
        for topics in ((), ("a", "chatter"), ("chatter",)):
            assert (await open_stream(client, *topics, id=f"{epoch}-5"))[1] == "reset"
            assert (await open_stream(client, *topics, id=f"{epoch}-19"))[1] == "complete"


@pytest.mark.gen_test
async def test_a_restart_goes_on_behind_what_was_never_stored(disk: Disk) -> None:
    history = HistorySettings(topics=(TopicHistory(pattern="noise", store=False),))
    tail = await disk.open(history)
    epoch = tail.opened.position.epoch
    await tail.broker.append([event(), event("{}", "noise")])
    await disk.close()
    async with Served(open_broker(f"sqlite://{disk.path}"), history=history) as client:
        assert (await open_stream(client))[1:] == ("none", f"{epoch}-2")
        assert (await open_stream(client, id=f"{epoch}-2"))[1:] == ("complete", f"{epoch}-2")


@pytest.mark.gen_test
async def test_an_event_of_two_topics_is_missed_by_both(disk: Disk) -> None:
    history = HistorySettings(max_events=1, topics=(TopicHistory(pattern="orders", max_age_seconds=7200),))
    tail = await disk.open(history)
    await tail.broker.append([event("both", "a", "orders"), event()])
    assert await until_trimmed(tail, ("orders",)) == 1
    with pytest.raises(Forgotten):
        await tail.broker.read(0, 10, ["a"])


@pytest.mark.gen_test
async def test_a_backup_is_put_back_under_another_epoch(disk: Disk) -> None:
    tail = await disk.open()
    epoch = tail.opened.position.epoch
    await tail.broker.append([event("1"), event("2")])
    with closing(sqlite3.connect(disk.path)) as source, closing(sqlite3.connect(f"{disk.path}.copy")) as target:
        source.backup(target)
    await tail.broker.append([event("3")])
    await disk.close()
    (statement,) = re.findall(r'sqlite3 copy.db "(.*)"', (Path(__file__).parents[2] / "docs/brokers.md").read_text())
    with closing(sqlite3.connect(f"{disk.path}.copy")) as db:
        db.execute(statement)
        db.commit()
    os.rename(f"{disk.path}.copy", disk.path)  # noqa: PTH104
    opened = (await disk.open()).opened
    assert opened.position.epoch != epoch
    assert [publication.data for publication in opened.recent] == [b"1", b"2"]


@pytest.mark.parametrize("ending", ["closed", "killed"])
@pytest.mark.gen_test
async def test_an_older_copy_in_the_place_of_the_log_is_noticed(disk: Disk, ending: str, expect_log: ExpectLog) -> None:
    expect_log("broker.unvouched")
    tail = await disk.open()
    epoch = tail.opened.position.epoch
    await tail.broker.append([event(str(n)) for n in range(30)])
    await disk.close()
    copy = disk.path.read_bytes()
    tail = await disk.open()
    assert tail.opened.position == (epoch, 30)
    await tail.broker.append([event(str(n)) for n in range(30, 80)])
    lock = Path(f"{disk.path}-lock")
    while f"{epoch} 80\n" not in lock.read_text():  # noqa: ASYNC110, ASYNC240  # it is noted once a second
        await asyncio.sleep(0.05)
    noted = lock.read_text()  # noqa: ASYNC240
    await disk.close()
    if ending == "killed":
        lock.write_text(noted)  # noqa: ASYNC240
    disk.path.write_bytes(copy)
    tail = await disk.open()
    renewed = tail.opened.position.epoch
    assert (tail.opened.position.offset, renewed != epoch) == (30, True)
    await tail.broker.append([event(str(n)) for n in range(60)])
    await disk.close()
    async with Served(open_broker(f"sqlite://{disk.path}")) as client:
        for id in (f"{epoch}-20", f"{epoch}-60"):
            assert (await open_stream(client, id=id))[1] == "reset"
        assert (await open_stream(client, id=f"{renewed}-60"))[1] == "complete"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "noted", ["", "x", "1\n\n", "1\n2 3\n{epoch}", "1\n2 3\n{epoch} x", "1\n2 3\n{epoch} 1", "\xff"]
)
async def test_what_the_lock_says_of_no_older_log_changes_nothing(disk: Disk, noted: str) -> None:
    position = (await disk.open()).opened.position
    await disk.close()
    Path(f"{disk.path}-lock").write_bytes(noted.format(epoch=f"not-{position.epoch}").encode("latin-1"))  # noqa: ASYNC240
    assert (await disk.open()).opened.position == position


class Watched(Publication):
    """Says on which thread it was numbered."""

    numbered_by: str

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "offset" and value:
            self.__dict__["numbered_by"] = threading.current_thread().name
        super().__setattr__(name, value)


@pytest.mark.gen_test
async def test_a_batch_is_numbered_where_it_is_written_and_not_on_the_loop(disk: Disk) -> None:
    tail = await disk.open()
    batch = [Watched(("a",), b"1"), Watched(("a",), b"2")]
    assert await tail.broker.append(batch) == [1, 2]
    assert tail.offsets == [1, 2]
    assert [one.numbered_by for one in batch] == ["qgstream-sqlite-write"] * 2
