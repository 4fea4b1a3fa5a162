"""Servers that come and go while clients look on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from threading import Lock

from tests.serving import ServerProcess


class Fleet:
    """Server processes behind one list of URLs, which always names those that may answer.

    `make` starts one (`ServerProcess`, or one with a fault); `settings` are its settings. Joined by a shared engine
    when the settings name one (`broker__url`), else each is alone. They may say what `expect` names, by its event. A
    server that comes back has another port, as behind a balancer, and the next of the `variants` of the settings.
    """

    def __init__(
        self, tmp_path: Path, settings: Mapping[str, object], *, variants: Sequence[Mapping[str, object]] = ({},),
        count: int = 1, make: Callable[..., ServerProcess] = ServerProcess, expect: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.urls: list[str] = []
        self.restarts = 0
        self._settings = settings
        self._variants = cycle(variants)
        self._tmp_path = tmp_path
        self._count = count
        self._make = make
        self._expect = expect
        self._servers: list[ServerProcess] = []
        self._lock = Lock()
        self._is_over = False

    async def start(self) -> None:
        """Start them all."""
        for _ in range(self._count):
            await self._start()

    async def _start(self) -> None:
        # In a thread, which no cancellation stops: whatever it starts must be known, or nobody ends it.
        server = await asyncio.to_thread(self._make_one)
        self.urls.append(server.url)

    def _make_one(self) -> ServerProcess:
        server = self._make(self._tmp_path, **self._settings, **next(self._variants))
        with self._lock:
            if self._is_over:
                server.kill()
            self._servers.append(server)
        return server

    async def restart_after_drain(self) -> None:
        """SIGTERM the one that has served longest, wait until it has left as it should, start another."""
        server = self._servers[0]
        await asyncio.to_thread(server.stop, expect=self._expect)
        self._servers.remove(server)
        self.urls.remove(server.url)
        self.restarts += 1
        await self._start()

    async def restart_after_kill(self) -> None:
        """kill -9 the one that has served longest, start another."""
        server = self._servers.pop(0)
        server.kill()
        self.urls.remove(server.url)
        self.restarts += 1
        await self._start()

    async def stop(self) -> None:
        """Stop them all as they should be stopped."""
        while self._servers:
            await asyncio.to_thread(self._servers[-1].stop, expect=self._expect)
            self._servers.pop()

    def kill(self) -> None:
        """Leave nothing behind, whatever happened."""
        with self._lock:
            self._is_over = True
        for server in self._servers:
            if server.process.poll() is None:
                server.kill()
