"""qgstream with one fault, to see that the checker finds it: `python sabotage.py FAULT serve ...`.

Each fault is one that a change to the server could bring by mistake, and that every other test might let through.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from qgstream import cli
from qgstream.brokers.memory import MemoryBroker
from qgstream.delivery.batch import Batch
from qgstream.delivery.connection import Connection
from qgstream.delivery.dispatch import Dispatch
from qgstream.delivery.feed import Feed
from qgstream.events.history import Part, Window
from qgstream.events.pattern_sets import PatternSet
from qgstream.events.publication import Position, Publication
from qgstream.events.subscription import Subscription
from qgstream.replay.pages import ReplayPage, ReplayPages
from qgstream.service.heartbeat import Wheel
from qgstream.wire.framing import Framing
from tests.serving import ServerProcess


def late_join() -> None:
    """A replay that is through joins its feed two milliseconds later: what is published in between is lost.

    One turn of the loop is found out too, but may take half a minute.
    """
    join = Connection.join

    def join_if_open(self: Connection) -> None:
        if self.is_open:
            join(self)

    def late(self: Connection) -> None:
        if self.replay is None:
            join(self)
        else:
            asyncio.get_running_loop().call_later(0.002, join_if_open, self)

    Connection.join = late  # type: ignore[assignment, method-assign]


def page_short_by_one() -> None:
    """The last page of a replay leaves out its last event."""
    encode = ReplayPages.of

    def short(
        self: ReplayPages, subscription: Subscription, publications: Sequence[Publication], end: int = 0
    ) -> ReplayPage:
        if len(publications) < 2 or publications[-1].offset != self._window.newest:
            return encode(self, subscription, publications, end)
        page = encode(self, subscription, publications[:-1])
        return ReplayPage(page.data, page.events, publications[-1].offset)

    ReplayPages.of = short  # type: ignore[assignment]


def heartbeat_jumps() -> None:
    """A heartbeat carries the newest position to those who are behind too: if they leave then, they resume behind a
    hole."""
    frames = Wheel._frames

    def jumping(self: Wheel) -> Any:
        made = frames(self)
        return {(framing, caught_up): made[framing, True] for framing in Framing for caught_up in (True, False)}

    Wheel._frames = jumping  # type: ignore[method-assign]


def split_off_by_one() -> None:
    """Where a socket took only a part, the chunk after the broken one is skipped."""
    split = Feed.split

    def wrong(self: Feed[Any], cursor: int, taken_bytes: int) -> tuple[int, memoryview]:
        after, rest = split(self, cursor, taken_bytes)
        return min(after + 1, self.end), rest

    Feed.split = wrong  # type: ignore[method-assign]


def resume_off_by_one() -> None:
    """A resumed stream begins with the event that the client has."""
    page_of = Window.page_of

    def too_early(self: Window, patterns: PatternSet, offset: int, size: int) -> Part | None:
        return page_of(self, patterns, max(0, offset - 1), size)

    Window.page_of = too_early  # type: ignore[method-assign]


def same_epoch() -> None:
    """Another life of the server takes the ids of the one before for its own."""
    make = MemoryBroker.__init__

    def same(self: MemoryBroker) -> None:
        make(self)
        self.position = Position("same", 0)

    MemoryBroker.__init__ = same  # type: ignore[method-assign]


def prefixes_missed() -> None:
    """An event of several topics is looked up by its first alone."""
    ask = Dispatch._ask

    def first_only(self: Dispatch, batch: Batch, publications: Sequence[Publication]) -> Iterator[None]:
        topics = [publication.topics for publication in publications]
        for publication in publications:
            publication.topics = publication.topics[:1]
        list(ask(self, batch, publications))
        for publication, all_topics in zip(publications, topics, strict=True):
            publication.topics = all_topics
        return iter(())

    Dispatch._ask = first_only  # type: ignore[assignment, method-assign]


FAULTS: dict[str, Callable[[], None]] = {
    fault.__name__: fault
    for fault in (
        late_join, page_short_by_one, heartbeat_jumps, split_off_by_one, resume_off_by_one, same_epoch, prefixes_missed,
    )
}  # fmt: skip


def server_with(fault: str) -> type[ServerProcess]:
    """A `ServerProcess` whose server has this fault."""

    class Faulty(ServerProcess):
        program = (__file__, fault)

    return Faulty


if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    sys.exit(cli.main(sys.argv[2:]))
