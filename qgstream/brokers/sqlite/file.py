"""The file of the durable log: created atomically, locked, and checked before any change."""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

APPLICATION_ID = 0x71677374  # "qgst": identifies a database of qgstream
SCHEMA_VERSION = 2
# The check at the start reads the whole file, which takes a fraction of a second for a default log. The check of a
# larger file stops after this time; damage in the rest is detected when it is read.
CHECK_SECONDS = 5.0
# The longest wait for the lock of another program on the database, before a write fails and is tried again.
LOCK_SECONDS = 1.0

# Since version 2: which events each topic has. Triggers keep it, so that it is right also where somebody has edited a
# row. What is in a row need not be JSON then.
_NAMES = "SELECT value, {0}.offset FROM json_each(CASE WHEN json_valid({0}.topics) THEN {0}.topics ELSE '[]' END)"
_ADD = f"INSERT OR IGNORE INTO topics {_NAMES.format('new')} WHERE type = 'text'"
_REMOVE = f"DELETE FROM topics WHERE (topic, offset) IN ({_NAMES.format('old')} WHERE type = 'text')"  # noqa: S608
TOPICS = (
    """CREATE TABLE topics (
        topic TEXT NOT NULL, offset INTEGER NOT NULL, PRIMARY KEY (topic, offset)
    ) WITHOUT ROWID""",
    f"CREATE TRIGGER log_added AFTER INSERT ON log BEGIN {_ADD}; END",
    f"CREATE TRIGGER log_removed AFTER DELETE ON log BEGIN {_REMOVE}; END",
    f"CREATE TRIGGER log_changed AFTER UPDATE OF offset, topics ON log BEGIN {_REMOVE}; {_ADD}; END",
)

SCHEMA = f"""
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE state (epoch TEXT NOT NULL, newest INTEGER NOT NULL, shelves TEXT NOT NULL);
CREATE TABLE shelves (shelf INTEGER PRIMARY KEY, forgotten INTEGER NOT NULL);
CREATE TABLE log (
    offset INTEGER PRIMARY KEY, published_at REAL NOT NULL, shelf INTEGER NOT NULL, topics TEXT NOT NULL, event TEXT,
    retry_ms INTEGER, is_json INTEGER NOT NULL, private INTEGER NOT NULL, size INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE INDEX log_shelf ON log (shelf, offset);
CREATE TABLE keys (key TEXT PRIMARY KEY, at REAL NOT NULL, offset INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX keys_at ON keys (at);
{"".join(f"{statement};" for statement in TOPICS)}
"""


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open a connection in the mode `rw` or `ro`; `transaction` starts transactions."""
    uri = f"file:{quote(str(path))}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=LOCK_SECONDS)


def lock(path: Path) -> int:
    """Lock the file for this process, and return the descriptor of the lock.

    Raises `OSError` if another process has the lock: two processes would assign the same offsets, and neither would
    deliver the other's events.
    """
    # A separate lock file: closing any descriptor of a file drops SQLite's locks on this file.
    if not path.parent.is_dir():
        raise OSError(f"{path.parent}: is not a directory; expected one for the log {path.name}")
    while True:
        descriptor = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner, *_ = _read(descriptor)
            os.close(descriptor)
            raise InUse(path, owner) from None
        if _is_named(f"{path}-lock", descriptor):
            _, pair, reached = _read(descriptor)
            _write(descriptor, pair, reached)
            return descriptor
        os.close(descriptor)  # the lock file was removed between the two calls, so no other process would see this lock


class InUse(OSError):
    """Another process has the log; `pid` is its process id."""

    def __init__(self, path: Path, pid: str) -> None:
        super().__init__(f"{path}: is in use by the process {pid}; a log on disk belongs to one process")
        self.pid = pid


def look(path: Path) -> None:
    """Raise `OSError` if the log cannot be opened or created here; raise `InUse` if another process has the log.

    Creates nothing: the server's own user could not use a file that root has created.
    """
    folder = path.parent
    if not folder.is_dir():
        raise OSError(f"{folder}: is not a directory; expected one for the log {path.name}")
    for needed, mode in ((folder, os.W_OK | os.X_OK), (path, os.R_OK | os.W_OK), (Path(f"{path}-lock"), os.W_OK)):
        if needed.exists() and not os.access(needed, mode):
            raise OSError(f"{needed}: cannot be written by the user with the id {os.geteuid()}")
    try:
        descriptor = os.open(f"{path}-lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        pass
    else:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InUse(path, _read(descriptor)[0]) from None
        finally:
            os.close(descriptor)
    if path.exists():
        check(path)


def _is_named(name: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(name), os.fstat(descriptor))  # noqa: PTH116
    except FileNotFoundError:
        return False


def _read(lock: int) -> tuple[str, str, str]:
    """Read a lock: its process id, the text of `note_pair`, and the text of `note_reached`."""
    lines = os.pread(lock, 300, 0).decode("ascii", "replace").split("\n")
    owner, pair, reached = (*map(str.strip, lines), "", "", "")[:3]
    return owner, pair, reached


def _write(lock: int, pair: str, reached: str) -> None:
    text = f"{os.getpid()}\n{pair}\n{reached}\n".encode()
    os.pwrite(lock, text, 0)  # written first: if the process is killed between the two calls, all lines are still there
    os.ftruncate(lock, len(text))


def note_reached(lock: int, epoch: str, newest: int) -> None:
    """Record the end of the log in the lock file. The lock file stays when an older copy replaces the log."""
    _write(lock, _read(lock)[1], f"{epoch} {newest}")


def reached(lock: int) -> tuple[str, int]:
    """Return the last record of `note_reached`: an epoch and an offset. The epoch is empty if there is no record."""
    epoch, _, newest = _read(lock)[2].partition(" ")
    return (epoch, int(newest)) if newest.isascii() and newest.isdigit() and len(newest) < 20 else ("", 0)


def note_pair(path: Path, lock: int) -> None:
    """Record in the lock file which database and which WAL belong together, by their inode numbers."""
    _write(lock, _pair(path), _read(lock)[2])


def check_pair(path: Path, lock: int) -> None:
    """Raise `OSError` if the database was replaced but the WAL still belongs to the old database.

    SQLite would write the pages of this WAL into a file to which they do not belong. (Copies of both files, and files
    moved to another disk, have new inode numbers.)
    """
    wal = Path(f"{path}-wal")
    if not wal.exists() or wal.stat().st_size == 0:
        return
    database, _, log = _read(lock)[1].partition(" ")
    found, _, found_log = _pair(path).partition(" ")
    if log == found_log and database != found:
        raise OSError(
            f"{path}: was replaced, and {wal.name} belongs to the file that was there before; both are left as they "
            f"are. Put that file back, or move {wal.name} away to begin with what {path.name} holds"
        )


def _pair(path: Path) -> str:
    return f"{path.stat().st_ino} {Path(f'{path}-wal').stat().st_ino}"


def create(path: Path) -> None:
    """Create an empty log, under another name until it is complete, so that this name never refers to a partial log."""
    wal = Path(f"{path}-wal")
    if wal.exists() and wal.stat().st_size:
        raise OSError(f"{path}: is missing, but its {path.name}-wal is there: put both back, or move that away too")
    new = Path(f"{path}-new")
    for leftover in ("", "-journal", "-wal", "-shm"):
        Path(f"{new}{leftover}").unlink(missing_ok=True)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # SQLite uses the same mode for its other files
    with closing(connect(new, "rw")) as db:
        db.executescript(SCHEMA)
        db.execute("INSERT INTO state VALUES (?, 0, '[]')", (secrets.token_hex(5),))
        db.execute("INSERT INTO shelves VALUES (0, 0)")
        # Last, so that the application id is in the file itself and not in its WAL.
        db.execute("PRAGMA journal_mode = WAL")
    new.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def check(path: Path) -> None:
    """Check the file before any change. Raises `OSError` with the problem and the solution."""
    with path.open("rb") as file:
        header = file.read(100)
    if not header.startswith(b"SQLite format 3\0") or len(header) < 100:
        said = "is empty" if not header else "is not a SQLite database"
        raise OSError(f"{path}: {said}; expected a log of qgstream, or no file: it is left as it is")
    version, application = int.from_bytes(header[60:64]), int.from_bytes(header[68:72])
    if application != APPLICATION_ID:
        raise OSError(f"{path}: is a SQLite database of another program; it is left as it is")
    if not 1 <= version <= SCHEMA_VERSION:
        raise OSError(
            f"{path}: is a log of version {version}, expected at most {SCHEMA_VERSION}: a newer qgstream made it; "
            "it is left as it is"
        )
    deadline = time.monotonic() + CHECK_SECONDS
    with closing(connect(path, "ro")) as db:
        db.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
        try:
            problems = [problem for (problem,) in db.execute("PRAGMA quick_check(3)")]
            db.execute("SELECT epoch FROM state, shelves, log, keys LIMIT 1")
        except sqlite3.DatabaseError as error:
            problems = ["ok"] if time.monotonic() > deadline else [str(error)]
    if problems != ["ok"]:
        raise OSError(
            f"{path}: is damaged ({'; '.join(problems)}); it is left as it is. Put a backup in its place (with another "
            "epoch, see docs/brokers.md), or move it away to begin a new log"
        )


def upgrade(db: sqlite3.Connection) -> None:
    """Give a log of an older version what this version has. All or nothing; an older qgstream refuses the log then."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return
    with transaction(db):
        for statement in TOPICS:
            db.execute(statement)
        db.execute(
            "INSERT OR IGNORE INTO topics SELECT value, log.offset FROM log, "
            "json_each(CASE WHEN json_valid(log.topics) THEN log.topics ELSE '[]' END) WHERE type = 'text'"
        )
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    # The version must be in the file itself and not in a WAL beside it: there another qgstream looks for it.
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


class transaction:  # noqa: N801  # reads as a function
    """A transaction: commits at the end of the block, or rolls back after an exception."""

    def __init__(self, db: sqlite3.Connection, kind: str = "IMMEDIATE") -> None:
        self._db = db
        self._kind = kind

    def __enter__(self) -> sqlite3.Connection:
        self._db.execute(f"BEGIN {self._kind}")
        return self._db

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:  # also after a failed COMMIT; SQLite may have rolled back by itself
                self._db.execute("ROLLBACK")
