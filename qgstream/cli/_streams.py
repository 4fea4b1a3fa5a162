"""The standard streams of a command: each of them is open, and a stream that takes nothing ends no command badly."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import TextIO

# What write(2) says of standard output that takes nothing, besides EPIPE. EBADF: it was closed from the start.
_UNWRITABLE = frozenset(
    {errno.EBADF, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENXIO, errno.EAGAIN}
)  # fmt: skip


def open_missing() -> None:
    """Open /dev/null for each standard stream that the command was started without (`>&-`).

    The next socket or file would get the free descriptor otherwise, and what is printed or logged would go there.
    Reading and writing fail as on a closed descriptor, because /dev/null is opened the wrong way round (as gnulib's
    `stdopen` does); for standard error it is open both ways, because nobody could be told of the failure.
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDWR)):
        try:
            os.fstat(number)
        except OSError:
            # open(2) takes the lowest descriptor that is free, which is this one.
            os.set_inheritable(os.open(os.devnull, flags), True)
    # Python has None in the place of a stream that was closed.
    sys.stdin = sys.stdin or open(0, closefd=False, encoding="utf-8")  # noqa: SIM115  # open as long as the process
    sys.stdout = sys.stdout or open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False, encoding="utf-8")  # noqa: SIM115


def say(text: str, *, end: str = "\n") -> None:
    """Print on standard error. Words that standard error does not take are lost, and the command goes on."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """Lead a stream to /dev/null: Python flushes it once more at exit, and a failure there would be status 120."""
    with contextlib.suppress(OSError), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def is_unwritable(error: OSError) -> bool:
    """Whether this is what a failed write to standard output raises. Commands raise other errors as `QgstreamError`."""
    return error.filename is None and error.errno in _UNWRITABLE
