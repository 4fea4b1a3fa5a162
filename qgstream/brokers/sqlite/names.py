"""Checks that the names of an open log still refer to the same files. The next process opens the file under the name.

SQLite does not check. It continues to write a file that was removed, moved or replaced, and all data is lost when the
last descriptor closes. The lock is also a file, so another process may then lock a new file of the same name.
"""

from __future__ import annotations

import os
from pathlib import Path

# A device and an inode: identifies a file under any name.
_Identity = tuple[int, int]


class Displaced(Exception):
    """The open file is no longer the file under the log's name, or another process writes it too. Nothing may be
    written.

    `what` may be shown to clients; the whole text contains the path.
    """

    def __init__(self, path: str | Path, what: str) -> None:
        self.what = what
        super().__init__(
            f"{path}: {what} while the server had it open. Publishes are refused until the server is restarted; it "
            "then opens what is under that name. To keep this log, put all its files back before"
        )


class LogNames:
    """The names of an open and locked log, and the file to which each name refers."""

    def __init__(self, path: Path, real: Path) -> None:
        """`path` is the absolute path in the configuration. `real` is the path after links are resolved, where SQLite's
        other files are. Raises `OSError` if a file is missing."""
        names = {str(path), str(real), *(f"{real}{suffix}" for suffix in ("-wal", "-shm", "-lock"))}
        self._files = {name: identity_of(name) for name in sorted(names)}

    def check(self) -> None:
        """Raise `Displaced` unless each name still refers to the same file as at the start."""
        for name, opened in self._files.items():
            try:
                found = identity_of(name)
            except OSError as error:
                # Also if only the folder is unreadable: then another process may write there.
                gone = isinstance(error, FileNotFoundError | NotADirectoryError)
                what = "was removed or moved" if gone else f"could not be checked ({error.strerror})"
                raise Displaced(name, what) from None
            if found != opened:
                raise Displaced(name, "was replaced by another file")


def identity_of(path: str | Path) -> _Identity:
    """Return the file to which a name refers. Raises `OSError`."""
    found = os.stat(path)  # noqa: PTH116  # a third of the time, and it is asked before and after every commit
    return found.st_dev, found.st_ino
