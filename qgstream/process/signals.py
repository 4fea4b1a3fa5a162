"""What each signal does to a server's process, from its first moment to its last. None of them kills it by default.

    SIGTERM, SIGINT, SIGQUIT   leave; once more: leave at once
    SIGHUP                     load the configuration again; leave when it says that the terminal was closed
    SIGUSR1                    nothing: the log goes to standard error, so there is no file to open anew
    SIGUSR2                    nothing yet: it is kept for an upgrade without an end

docs/running.md says the same to operators. Python itself ignores SIGPIPE.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Nothing is imported for these functions: `hold` must not wait.
    from asyncio import AbstractEventLoop
    from types import FrameType

LEAVE = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
ALL = (*LEAVE, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Signals:
    """Handles them: at first without an event loop (`hold`), then on it (`watch`), and in the end not any more.

    A process 1 of a container needs the first part even more than others: the kernel does not deliver a signal to it
    that has no handler, so a SIGTERM in the second in which the server is imported would be lost.
    """

    def __init__(self) -> None:
        self._reload_later = False
        # `nohup` starts a program with SIGHUP ignored: then a closed terminal ends nothing.
        self._ends_with_terminal = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and _has_terminal()
        self._has_hung_up = False

    def hold(self) -> None:
        """From now on until `watch`: a signal to leave ends the process with status 0, and a reload comes later."""
        for number in ALL:
            # Never SIG_IGN: the programs that a source starts would inherit it.
            signal.signal(number, self._early)

    def _early(self, number: int, _frame: FrameType | None) -> None:
        if number in LEAVE or (number == signal.SIGHUP and self._is_hung_up()):
            raise SystemExit(0)
        self._reload_later |= number == signal.SIGHUP

    def _is_hung_up(self) -> bool:
        """Whether the terminal in which the server was started has closed.

        A service never had a terminal, so SIGHUP is a reload there, as it is while the terminal is open.
        """
        return self._ends_with_terminal and not _has_terminal()

    def watch(
        self, loop: AbstractEventLoop, *, leave: Callable[[signal.Signals], None], reload: Callable[[], None]
    ) -> None:  # fmt: skip
        """Call these functions from now on, on the loop of this thread."""

        def hang_up() -> None:
            if not self._is_hung_up():
                reload()
            elif not self._has_hung_up:  # the kernel and the shell both send the signal, and this is no second request
                self._has_hung_up = True
                leave(signal.SIGHUP)

        for number in LEAVE:
            loop.add_signal_handler(number, leave, number)
        loop.add_signal_handler(signal.SIGHUP, hang_up)
        loop.add_signal_handler(signal.SIGUSR1, _pass_over_log_rotation)
        loop.add_signal_handler(signal.SIGUSR2, _pass_over_upgrade)
        if self._reload_later:
            self._reload_later = False
            loop.call_soon(hang_up)

    def ignore(self, loop: AbstractEventLoop) -> None:
        """Ignore signals at the end: a late signal must not turn a clean end into a death by signal."""
        signal.pthread_sigmask(signal.SIG_BLOCK, ALL)  # without a handler, a signal would kill until it is ignored
        for number in ALL:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL)


def _has_terminal() -> bool:
    """Whether the process has a controlling terminal. The kernel takes a closed one away from all its processes before
    it sends SIGHUP, and opening /dev/tty fails then (tty_ioctl(4), ENXIO)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _pass_over_log_rotation() -> None:
    from qgstream.logs import log

    log.debug("signal.ignored", extra={"signal": "SIGUSR1", "reason": "the log is no file that could be opened again"})


def _pass_over_upgrade() -> None:
    from qgstream.logs import log

    log.warning("signal.ignored", extra={"signal": "SIGUSR2", "reason": "this version cannot upgrade itself"})
