"""Which files the names of an open log stand for. Whoever opens the log next gets what is under its name then.

SQLite does not look: a file that was removed, moved or replaced is written on, and with its last descriptor all of it
is gone. The lock is a file too, so that then another process may get one of the same name.
"""

from __future__ import annotations

import os
from pathlib import Path

# A device and a number on it: what a file is, by whatever name.
_Identity = tuple[int, int]


class Displaced(Exception):
    """What is open is not what is under the log's name, or not this process's alone: nothing may be written any more.

    `what` may be told to everybody, the whole text says where.
    """

    def __init__(self, path: str | Path, what: str) -> None:
        self.what = what
        super().__init__(
            f"{path}: {what} while the server had it open. Publishes are refused until the server is restarted; it "
            "then opens what is under that name. To keep this log, put all its files back before"
        )


class Names:
    """The names of a log that is open and locked, and which file each of them stands for."""

    def __init__(self, path: Path, real: Path) -> None:
        """`path` is what the configuration says, absolute; `real` is where its links lead to: SQLite's other files are
        there. Raises `OSError` when one is missing."""
        names = {str(path), str(real), *(f"{real}{suffix}" for suffix in ("-wal", "-shm", "-lock"))}
        self._files = {name: identity_of(name) for name in sorted(names)}

    def check(self) -> None:
        """Raise `Displaced` unless each name still stands for the file that it stood for at the start."""
        for name, opened in self._files.items():
            try:
                found = identity_of(name)
            except OSError as error:
                # Also if only the folder cannot be read any more: then nobody knows who writes there.
                gone = isinstance(error, FileNotFoundError | NotADirectoryError)
                what = "was removed or moved" if gone else f"could not be looked at ({error.strerror})"
                raise Displaced(name, what) from None
            if found != opened:
                raise Displaced(name, "was replaced by another file")


def identity_of(path: str | Path) -> _Identity:
    """Which file a name stands for. Raises `OSError`."""
    found = os.stat(path)  # noqa: PTH116  # a third of the time, and it is asked before and after every commit
    return found.st_dev, found.st_ino
