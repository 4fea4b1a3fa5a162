"""The log in a NATS server: a JetStream stream, whose subjects are topics and whose sequence numbers are offsets."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from itertools import count
from typing import Any, ClassVar, NamedTuple, Self

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import Field, field_validator

from qgstream.brokers.base import IDEMPOTENCY_SECONDS, MAX_READ_BYTES, Forgotten
from qgstream.brokers.nats_messages import size_bytes, to_headers, to_publication, to_subject
from qgstream.brokers.options import Address, read_options
from qgstream.brokers.remote import PAGE_EVENTS, Bounds, Page, Placed, Remote, Replaced, longest_seconds
from qgstream.errors import ConfigError, InvalidField, TooLarge
from qgstream.limits import MIB
from qgstream.logs import log
from qgstream.publication import Publication
from qgstream.settings import Section
from qgstream.window import HistorySettings

PORT = 4222
STREAM = "qgstream"
# What a stream says of itself that was made here: its limits follow our settings. Others keep theirs.
OURS = "The log of events of qgstream."
# JetStream counts the bytes of the whole stream; less than a message would keep none.
MIN_BYTES = MIB
# A connection that is given up may take this long to end.
CLOSE_SECONDS = 1.0
# The server's numbers for errors (nats-server, server/errors.json).
_NO_STREAM, _NAME_IN_USE = 10059, 10058
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_PREFIX = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_RENEWED = re.compile(r" \(epoch (\d+)\)$")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Options(Section):
    """The query of the URL."""

    prefix: str = Field(STREAM, description="The subjects of the log are `<prefix>.<topic>`.")
    max_events: int | None = Field(None, ge=0, description="Instead of history.max_events, in the stream.")
    max_bytes: int | None = Field(None, ge=0, description="Instead of history.max_bytes, in the stream.")
    max_age_seconds: float | None = Field(None, gt=0, description="Instead of history.max_age_seconds, in the stream.")
    replicas: int = Field(1, ge=1, le=5, description="Servers of a cluster that hold the stream, when it is made.")
    cafile: str | None = Field(None, description="Certificates to know the server by, instead of the system's.")
    certfile: str | None = Field(None, description="A certificate to show the server.")
    keyfile: str | None = Field(None, description="Its key, unless it is in the same file.")

    @field_validator("prefix")
    @classmethod
    def _is_subject(cls, prefix: str) -> str:
        if not _PREFIX.fullmatch(prefix):
            raise ValueError("expected words of letters, digits, _ and -, with dots between them")
        return prefix


class NatsBroker(Remote):
    """A log in a JetStream stream. `nats pub qgstream.orders ...`, by any client of NATS, is an event of it.

    Events are stored one by one: JetStream 2.9 knows no batches. See docs/brokers.md.
    """

    name: ClassVar[str] = "nats"
    failures = (nats.errors.Error, OSError, EOFError, asyncio.TimeoutError)
    refusals = (nats.js.errors.APIError, nats.js.errors.NoStreamResponseError)

    def __init__(self, address: Address, options: Options, *, timeout_seconds: float) -> None:
        super().__init__(address.place, timeout_seconds=timeout_seconds, secrets=address.secrets)
        self.stream = address.path or STREAM
        self._address = address
        self._options = options
        self._tls = self._tls_context()
        self._client: Client | None = None
        self._last_error: Exception | None = None
        self._inboxes: set[_Inbox] = set()
        self._replies = ""  # where acknowledgements come to, with a number behind
        self._acks: dict[int, asyncio.Future[_Ack]] = {}
        self._numbers = count()
        self._publishing = asyncio.Lock()
        self._stamp: tuple[int, int] | None = None  # the newest event that came by: its offset, and when it was stored

    @classmethod
    def from_url(cls, url: str, *, timeout_seconds: float) -> Self:
        """`nats://host:4222`, `nats+tls://user:password@host/stream?prefix=shop.events`, `nats://token@host`. Several
        hosts are separated by commas. Raises `ConfigError`."""
        address = Address.parse(url)
        if address.path and not _NAME.fullmatch(address.path):
            raise ConfigError([
                f"broker.url: got the stream {address.path!r}, expected a name of letters, digits, _ and -"
            ])  # fmt: skip
        return cls(address, read_options(address.query, Options), timeout_seconds=timeout_seconds)

    def _tls_context(self) -> ssl.SSLContext | None:
        options = self._options
        if self._address.scheme == "nats":
            if options.cafile or options.certfile or options.keyfile:
                raise ConfigError(["broker.url: got certificates for nats://, expected nats+tls://"])
            return None
        try:
            context = ssl.create_default_context(cafile=options.cafile)
            if options.certfile:
                context.load_cert_chain(options.certfile, options.keyfile)
        except OSError as error:
            raise ConfigError([f"broker.url: the certificates cannot be used: {error}"]) from error
        return context

    # Connecting.

    async def connect(self) -> None:
        """See `Remote.connect`."""
        if self._client is None or not self._client.is_connected:
            await self.disconnect()
            self._client = await self._connected()
        await self._see_to_the_stream()

    async def _connected(self) -> Client:
        client, address = Client(), self._address
        self._last_error = None
        more: dict[str, Any] = {} if self._tls is None else {"tls": self._tls}
        if address.password:
            more |= {"user": address.user, "password": address.password}
        elif address.user:
            more |= {"token": address.user}
        try:
            # It does not reconnect by itself: it would send, later, what was answered 503 long ago.
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
        await client.subscribe(f"{self._replies}.*", cb=self._on_ack)
        return client

    async def _on_error(self, error: Exception) -> None:
        self._last_error = error

    async def _on_closed(self) -> None:
        self._interrupt(ConnectionError(self._why_closed()))

    def _interrupt(self, error: Exception) -> None:
        """Whoever waits for messages waits for them in vain."""
        for inbox in self._inboxes:
            inbox.put(error)
        for ack in list(self._acks.values()):
            if not ack.done():
                ack.set_exception(error)

    def _why_closed(self) -> str:
        return str(self._last_error or "the server closed the connection")

    async def disconnect(self) -> None:
        """See `Remote.disconnect`."""
        client, self._client = self._client, None
        if client is not None:
            await _close(client)

    # The stream.

    async def _api(self, verb: str, document: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask JetStream's own interface: its documents are passed on as they are, also what a newer server added."""
        client, asked = self._in_use(), b"" if document is None else json.dumps(document).encode()
        try:
            answer = await client.request(f"$JS.API.{verb}", asked, timeout=self.timeout_seconds)
        except nats.errors.NoRespondersError as error:
            raise ConnectionError("JetStream is not enabled there (nats-server -js)") from error
        found: dict[str, Any] = json.loads(answer.data)
        if "error" in found:
            raise _error(found["error"])
        return found

    def _in_use(self) -> Client:
        if self._client is None:
            raise ConnectionError("is not connected")
        return self._client

    async def _info(self) -> dict[str, Any]:
        return await self._api(f"STREAM.INFO.{self.stream}")

    async def _see_to_the_stream(self) -> None:
        try:
            info = await self._info()
        except nats.js.errors.APIError as error:
            if error.err_code != _NO_STREAM:
                raise
            try:
                info = await self._api(f"STREAM.CREATE.{self.stream}", self._config())
            except nats.js.errors.APIError as error:
                if error.err_code != _NAME_IN_USE:  # or somebody was faster
                    raise
                info = await self._info()
        self._check_config(info["config"])
        await self._apply_limits(info["config"])

    def _config(self) -> dict[str, Any]:
        return {
            "name": self.stream,
            "subjects": [f"{self._options.prefix}.>"],
            "description": OURS,
            "retention": "limits",
            "discard": "old",
            "storage": "file",
            "num_replicas": self._options.replicas,
            "duplicate_window": _nanoseconds(IDEMPOTENCY_SECONDS),
            **self._limits(),
        }

    def _limits(self) -> dict[str, Any]:
        options, history = self._options, self.history
        max_events = history.max_events if options.max_events is None else options.max_events
        max_bytes = history.max_bytes if options.max_bytes is None else options.max_bytes
        max_age_seconds = options.max_age_seconds or longest_seconds(history)
        return {
            # To JetStream 0 is no limit, and an age below the window of idempotency keys is an error.
            "max_msgs": max(max_events, 1),
            "max_bytes": max(max_bytes, MIN_BYTES),
            "max_age": _nanoseconds(max(max_age_seconds, IDEMPOTENCY_SECONDS)),
        }

    def _check_config(self, config: dict[str, Any]) -> None:
        """Refuse a stream, made by others, in which events would go missing without a trace."""
        wanted = f"{self._options.prefix}.>"
        subjects = config.get("subjects") or []
        if wanted not in subjects and ">" not in subjects:
            raise OSError(f"the stream {self.stream} has the subjects {subjects}, expected {wanted} among them")
        if config.get("retention", "limits") != "limits":
            raise OSError(f"the stream {self.stream} has the retention {config['retention']!r}, expected 'limits'")
        if config.get("max_msgs_per_subject", -1) > 0:
            raise OSError(
                f"the stream {self.stream} keeps max_msgs_per_subject = {config['max_msgs_per_subject']}: "
                "what it forgets in the middle nobody could be told of; expected -1"
            )

    async def _apply_limits(self, config: dict[str, Any]) -> None:
        limits = self._limits()
        if str(config.get("description", "")).startswith(OURS) and config | limits != config:
            await self._api(f"STREAM.UPDATE.{self.stream}", config | limits)

    def keep(self, history: HistorySettings) -> None:
        """See `Broker.keep`. Is the engine away, it is told when it comes back."""
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
        state = info["state"]
        newest = state["last_seq"]
        return Bounds(_epoch(info), state["first_seq"] - 1 if state["messages"] else newest, newest)

    async def renew(self, epoch: str) -> None:
        """See `Remote.renew`: the number of lives is kept in the stream's description. Two who do it at the same time
        write the same."""
        info = await self._info()
        if _epoch(info) == epoch:
            description, lives = _lives(info)
            config = info["config"] | {"description": f"{description} (epoch {lives + 1})".lstrip()}
            await self._api(f"STREAM.UPDATE.{self.stream}", config)

    async def has(self, offset: int) -> bool:
        """See `Remote.has`: a stream that lost its newest events gives their numbers anew, at other times."""
        if self._stamp is None or self._stamp[0] != offset:
            return True
        try:
            found = await self._api(f"STREAM.MSG.GET.{self.stream}", {"seq": offset})
        except nats.js.errors.APIError as error:
            if error.code == 404:  # one that was deleted by hand
                return True
            raise
        return _stored_at(found["message"]["time"]) == self._stamp[1]

    # Reading.

    async def read_after(self, after: int, limit: int) -> Page:
        """See `Remote.read_after`."""
        client = self._in_use()
        consumer = await self._consumer(after)
        ask = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{consumer}"
        # A message counts with its subject and headers.
        max_bytes = max(MAX_READ_BYTES, client.max_payload) + 64 * 1024
        found: list[Msg] = []
        async with self._inbox(client) as inbox:
            document = {"batch": limit, "max_bytes": max_bytes, "no_wait": True}
            await client.publish(ask, json.dumps(document).encode(), reply=inbox.subject)
            while len(found) < limit:
                (message,) = await inbox.some(1)
                if not _is_event(message):
                    break  # a status: no more, or enough
                found.append(message)
                if _place(message).pending == 0:
                    break
        await client.publish(f"$JS.API.CONSUMER.DELETE.{self.stream}.{consumer}")  # or it ends by itself, soon
        up_to = _place(found[-1]).offset if found else after
        if up_to - after > len(found) or not found:
            await self._see_what_is_missing(after)
        return Page(self._publications(found), up_to)

    async def _consumer(self, after: int, **more: Any) -> str:
        config = {
            "deliver_policy": "by_start_sequence", "opt_start_seq": after + 1, "ack_policy": "none",
            "max_deliver": 1, "replay_policy": "instant", "mem_storage": True, "num_replicas": 1,
        }  # fmt: skip
        document = {"stream_name": self.stream, "config": config | more}
        found = await self._api(f"CONSUMER.CREATE.{self.stream}", document)
        name: str = found["name"]
        return name

    async def _see_what_is_missing(self, after: int) -> None:
        """There is a gap in the numbers. Single events may be deleted by hand; what was trimmed is said."""
        bounds = await self.bounds()
        if bounds.epoch != self.epoch and self.epoch:
            raise Replaced
        if bounds.forgotten > after:
            raise Forgotten(after, bounds.forgotten)

    def _publications(self, messages: Sequence[Msg]) -> list[Publication]:
        found = []
        for message in messages:
            place = _place(message)
            try:
                publication = to_publication(
                    self._options.prefix, message.subject, message.headers or {}, message.data,
                    offset=place.offset, published_at=place.stored_at / 1e9,
                )  # fmt: skip
            except InvalidField as error:
                self.skip(place.offset, str(error))
            else:
                found.append(publication)
        return found

    async def follow(self, after: int) -> AsyncGenerator[Page, None]:
        """See `Remote.follow`."""
        client = self._in_use()
        async with self._inbox(client) as inbox:
            await self._consumer(
                after, deliver_subject=inbox.subject, flow_control=True,
                idle_heartbeat=_nanoseconds(max(0.1, self.pulse_seconds)),
            )  # fmt: skip
            # A consumer ends with its stream: from here on, silence is the sign of another one.
            if (await self.bounds()).epoch != self.epoch:
                raise Replaced
            at, delivered = after, 0
            while True:
                messages = await inbox.some(PAGE_EVENTS)
                events = [message for message in messages if _is_event(message)]
                if events:
                    last = _place(events[-1])
                    if last.delivery != delivered + len(events):
                        raise ConnectionError(f"got the delivery {last.delivery}, expected {delivered + len(events)}")
                    if last.offset - at > len(events):
                        await self._see_what_is_missing(at)
                    at, delivered = last.offset, last.delivery
                    self._stamp = last.offset, last.stored_at
                for message in messages:
                    await self._heed(client, message, delivered)
                yield Page(self._publications(events), at)

    @asynccontextmanager
    async def _inbox(self, client: Client) -> AsyncGenerator[_Inbox, None]:
        inbox = _Inbox(client.new_inbox())
        subscription = await client.subscribe(inbox.subject, cb=inbox.on_message)
        self._inboxes.add(inbox)
        try:
            yield inbox
        finally:
            self._inboxes.discard(inbox)
            if not client.is_closed:
                await subscription.unsubscribe()

    async def _heed(self, client: Client, message: Msg, delivered: int) -> None:
        """What the server says beside the events: are you still there, and how far?"""
        if _is_event(message):
            return
        headers = message.headers or {}
        sent = headers.get("Nats-Last-Consumer")
        if sent is not None and int(sent) > delivered:
            raise ConnectionError(f"deliveries up to {sent} were sent, and those up to {delivered} came")
        answer = message.reply or headers.get("Nats-Consumer-Stalled")
        if answer:
            await client.publish(answer)

    # Appending.

    async def send(self, publications: Sequence[Publication]) -> Sequence[Placed]:
        """See `Remote.send`. One by one, in order, and not all or nothing."""
        client, newest = self._in_use(), self.newest
        messages = [
            (
                to_subject(self._options.prefix, publication.topics[0]), publication.data,
                to_headers(publication) | {"Nats-Expected-Stream": self.stream},
            )
            for publication in publications
        ]  # fmt: skip
        for subject, data, headers in messages:
            size = size_bytes(subject, headers, data)
            if size > client.max_payload:
                raise TooLarge("the message for NATS", size, client.max_payload)
        acks: list[asyncio.Future[_Ack]] = []
        try:
            async with self._publishing:  # so that those of this process do not get between each other's
                for subject, data, headers in messages:
                    reply, ack = self._new_ack()
                    acks.append(ack)
                    await client.publish(subject, data, reply=reply, headers=headers)
            found = [await ack for ack in acks]
        finally:
            for ack in acks:
                ack.cancel() or ack.cancelled() or ack.exception()  # of several failures one is told
        now = time.time()
        placed = [Placed(ack.offset, not ack.is_duplicate, now) for ack in found]
        if any(place.is_new and place.offset <= newest for place in placed):
            self._interrupt(Replaced())
            raise Replaced
        return placed

    def _new_ack(self) -> tuple[str, asyncio.Future[_Ack]]:
        # The library's own futures for this are never done when the answer is an error (nats-py 2.16).
        number = next(self._numbers)
        ack = self._acks[number] = asyncio.get_running_loop().create_future()
        ack.add_done_callback(lambda _: self._acks.pop(number, None))
        return f"{self._replies}.{number}", ack

    async def _on_ack(self, message: Msg) -> None:
        ack = self._acks.get(int(message.subject.rpartition(".")[2]))
        if ack is None or ack.done():
            return
        if (message.headers or {}).get("Status") == "503":
            ack.set_exception(nats.js.errors.NoStreamResponseError())
            return
        said = json.loads(message.data)
        if "error" in said:
            ack.set_exception(_error(said["error"]))
        else:
            ack.set_result(_Ack(said["seq"], bool(said.get("duplicate"))))

    async def probe(self) -> None:
        """See `Remote.probe`."""
        info = await self._info()
        config, state = info["config"], info["state"]
        if config.get("discard") == "new":
            for limit, used in (("max_msgs", "messages"), ("max_bytes", "bytes")):
                if 0 < config.get(limit, -1) <= state[used]:
                    raise OSError(f"the stream {self.stream} is full: {limit} = {config[limit]}")


async def _close(client: Client) -> None:
    # It waits for the last words of a TLS connection, which do not come when the certificate was refused.
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await client.close()


class _Ack(NamedTuple):
    offset: int
    is_duplicate: bool


def _error(said: Mapping[str, Any]) -> nats.js.errors.APIError:
    return nats.js.errors.APIError(**{key: said.get(key) for key in ("code", "err_code", "description")})


class _Inbox:
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


class _Place(NamedTuple):
    """What a delivered message says of itself. `delivery` counts those of one consumer; the time is in nanoseconds."""

    offset: int
    delivery: int
    stored_at: int
    pending: int


def _is_event(message: Msg) -> bool:
    return message.reply.startswith("$JS.ACK.")


def _place(message: Msg) -> _Place:
    # $JS.ACK.<stream>.<consumer>.<tries>.<sequence>.<delivery>.<time>.<pending>, or with the domain and the account
    # before the stream, and perhaps more behind.
    words = message.reply.split(".")
    start = 5 if len(words) == 9 else 7
    offset, delivery, stored_at, pending = map(int, words[start : start + 4])
    return _Place(offset, delivery, stored_at, pending)


def _stored_at(text: str) -> int:
    """A time of JetStream's documents (RFC 3339, up to nine digits behind the second) in nanoseconds."""
    seconds, _, fraction = text.rstrip("Z").partition(".")
    return int(datetime.fromisoformat(f"{seconds}+00:00").timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 10**9)


def _lives(info: Mapping[str, Any]) -> tuple[str, int]:
    """A stream's description without the number of its lives, and that."""
    description = str(info["config"].get("description", ""))
    found = _RENEWED.search(description)
    return (description[: found.start()], int(found[1])) if found else (description, 0)


def _epoch(info: Mapping[str, Any]) -> str:
    """A stream that is deleted and made again has another time; one that went back in time has one more life."""
    number, epoch = _stored_at(info["created"]), ""
    while number:
        number, digit = divmod(number, 36)
        epoch = _DIGITS[digit] + epoch
    lives = _lives(info)[1]
    return f"{epoch}.{lives}" if lives else epoch
