"""The files of the log are removed, moved and replaced under a running server: what it acknowledges is never lost."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Self

import pytest
from tornado.ioloop import IOLoop

from qgstream.brokers.sqlite import broker as sqlite
from qgstream.brokers.sqlite import file as sqlite_file
from qgstream.brokers.sqlite import log as sqlite_log
from qgstream.brokers.sqlite.names import LogNames
from qgstream.errors import Unavailable
from qgstream.events.history import HistorySettings, TopicHistory
from tests.brokers.conftest import Tail
from tests.brokers.test_sqlite import Disk, event, is_up
from tests.brokers.test_sqlite_crashes import whole_log
from tests.conftest import ExpectLog

SUFFIXES = ("", "-wal", "-shm", "-lock")


@pytest.fixture
def disk(io_loop: IOLoop, tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "data"
    folder.mkdir()
    disk = Disk(folder / "events.db")
    yield disk
    io_loop.run_sync(disk.close)


def named(path: Path, suffix: str) -> Path:
    return Path(f"{path}{suffix}")


def remove(*suffixes: str) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        for suffix in suffixes:
            named(path, suffix).unlink()

    return act


def move(*suffixes: str) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        for suffix in suffixes:
            named(path, suffix).rename(named(path, f"{suffix}.moved"))

    return act


def replace_by_copy(suffix: str) -> Callable[[Path], None]:
    """As `mv` does it, and `cp --remove-destination`, rsync and editors: there is always a file of this name."""

    def act(path: Path) -> None:
        shutil.copy(named(path, suffix), path.with_name("copy"))
        path.with_name("copy").rename(named(path, suffix))

    return act


def move_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


def replace_folder(path: Path) -> None:
    move_folder(path)
    shutil.copytree(path.parent.with_name("moved"), path.parent)


def make_folder_a_file(path: Path) -> None:
    move_folder(path)
    path.parent.touch()


def make_a_circle(path: Path) -> None:
    move("")(path)
    path.symlink_to(path)


WAYS = {
    "everything is removed": (remove(*SUFFIXES), "was removed or moved"),
    **{f"events.db{suffix} is removed": (remove(suffix), "was removed or moved") for suffix in SUFFIXES},
    **{f"events.db{suffix} is replaced": (replace_by_copy(suffix), "was replaced") for suffix in SUFFIXES},
    "everything but the database is removed": (remove("-wal", "-shm", "-lock"), "was removed or moved"),
    "everything is moved": (move(*SUFFIXES), "was removed or moved"),
    "the folder is moved": (move_folder, "was removed or moved"),
    "the folder is replaced by a copy": (replace_folder, "was replaced"),
    "a file is where the folder was": (make_folder_a_file, "was removed or moved"),
    "it cannot be looked at": (make_a_circle, "could not be checked (Too many levels of symbolic links)"),
}
every_way = pytest.mark.parametrize(("displace", "said"), WAYS.values(), ids=WAYS)


async def refused(tail: Tail) -> str:
    with pytest.raises(Unavailable) as caught:
        await tail.broker.append([event("refused")])
    assert (caught.value.status, caught.value.code) == (503, "broker_down")
    return str(caught.value)


async def until_down(tail: Tail) -> None:
    async with asyncio.timeout(60):
        while is_up(tail):  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.01)


@every_way
@pytest.mark.gen_test
async def test_it_is_noticed_while_nobody_publishes(
    disk: Disk, expect_log: ExpectLog, displace: Callable[[Path], None], said: str
) -> None:
    expect_log("broker.down")
    tail = await disk.open()
    await tail.broker.append([event("kept")])
    displace(disk.path)
    await until_down(tail)
    assert said in await refused(tail)
    with pytest.raises(Unavailable):
        await tail.broker.read(0, 10)  # by now the name may stand for the log of another process


@every_way
@pytest.mark.gen_test
async def test_the_next_publish_is_refused(
    disk: Disk, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch, displace: Callable[[Path], None], said: str
) -> None:
    monkeypatch.setattr(sqlite, "LOOK_SECONDS", 1000)
    expect_log("broker.down")
    tail = await disk.open()
    await tail.broker.append([event("kept", key="k")])
    displace(disk.path)
    assert said in await refused(tail)
    with pytest.raises(Unavailable):  # it says that the log has it, and that is not known any more
        await tail.broker.append([event("repeated", key="k")])
    assert not is_up(tail)
    assert [p.data for p in tail.delivered] == [b"kept"]


@every_way
@pytest.mark.gen_test
async def test_what_happens_during_a_commit_is_seen_before_it_is_acknowledged(
    disk: Disk, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch, displace: Callable[[Path], None], said: str
) -> None:
    expect_log("broker.down")
    tail = await disk.open()
    append = sqlite_log.Log.append

    def append_and_lose(self: sqlite_log.Log, *arguments: object) -> None:
        append(self, *arguments)  # type: ignore[arg-type]
        displace(disk.path)

    monkeypatch.setattr(sqlite_log.Log, "append", append_and_lose)
    assert said in await refused(tail)
    assert not is_up(tail)
    assert tail.delivered == []


def break_append(monkeypatch: pytest.MonkeyPatch, first: Callable[[], object]) -> None:
    """The disk fails, after something has happened."""

    def fail(*_: object) -> None:
        first()
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(sqlite_log.Log, "append", fail)


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [str(vars(record)["reason"]) for record in caplog.records if record.getMessage() == "broker.down"]


@pytest.mark.gen_test
async def test_when_sqlite_fails_for_it_the_true_reason_is_said(
    disk: Disk, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expect_log("broker.down")
    tail = await disk.open()
    break_append(monkeypatch, lambda: remove("-shm")(disk.path))
    assert "was removed or moved" in await refused(tail)
    await disk.close()
    (reason,) = reasons(caplog)
    assert reason.startswith(f"{disk.path}-shm: was removed or moved")


@pytest.mark.gen_test
async def test_a_disk_that_works_again_does_not_bring_back_a_log_that_another_process_took(
    disk: Disk, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expect_log("broker.down")
    tail = await disk.open()

    def write_by_another() -> None:
        with closing(sqlite3.connect(disk.path)) as db:
            db.execute("UPDATE state SET newest = 99")
            db.commit()

    break_append(monkeypatch, write_by_another)
    assert "cannot be written" in await refused(tail)
    async with asyncio.timeout(60):
        while len(reasons(caplog)) < 2:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.01)
    assert "was written by another process" in reasons(caplog)[1]
    assert not is_up(tail)


@pytest.mark.gen_test
async def test_why_and_what_to_do_is_said_once(
    disk: Disk, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    expect_log("broker.down")
    tail = await disk.open()
    disk.path.unlink()
    for _ in range(3):
        assert str(disk.path.parent) not in await refused(tail), "where it is concerns no publisher"
    await until_down(tail)
    (reason,) = reasons(caplog)
    assert reason.startswith(f"{disk.path}: was removed or moved while the server had it open. ")
    assert "until the server is restarted" in reason


@pytest.mark.gen_test
async def test_a_file_that_is_put_back_is_used_after_a_restart(
    disk: Disk, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOOK_SECONDS", 1000)
    expect_log("broker.down")
    tail = await disk.open()
    (offset,) = await tail.broker.append([event("kept")])
    move(*SUFFIXES)(disk.path)
    await refused(tail)  # before anything of it is written
    for suffix in SUFFIXES:
        named(disk.path, f"{suffix}.moved").rename(named(disk.path, suffix))
    await refused(tail)  # nobody knows what was done to it meanwhile
    assert not is_up(tail)
    await disk.close()
    tail = await disk.open()
    assert [(p.offset, p.data) for p in tail.opened.recent] == [(offset, b"kept")]
    assert await tail.broker.append([event("more")]) == [offset + 1]


@pytest.mark.parametrize("suffixes", [("-wal",), ("-shm",), ("-lock",), ("-wal", "-shm")])
@pytest.mark.gen_test
async def test_with_its_database_in_place_a_server_that_ends_leaves_a_whole_log(
    disk: Disk, expect_log: ExpectLog, suffixes: tuple[str, ...]
) -> None:
    expect_log("broker.down")
    tail = await disk.open()
    await tail.broker.append([event("kept")])
    remove(*suffixes)(disk.path)
    await until_down(tail)
    await disk.close()
    assert [p.data for p in (await disk.open()).opened.recent] == [b"kept"]


@pytest.mark.gen_test
async def test_a_log_that_begins_under_the_name_is_left_alone(disk: Disk, expect_log: ExpectLog) -> None:
    """SQLite removes the WAL of a database that is closed by its name, whoever has made that by then."""
    expect_log("broker.down")
    first = Disk(disk.path)
    old = await first.open()
    await old.broker.append([event("old")])
    remove(*SUFFIXES)(disk.path)
    new = await disk.open()
    await new.broker.append([event("new")])
    await refused(old)
    await first.close()
    await new.broker.append([event("newer")])
    assert is_up(new)
    for suffix in SUFFIXES:
        shutil.copy(named(disk.path, suffix), named(disk.path, f".killed{suffix}"))  # as kill -9 would leave it
    found = await asyncio.to_thread(whole_log, named(disk.path, ".killed"))
    assert [p.data for p in found.values()] == [b"new", b"newer"]


def descriptor_of(path: Path) -> Path:
    """A file that was removed, where Linux still has it."""
    descriptors = [name for name in Path("/proc/self/fd").iterdir() if name.is_symlink()]
    return next(name for name in descriptors if str(name.readlink()) == f"{path} (deleted)")


@pytest.mark.gen_test
async def test_what_was_removed_can_be_saved_while_the_server_runs(disk: Disk, expect_log: ExpectLog) -> None:
    expect_log("broker.down")
    tail = await disk.open()
    await tail.broker.append([event("kept")])
    remove(*SUFFIXES)(disk.path)
    await refused(tail)
    saved = disk.path.with_name("saved.db")
    for suffix in ("", "-wal"):
        shutil.copy(descriptor_of(named(disk.path, suffix)), named(saved, suffix))
    assert [p.data for p in (await asyncio.to_thread(whole_log, saved)).values()] == [b"kept"]


# Two who write.


HOLDER = """
import asyncio, sys
from pathlib import Path
from qgstream.brokers.sqlite.broker import SqliteBroker
from qgstream.events.publication import Publication
from qgstream.events.history import HistorySettings, TopicHistory

class Sink:
    def deliver(self, publications): pass

async def main():
    broker = SqliteBroker(Path(sys.argv[1]))
    await broker.open(Sink(), HistorySettings())
    print("open", flush=True)
    for line in sys.stdin:
        try:
            (offset,) = await broker.append([Publication(("a",), line.strip().encode(), is_json=False)])
            print(offset, flush=True)
        except Exception as error:
            print(error, flush=True)
    await broker.close()

asyncio.run(main())
"""


class Other:
    """A process of its own that opens the log and publishes a line for each line that it gets."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        assert await asyncio.to_thread(self._said) == "open"
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._process.communicate, timeout=60)

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    async def publish(self, data: str) -> str:
        """Its offset, or why it was refused."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{data}\n")
        self._process.stdin.flush()
        return await asyncio.to_thread(self._said)

    def kill(self) -> None:
        self._process.kill()


@pytest.mark.gen_test
async def test_of_two_processes_in_one_file_the_first_to_write_goes_on(
    disk: Disk, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock was removed, and the other process came before that was seen."""
    monkeypatch.setattr(LogNames, "check", lambda _: None)
    expect_log("broker.down")
    tail = await disk.open()
    await tail.broker.append([event("1")])
    remove("-lock")(disk.path)
    async with Other(disk.path) as other:
        assert await other.publish("2") == "2"
        assert "was written by another process" in await refused(tail)
        assert not is_up(tail)
        assert await other.publish("3") == "3"
    await disk.close()
    assert [p.data for p in (await disk.open()).opened.recent] == [b"1", b"2", b"3"]


@pytest.mark.gen_test
async def test_of_two_processes_in_one_file_the_second_to_write_is_refused(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LogNames, "check", lambda _: None)
    # Events that are never stored meet in no row of the file, and would share their offsets all the same.
    tail = await disk.open(HistorySettings(topics=(TopicHistory(pattern="a", store=False),)))
    await tail.broker.append([event("1")])
    remove("-lock")(disk.path)
    async with Other(disk.path) as other:
        assert await tail.broker.append([event("2")]) == [2]
        assert "was written by another process" in await other.publish("refused")
        assert await tail.broker.append([event("3")]) == [3]


@pytest.mark.gen_test
async def test_who_closes_a_log_does_not_close_that_of_another_process(disk: Disk, expect_log: ExpectLog) -> None:
    expect_log("broker.down")
    tail = await disk.open()
    await tail.broker.append([event("lost with the WAL")])
    remove("-wal", "-shm", "-lock")(disk.path)
    async with Other(disk.path) as other:
        assert await other.publish("1") == "1"
        await refused(tail)
        await disk.close()
        assert await other.publish("2") == "2"
        other.kill()
    found = await asyncio.to_thread(whole_log, disk.path)
    assert [p.data for p in found.values()] == [b"1", b"2"]


@pytest.mark.gen_test
async def test_by_two_names_a_log_still_belongs_to_one_process(disk: Disk) -> None:
    for number, link in enumerate((disk.path.with_name("link.db"), disk.path.parent.with_name("elsewhere.db"))):
        link.symlink_to(disk.path)
        tail = await disk.open()
        with pytest.raises(OSError, match=f"is in use by the process {os.getpid()};"):
            await Disk(link).open()
        await disk.close()
        other = Disk(link)
        tail = await other.open()
        await tail.broker.append([event()])
        assert tail.offsets == [number + 1]
        await other.close()


@pytest.mark.gen_test
async def test_a_link_that_leads_elsewhere_is_another_log(disk: Disk, expect_log: ExpectLog) -> None:
    expect_log("broker.down")
    link = disk.path.with_name("current.db")
    link.symlink_to(disk.path)
    linked = Disk(link)
    tail = await linked.open()
    await tail.broker.append([event()])
    other = disk.path.with_name("other.db")
    shutil.copy(disk.path, other)
    link.unlink()
    link.symlink_to(other)
    assert "was replaced" in await refused(tail)
    await linked.close()


@pytest.mark.gen_test
async def test_a_lock_that_is_removed_while_it_is_taken_is_none(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, taken = fcntl.flock, []

    def flock_and_lose(descriptor: int, how: int) -> None:
        flock(descriptor, how)
        taken.append(descriptor)
        if len(taken) < 3:
            named(disk.path, "-lock").unlink()

    monkeypatch.setattr(fcntl, "flock", flock_and_lose)
    await disk.open()
    assert len(taken) == 3
    with pytest.raises(OSError, match="is in use by the process"):
        await disk.open()


@pytest.mark.parametrize("opens", [0, 1])  # the connection that writes, and the one that reads
@pytest.mark.gen_test
async def test_a_log_that_is_replaced_while_it_is_opened_is_refused(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, opens: int
) -> None:
    await disk.open()
    await disk.close()
    connect, opened = sqlite_file.connect, []

    def connect_and_lose(path: Path, mode: str) -> sqlite3.Connection:
        db = connect(path, mode)
        opened.append(mode)
        if len(opened) == opens + 1:
            replace_by_copy("")(path)
        return db

    monkeypatch.setattr(sqlite_log, "connect", connect_and_lose)
    with pytest.raises(OSError, match="was replaced"):
        await disk.open()
    assert opened == ["rw", "ro"][: opens + 1]
    monkeypatch.undo()
    await disk.open()


# What is no reason to stop.


@pytest.mark.gen_test
async def test_tools_that_read_and_copy_disturb_nobody(disk: Disk) -> None:
    tail = await disk.open()
    await tail.broker.append([event("x" * 5000) for _ in range(100)])
    with closing(sqlite3.connect(disk.path)) as db, closing(sqlite3.connect(f"{disk.path}.copy")) as copy:
        db.backup(copy)
        db.execute("CREATE TABLE _follower (seq)")  # Litestream has one, and writes to it
        db.execute("INSERT INTO _follower VALUES (1)")
        db.commit()
        db.execute("VACUUM")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        await tail.broker.append([event()])
    shutil.copy(disk.path, disk.path.with_name("another copy"))
    disk.path.chmod(0o640)
    disk.path.touch()
    await tail.broker.append([event()])
    assert len(tail.delivered) == 102
    assert is_up(tail)


@pytest.mark.gen_test
async def test_a_program_may_change_its_folder(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(disk.path.parent)
    relative = Disk(Path(disk.path.name))
    tail = await relative.open()
    monkeypatch.chdir(tmp_path)
    await tail.broker.append([event("x")])
    assert [p.data for p in await tail.broker.read(0, 10)] == [b"x"]
    assert is_up(tail)
    await relative.close()


# A database beside the WAL of another one.


@pytest.mark.gen_test
async def test_the_wal_of_another_database_is_not_taken(disk: Disk) -> None:
    await disk.open()
    await disk.close()
    shutil.copy(disk.path, disk.path.with_name("backup.db"))
    async with Other(disk.path) as other:
        assert await other.publish("in the WAL") == "1"
        other.kill()
    disk.path.rename(disk.path.with_name("old.db"))
    disk.path.with_name("backup.db").rename(disk.path)
    before = disk.files()
    for _ in range(2):
        with pytest.raises(
            OSError, match=r"was replaced, and events\.db-wal belongs to the file that was there before"
        ):
            await disk.open()
        assert disk.files() == before
    # The first of the two ways out that it names.
    disk.path.rename(disk.path.with_name("backup.db"))
    disk.path.with_name("old.db").rename(disk.path)
    assert [p.data for p in (await disk.open()).opened.recent] == [b"in the WAL"]
    await disk.close()


@pytest.mark.gen_test
async def test_a_copy_of_all_files_is_a_log(disk: Disk) -> None:
    async with Other(disk.path) as other:
        assert await other.publish("in the WAL") == "1"
        other.kill()
    copy = disk.path.parent.with_name("copy")
    shutil.copytree(disk.path.parent, copy)
    moved = disk.path.parent.rename(disk.path.parent.with_name("moved"))
    for folder in (copy, moved):
        found = await asyncio.to_thread(whole_log, folder / "events.db")
        assert [p.data for p in found.values()] == [b"in the WAL"]
    disk.path.parent.mkdir()
