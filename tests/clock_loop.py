"""An event loop whose clock is the test's own."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class _Impatient(selectors.DefaultSelector):
    """Instead of waiting it moves the clock."""

    loop: ClockLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        self.loop.now += timeout or 0.0
        return super().select(0)


class ClockLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only while it waits, and while a test says that something holds it."""

    def __init__(self) -> None:
        self.now = 1000.0
        selector = _Impatient()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def hold(self, at: float, seconds: float) -> None:
        """Be held so long by something, from so many seconds from now on."""

        def pass_time() -> None:
            self.now += seconds

        self.call_later(at, pass_time)
