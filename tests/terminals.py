"""A program on a terminal of its own: what it shows, what is typed, and the terminal's end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

# How long a failure takes.
SECONDS = 60.0
_STYLE = re.compile(r"\x1b\[[0-9;]*[mK]")


def _take_terminal() -> None:
    fcntl.ioctl(1, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a test run that `nohup` started ignores it, and its children do


class Terminal:
    """`python -m qgstream ARGUMENTS`, or another command, in a session of its own, whose terminal this is."""

    def __init__(
        self, *arguments: str, command: tuple[str, ...] = (sys.executable, "-m", "qgstream"),
        environ: Mapping[str, str] | None = None, stdin: int | None = None,
    ) -> None:  # fmt: skip
        self._ours, theirs = pty.openpty()
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("QGSTREAM_", "NO_COLOR"))}
        self.process = subprocess.Popen(
            [*command, *arguments], stdin=theirs if stdin is None else stdin, stdout=theirs, stderr=theirs,
            env=clean | {"TERM": "xterm"} | dict(environ or {}), start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509  # no thread holds a lock in it
        )  # fmt: skip
        os.close(theirs)
        self.raw = ""

    @property
    def shown(self) -> str:
        """What was shown so far, without its colours."""
        return _STYLE.sub("", self.raw).replace("\r\n", "\n")

    def read_until(self, pattern: str) -> re.Match[str]:
        """The first match in what is shown; as soon as it is there."""
        deadline = time.monotonic() + SECONDS
        while (found := re.search(pattern, self.shown)) is None:
            assert self._read(deadline), f"{pattern!r} was not shown:\n{self.shown}"
        return found

    def read_to_end(self) -> int:
        """The exit status, when the program has ended."""
        deadline = time.monotonic() + SECONDS
        while self._read(deadline):
            pass
        return self.process.wait(max(0.0, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
        try:
            some = os.read(self._ours, 65536) if ready else b""
        except OSError:  # EIO: nobody has the terminal open any more
            some = b""
        self.raw += some.decode(errors="replace")
        return bool(some)

    def enter(self, text: str) -> None:
        """Type this: "\\x03" is Ctrl-C, "\\x04" Ctrl-D."""
        os.write(self._ours, text.encode())

    def hang_up(self) -> None:
        """Close the window."""
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.hang_up()
