"""A connection to RabbitMQ, and reading a stream over this connection. Every call gets a result or an error.

The connections are those of aiormq, the layer below aio-pika. aio-pika's reconnecting connections would publish events
later that the server has already refused with a 503; also, each message costs two more tasks and an object.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import Any, TypeVar, cast

from aio_pika.exceptions import AMQPError
from aiormq import Channel, Connection
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import InvalidFrameError
from pamqp.exceptions import PAMQPException
from yarl import URL

# The exceptions of the library after `answered`.
FAILURES: tuple[type[Exception], ...] = (OSError, EOFError, AMQPError)
# The longest time to wait for RabbitMQ to confirm the end of a connection.
CLOSE_SECONDS = 1.0

_T = TypeVar("_T")


class Undecodable(ConnectionError):
    """The library could not decode a message, and closed the connection."""


class Cancelled(ConnectionError):
    """RabbitMQ ended the reading: the stream was deleted, or its server left the cluster."""


def quiet() -> None:
    """Turn off log lines of the library about errors that it also raises, and that this server logs as
    `broker.down`."""
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


async def answered(question: Awaitable[_T]) -> _T:
    """Return the result, or raise an exception of `FAILURES`.

    When a connection is lost, aiormq raises CancelledError in waiting tasks, as if they had been cancelled. Without
    this function, the tasks would end silently.
    """
    try:
        return await question
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise ConnectionError("the connection was lost") from None
    except (RuntimeError, PAMQPException) as error:
        raise ConnectionError(str(error)) from error


async def _close_politely(closing: Awaitable[Any]) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await answered(closing)
    except FAILURES:
        return


def _is_of_decoder(error: BaseException) -> bool:
    """Whether decoding a frame raised this error. The library handles only `PAMQPException`; deeply nested tables raise
    RecursionError."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(str(frame.f_globals.get("__name__", "")).startswith("pamqp.") for frame in frames)


class Link:
    """A connection to RabbitMQ."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, url: URL, context: ssl.SSLContext | None) -> Link:
        """Connect. Raises `FAILURES`."""
        connection = Connection(url, context=context)
        await answered(connection.connect())
        return cls(connection)

    @property
    def is_open(self) -> bool:
        """Whether the connection counts as open."""
        return not self._connection.is_closed

    @property
    def max_frame_bytes(self) -> int:
        """The largest frame that RabbitMQ accepts; a larger frame makes RabbitMQ close the connection."""
        return self._connection.connection_tune.frame_max or sys.maxsize

    async def is_blocked(self) -> bool:
        """Whether RabbitMQ has blocked this connection, because it is short of memory or disk."""
        try:
            async with asyncio.timeout(0.01):
                await self._connection.ready()
        except TimeoutError:
            return True
        return False

    async def channel(self, *, confirms: bool = False) -> Channel:
        """Open a channel."""
        return cast(Channel, await answered(self._connection.channel(publisher_confirms=confirms)))

    async def close(self) -> None:
        """Close the connection in any state."""
        await _close_politely(self._connection.close())

    def why(self, channel: Channel) -> Exception:
        """Return the error that closed a channel."""
        for closing in (self._connection.closing, channel.closing):
            error = closing.exception() if closing.done() and not closing.cancelled() else None
            if isinstance(error, InvalidFrameError):
                return Undecodable(str(error))
            if isinstance(error, FAILURES):
                return error
            if error is not None and _is_of_decoder(error):
                return Undecodable(f"{type(error).__name__}: {error}")
        return ConnectionError("the connection was lost")

    @asynccontextmanager
    async def reading(self, stream: str, start: int | str, *, ahead: int) -> AsyncGenerator[Reader, None]:
        """Read the stream from an offset, from its `first` message, or from the `next`.

        RabbitMQ sends at most `ahead` messages that were not taken.
        """
        channel = await self.channel()
        reader = Reader(self, channel)
        try:
            await answered(channel.basic_qos(prefetch_count=ahead))
            await reader.begin(stream, start)
            yield reader
        finally:
            if not channel.is_closed:
                await _close_politely(channel.close())


class Reader:
    """Receives the messages of a stream."""

    def __init__(self, link: Link, channel: Channel) -> None:
        self.channel = channel
        self._link = link
        self._came: deque[DeliveredMessage] = deque()
        self._more = asyncio.Event()
        self._tag = ""
        self._acknowledged = 0
        channel.closing.add_done_callback(self._wake)

    def _wake(self, _closing: asyncio.Future[Any]) -> None:
        self._more.set()

    async def begin(self, stream: str, start: int | str) -> None:
        """Start the reading."""
        begun = await answered(
            self.channel.basic_consume(stream, self._on_message, arguments={"x-stream-offset": start})
        )
        self._tag = begun.consumer_tag or ""

    async def _on_message(self, message: DeliveredMessage) -> None:
        self._came.append(message)
        self._more.set()

    def check(self) -> None:
        """Raise the error that ended the reading, if there is one."""
        if self.channel.is_closed:
            raise self._link.why(self.channel)
        if self._tag not in self.channel.consumers:
            raise Cancelled

    @property
    def has_more(self) -> bool:
        """Whether there are messages that were not taken."""
        return bool(self._came)

    async def some(self, limit: int) -> list[DeliveredMessage]:
        """Wait for messages and return them; RabbitMQ then sends as many more."""
        while not self._came:
            self.check()
            self._more.clear()
            await self._more.wait()
        found = list(islice(self._came, limit))
        tag = found[-1].delivery_tag
        if tag is not None and tag > self._acknowledged and not self.channel.is_closed:
            with suppress(*FAILURES):  # messages that have arrived are returned; the next call raises the error
                await answered(self.channel.basic_ack(tag, multiple=True, wait=False))
            self._acknowledged = tag
        # A caller's timeout may end the wait above. So the messages are removed only now, and the next call has them.
        for _ in found:
            self._came.popleft()
        return found
