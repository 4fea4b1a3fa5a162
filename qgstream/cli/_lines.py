"""Lines of files and of standard input. A caller gets the lines that have arrived, and never waits for more."""

from __future__ import annotations

import os
import queue
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qgstream.errors import QgstreamError

# A server accepts a larger body only if configured (limits.max_body_bytes).
MAX_LINE_BYTES = 8 * 1024 * 1024
_READ_BYTES = 64 * 1024
_READS_AHEAD = 16
STANDARD_INPUT = "-"


class BadInput(QgstreamError):
    """The input cannot be read."""

    code = "bad_input"


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its end, and its place."""

    source: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{_name(self.source)}, line {self.number}"


def _name(source: str) -> str:
    return "standard input" if source == STANDARD_INPUT else source


def size(sources: Sequence[str]) -> int | None:
    """The bytes that are to be read from these sources; None if one of them is no regular file."""
    total = 0
    for source in sources:
        try:
            found = os.fstat(0) if source == STANDARD_INPUT else os.stat(source)  # noqa: PTH116  # beside fstat
            if not stat.S_ISREG(found.st_mode):
                return None
            total += found.st_size - (os.lseek(0, 0, os.SEEK_CUR) if source == STANDARD_INPUT else 0)
        except (OSError, ValueError):  # reading it says what is wrong
            return None
    return total


def batches(sources: Sequence[str], *, most_lines: int, most_bytes: int) -> Iterator[list[Line]]:
    """Yield the lines that are not blank, of one source after the other. Each batch has all lines that have arrived,
    within the bounds.

    So a slow pipe is published line by line, and a long file in large batches; a batch never waits for more lines.
    """
    ready: queue.Queue[list[Line] | Exception | None] = queue.Queue(_READS_AHEAD)
    threading.Thread(target=_read, args=(sources, ready), daemon=True).start()
    is_over = False
    while not is_over:
        batch: list[Line] = []
        size = 0
        found = ready.get()
        while True:
            if isinstance(found, Exception):
                yield from _sliced(batch, most_lines)
                raise found
            is_over = found is None
            batch += found or ()
            size += sum(len(line.text) for line in found or ())
            if is_over or len(batch) >= most_lines or size >= most_bytes:
                break
            try:
                found = ready.get_nowait()
            except queue.Empty:
                break
        yield from _sliced(batch, most_lines)


def _sliced(lines: list[Line], most: int) -> Iterator[list[Line]]:
    for start in range(0, len(lines), most):
        yield lines[start : start + most]


def _read(sources: Sequence[str], ready: queue.Queue[list[Line] | Exception | None]) -> None:
    try:
        for source in sources:
            for lines in _lines_of(source):
                ready.put(lines)
        ready.put(None)
    except (OSError, BadInput) as error:
        ready.put(error if isinstance(error, BadInput) else BadInput(f"{_name(source)}: {error.strerror or error}"))


def _lines_of(source: str) -> Iterator[list[Line]]:
    number, begun = 0, bytearray()  # a part is appended without a copy of the earlier parts
    # Unbuffered: a thread that waits in a buffered read would block the exit of the interpreter.
    with open(0 if source == STANDARD_INPUT else source, "rb", buffering=0, closefd=source != STANDARD_INPUT) as file:
        while True:
            received = file.read(_READ_BYTES)
            first, *others = received.split(b"\n")
            begun += first
            complete = []
            if others or not received:
                *between, last = others or [b""]
                complete = [bytes(begun), *between]
                begun = bytearray(last)
            # The lines before a wrong line are published.
            lines, wrong = [], None
            for raw in complete:
                number += 1
                try:
                    lines.append(_line(source, number, raw))
                except BadInput as error:
                    wrong = error
                    break
            if lines:
                yield [line for line in lines if line.text.strip()]
            if wrong is not None:
                raise wrong
            if len(begun) > MAX_LINE_BYTES:
                raise _too_long(source, number + 1)
            if not received:
                return


def _too_long(source: str, number: int) -> BadInput:
    return BadInput(f"{Line(source, number, '')}: longer than {MAX_LINE_BYTES} bytes")


def _line(source: str, number: int, raw: bytes) -> Line:
    if len(raw) > MAX_LINE_BYTES:
        raise _too_long(source, number)
    if number == 1:
        raw = raw.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, which editors on Windows write
    try:
        return Line(source, number, raw.removesuffix(b"\r").decode())
    except UnicodeDecodeError as error:
        where = Line(source, number, "")
        raise BadInput(f"{where}: got byte 0x{raw[error.start]:02x} at {error.start}, expected UTF-8") from None
