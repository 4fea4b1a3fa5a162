"""A file that grows, as `tail -F` follows it: through rotation and truncation."""

from __future__ import annotations

import asyncio
import os
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Literal

from qgstream.logs import log
from qgstream.sources.base import Events, SourceFailed
from qgstream.sources.lines import Lines, Parse, Seconds, event_of

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
    """The lines that are written to a file from now on, or with `begin = "beginning"` those that are in it, too.

    It follows the name: a file that is moved away is read to its end, then the new one from its beginning; a file that
    is cut short is read from its beginning. A file that is not there is waited for. What is cut away before it was read
    is lost, as it is to every reader of such files.
    """
    tail = Tail(path, at_end=begin == "end")
    try:
        while True:
            # In a thread: a file may lie on something slow.
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
    """A file followed by its name. Not closed while another thread reads."""

    def __init__(self, path: Path, *, at_end: bool) -> None:
        self._path = path
        self._at_end = at_end  # for the file that is there at first
        self._file: FileIO | None = None
        self._lines = Lines()
        self._lock = Lock()
        self.has_more = False  # whether it is worth to read again at once

    def read(self) -> list[bytes | None]:
        """The lines that were completed since the last time; about 64 KiB at once."""
        with self._lock:
            file = self._file or self._open()
            data = file.read(_READ_BYTES) if file is not None else b""
            self.has_more = bool(data)
            if data:
                return self._lines.feed(data)
            return self._look(file) if file is not None else []

    def close(self) -> None:
        """Let go of the file."""
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
        self._lines = Lines()
        return self._file

    def _look(self, file: FileIO) -> list[bytes | None]:
        """At its end: whether it was cut short, or another file has its name."""
        mine = os.fstat(file.fileno())
        if mine.st_size < file.tell():
            log.info("source.file_truncated", extra={"path": str(self._path)})
            file.seek(0)
            self._lines = Lines()
            self.has_more = True
            return []
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return []  # moved away, and the next is not there yet: until then somebody may go on writing to this one
        if (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino):
            return []
        # What was written between our last read and the moment in which the name went to another file.
        rest: list[bytes | None] = []
        while data := file.read(_READ_BYTES):
            rest += self._lines.feed(data)
        rest += self._lines.rest()
        self._close()
        self.has_more = True
        return rest
