"""What a NATS server sends to us: messages of the stream, each with its place, and what it says in between."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from nats.aio.msg import Msg


class Inbox:
    """A subject of our own, and what came to it."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self._came: deque[Msg | Exception] = deque()
        self._more = asyncio.Event()

    async def on_message(self, message: Msg) -> None:
        self._came.append(message)
        self._more.set()

    def put(self, error: Exception) -> None:
        self._came.append(error)
        self._more.set()

    async def some(self, limit: int) -> list[Msg]:
        """What has come, as soon as there is something. Raises an exception that was put, when it is its turn."""
        while not self._came:
            self._more.clear()
            await self._more.wait()
        found: list[Msg] = []
        while self._came and len(found) < limit:
            first = self._came[0]
            if isinstance(first, Exception):
                if found:
                    break
                raise first
            found.append(first)
            self._came.popleft()
        return found


class Place(NamedTuple):
    """What a delivered message says of itself. `delivery` counts those of one consumer; the time is in nanoseconds."""

    offset: int
    delivery: int
    stored_at: int
    pending: int


def is_event(message: Msg) -> bool:
    """Whether it is one of the stream's messages, and not a word of the server's own."""
    return message.reply.startswith("$JS.ACK.")


def place_of(message: Msg) -> Place:
    """The place of an event."""
    # $JS.ACK.<stream>.<consumer>.<tries>.<sequence>.<delivery>.<time>.<pending>, or with the domain and the account
    # before the stream, and perhaps more behind.
    words = message.reply.split(".")
    start = 5 if len(words) == 9 else 7
    offset, delivery, stored_at, pending = map(int, words[start : start + 4])
    return Place(offset, delivery, stored_at, pending)
