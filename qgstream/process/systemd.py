"""What the service manager is told: sd_notify(3), systemd's protocol. Does nothing where nobody asks for it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class Supervisor:
    """The manager that started this process, by the environment that it gave: NOTIFY_SOCKET, WATCHDOG_USEC.

    A message is one datagram, sent without waiting: a manager that is restarting must not stop a server. Nothing is
    raised for it, and nothing logged: the manager itself says what it missed.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        # "@" is how the abstract namespace is written; other kinds of address (vsock) are for virtual machines.
        self._address = "\0" + path[1:] if path.startswith("@") else path if path.startswith("/") else None
        self.watchdog_seconds = _watchdog_seconds(environment) if self._address else None

    def ready(self) -> None:
        """Start-up is over, or a reload is."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload begins: READY=1 ends it."""
        # Type=notify-reload wants the moment, to tell this reload from one before it.
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, within_seconds: float) -> None:
        """The drain begins, and takes at most so long, whatever the manager's own timeout is."""
        # Else a drain longer than TimeoutStopSec, asked for through POST /admin/drain, would be killed.
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(within_seconds * 1_000_000)}")

    def alive(self) -> None:
        """To be said more often than every `watchdog_seconds`, by what must not hang."""
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
