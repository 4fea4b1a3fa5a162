"""The log in RabbitMQ: a stream bound to an exchange, to which any AMQP client may publish."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from itertools import count
from random import Random
from typing import Any, ClassVar, Self

from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq import Channel
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused

from qgstream.brokers.base import IDEMPOTENCY_SECONDS, MAX_READ_BYTES, Forgotten
from qgstream.brokers.idempotency import IdempotencyKeys
from qgstream.brokers.options import Address, read_options
from qgstream.brokers.rabbitmq import witness
from qgstream.brokers.rabbitmq.link import FAILURES, Cancelled, Link, Reader, Undecodable, answered, quiet
from qgstream.brokers.rabbitmq.marks import Slip, SlipKind, mark_of, says_epoch
from qgstream.brokers.rabbitmq.messages import MAX_SHORT_BYTES, Entry, NoStream, marked, parse
from qgstream.brokers.rabbitmq.options import Options, urls, user_of, users
from qgstream.brokers.rabbitmq.outbox import Blocked, Outbox
from qgstream.brokers.rabbitmq.repeats import REACH, Repeats, first_needed
from qgstream.brokers.remote import PAGE_EVENTS, Bounds, LogPage, Placed, Remote, Replaced, longest_seconds
from qgstream.brokers.vouching import Standing, earlier_of
from qgstream.errors import ConfigError
from qgstream.events.publication import Publication
from qgstream.limits import MIB
from qgstream.logs import log
from qgstream.net.certificates import expires_at

# The largest segment size, RabbitMQ's own default. RabbitMQ trims only whole segments, so a segment is an eighth of the
# stream.
MAX_SEGMENT_BYTES = 500_000_000
MIN_SEGMENT_BYTES = 64 * 1024
SEGMENTS = 8
# The messages that RabbitMQ sends ahead (prefetch): enough to avoid waiting, few enough to hold in memory or to discard
# when a page is full.
TAIL_AHEAD = 128
PAGE_AHEAD = 32
PAGE_TAKEN = 16
# The pause between two checks whether the stream has started.
WAKING_SECONDS = 0.1
# So often the stream is declared when RabbitMQ ends the connection for it.
DECLARATIONS = 3
# A stream that another server has just declared exists some time before its replica. Until then RabbitMQ refuses
# readers, as it always does on a node of a cluster without a replica.
REPLICA_CHECKS = 10
# How far back from the end of the stream the broker searches for its epoch, and for the keys of the last five
# minutes.
SEARCH_EVENTS = 10_000
# A mark of the epoch is written after this many messages since the last mark, up to twice as many: the random number
# decides which of several servers is first, and the others see its mark.
MARK_EVENTS = 1000


class RabbitmqBroker(Remote):
    """A log in a RabbitMQ stream. A position is the offset of a message in the stream, plus one.

    The stream may be shared by several servers and by publishers that know nothing of qgstream. Everything that the
    servers must agree on is in the stream itself (`marks`, `repeats`), so that it is created and deleted with the log.
    """

    name: ClassVar[str] = "rabbitmq"
    failures = FAILURES
    refusals = (Blocked,)
    # 10 000 events took 2.6 s, and more with more topics.
    max_batch_events = 4000
    max_batch_topics = 40_000

    def __init__(self, address: Address, options: Options, *, timeout_seconds: float) -> None:
        super().__init__(address.place, timeout_seconds=timeout_seconds, secrets=address.secrets)
        self.stream = options.stream
        self.exchange = options.exchange
        self._options = options
        self._urls = urls(address)
        self._tls = options.context(address.scheme, plain="amqp", with_tls="amqps")
        self._certificate_expires_at = expires_at(options.certfile) if options.certfile else None
        self._user, self._users = user_of(address), users(address, options)
        self._name = secrets.token_hex(8)
        self._uids = count()
        self._random = Random()
        # Three separate connections. RabbitMQ may block one (it stops reading from publishers when it is short of
        # memory), or the library may fail to decode a message on one; neither may affect the others.
        self._tail: Link | None = None
        self._side: Link | None = None
        self._out: Link | None = None
        self._scout: Link | None = None  # a fourth connection, for `peek`, opened at the first use
        self._outbox = Outbox(options.exchange, self._user, self._uid)
        self._keys = IdempotencyKeys()
        self._repeats = Repeats(-1)
        self._has_learned = asyncio.Event()
        self._is_following = False
        self._unmarked = 0  # messages since the last mark of the epoch
        self._mark_after = MARK_EVENTS
        self._marking: asyncio.Task[None] | None = None
        # The parts of the marks beside the epoch; see `brokers.vouching`.
        self._found = Bounds("", 0, 0)
        self._made = ""  # the epoch that this process assigned to a log without one
        self._signed_at: int | None = None
        self._earlier: Mapping[str, int] = {}
        self._is_unwitnessed = False
        self._print: tuple[int, int] | None = None  # the position of the last delivered message, and its hash

    @classmethod
    def from_url(cls, url: str, *, timeout_seconds: float) -> Self:
        """Create a broker for `amqp://user:password@host:5672/vhost?stream=events&exchange=events`, or `amqps://`.

        Several hosts of a cluster are separated by commas. Raises `ConfigError`.
        """
        address = Address.parse(url)
        options = read_options(address.query, Options)
        for name, value in (("stream", options.stream), ("exchange", options.exchange), ("vhost", address.path)):
            limit = MAX_SHORT_BYTES - (len(witness.queue_of("")) if name == "stream" else 0)
            if len(value.encode()) > limit:
                size = len(value.encode())
                raise ConfigError([f"broker.url: {name}: got {size} bytes, expected at most {limit}"])
        return cls(address, options, timeout_seconds=timeout_seconds)

    @property
    def certificate_expires_at(self) -> float | None:
        """See `Broker.certificate_expires_at`."""
        return self._certificate_expires_at

    # Connecting.

    async def connect(self) -> None:
        """See `Remote.connect`."""
        quiet()
        self._tail = await self._opened(self._tail)
        if self._out is None or not self._out.is_open:
            self._out = await self._opened(self._out)
            self._outbox.reset()
        await self._declare()

    async def _declare(self) -> None:
        # When several servers declare a new stream in one moment, RabbitMQ makes it for one of them, and may end the
        # connection of another with INTERNAL_ERROR. The second time the stream is there.
        for _ in range(DECLARATIONS - 1):
            self._side = side = await self._opened(self._side)
            try:
                await self._see_to_the_stream(side)
            except self.failures:
                if side.is_open:
                    raise
                await asyncio.sleep(WAKING_SECONDS)
            else:
                return
        self._side = await self._opened(self._side)
        await self._see_to_the_stream(self._side)

    async def _opened(self, link: Link | None) -> Link:
        if link is not None and link.is_open:
            return link
        error: Exception | None = None
        for _ in self._urls:
            try:
                return await Link.open(self._urls[0], self._tls)
            except self.failures as failure:
                error = failure
                self._urls.append(self._urls.pop(0))  # the next attempt uses another host
        raise error or ConnectionError("no host")

    def _link(self, link: Link | None) -> Link:
        if link is None or not link.is_open:
            raise ConnectionError("the connection was lost")
        return link

    async def disconnect(self) -> None:
        """See `Remote.disconnect`."""
        self._outbox.fail(ConnectionError("the connection was lost"))
        links = [link for link in (self._tail, self._side, self._out, self._scout) if link is not None]
        self._tail = self._side = self._out = self._scout = None
        await asyncio.gather(*(link.close() for link in links))

    async def _see_to_the_stream(self, link: Link) -> None:
        """Create the stream and the exchange if they are missing. Existing ones stay unchanged: an operator may have
        created them with other settings."""
        if not await self._is_there(link):
            arguments = self._arguments()
            channel = await link.channel()
            try:
                await answered(channel.queue_declare(self.stream, durable=True, arguments=arguments))
            except ChannelPreconditionFailed:  # another server with other settings was faster
                await answered((await link.channel()).queue_declare(self.stream, passive=True))
        channel = await link.channel()
        try:
            await answered(channel.exchange_declare(self.exchange, exchange_type="topic", durable=True))
        except (ChannelPreconditionFailed, ChannelAccessRefused) as error:
            if "'type'" in str(error):
                raise OSError(f"the exchange {self.exchange} exists and is not a topic exchange: {error}") from error
            channel = await link.channel()
            await answered(channel.exchange_declare(self.exchange, passive=True))
        try:
            await answered(channel.queue_bind(self.stream, self.exchange, routing_key="#"))
        except ChannelAccessRefused:
            return  # their creator has bound them
        await answered(channel.close())

    async def _is_there(self, link: Link) -> bool:
        while True:
            channel = await link.channel()
            try:
                await answered(channel.queue_declare(self.stream, passive=True))
            except ChannelNotFoundEntity as error:
                if "no queue" in str(error):
                    return False
                await asyncio.sleep(WAKING_SECONDS)  # RabbitMQ has started, but the stream has not
            else:
                await answered(channel.close())
                return True

    def _arguments(self) -> dict[str, Any]:
        max_bytes = self._options.max_bytes or max(self.history.max_bytes, MIB)
        seconds = self._options.max_age_seconds or max(longest_seconds(self.history), IDEMPOTENCY_SECONDS)
        segment = min(MAX_SEGMENT_BYTES, max(MIN_SEGMENT_BYTES, max_bytes // SEGMENTS))
        return {
            "x-queue-type": "stream",
            "x-max-length-bytes": max_bytes,
            "x-max-age": f"{math.ceil(seconds)}s",
            "x-stream-max-segment-size-bytes": segment,
        }

    # The bounds of the log, and its epoch.

    async def bounds(self) -> Bounds:
        """See `Remote.bounds`. Only a message of this server shows where the stream ends, so this method writes one."""
        newest = await self._end()
        first = await self._first()
        # If the first message cannot be decoded, nothing is known of the messages before the end.
        forgotten = newest if first is None else min(first, newest)
        if self._is_following:
            return Bounds(self.epoch, forgotten, newest)
        mark, signed_at = await self._newest_mark(forgotten, newest)
        if mark is None or mark.epoch is None:
            self._made = secrets.token_hex(5)
            await self._mark("set", self._made)
            return await self.bounds()  # if several servers do this at once, the first in the log wins
        self._signed_at, self._earlier = signed_at, mark.earlier
        self._found = Bounds(mark.epoch, forgotten, newest)
        return self._found

    async def _end(self) -> int:
        """Return the position of the newest message."""
        for _ in range(REPLICA_CHECKS - 1):
            try:
                return await self._look_for_end()
            except ChannelPreconditionFailed:
                await asyncio.sleep(WAKING_SECONDS)
        return await self._look_for_end()

    async def _look_for_end(self) -> int:
        mark = Slip("end", self._uid())
        async with self._link(self._side).reading(self.stream, "next", ahead=TAIL_AHEAD) as reader:
            # On the same channel, so that the mark is published after the reading has started.
            await self._publish(reader.channel, mark)
            while True:
                for entry in self._parse(await reader.some(TAIL_AHEAD)):
                    if entry.slip == mark:
                        return entry.position - 1

    async def _first(self) -> int | None:
        """Return the position before the oldest message, or None if that message cannot be decoded."""
        try:
            async with (await self._side_link()).reading(self.stream, "first", ahead=1) as reader:
                return self._parse(await reader.some(1))[0].position - 1
        except Undecodable:
            return None

    async def peek(self) -> Bounds:
        """See `Remote.peek`.

        Reads the messages at the end of the stream and writes nothing: a mark for each client with an invented id would
        push history out of the stream. In a cluster, the queried node may be a moment behind the others. It may then
        reject an id that has not reached it yet, and the client gets `reset`. An invalid id is never accepted.
        """
        try:
            newest = await self._newest()
        except Undecodable:
            newest = self.newest  # the tail is about to skip such a message, and knows more than the engine
        return Bounds(self.epoch, self.newest, max(newest, self.newest))

    async def _newest(self) -> int:
        """Return the position of the newest message, or of the last decodable message before it."""
        newest = 0
        # A separate connection: an undecodable message ends its connection, and must not end the tail or a replay.
        self._scout = await self._opened(self._scout)
        async with self._scout.reading(self.stream, "last", ahead=TAIL_AHEAD) as reader:
            # "last" is the last chunk, and the newest message is the last of this chunk. A channel responds in order:
            # when it responds to a query, it has sent everything that the stream held then, up to the prefetch limit.
            # Later messages are not waited for, because busy publishers never pause.
            came = TAIL_AHEAD
            while not newest or (reader.has_more and came == TAIL_AHEAD):
                found = await reader.some(TAIL_AHEAD)
                came, newest = (len(found) if newest else TAIL_AHEAD), self._parse(found)[-1].position
                if came == TAIL_AHEAD:
                    await answered(reader.channel.queue_declare(self.stream, passive=True))
        return newest

    async def _newest_mark(self, forgotten: int, newest: int) -> tuple[Slip | None, int | None]:
        """Search the marks from the end back to a mark whose writer knew the epoch.

        Returns the mark that counts, and its position if the mark is a valid signature: its writer has stopped, and no
        server has written anything since.
        """
        sets: list[tuple[int, Slip]] = []
        known: Slip | None = None
        last: Entry | None = None
        end = newest
        while end > forgotten and newest - end < SEARCH_EVENTS and (known is None or end > known.seen):
            start = max(forgotten, end - PAGE_EVENTS)
            for entry in reversed(await self._stretch(start, end)):
                if entry.slip is None or entry.slip.kind == "end":
                    continue
                last = last or entry
                if entry.slip.kind == "set":
                    sets.append((entry.position, entry.slip))
                elif known is None and says_epoch(entry.slip, entry.position):
                    known = entry.slip
            end = start
        mark = mark_of(known, sets)
        is_signature = mark is not None and mark.kind == "bye" and last is not None and last.slip is mark
        return mark, last.position if is_signature and last is not None else None

    async def renew(self, epoch: str, ended: int | None = None) -> None:
        """See `Remote.renew`."""
        earlier = earlier_of(epoch, ended, self._earlier)
        await self._mark("set", secrets.token_hex(5), instead_of=epoch, earlier=earlier)

    async def standing(self) -> Standing:
        """See `Vouching.standing`."""
        if not self._found.epoch:
            await self.bounds()
        is_witnessed = self._found.epoch == self._made or await witness.is_there(await self._side_link(), self.stream)
        return Standing(self._found.epoch, is_witnessed, self._signed_at, self._earlier)

    async def vouch(self) -> None:
        """See `Vouching.vouch`. The mark at the start of `follow` removes a signature."""
        problem = await witness.leave(await self._side_link(), self.stream)
        if problem is not None and not self._is_unwitnessed:
            self._is_unwitnessed = True
            said = {"broker": self.name, "place": self.place, "reason": self.explain(problem)}
            log.warning("broker.unsafe", extra=said)

    async def sign_off(self) -> None:
        """See `Remote.sign_off`."""
        link = await self._side_link()
        if not await link.is_blocked():
            await self._mark("bye", self.epoch)

    async def has(self, offset: int) -> bool:
        """See `Remote.has`."""
        if self._print is None or self._print[0] != offset:
            return True
        async with (await self._side_link()).reading(self.stream, offset - 1, ahead=1) as reader:
            (message,) = await reader.some(1)
        (entry,) = self._parse([message])
        return self._print == (entry.position, _hash(message))

    def _uid(self) -> str:
        return f"{self._name}.{next(self._uids)}"

    async def _mark(
        self, kind: SlipKind, epoch: str, *, instead_of: str | None = None, earlier: Mapping[str, int] | None = None
    ) -> None:
        """Write a mark, and return when the mark is in the stream."""
        channel = await (await self._side_link()).channel(confirms=True)
        if earlier is None:
            earlier = self._earlier if kind != "set" else {}
        mark = Slip(kind, self._uid(), seen=self.newest, epoch=epoch, instead_of=instead_of, earlier=earlier)
        await self._publish(channel, mark)
        await answered(channel.close())

    async def _publish(self, channel: Channel, mark: Slip) -> None:
        """Publish a mark directly to the stream. The exchange would copy the mark to other queues."""
        await answered(channel.basic_publish(b"", routing_key=self.stream, properties=marked(mark, user=self._user)))

    # Reading.

    async def _side_link(self) -> Link:
        if self._side is not None and not self._side.is_open:
            self._side = await self._opened(self._side)
        return self._link(self._side)

    async def read_after(self, after: int, limit: int) -> LogPage:
        """See `Remote.read_after`."""
        if after >= self.newest:
            return LogPage((), after)
        entries, up_to = await self._entries(after, limit, self.newest)
        repeats = self._repeats
        if not repeats.knows(after, up_to):
            repeats = Repeats(after)
            start = first_needed(entries, after)
            if start < after:
                for entry in await self._before(start, after):
                    repeats.take(entry)
            for entry in entries:
                repeats.take(entry)
        return LogPage(self._publications(entry for entry in entries if not repeats.is_repeated(entry)), up_to)

    async def _before(self, start: int, end: int) -> list[Entry]:
        try:
            return await self._stretch(start, end)
        except Forgotten as forgotten:
            return await self._stretch(min(end, forgotten.after), end)

    async def _stretch(self, start: int, end: int) -> list[Entry]:
        """Return everything between two positions, without a size limit."""
        entries: list[Entry] = []
        while start < end:
            found, start = await self._entries(start, end - start, end)
            entries += found
        return entries

    async def _entries(self, after: int, limit: int, end: int) -> tuple[list[Entry], int]:
        """Return the messages after a position, up to the existing position `end`: at most `limit`, and about
        `MAX_READ_BYTES`.

        Also returns the position up to which messages were read.
        """
        try:
            return await self._read(after, limit, end)
        except Undecodable:
            return await self._read_up_to_the_bad_one(after, limit, end)

    async def _read(self, after: int, limit: int, end: int) -> tuple[list[Entry], int]:
        entries: list[Entry] = []
        at, size_bytes = after, 0
        async with (await self._side_link()).reading(self.stream, after, ahead=min(PAGE_AHEAD, limit)) as reader:
            while at < end and len(entries) < limit and size_bytes < MAX_READ_BYTES:
                messages = await reader.some(min(PAGE_TAKEN, limit - len(entries)))
                entries += self._parse(messages)
                at = entries[-1].position
                size_bytes += sum(len(message.body) for message in messages)
        await self._see_what_is_missing(after, entries)
        return [entry for entry in entries if entry.position <= end], min(at, end)

    async def _read_up_to_the_bad_one(self, after: int, limit: int, end: int) -> tuple[list[Entry], int]:
        """Read one message at a time up to an undecodable message, so that no message before it is lost.

        If the first message is undecodable, skip it.
        """
        entries: list[Entry] = []
        at = after
        try:
            async with (await self._side_link()).reading(self.stream, after, ahead=1) as reader:
                while at < end and len(entries) < limit:
                    entries += self._parse(await reader.some(1))
                    at = entries[-1].position
        except Undecodable as error:
            if not entries:
                at = after + 1
                self.skips.skip(at, str(error))
        await self._see_what_is_missing(after, entries)
        return [entry for entry in entries if entry.position <= end], min(at, end)

    async def _see_what_is_missing(self, after: int, entries: Sequence[Entry]) -> None:
        """Check gaps: RabbitMQ assigns some offsets to no message. Raises `Forgotten` if messages were trimmed."""
        if _is_whole(after, entries):
            return
        first = await self._first()
        if first is not None and first > after:
            raise Forgotten(after, first)

    def _parse(self, messages: Sequence[DeliveredMessage]) -> list[Entry]:
        now = time.time()
        try:
            limit = self._options.max_event_bytes
            return [parse(message, users=self._users, max_event_bytes=limit, now=now) for message in messages]
        except NoStream as error:
            raise OSError(f"the queue {self.stream} is not a stream: {error}") from error

    def _publications(self, entries: Iterable[Entry]) -> list[Publication]:
        found = []
        for entry in entries:
            if entry.publication is not None:
                found.append(entry.publication)
            elif entry.problem is not None:
                self.skips.skip(entry.position, entry.problem)
        return found

    # The tail.

    async def follow(self, after: int) -> AsyncGenerator[LogPage, None]:
        """See `Remote.follow`."""
        if self._repeats.up_to != after:
            async with aclosing(self._learn(after)) as pages:
                async for page in pages:
                    yield page
        await self._mark("is", self.epoch)
        at = after
        try:
            while True:
                try:
                    async with aclosing(self._live(at)) as pages:
                        async for page in pages:
                            at = page.up_to
                            yield page
                except Undecodable:
                    self._tail = await self._opened(self._tail)
                    entries, at = await self._read_up_to_the_bad_one(at, PAGE_EVENTS, at + PAGE_EVENTS)
                    yield self._come_by(entries, at)
                except (Cancelled, ChannelNotFoundEntity) as error:
                    raise Replaced from error
        finally:
            self._is_following = False
            self._outbox.fail(ConnectionError("the stream was lost"))

    async def _learn(self, after: int) -> AsyncGenerator[LogPage, None]:
        """Load the keys of the last five minutes, and detect repetitions from this position on."""
        self._has_learned.clear()
        entries: list[Entry] = []
        oldest = time.time() - IDEMPOTENCY_SECONDS
        first = await self._first()
        forgotten = after if first is None else min(first, after)
        start = after
        while start > forgotten and after - start < SEARCH_EVENTS:
            start, end = max(forgotten, start - PAGE_EVENTS), start
            found = await self._before(start, end)
            entries[:0] = found
            yield LogPage((), after)
            # All messages of the page: one publisher's clock says nothing about older messages.
            times = [entry.at for entry in found if entry.at is not None]
            if times and max(times) < oldest:
                break
        self._repeats = Repeats(start)
        self._keys = IdempotencyKeys()
        now = time.time()
        for entry in entries:
            age_seconds = max(0.0, now - (entry.at or now))
            self._learn_key(entry, self._repeats.take(entry), age_seconds=age_seconds)
        self._repeats.up_to = after
        if start > forgotten:
            self._repeats.since = min(after, start + REACH)
        self._has_learned.set()

    def _learn_key(self, entry: Entry, first: int | None, *, age_seconds: float = 0.0) -> None:
        # Only servers' keys are ever looked up, and other keys must not take their room.
        if entry.slip is None:
            return
        if entry.key is not None and entry.at is not None and first is None and entry.publication is not None:
            self._keys.remember(entry.key, time.monotonic() - age_seconds, entry.position)

    async def _live(self, after: int) -> AsyncGenerator[LogPage, None]:
        at = after
        async with self._link(self._tail).reading(self.stream, after, ahead=TAIL_AHEAD) as reader:
            self._is_following = True
            while True:
                try:
                    async with asyncio.timeout(self.pulse_seconds):
                        messages = await reader.some(PAGE_EVENTS)
                except TimeoutError:
                    await self._ask_for_a_sign(reader)
                    yield LogPage((), at)
                    continue
                entries = self._parse(messages)
                await self._see_what_is_missing(at, entries)
                at = entries[-1].position
                self._print = at, _hash(messages[-1])
                yield self._come_by(entries, at)

    async def _ask_for_a_sign(self, reader: Reader) -> None:
        reader.check()
        await answered(reader.channel.queue_declare(self.stream, passive=True))
        reader.check()

    def _come_by(self, entries: Sequence[Entry], up_to: int) -> LogPage:
        """Turn messages into a page. The tail passes each message once, in order."""
        fresh: list[Entry] = []
        for entry in entries:
            first = self._repeats.take(entry)
            self._learn_key(entry, first)
            if first is None:
                fresh.append(entry)
            if entry.slip is not None:
                self._heed(entry, entry.slip)
                self._outbox.answer(entry, first)
        self._repeats.up_to = up_to
        self._unmarked += len(entries)
        if self._unmarked > self._mark_after and (self._marking is None or self._marking.done()):
            self._start(self._mark_quietly())
        return LogPage(self._publications(fresh), up_to)

    def _heed(self, entry: Entry, slip: Slip) -> None:
        if slip.kind == "set" and slip.instead_of == self.epoch:
            raise Replaced
        if says_epoch(slip, entry.position):
            if slip.epoch != self.epoch:
                raise Replaced
            self._unmarked = 0
            if slip.kind == "bye":  # a signature of another server; the log continues
                self._start(self._mark_quietly())
            self._mark_after = self._random.randint(MARK_EVENTS, 2 * MARK_EVENTS)

    async def _mark_quietly(self) -> None:
        self._marking = asyncio.current_task()
        self._unmarked = 0
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await self._mark("is", self.epoch)
        except self.failures:
            return  # the tail will report the error

    # Appending.

    async def send(self, publications: Sequence[Publication]) -> Sequence[Placed]:
        """See `Remote.send`, and `Outbox`."""
        link = self._link(self._out)
        if self._outbox.is_torn:  # the last events were not routed, because the exchange was missing
            await self._see_to_the_stream(await self._side_link())
            self._outbox.is_torn = False
        if any(publication.idempotency_key is not None for publication in publications):
            await self._has_learned.wait()
        return await self._outbox.send(link, publications, self._keys, seen=self._repeats.up_to)

    async def probe(self) -> None:
        """See `Remote.probe`."""
        await self._outbox.check(self._link(self._out))


def _is_whole(after: int, entries: Sequence[Entry]) -> bool:
    return not entries or entries[-1].position - after == len(entries)


def _hash(message: DeliveredMessage) -> int:
    return hash((message.routing_key, message.body, message.header.properties.message_id))
