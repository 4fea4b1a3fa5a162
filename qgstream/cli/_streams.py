"""The standard streams of a command: all are open, and an unwritable stream does not crash a command."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import TextIO

# The errors of write(2) on standard output that accepts no data, besides EPIPE. EBADF: it was closed from the start.
_UNWRITABLE = frozenset(
    {errno.EBADF, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENXIO, errno.EAGAIN}
)  # fmt: skip


def open_missing() -> None:
    """Open /dev/null for each standard stream that the command was started without (`>&-`).

    Otherwise the next socket or file would get the free descriptor, and would receive what is printed or logged.
    /dev/null is opened in the opposite direction, so that reading and writing fail as on a closed descriptor (as
    gnulib's `stdopen` does). For standard error it is open in both directions, because a failure could not be reported.
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDWR)):
        try:
            os.fstat(number)
        except OSError:
            # open(2) takes the lowest free descriptor, which is this one.
            os.set_inheritable(os.open(os.devnull, flags), True)
    # Python has None in place of a closed stream.
    sys.stdin = sys.stdin or open(0, closefd=False, encoding="utf-8")  # noqa: SIM115  # open as long as the process
    sys.stdout = sys.stdout or open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False, encoding="utf-8")  # noqa: SIM115


def say(text: str, *, end: str = "\n") -> None:
    """Print on standard error. If standard error accepts no text, the text is lost and the command continues."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """Redirect a stream to /dev/null: Python flushes the stream again at exit, and a failure there would mean status
    120."""
    with contextlib.suppress(OSError), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def is_unwritable(error: OSError) -> bool:
    """Return whether a failed write to standard output raised this error. Commands raise other errors as
    `QgstreamError`."""
    return error.filename is None and error.errno in _UNWRITABLE
