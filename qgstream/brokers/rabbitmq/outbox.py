"""Events in transit to RabbitMQ: published, and not delivered by the tail yet."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aio_pika.exceptions import AMQPChannelError
from aiormq import Channel
from pamqp.commands import Basic

from qgstream.brokers.idempotency import IdempotencyKeys
from qgstream.brokers.rabbitmq.link import FAILURES, Link, answered
from qgstream.brokers.rabbitmq.messages import Entry, headers_bytes, published
from qgstream.brokers.remote import Placed
from qgstream.errors import TooLarge
from qgstream.events.publication import Publication
from qgstream.limits import MIB

# The pause between two checks whether RabbitMQ has blocked the connection, while an event is in transit.
BLOCKED_SECONDS = 0.5
# The timeout for the reason why a channel was closed. The reason has already arrived and must only be passed on.
REASON_SECONDS = 1.0
# A single larger event uses the channel of batches, which other publishes do not use at the same time. RabbitMQ's limit
# (max_message_size) is 16 MiB or more, unless an operator has lowered it.
LARGE_BYTES = MIB
_TOO_LARGE = re.compile(r"message size \d+ is larger than configured max size (\d+)")


class Blocked(ConnectionError):
    """RabbitMQ has blocked the connection."""


class Outbox:
    """Publishes events, and resolves each publish when the tail has delivered the event.

    A batch is sent in a transaction: none of its events is published if this process or the connection ends before the
    batch is complete. A batch may be published in part if RabbitMQ itself stops in the middle; in that case nothing was
    acknowledged.
    """

    def __init__(self, exchange: str, user: str, uid: Callable[[], str]) -> None:
        self.is_torn = False  # the exchange was missing
        self._exchange = exchange
        self._user = user
        self._uid = uid
        self._plain: Channel | None = None  # for single events
        self._batches: Channel | None = None  # for several at once
        self._batching = asyncio.Lock()
        # The events in transit by name, and the same events by key.
        self._sent: dict[str, asyncio.Future[Placed]] = {}
        self._sent_keys: dict[str, asyncio.Future[Placed]] = {}
        # The names of events sent over the channel for single events; they fail if this channel is closed.
        self._on_plain: set[str] = set()
        self._max_message_bytes: int | None = None  # if RabbitMQ has stated it

    def reset(self) -> None:
        """Reset after a reconnect, perhaps to another RabbitMQ."""
        self._max_message_bytes = None

    async def check(self, link: Link) -> None:
        """Raise `Blocked` if RabbitMQ has blocked the connection."""
        if await link.is_blocked():
            raise Blocked("accepts no messages: it is short of memory or disk")

    async def send(
        self, link: Link, publications: Sequence[Publication], keys: IdempotencyKeys, *, seen: int
    ) -> Sequence[Placed]:
        """See `Remote.send`. `keys` holds the keys of all messages up to the position `seen`."""
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
            self._check_sizes(publications)  # if one of these is too large, the exchange exists
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

    def _place_of(self, publication: Publication, keys: IdempotencyKeys) -> asyncio.Future[Placed] | Placed | None:
        """Return the place of the publication's key, or a future of that place; None for a new key."""
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
            # One frame holds all headers, and a frame that is too large makes RabbitMQ close the connection. Only
            # topics can be so many.
            size = headers_bytes(properties) if len(publication.topics) > 1 else 0
            if size > link.max_frame_bytes:
                raise TooLarge("the headers for RabbitMQ (topics, event, key)", size, link.max_frame_bytes)
        # A message that is too large makes RabbitMQ close the channel. On a shared channel, all publishes would fail.
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
            # otherwise the channel is in the middle of a transaction, and ends with its connection
            self._batches = channel

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
            _fail(future, ConnectionError("the first publish with the same key was cancelled"))

    def answer(self, entry: Entry, first: int | None) -> None:
        """Handle a delivered message of this server; `first` is the position of the message that it repeats."""
        future = self._sent.get(entry.slip.uid) if entry.slip is not None else None
        if future is not None and not future.done():
            future.set_result(Placed(entry.position if first is None else first, first is None, entry.at or 0.0))

    def fail(self, error: Exception) -> None:
        """Fail all events in transit: the tail will not deliver them."""
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
    """Wait for a result on a channel.

    For a channel that RabbitMQ has just closed, aiormq raises a timeout before it has processed RabbitMQ's reason; this
    function waits for the reason.
    """
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
        future.exception()  # possibly nobody waits for the result any more
