"""What is on its way to RabbitMQ: published, and not come back yet."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aio_pika.exceptions import AMQPChannelError
from aiormq import Channel
from pamqp.commands import Basic

from qgstream.brokers.idempotency import Keys
from qgstream.brokers.rabbitmq.link import FAILURES, Link, answered
from qgstream.brokers.rabbitmq.messages import Entry, headers_bytes, published
from qgstream.brokers.remote import Placed
from qgstream.errors import TooLarge
from qgstream.events.publication import Publication
from qgstream.limits import MIB

# Between two looks whether RabbitMQ has stopped to take messages, while we wait for one to come back.
BLOCKED_SECONDS = 0.5
# For why a channel was closed. It is there already, and only has to be passed on.
REASON_SECONDS = 1.0
# A single event that is larger goes over the channel of batches, which others do not use at the same time. The bound of
# RabbitMQ (max_message_size) is 16 MiB or more, unless somebody has lowered it.
LARGE_BYTES = MIB
_TOO_LARGE = re.compile(r"message size \d+ is larger than configured max size (\d+)")


class Blocked(ConnectionError):
    """RabbitMQ takes no messages for now."""


class Outbox:
    """Publishes, and answers when the tail has come by.

    Several events at once go in a transaction: none of them is published if we or the connection end before it is
    whole. It is not all or nothing if RabbitMQ itself ends in the middle of it; then nothing was acknowledged.
    """

    def __init__(self, exchange: str, user: str, uid: Callable[[], str]) -> None:
        self.is_torn = False  # the exchange was not there
        self._exchange = exchange
        self._user = user
        self._uid = uid
        self._plain: Channel | None = None  # for single events
        self._batches: Channel | None = None  # for several at once
        self._batching = asyncio.Lock()
        # What has not come back, by its name; and the same by its key.
        self._sent: dict[str, asyncio.Future[Placed]] = {}
        self._sent_keys: dict[str, asyncio.Future[Placed]] = {}
        # The names of those that went over the channel for single events, which it may take with it when it is closed.
        self._on_plain: set[str] = set()
        self._max_message_bytes: int | None = None  # as far as RabbitMQ has told

    def reset(self) -> None:
        """There is another connection, perhaps to another RabbitMQ."""
        self._max_message_bytes = None

    async def check(self, link: Link) -> None:
        """Raise `Blocked` if RabbitMQ takes no messages."""
        if await link.is_blocked():
            raise Blocked("takes no messages: it is short of memory or disk")

    async def send(self, link: Link, publications: Sequence[Publication], keys: Keys, *, seen: int) -> Sequence[Placed]:
        """See `Remote.send`. `keys` are those of everything up to the position `seen`."""
        self._check_sizes(publications)
        waiting: list[asyncio.Future[Placed] | Placed] = []
        mine: dict[str, Publication] = {}
        is_mine: list[bool] = []
        try:
            for publication in publications:
                place = self._place_of(publication, keys)
                is_mine.append(place is None)
                if place is None:
                    uid = self._uid()
                    place = self._sent[uid] = asyncio.get_running_loop().create_future()
                    mine[uid] = publication
                    if publication.idempotency_key is not None:
                        self._sent_keys[publication.idempotency_key] = place
                waiting.append(place)
            await self.check(link)
            await self._publish(link, mine, seen)
            placed = await self._come_back(link, waiting)
        except AMQPChannelError as error:
            self._learn(error)
            self._check_sizes(publications)  # when one of these is too large, the exchange is well
            self.is_torn = True
            raise
        finally:
            self._forget(mine)
        return [
            place if mine else Placed(place.offset, False, place.published_at)
            for place, mine in zip(placed, is_mine, strict=True)
        ]

    def _check_sizes(self, publications: Sequence[Publication]) -> None:
        limit = self._max_message_bytes
        largest = max([len(publication.data) for publication in publications])
        if limit is not None and largest > limit:
            raise TooLarge("data", largest, limit)

    def _learn(self, error: AMQPChannelError) -> None:
        found = _TOO_LARGE.search(str(error))
        if found is not None:
            self._max_message_bytes = int(found[1])

    def _place_of(self, publication: Publication, keys: Keys) -> asyncio.Future[Placed] | Placed | None:
        """Where its key is, or will be."""
        key = publication.idempotency_key
        if key is None:
            return None
        first = keys.first_offset(key, time.monotonic())
        return Placed(first, False, 0.0) if first is not None else self._sent_keys.get(key)

    async def _publish(self, link: Link, publications: dict[str, Publication], seen: int) -> None:
        if not publications:
            return
        now = time.time()
        messages = [
            (publication.data, *published(publication, uid=uid, user=self._user, seen=max(0, seen), now=now))
            for uid, publication in publications.items()
        ]
        for publication, (_, _, properties) in zip(publications.values(), messages, strict=True):
            # One frame holds all headers, and RabbitMQ closes the connection at one that is too large. Only topics can
            # be so many.
            size = headers_bytes(properties) if len(publication.topics) > 1 else 0
            if size > link.max_frame_bytes:
                raise TooLarge("what is in the headers for RabbitMQ (topics, event, key)", size, link.max_frame_bytes)
        # RabbitMQ closes the channel on which it is sent what is too large: one for everybody would fail everybody.
        if len(messages) == 1 and len(messages[0][0]) <= LARGE_BYTES:
            plain = await self._plain_channel(link)
            self._on_plain.update(publications)
            await self._publish_over(plain, messages)
            return
        async with self._batching:
            channel, self._batches = self._batches, None
            if channel is None or channel.is_closed:
                channel = await link.channel()
                await answered(channel.tx_select())
            await self._publish_over(channel, messages)
            await _answered_on(channel, channel.tx_commit())
            self._batches = channel  # else it is in the middle of something, and ends with its connection

    async def _plain_channel(self, link: Link) -> Channel:
        if self._plain is None or self._plain.is_closed:
            self._plain = await link.channel()
            self._plain.closing.add_done_callback(self._refused)
        return self._plain

    async def _publish_over(self, channel: Channel, messages: Sequence[tuple[bytes, str, Basic.Properties]]) -> None:
        for data, key, properties in messages:
            sending = channel.basic_publish(data, exchange=self._exchange, routing_key=key, properties=properties)
            await _answered_on(channel, sending)

    async def _come_back(self, link: Link, waiting: Sequence[asyncio.Future[Placed] | Placed]) -> list[Placed]:
        left = {place for place in waiting if isinstance(place, asyncio.Future)}
        while left:
            done, left = await asyncio.wait(left, timeout=BLOCKED_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            for future in done:
                future.result()
            if not done:
                await self.check(link)
        return [place.result() if isinstance(place, asyncio.Future) else place for place in waiting]

    def _forget(self, publications: dict[str, Publication]) -> None:
        for uid, publication in publications.items():
            future = self._sent.pop(uid)
            self._on_plain.discard(uid)
            key = publication.idempotency_key
            if key is not None and self._sent_keys.get(key) is future:
                del self._sent_keys[key]
            _fail(future, ConnectionError("who published the same key first has given up"))

    def answer(self, entry: Entry, first: int | None) -> None:
        """One of our messages came by; `first` is the position of the one that it repeats."""
        future = self._sent.get(entry.slip.uid) if entry.slip is not None else None
        if future is not None and not future.done():
            future.set_result(Placed(entry.position if first is None else first, first is None, entry.at or 0.0))

    def fail(self, error: Exception) -> None:
        """Nothing of what is on its way will be seen to come back."""
        for future in self._sent.values():
            _fail(future, error)

    def _refused(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        if isinstance(error, AMQPChannelError):
            self._learn(error)
            self.is_torn = True
        for uid in self._on_plain:
            _fail(self._sent[uid], error if isinstance(error, FAILURES) else ConnectionError("the channel was closed"))


async def _answered_on(channel: Channel, question: Awaitable[object]) -> None:
    """Wait for an answer. Of a channel that RabbitMQ has just closed aiormq speaks of a timeout, until it comes to what
    RabbitMQ has said why."""
    try:
        await answered(question)
    except ConnectionError:
        closing = channel.closing
        await asyncio.wait((closing,), timeout=REASON_SECONDS)
        reason = closing.exception() if closing.done() and not closing.cancelled() else None
        if isinstance(reason, AMQPChannelError):
            raise reason from None
        raise


def _fail(future: asyncio.Future[Placed], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # it may be that nobody waits for it any more
