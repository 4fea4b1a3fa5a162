"""Messages from a NATS server: messages of the stream with their places, and status messages between them."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from nats.aio.msg import Msg


class Inbox:
    """The messages sent to one subject of this process."""

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
        """Wait for messages and return them. Raises an exception in the inbox when all messages before it were
        returned."""
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
    """The place of a delivered message. `delivery` counts the messages of one consumer; the time is in nanoseconds."""

    offset: int
    delivery: int
    stored_at: int
    pending: int


def is_event(message: Msg) -> bool:
    """Whether the message is a message of the stream and not a status message of the server."""
    return message.reply.startswith("$JS.ACK.")


def place_of(message: Msg) -> Place:
    """Return the place of an event."""
    # $JS.ACK.<stream>.<consumer>.<tries>.<sequence>.<delivery>.<time>.<pending>; or with the domain and the account
    # before the stream, and perhaps more fields at the end.
    words = message.reply.split(".")
    start = 5 if len(words) == 9 else 7
    offset, delivery, stored_at, pending = map(int, words[start : start + 4])
    return Place(offset, delivery, stored_at, pending)
