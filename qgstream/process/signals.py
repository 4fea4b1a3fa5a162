"""What each signal does to a server's process, from its first moment to its last. None of them kills it by default.

    SIGTERM, SIGINT, SIGQUIT   leave; once more: leave at once
    SIGHUP                     load the configuration again
    SIGUSR1                    nothing: the log goes to standard error, so there is no file to open anew
    SIGUSR2                    nothing yet: it is kept for an upgrade without an end

docs/running.md says the same to operators. Python itself ignores SIGPIPE.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Nothing is imported for them: `hold` must not wait.
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

    def hold(self) -> None:
        """From now on until `watch`: a signal to leave ends the process with status 0, and a reload comes later."""
        for number in ALL:
            # Never SIG_IGN, which the programs that a source starts would inherit.
            signal.signal(number, self._early)

    def _early(self, number: int, _frame: FrameType | None) -> None:
        if number in LEAVE:
            raise SystemExit(0)
        self._reload_later |= number == signal.SIGHUP

    def watch(self, loop: AbstractEventLoop, *, leave: Callable[[], None], reload: Callable[[], None]) -> None:
        """Call these from now on, on the loop of this thread."""
        for number in LEAVE:
            loop.add_signal_handler(number, leave)
        loop.add_signal_handler(signal.SIGHUP, reload)
        loop.add_signal_handler(signal.SIGUSR1, _pass_over_log_rotation)
        loop.add_signal_handler(signal.SIGUSR2, _pass_over_upgrade)
        if self._reload_later:
            self._reload_later = False
            loop.call_soon(reload)

    def ignore(self, loop: AbstractEventLoop) -> None:
        """The end: one more signal in the last instant must not turn a clean end into a death by signal."""
        signal.pthread_sigmask(signal.SIG_BLOCK, ALL)  # without a handler, until it is ignored, it would kill
        for number in ALL:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL)


def _pass_over_log_rotation() -> None:
    from qgstream.logs import log

    log.debug("signal.ignored", extra={"signal": "SIGUSR1", "reason": "the log is no file that could be opened again"})


def _pass_over_upgrade() -> None:
    from qgstream.logs import log

    log.warning("signal.ignored", extra={"signal": "SIGUSR2", "reason": "this version cannot upgrade itself"})
