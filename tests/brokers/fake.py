"""An engine without a network, for what a real one cannot be made to do at a chosen moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from copy import copy
from typing import ClassVar

from qgstream.brokers.base import Forgotten
from qgstream.brokers.remote import Bounds, LogPage, Placed, Remote, Replaced
from qgstream.brokers.vouching import Standing, earlier_of
from qgstream.events.publication import Publication

PAGE = 10


class EngineError(Exception):
    """What the fake's library would raise."""


class Full(EngineError):
    """Reached, and takes nothing."""


class FakeLog:
    """The engine's side, which several brokers share."""

    def __init__(self) -> None:
        self.epoch = "one"
        self.entries: list[Publication] = []
        self.newest = 0
        self.forgotten = 0
        self.is_away = False
        self.is_silent = False
        self.is_full = False
        self.is_witnessed = True
        self.ended: int | None = None
        self.earlier: Mapping[str, int] = {}
        self.changed = asyncio.Condition()
        self.calls: list[str] = []

    async def put(self, *data: str, step: int = 1) -> list[int]:
        """Append, as another process would."""
        for text in data:
            self.newest += step
            self.entries.append(Publication(("a",), text.encode(), offset=self.newest, published_at=2e9))
        await self.notify()
        return [entry.offset for entry in self.entries[-len(data) :]]

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def set_away(self, is_away: bool) -> None:
        self.is_away = is_away
        await self.notify()

    def trim(self, forgotten: int) -> None:
        self.forgotten = forgotten
        self.entries = [entry for entry in self.entries if entry.offset > forgotten]

    def restart(self) -> None:
        """What is in its memory alone is gone."""
        self.is_witnessed = False

    def go_back(self, newest: int) -> None:
        """Lose the end, as after a crash of an engine that had not written it down."""
        self.newest = newest
        self.entries = [entry for entry in self.entries if entry.offset <= newest]


class FakeRemote(Remote):
    """The broker's side."""

    name: ClassVar[str] = "fake"
    failures = (OSError, EngineError)
    refusals = (Full,)

    def __init__(self, log: FakeLog, *, timeout_seconds: float = 5.0) -> None:
        super().__init__("fake://here", timeout_seconds=timeout_seconds, secrets=["hunter2"])
        self._backoff._first = self._backoff._next = 0.001
        self.pulse_seconds = 0.05
        self.log = log
        self.hold: asyncio.Event | None = None  # what the tail waits for before it goes on

    async def _call(self, name: str) -> None:
        self.log.calls.append(name)
        if self.log.is_silent:
            await asyncio.Event().wait()
        if self.log.is_away:
            raise EngineError("no way to fake://me:hunter2@here")

    async def connect(self) -> None:
        await self._call("connect")

    async def disconnect(self) -> None:
        self.log.calls.append("disconnect")
        if self.log.is_away:
            raise EngineError("nobody to say goodbye to")

    async def bounds(self) -> Bounds:
        await self._call("bounds")
        return Bounds(self.log.epoch, self.log.forgotten, self.log.newest)

    async def renew(self, epoch: str, ended: int | None = None) -> None:
        await self._call("renew")
        if self.log.epoch == epoch:
            self.log.earlier = earlier_of(epoch, ended, self.log.earlier)
            self.log.epoch, self.log.ended = epoch + "~", None

    async def standing(self) -> Standing:
        await self._call("standing")
        return Standing(self.log.epoch, self.log.is_witnessed, self.log.ended, self.log.earlier)

    async def vouch(self) -> None:
        await self._call("vouch")
        self.log.is_witnessed, self.log.ended = True, None

    async def sign_off(self) -> None:
        await self._call("sign_off")
        self.log.ended = self.log.newest

    async def has(self, offset: int) -> bool:
        await self._call("has")
        return any(entry.offset == offset for entry in self.log.entries)

    async def read_after(self, after: int, limit: int) -> LogPage:
        await self._call("read")
        if self.log.epoch != self.epoch:
            raise Replaced
        if after < self.log.forgotten:
            raise Forgotten(after, self.log.forgotten)
        return self._page(after, min(limit, PAGE))

    def _page(self, after: int, limit: int) -> LogPage:
        found = [entry for entry in self.log.entries if entry.offset > after][:limit]
        up_to = found[-1].offset if found else after
        return LogPage([copy_of(entry) for entry in found if entry.data != b"bad"], up_to)

    async def follow(self, after: int) -> AsyncGenerator[LogPage, None]:
        while True:
            await self._call("follow")
            if self.log.epoch != self.epoch:
                raise Replaced
            if after < self.log.forgotten:
                raise Forgotten(after, self.log.forgotten)
            page = self._page(after, PAGE)
            if self.hold is not None:
                await self.hold.wait()
            for entry in self.log.entries:
                if after < entry.offset <= page.up_to and entry.data == b"bad":
                    self.skips.skip(entry.offset, "got b'bad', expected an event")
            yield page
            after = page.up_to
            if after >= self.log.newest:
                async with self.log.changed:
                    try:
                        await asyncio.wait_for(self.log.changed.wait(), self.pulse_seconds)
                    except TimeoutError:
                        yield LogPage((), after)

    async def send(self, publications: Sequence[Publication]) -> Sequence[Placed]:
        await self._call("send")
        if self.log.is_full:
            raise Full("fake://me:hunter2@here is full")
        placed = []
        for publication in publications:
            self.log.newest += 1
            entry = copy_of(publication)
            entry.offset, entry.published_at = self.log.newest, 2e9
            self.log.entries.append(entry)
            placed.append(Placed(self.log.newest, True, 2e9))
        await self.log.notify()
        return placed

    async def probe(self) -> None:
        await self._call("probe")
        if self.log.is_full:
            raise Full("still full")


def copy_of(publication: Publication) -> Publication:
    return copy(publication)
