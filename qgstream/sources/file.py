"""A growing file, followed as `tail -F` does, through rotation and truncation."""

from __future__ import annotations

import asyncio
import os
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Literal

from qgstream.logs import log
from qgstream.sources.base import Events, SourceFailed
from qgstream.sources.lines import LineSplitter, Parse, Seconds, event_of

_READ_BYTES = 64 * 1024


async def file(
    *,
    path: Path,
    topic: str = "file",
    event: str | None = None,
    parse: Parse = "text",
    begin: Literal["beginning", "end"] = "end",
    poll_seconds: Seconds = 0.25,
) -> Events:
    """Yield the lines that are written to a file from now on; with `begin = "beginning"`, also the lines in it already.

    The source follows the name. A file that is moved away is read to its end, and then the new file from its beginning.
    A truncated file is read from its beginning. The source waits for a missing file. Lines that are cut away before
    they were read are lost, as for every reader of such files.
    """
    tail = Tail(path, at_end=begin == "end")
    try:
        while True:
            # In a thread: the file may be on slow storage.
            found = await asyncio.to_thread(tail.read)
            if found:
                yield [event_of(line, topic, event, parse) for line in found]
            if not tail.has_more:
                await asyncio.sleep(poll_seconds)
    except OSError as error:
        raise SourceFailed(f"{path}: cannot be read: {error.strerror}") from None
    finally:
        await asyncio.to_thread(tail.close)


class Tail:
    """A file followed by its name. Do not close it while another thread reads."""

    def __init__(self, path: Path, *, at_end: bool) -> None:
        self._path = path
        self._at_end = at_end  # for the file that exists at the start
        self._file: FileIO | None = None
        self._lines = LineSplitter()
        self._lock = Lock()
        self.has_more = False  # whether to read again at once

    def read(self) -> list[bytes | None]:
        """Return the lines that were completed since the last call; reads about 64 KiB at once."""
        with self._lock:
            file = self._file or self._open()
            data = file.read(_READ_BYTES) if file is not None else b""
            self.has_more = bool(data)
            if data:
                return self._lines.feed(data)
            return self._look(file) if file is not None else []

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> FileIO | None:
        at_end, self._at_end = self._at_end, False
        try:
            self._file = FileIO(self._path)
        except FileNotFoundError:
            return None
        if at_end:
            self._file.seek(0, os.SEEK_END)
        self._lines = LineSplitter()
        return self._file

    def _look(self, file: FileIO) -> list[bytes | None]:
        """At the end of the file, return whether it was truncated, or another file has its name."""
        mine = os.fstat(file.fileno())
        if mine.st_size < file.tell():
            log.info("source.file_truncated", extra={"path": str(self._path)})
            file.seek(0)
            self._lines = LineSplitter()
            self.has_more = True
            return []
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return []  # moved away without a successor: a program may still write to this file
        if (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino):
            return []
        # Read the lines that were written between the last read and the moment when the name moved to another file.
        rest: list[bytes | None] = []
        while data := file.read(_READ_BYTES):
            rest += self._lines.feed(data)
        rest += self._lines.rest()
        self._close()
        self.has_more = True
        return rest
