"""The log in a NATS server: a JetStream stream. Subjects are topics, and sequence numbers are offsets."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count, pairwise
from typing import Any, ClassVar, Self

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg

from qgstream.brokers.base import MAX_READ_BYTES, Forgotten
from qgstream.brokers.nats import life, stream
from qgstream.brokers.nats.client import Client
from qgstream.brokers.nats.inbox import Inbox, Place, is_event, place_of
from qgstream.brokers.nats.messages import headers_bytes, size_bytes, to_headers, to_publication, to_subject
from qgstream.brokers.options import Address, read_options
from qgstream.brokers.remote import PAGE_EVENTS, Bounds, LogPage, Placed, Remote, Replaced
from qgstream.brokers.vouching import Standing
from qgstream.errors import ConfigError, TooLarge
from qgstream.events.history import HistorySettings
from qgstream.events.publication import Publication
from qgstream.logs import log
from qgstream.net.certificates import expires_at

PORT = 4222
# The longest time to wait for the end of a closed connection.
CLOSE_SECONDS = 1.0
# The server's error numbers (nats-server, server/errors.json).
_NO_STREAM, _NAME_IN_USE, _SUBJECTS_OVERLAP, _TOO_LARGE = 10059, 10058, 10065, 10054
# JetStream's own limit (nats-server, server/stream.go).
MAX_HEADERS_BYTES = 65535
# The messages of a batch that are sent before the first must be acknowledged. A server of 2.11 rejects more than 10 000
# messages in flight from all publishers together.
MAX_IN_FLIGHT = 1000
_NAME = re.compile(r"[A-Za-z0-9_-]+")


class NatsBroker(Remote):
    """A log in a JetStream stream. `nats pub qgstream.orders ...`, by any NATS client, publishes an event.

    Events are stored one by one, because JetStream 2.9 has no batches. See docs/brokers.md.
    """

    name: ClassVar[str] = "nats"
    failures = (nats.errors.Error, OSError, EOFError, asyncio.TimeoutError)
    refusals = (nats.js.errors.APIError, nats.js.errors.NoStreamResponseError)

    def __init__(self, address: Address, options: stream.Options, *, timeout_seconds: float) -> None:
        super().__init__(address.place, timeout_seconds=timeout_seconds, secrets=address.secrets)
        self.stream = address.path or stream.STREAM
        self._address = address
        self._options = options
        self._tls = options.context(address.scheme, plain="nats", with_tls="nats+tls")
        self._certificate_expires_at = expires_at(options.certfile) if options.certfile else None
        self._client: Client | None = None
        self._last_error: Exception | None = None
        self._inboxes: set[Inbox] = set()
        self._replies = ""  # the subject for replies, followed by a number
        self._answers: dict[int, asyncio.Future[Msg]] = {}
        self._numbers = count()
        self._publishing = asyncio.Lock()
        # The offset of a message and the time of its storage: for the newest delivered message, and for the newest
        # message at the start.
        self._stamp: tuple[int, int] | None = None
        self._newest_stamp = (0, 0)
        self._max_message_bytes = stream.max_message_bytes({})
        self._follower = ""  # the name of the consumer that follows the log
        self._evidence = life.Evidence(self.stream, self._api, self._take_one)

    @classmethod
    def from_url(cls, url: str, *, timeout_seconds: float) -> Self:
        """Create a broker for `nats://host:4222`, `nats+tls://user:password@host/stream?prefix=shop.events` or
        `nats://token@host`.

        Several hosts are separated by commas. Raises `ConfigError`.
        """
        address = Address.parse(url)
        if address.path and not _NAME.fullmatch(address.path):
            raise ConfigError([
                f"broker.url: got the stream {address.path!r}, expected a name of letters, digits, _ and -"
            ])  # fmt: skip
        return cls(address, read_options(address.query, stream.Options), timeout_seconds=timeout_seconds)

    @property
    def certificate_expires_at(self) -> float | None:
        """See `Broker.certificate_expires_at`."""
        return self._certificate_expires_at

    # Connecting.

    async def connect(self) -> None:
        """See `Remote.connect`."""
        if self._client is None or not self._client.is_connected:
            await self.disconnect()
            self._client = await self._connected()
        await self._see_to_the_stream()
        await self._evidence.begin()

    async def _connected(self) -> Client:
        client, address = Client(), self._address
        self._last_error = None
        more: dict[str, Any] = {} if self._tls is None else {"tls": self._tls}
        if address.password:
            more |= {"user": address.user, "password": address.password}
        elif address.user:
            more |= {"token": address.user}
        try:
            # No automatic reconnect: the library would later send events that the server has already refused with a
            # 503.
            await client.connect(
                [f"nats://{f'[{host}]' if ':' in host else host}:{port or PORT}" for host, port in address.hosts],
                name="qgstream", allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0,
                connect_timeout=max(1, int(self.timeout_seconds)), error_cb=self._on_error, closed_cb=self._on_closed,
                **more,
            )  # fmt: skip
        except BaseException as error:
            await _close(client)
            if isinstance(error, nats.errors.NoServersError) and self._last_error is not None:
                raise ConnectionError(str(self._last_error)) from error
            raise
        self._replies = client.new_inbox()
        await client.subscribe(f"{self._replies}.*", cb=self._on_answer)
        return client

    async def _on_error(self, error: Exception) -> None:
        self._last_error = error
        if "permissions violation" in str(error).lower():
            self._end_answers(ConnectionError(str(error)))  # the server sends no reply to a request without permission

    async def _on_closed(self) -> None:
        self._interrupt(ConnectionError(self._why_closed()))

    def _interrupt(self, error: Exception) -> None:
        """Raise this error in all tasks that wait for messages."""
        for inbox in self._inboxes:
            inbox.put(error)
        self._end_answers(error)

    def _end_answers(self, error: Exception) -> None:
        for answer in list(self._answers.values()):
            if not answer.done():
                answer.set_exception(error)

    def _why_closed(self) -> str:
        return str(self._last_error or "the server closed the connection")

    async def disconnect(self) -> None:
        """See `Remote.disconnect`."""
        client, self._client = self._client, None
        if client is not None:
            await _close(client)

    # The stream.

    async def _api(self, verb: str, document: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a request to the JetStream API. Documents are passed on unchanged, including fields of newer servers."""
        asked = b"" if document is None else json.dumps(document).encode()
        answer = await (await self._post(f"$JS.API.{verb}", asked))
        if _has_nobody(answer):
            raise ConnectionError("JetStream is not enabled there (nats-server -js)")
        return _document(answer)

    async def _post(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> asyncio.Future[Msg]:
        """Send a message, and return the future of its reply. The end of the connection fails the future."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self._answers.pop(number, None))
        try:
            await self._in_use().publish(subject, data, reply=f"{self._replies}.{number}", headers=headers)
        except BaseException:
            answer.cancel()
            raise
        return answer

    async def _on_answer(self, message: Msg) -> None:
        answer = self._answers.get(int(message.subject.rpartition(".")[2]))
        if answer is not None and not answer.done():
            answer.set_result(message)

    def _in_use(self) -> Client:
        if self._client is None:
            raise ConnectionError("is not connected")
        return self._client

    async def _info(self) -> dict[str, Any]:
        return await self._api(f"STREAM.INFO.{self.stream}")

    async def _make_the_stream(self) -> dict[str, Any]:
        config = stream.to_make(self.stream, self._options, self.history)
        try:
            return await self._api(f"STREAM.CREATE.{self.stream}", config)
        except nats.js.errors.APIError as error:
            if error.err_code not in (_NAME_IN_USE, _SUBJECTS_OVERLAP):
                raise
            refusal = error
        # Mostly another process was faster: of two simultaneous requests, the server may compare the subjects first.
        try:
            return await self._info()
        except nats.js.errors.APIError as error:
            if error.err_code != _NO_STREAM:
                raise
        raise refusal  # a stream with another name has the subjects

    async def _see_to_the_stream(self) -> None:
        try:
            info = await self._info()
        except nats.js.errors.APIError as error:
            if error.err_code != _NO_STREAM:
                raise
            info = await self._make_the_stream()
        stream.check(info["config"], self._options)
        self._max_message_bytes = stream.max_message_bytes(info["config"])
        wanted = stream.with_limits(info["config"], self._options, self.history)
        if wanted != info["config"]:
            await self._api(f"STREAM.UPDATE.{self.stream}", wanted)

    def keep(self, history: HistorySettings) -> None:
        """See `Broker.keep`. If the engine is away, the settings are applied after the reconnect."""
        super().keep(history)
        if self.is_up:
            self._start(self._keep())

    async def _keep(self) -> None:
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await self._see_to_the_stream()
        except self.failures as error:
            log.warning("broker.trim_failed", extra={"broker": self.name, "reason": self.explain(error)})

    async def bounds(self) -> Bounds:
        """See `Remote.bounds`."""
        info = await self._info()
        found = life.bounds(info)
        if found.newest > found.forgotten:
            self._newest_stamp = found.newest, life.stored_at(info["state"]["last_ts"])
            self._stamp = self._stamp or self._newest_stamp
        return found

    async def standing(self) -> Standing:
        """See `Vouching.standing`."""
        return await self._evidence.standing()

    async def vouch(self) -> None:
        """See `Vouching.vouch`."""
        await self._evidence.vouch()

    async def renew(self, epoch: str, ended: int | None = None) -> None:
        """See `Remote.renew`."""
        await self._evidence.renew(epoch, ended)

    async def sign_off(self) -> None:
        """See `Remote.sign_off`."""
        await self._evidence.sign(self.epoch, self._follower)

    async def _take_one(self, ask: str) -> None:
        client = self._in_use()
        async with self._inbox(client) as inbox:
            await client.publish(ask, b'{"batch": 1, "no_wait": true}', reply=inbox.subject)
            await inbox.some(1)

    async def has(self, offset: int) -> bool:
        """See `Remote.has`. A stream that lost its newest events assigns their numbers again, with other times."""
        if self._stamp is None or self._stamp[0] != offset:
            return True
        return await self._evidence.stamp_of(offset) in (None, self._stamp[1])

    # Reading.

    async def read_after(self, after: int, limit: int) -> LogPage:
        """See `Remote.read_after`."""
        client = self._in_use()
        consumer = await self._consumer(after)
        ask = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{consumer}"
        # The size of a message includes its subject and headers.
        max_bytes = max(MAX_READ_BYTES, client.max_payload) + 64 * 1024
        found: list[Msg] = []
        async with self._inbox(client) as inbox:
            document = {"batch": limit, "max_bytes": max_bytes, "no_wait": True}
            await client.publish(ask, json.dumps(document).encode(), reply=inbox.subject)
            while len(found) < limit:
                (message,) = await inbox.some(1)
                if not is_event(message):
                    break  # a status message: no more messages, or the page is full
                found.append(message)
                if place_of(message).pending == 0:
                    break
        # otherwise the consumer ends by itself soon
        await client.publish(f"$JS.API.CONSUMER.DELETE.{self.stream}.{consumer}")
        up_to = place_of(found[-1]).offset if found else after
        await self._see_what_is_missing(after, found)
        return LogPage(self._publications(found), up_to)

    async def _consumer(self, after: int, **more: Any) -> str:
        config = {
            "deliver_policy": "by_start_sequence", "opt_start_seq": after + 1, "ack_policy": "none",
            "max_deliver": 1, "replay_policy": "instant", "mem_storage": True, "num_replicas": 1,
        }  # fmt: skip
        document = {"stream_name": self.stream, "config": config | more}
        found = await self._api(f"CONSUMER.CREATE.{self.stream}", document)
        name: str = found["name"]
        return name

    async def _see_what_is_missing(self, after: int, found: Sequence[Msg]) -> None:
        """Raise `Forgotten` if a message after an offset was trimmed before it arrived.

        A gap in the numbers alone proves nothing: an operator may have deleted single messages.
        """
        offsets = [after, *(place_of(message).offset for message in found)]
        if found and offsets[-1] - after == len(found):
            return
        bounds = await self.bounds()
        if bounds.epoch != self.epoch and self.epoch:
            raise Replaced
        gaps = [start for start, end in pairwise(offsets) if end - start > 1] if found else [after]
        if any(start < bounds.forgotten for start in gaps):
            raise Forgotten(after, bounds.forgotten)

    def _publications(self, messages: Sequence[Msg]) -> list[Publication]:
        found = []
        for message in messages:
            place = place_of(message)
            publication = self.skips.read(place.offset, partial(self._publication, message, place))
            if publication is not None:
                found.append(publication)
        return found

    def _publication(self, message: Msg, place: Place) -> Publication:
        return to_publication(
            self._options.prefix, message.subject, message.headers or {}, message.data,
            offset=place.offset, published_at=min(place.stored_at / 1e9, time.time()),
        )  # fmt: skip

    async def follow(self, after: int) -> AsyncGenerator[LogPage, None]:
        """See `Remote.follow`."""
        client = self._in_use()
        async with self._inbox(client) as inbox:
            self._follower = await self._consumer(
                after, deliver_subject=inbox.subject, flow_control=True, description=life.FOLLOWER,
                idle_heartbeat=stream.nanoseconds(max(0.1, self.pulse_seconds)),
            )  # fmt: skip
            # A consumer is deleted with its stream. From here on, silence shows that the stream was replaced.
            if (await self.bounds()).epoch != self.epoch:
                raise Replaced
            if self._newest_stamp[0] == after:  # the start of the log for this process: nothing was delivered yet
                self._stamp = self._newest_stamp
            at, delivered = after, 0
            look_at = time.monotonic() + self.pulse_seconds
            while True:
                messages = await inbox.some(PAGE_EVENTS)
                events = [message for message in messages if is_event(message)]
                if events:
                    last = place_of(events[-1])
                    if last.delivery != delivered + len(events):
                        raise ConnectionError(
                            f"got the delivery number {last.delivery}, expected {delivered + len(events)}"
                        )
                    await self._see_what_is_missing(at, events)
                    at, delivered = last.offset, last.delivery
                    self._stamp = last.offset, last.stored_at
                for message in messages:
                    await self._heed(client, message, delivered)
                yield LogPage(self._publications(events), at)
                if time.monotonic() > look_at:
                    # The server does not report changes of the log other than new messages.
                    if not await self._evidence.is_still(self.epoch):
                        raise Replaced
                    look_at = time.monotonic() + self.pulse_seconds

    @asynccontextmanager
    async def _inbox(self, client: Client) -> AsyncGenerator[Inbox, None]:
        inbox = Inbox(client.new_inbox())
        subscription = await client.subscribe(inbox.subject, cb=inbox.on_message)
        self._inboxes.add(inbox)
        try:
            yield inbox
        finally:
            self._inboxes.discard(inbox)
            if not client.is_closed:
                await subscription.unsubscribe()

    async def _heed(self, client: Client, message: Msg, delivered: int) -> None:
        """Handle a status message of the server: a heartbeat, or a flow-control request with the last delivery
        number."""
        if is_event(message):
            return
        headers = message.headers or {}
        sent = headers.get("Nats-Last-Consumer")
        if sent is not None and int(sent) > delivered:
            raise ConnectionError(f"got deliveries up to {delivered}, expected all {sent} that were sent")
        answer = message.reply or headers.get("Nats-Consumer-Stalled")
        if answer:
            await client.publish(answer)

    # Appending.

    async def send(self, publications: Sequence[Publication]) -> Sequence[Placed]:
        """See `Remote.send`. Messages are stored one by one, in order, so a batch may be stored in part."""
        newest, max_bytes = self.newest, self._in_use().max_payload
        messages: list[tuple[str, bytes, dict[str, str]]] = []
        for publication in publications:
            await self._turn(len(messages))
            subject, data = to_subject(self._options.prefix, publication.topics[0]), publication.data
            headers = to_headers(publication) | {"Nats-Expected-Stream": self.stream}
            messages.append((subject, data, headers))
            size = size_bytes(subject, headers, data)
            if size > max_bytes:
                raise TooLarge("the message for NATS", size, max_bytes)
            head = headers_bytes(headers)
            if head > MAX_HEADERS_BYTES:
                raise TooLarge("the headers for NATS (topics, event, key)", head, MAX_HEADERS_BYTES)
            if head + len(data) > self._max_message_bytes:
                raise TooLarge("the message for the stream in NATS", head + len(data), self._max_message_bytes)
        answers: list[asyncio.Future[Msg]] = []
        acks: list[dict[str, Any]] = []
        try:
            async with self._publishing:  # keeps the messages of two batches of this process apart
                for subject, data, headers in messages:
                    await self._turn(len(answers))
                    if len(answers) - len(acks) == MAX_IN_FLIGHT:
                        acks += [_acknowledged(await answer) for answer in answers[len(acks) :]]
                    answers.append(await self._post(subject, data, headers))
            acks += [_acknowledged(await answer) for answer in answers[len(acks) :]]
        except nats.js.errors.APIError as error:
            if error.err_code == _TOO_LARGE:
                await self._told_too_large(messages)
            raise
        finally:
            for answer in answers:
                answer.cancel() or answer.cancelled() or answer.exception()  # only one of several failures is raised
        now = time.time()
        placed = [Placed(ack["seq"], not ack.get("duplicate"), now) for ack in acks]
        if any(place.is_new and place.offset <= newest for place in placed):
            self._interrupt(Replaced())
            raise Replaced
        return placed

    async def _told_too_large(self, messages: Sequence[tuple[str, bytes, dict[str, str]]]) -> None:
        """Raise `TooLarge` for a single message if the stream's size limit was lowered while connected."""
        self._max_message_bytes = stream.max_message_bytes((await self._info())["config"])
        if len(messages) == 1:  # otherwise some of the other messages are stored
            ((_, data, headers),) = messages
            size = headers_bytes(headers) + len(data)
            raise TooLarge("the message for the stream in NATS", size, self._max_message_bytes)

    async def probe(self) -> None:
        """See `Remote.probe`."""
        stream.check_room(await self._info())


async def _close(client: Client) -> None:
    # The library waits for the end of TLS, which never comes if the certificate was rejected.
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await client.close()


def _has_nobody(answer: Msg) -> bool:
    """Whether the server says that the subject has no subscriber."""
    return (answer.headers or {}).get("Status") == "503"


def _acknowledged(answer: Msg) -> dict[str, Any]:
    if _has_nobody(answer):
        raise nats.js.errors.NoStreamResponseError
    return _document(answer)


def _document(answer: Msg) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.data)
    if "error" in found:
        said = found["error"]
        raise nats.js.errors.APIError(**{key: said.get(key) for key in ("code", "err_code", "description")})
    return found
