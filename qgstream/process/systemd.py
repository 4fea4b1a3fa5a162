"""Messages to the service manager: sd_notify(3), systemd's protocol. Does nothing without a manager that asks for
it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class Supervisor:
    """The manager that started this process, from its environment: NOTIFY_SOCKET, WATCHDOG_USEC.

    A message is one datagram, sent without waiting: a manager that restarts must not stop a server. A failure raises
    nothing and logs nothing: the manager itself reports a missing message.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        # "@" marks the abstract namespace; other kinds of address (vsock) are for virtual machines.
        self._address = "\0" + path[1:] if path.startswith("@") else path if path.startswith("/") else None
        self.watchdog_seconds = _watchdog_seconds(environment) if self._address else None

    def ready(self) -> None:
        """Report that the start or a reload is over."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Report that a reload begins: READY=1 ends it."""
        # Type=notify-reload needs the time, to tell this reload from an earlier one.
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, within_seconds: float) -> None:
        """Report that the drain begins, and takes at most this long, whatever the manager's own timeout is."""
        # Otherwise the manager would kill a drain longer than TimeoutStopSec, requested through POST /admin/drain.
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(within_seconds * 1_000_000)}")

    def alive(self) -> None:
        """Report that the process is alive. Call this more often than every `watchdog_seconds`, from the code that must
        not hang."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager, suppress(OSError):
            manager.setblocking(False)
            manager.sendto(message.encode(), self._address)


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    # Meant for another process of the same service: sd_watchdog_enabled(3).
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        microseconds = int(environment.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return microseconds / 1_000_000 if microseconds > 0 else None
