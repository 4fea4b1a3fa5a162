"""Redis: the log is a stream, which any Redis client can also read and write."""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import Any, ClassVar, Self, cast

from pydantic import Field
from redis.asyncio import ConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, NoScriptError, RedisError, ResponseError

from qgstream.brokers.ages import Ages
from qgstream.brokers.base import IDEMPOTENCY_SECONDS, MAX_READ_BYTES, Forgotten
from qgstream.brokers.options import Address, TlsOptions, read_options
from qgstream.brokers.redis.scripts import (
    APPEND,
    MEND,
    PAGE,
    PREPARE,
    RENEW,
    SIGN,
    STANDING,
    STATE,
    TRIM,
    VOUCH,
    Script,
)
from qgstream.brokers.remote import PAGE_EVENTS, Bounds, LogPage, Placed, Remote, Replaced, longest_seconds
from qgstream.brokers.vouching import Standing, earlier_of
from qgstream.errors import ConfigError, InvalidField, TooLarge
from qgstream.events.draft import received
from qgstream.events.history import HistorySettings
from qgstream.events.publication import Publication
from qgstream.limits import MIB
from qgstream.logs import log

DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
# The id of an entry is a time in milliseconds and a sequence number; an offset combines both in a number of at most 19
# digits.
PER_MILLISECOND = 1_000_000
_MAX_OFFSET = 10**19 - 1
# The number of simultaneous publishes, each on a separate connection.
MAX_SENDS = 16
# The default of Redis for proto-max-bulk-len, and its minimum.
MAX_VALUE_BYTES, MIN_VALUE_BYTES = 512 * MIB, MIB
# The time between two runs of trimming.
TRIM_SECONDS = 1.0
# The newest entries of this time are kept whatever the limits say: a follower may be a moment behind.
SPARED_SECONDS = 2.0
_MAX_DIGITS = 12
_VERSION = (7, 0)
_YES = {b"1": True, b"true": True, b"0": False, b"false": False, b"": False}


class RedisOptions(TlsOptions):
    """The options in the query of the URL."""

    stream: str = Field("qgstream", min_length=1, max_length=200)
    max_events: int | None = Field(None, ge=0)
    max_bytes: int | None = Field(None, ge=0)
    max_age_seconds: float | None = Field(None, gt=0)


class _TlsConnection(SSLConnection):
    """A connection with a context of ours. The one that the library makes trusts the system's authorities besides
    those of a file."""

    def __init__(self, *, tls: ssl.SSLContext, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.ssl_context.context = tls


class RedisBroker(Remote):
    """A log in a Redis stream. Every entry with the fields `topic` and `data`, from any client, is published."""

    name: ClassVar[str] = "redis"
    failures = (OSError, EOFError, RedisError)
    refusals = (ResponseError,)
    # The library takes 4 us for each name and value in a result: 10 000 events with 64 topics took 5 s.
    max_batch_topics = 100_000

    def __init__(
        self, address: Address, options: RedisOptions, *, timeout_seconds: float, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(address.place, timeout_seconds=timeout_seconds, secrets=address.secrets)
        self._address = address
        self._options = options
        self._tls = tls
        self._db = _database(address)
        stream = options.stream
        # In a Redis cluster, all keys of the log must have the hash slot of the stream.
        self._side = stream if "{" in stream else f"{{{stream}}}"
        self._redis: Redis | None = None
        self._sentinels: list[Redis] = []
        self._slots = asyncio.Semaphore(MAX_SENDS)
        self._ages: Ages | None = None
        self._ages_of = ""  # the epoch
        self._unix_at_start = 0.0  # by the clock of Redis
        # The processes of one log recognize each other by this prefix of their connection names.
        self._company = f"qgstream:{sha256(f'{self._db} {stream}'.encode()).hexdigest()[:16]}:"
        self._client_name = self._company + secrets.token_hex(5)
        self._redis_run = ""  # the run id of the Redis server, if this user may read the id
        self._trim_at = 0.0
        self._trims = True
        self._max_value_bytes = MAX_VALUE_BYTES

    @classmethod
    def from_url(cls, url: str, *, timeout_seconds: float) -> Self:
        """Create a broker for `redis://user:password@host:6379/0?stream=events`, `rediss://` with TLS, or
        `redis+sentinel://host,host/service/0`.

        Raises `ConfigError`.
        """
        address = Address.parse(url)
        options = read_options(address.query, RedisOptions)
        if len(address.hosts) > 1 and not _is_sentinel(address):
            raise ConfigError([f"broker.url: got {len(address.hosts)} hosts, expected one ({address.scheme}://)"])
        plain = "redis" if address.scheme == "rediss" else address.scheme
        tls = options.context(address.scheme, plain=plain, with_tls="rediss")
        return cls(address, options, timeout_seconds=timeout_seconds, tls=tls)

    # The connection.

    async def connect(self) -> None:
        if self._redis is None:
            self._redis = self._client()
            # Not converted to a dictionary: a field may occur several times.
            self._redis.set_response_callback("XREAD", cast(Any, _as_it_came))
            await self._check_server(self._redis)
            await self._see_what_fits(self._redis)
            await _done(self._redis.script_load(STATE.text))
        await self._mend()
        await self._call(PREPARE, secrets.token_hex(5), self._redis_run)

    def _client(self) -> Redis:
        address = self._address
        arguments: dict[str, Any] = {
            "db": self._db, "username": address.user or None, "password": address.password or None, "protocol": 2,
            "socket_connect_timeout": self.timeout_seconds, "socket_timeout": self.timeout_seconds,
            "socket_keepalive": True, "client_name": self._client_name,
            # No retries: a sent command may have been executed, and must not be executed twice.
            "retry": Retry(NoBackoff(), 0),
        }  # fmt: skip
        if _is_sentinel(address):
            hosts = [(host, port or SENTINEL_PORT) for host, port in address.hosts]
            kind: dict[str, Any] = {"socket_timeout": self.timeout_seconds / 2}
            sentinel = Sentinel(hosts, sentinel_kwargs=kind, **arguments)  # type: ignore[no-untyped-call]
            self._sentinels = sentinel.sentinels
            return cast(Redis, sentinel.master_for(address.path.partition("/")[0]))
        host, port = address.hosts[0]
        arguments |= {"host": host, "port": port or DEFAULT_PORT}
        if self._tls is None:
            return Redis(**arguments)
        pool = ConnectionPool(connection_class=_TlsConnection, tls=self._tls, **arguments)
        return Redis.from_pool(pool)

    async def _check_server(self, redis: Redis) -> None:
        try:
            server, persistence = await redis.info("server"), await redis.info("persistence")
        except NoPermissionError:
            self._redis_run = ""
            return
        self._redis_run = str(server.get("run_id", ""))
        version = str(server.get("redis_version", ""))
        if tuple(map(int, version.split(".")[:2])) < _VERSION:
            raise ConnectionError(f"got Redis {version}, expected {_VERSION[0]}.{_VERSION[1]} or newer")
        # While Redis loads its data, it reports that the file is off.
        if not (self.epoch or persistence.get("aof_enabled") or persistence.get("loading")):
            reason = "its append-only file is off: when Redis stops, all events after its last snapshot are lost"
            log.warning("broker.unsafe", extra={"broker": self.name, "place": self.place, "reason": reason})

    async def _see_what_fits(self, redis: Redis) -> None:
        # Redis closes the connection if a larger value is sent.
        # this user may not read the setting, or the setting has another name
        with suppress(ResponseError, ValueError, KeyError):
            found = await _done(redis.config_get("proto-max-bulk-len"))
            self._max_value_bytes = int(found["proto-max-bulk-len"])

    async def disconnect(self) -> None:
        redis, self._redis = self._redis, None
        clients, self._sentinels = [*self._sentinels, *([redis] if redis is not None else [])], []
        for client in clients:
            with suppress(*self.failures):
                await client.aclose()
                await client.connection_pool.disconnect()

    @property
    def _connected(self) -> Redis:
        if self._redis is None:
            raise ConnectionError("is not connected")
        return self._redis

    async def _call(self, script: Script, *arguments: str | bytes | float, keys: Sequence[str] = ()) -> Any:
        redis, all_keys = self._connected, [self._options.stream, *keys]
        try:
            return await _done(redis.evalsha(script.sha, len(all_keys), *all_keys, *arguments))
        except NoScriptError:
            await _done(redis.script_load(script.text))
            return await _done(redis.evalsha(script.sha, len(all_keys), *all_keys, *arguments))

    # The log.

    async def bounds(self) -> Bounds:
        bounds = _bounds(await self._call(STATE))
        if bounds.newest >= _MAX_OFFSET:  # an entry was added there just now
            await self._mend()
            bounds = _bounds(await self._call(STATE))
        return bounds

    async def _mend(self) -> None:
        moved = await self._call(MEND)
        if moved:
            reason = "their ids were from the far future, and left no ids for later entries"
            log.warning("broker.mended", extra={"broker": self.name, "entries": moved, "reason": reason})

    async def renew(self, epoch: str, ended: int | None = None) -> None:
        token = secrets.token_hex(5)
        earlier = earlier_of(epoch, ended, (await self.standing()).earlier)
        # The part before the dot stays with the log: the idempotency keys are stored under this part.
        name = f"{_log_of(epoch)}.{token}" if earlier else token
        places = [text for n, (was, end) in enumerate(earlier.items()) for text in (f"{n}:{was}", _id(end))]
        await self._call(RENEW, epoch, name, self._redis_run, *places)

    async def standing(self) -> Standing:
        epoch, run, ended, earlier = await self._call(STANDING)
        end = _nearest(ended) if ended else None
        places = sorted(
            (int(was.partition(b":")[0]), was.partition(b":")[2].decode(), _nearest(id)) for was, id in earlier
        )
        is_witnessed = run is not None and run.decode() == self._redis_run != ""
        return Standing(epoch.decode(), is_witnessed, end, {was: offset for _, was, offset in places})

    async def vouch(self) -> None:
        await self._call(VOUCH, self.epoch or (await self.standing()).epoch, self._redis_run)

    async def sign_off(self) -> None:
        if not await self._has_company():
            await self._call(SIGN, self.epoch)

    async def _has_company(self) -> bool:
        """Whether another process also follows the log; True if this user may not list the connections."""
        try:
            clients = await _done(self._connected.client_list())
        except NoPermissionError:
            return True
        names = {client.get("name", "") for client in clients}
        return any(name.startswith(self._company) and name != self._client_name for name in names)

    async def has(self, offset: int) -> bool:
        id = _id(offset)
        return bool(await _done(self._connected.xrange(self._options.stream, id, id)))

    async def before(self, end: int, forgotten: int) -> tuple[Sequence[Publication], int]:
        _, entries = await self._call(PAGE, _id(end), PAGE_EVENTS, MAX_READ_BYTES, 1)
        page = self._page(entries[::-1], 0)
        # The oldest entry may have been skipped: the remaining entries still come after it.
        start = _offset(entries[-1][0]) if entries else None
        return page.publications, forgotten if start is None else max(forgotten, start - 1)

    async def read_after(self, after: int, limit: int) -> LogPage:
        state, entries = await self._call(PAGE, _id(after), limit, MAX_READ_BYTES, 0)
        self._check_state(state, after)
        return self._page(entries, after)

    async def follow(self, after: int) -> AsyncGenerator[LogPage, None]:
        cursor, up_to = _id(after), after
        if self._ages is None or self._ages_of != self.epoch:
            seconds, microseconds = await _done(self._connected.time())
            self._ages, self._ages_of = Ages(after, time.monotonic()), self.epoch
            self._unix_at_start = seconds + microseconds / 1e6
        while True:
            # Both commands are sent together, so the second waits in the connection until the first returns. So the
            # second reports every trim and replacement that happened before the first returned, without another round
            # trip.
            pipeline = self._connected.pipeline(transaction=False)
            pipeline.xread({self._options.stream: cursor}, count=PAGE_EVENTS, block=int(self.pulse_seconds * 1000))
            pipeline.evalsha(STATE.sha, 1, self._options.stream)
            answer, state = await pipeline.execute()
            self._check_state(state, up_to)
            if state[3]:  # another process has signed off, but the log continues
                await self.vouch()
            entries = answer[0][1] if answer else []
            page = self._page(entries, up_to)
            if entries:
                cursor, up_to = entries[-1][0], page.up_to
                if _is_beyond(cursor):  # no entry can follow this entry until it is removed
                    await self._mend()
                    cursor = _id(up_to)
            self._ages.note(up_to, time.monotonic())
            yield page
            await self._trim(up_to, self._ages)

    def _check_state(self, state: Sequence[bytes], after: int) -> None:
        bounds = _bounds(state)
        if bounds.epoch != self.epoch:
            raise Replaced
        if after < bounds.forgotten:
            raise Forgotten(after, bounds.forgotten)

    def _page(self, entries: Sequence[tuple[bytes, Sequence[bytes]]], after: int) -> LogPage:
        found: list[Publication] = []
        for id, fields in entries:
            offset = _offset(id)
            if _is_beyond(id):
                break  # this entry will be added once more
            if offset is None:
                self.skips.skip(
                    after, f"got the entry {id.decode()}, expected at most {PER_MILLISECOND} in a millisecond"
                )
                continue
            after = offset
            publication = self.skips.read(offset, partial(_publication, offset, fields))
            if publication is not None:
                found.append(publication)
        return LogPage(found, after)

    # Publishing.

    async def send(self, publications: Sequence[Publication]) -> Sequence[Placed]:
        self._check_sizes(publications)
        keys: list[str] = []
        arguments: list[str | bytes | int] = []
        for number, publication in enumerate(publications):
            await self._turn(number)
            key, fields = publication.idempotency_key, _fields(publication)
            if key is not None:
                keys.append(f"{self._side}:{_log_of(self.epoch)}:{key}")
            arguments += [int(key is not None), len(fields), *fields]
        async with self._slots:
            try:
                placed = await self._call(APPEND, self.epoch, int(IDEMPOTENCY_SECONDS), *arguments, keys=keys)
            except RedisError:
                await self._see_whether_it_fits(publications)
                raise
        if not placed:
            raise Replaced
        return [_placed(id, is_new) for id, is_new in zip(placed[::2], placed[1::2], strict=True)]

    def _check_sizes(self, publications: Sequence[Publication]) -> None:
        largest = max([len(publication.data) for publication in publications])
        if largest > self._max_value_bytes:
            raise TooLarge("data", largest, self._max_value_bytes)

    async def _see_whether_it_fits(self, publications: Sequence[Publication]) -> None:
        """Raise `TooLarge` if an operator lowered the limit while connected, and one of these exceeds the new limit."""
        redis = self._redis
        if redis is None or max([len(publication.data) for publication in publications]) <= MIN_VALUE_BYTES:
            return
        # Redis closes the connection after refusing; the next publisher must not get this connection.
        with suppress(*self.failures):
            await redis.connection_pool.disconnect(inuse_connections=False)
            await self._see_what_fits(redis)
        self._check_sizes(publications)

    async def probe(self) -> None:
        # Redis refuses this command whenever it would refuse an event: the command may use more memory, and writes.
        await _done(self._connected.set(f"{self._side}:probe", "", ex=1))

    # Trimming.

    async def _trim(self, up_to: int, ages: Ages) -> None:
        """Trim a part of the entries beyond the retention. Entries after this offset were not read yet and stay."""
        now = time.monotonic()
        if now < self._trim_at:
            return
        kept = self._kept()
        longest = max(longest_seconds(kept), SPARED_SECONDS)
        # Entries from before the connection have the time in their ids, by the clock of Redis. The steady clock
        # continues it from there.
        dated = int((self._unix_at_start + now - ages.began_at - longest) * 1000) * PER_MILLISECOND
        old = max(ages.older_than(longest, now), min(dated, ages.first), 0)
        spared = max(ages.older_than(SPARED_SECONDS, now), 0)
        try:
            more = await self._call(
                TRIM, self.epoch, kept.max_events, kept.max_bytes, _id(min(old, up_to)), _id(min(spared, up_to))
            )  # fmt: skip
        except ResponseError as error:
            if self._trims:
                said = {"broker": self.name, "reason": self.explain(error)}
                log.warning("broker.trim_failed", extra=said)
            self._trims, more = False, 0
        else:
            self._trims = True
        self._trim_at = time.monotonic() + (0 if more else TRIM_SECONDS)

    def _kept(self) -> HistorySettings:
        given = self._options.model_dump(include={"max_events", "max_bytes", "max_age_seconds"}, exclude_none=True)
        return self.history.model_copy(update=given)


def _log_of(epoch: str) -> str:
    """Return the common part of consecutive epochs of one log."""
    return epoch.partition(".")[0]


def _as_it_came(answer: Any, **_: Any) -> Any:
    return answer


async def _done(answer: Awaitable[Any] | Any) -> Any:
    """Await a command. The type hints of the library say that a command may return without an awaitable; these never
    do."""
    return await answer


def _is_sentinel(address: Address) -> bool:
    return address.scheme == "redis+sentinel"


def _database(address: Address) -> int:
    service, _, path = address.path.partition("/") if _is_sentinel(address) else ("-", "", address.path)
    if not service:
        raise ConfigError(["broker.url: got no service, expected redis+sentinel://host/service"])
    if path and not path.isdecimal():
        raise ConfigError([f"broker.url: got the database {path!r}, expected a number"])
    return int(path or 0)


def _id(offset: int) -> str:
    return f"{offset // PER_MILLISECOND}-{offset % PER_MILLISECOND}"


def _offset(id: bytes) -> int | None:
    """Return the offset of an entry's id; None for an id that only a deliberate user can create."""
    ms, _, number = id.partition(b"-")
    offset = int(ms) * PER_MILLISECOND + int(number)
    return offset if int(number) < PER_MILLISECOND and offset <= _MAX_OFFSET else None


def _is_beyond(id: bytes) -> bool:
    """Whether the time of an entry, and of all later entries, is too large for an offset."""
    return int(id.partition(b"-")[0]) * PER_MILLISECOND > _MAX_OFFSET


def _nearest(id: bytes) -> int:
    """Return the offset of an id, or the largest offset below it."""
    ms, _, number = id.partition(b"-")
    return min(int(ms) * PER_MILLISECOND + min(int(number), PER_MILLISECOND - 1), _MAX_OFFSET)


def _bounds(state: Sequence[bytes]) -> Bounds:
    epoch, forgotten, newest, _ = state
    return Bounds(epoch.decode(), _nearest(forgotten), _nearest(newest))


def _placed(id: bytes, is_new: int) -> Placed:
    offset = _offset(id)
    if offset is None:
        raise ResponseError(f"got the id {id.decode()}, expected less than {PER_MILLISECOND} in a millisecond")
    return Placed(offset, bool(is_new), _time_of(offset))


def _time_of(offset: int) -> float:
    """Return the time of an entry, from its id. Any client may write an id from the future, and all later ids follow
    it."""
    return min(offset // PER_MILLISECOND / 1000, time.time())


def _fields(publication: Publication) -> list[str | bytes | int]:
    fields: list[str | bytes | int] = []
    for topic in publication.topics:
        fields += ["topic", topic]
    fields += ["data", publication.data]
    if publication.is_json:
        fields += ["json", 1]
    if publication.event is not None:
        fields += ["event", publication.event]
    if publication.retry_ms is not None:
        fields += ["retry", publication.retry_ms]
    if publication.private:
        fields += ["private", 1]
    return fields


def _publication(offset: int, fields: Sequence[bytes]) -> Publication:
    """Parse the fields of an entry; unknown fields are ignored. Raises `InvalidField`."""
    if len(fields) % 2:
        raise InvalidField("fields", f"got {len(fields)} names and values, expected pairs")
    topics: list[str] = []
    said: dict[bytes, bytes] = {}
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        if name == b"topic":
            topics.append(_text("topic", value))
        else:
            said[name] = value
    if b"data" not in said:
        raise InvalidField("data", "got no field, expected one")
    event, retry = said.get(b"event"), said.get(b"retry")
    return received(
        topics,
        said[b"data"],
        is_json=_yes("json", said),
        event=None if event is None else _text("event", event),
        retry_ms=None if retry is None else _milliseconds(retry),
        private=_yes("private", said),
        offset=offset,
        published_at=_time_of(offset),
    )


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidField(name, f"got byte 0x{value[error.start]:02x} at {error.start}, expected UTF-8") from error


def _milliseconds(value: bytes) -> int:
    # int() raises its own ValueError for thousands of digits.
    if not value.isdigit() or len(value) > _MAX_DIGITS:
        raise InvalidField("retry", f"got {value[:20]!r}, expected milliseconds")
    return int(value)


def _yes(name: str, said: dict[bytes, bytes]) -> bool:
    value = said.get(name.encode(), b"")
    if value not in _YES:
        raise InvalidField(name, f"got {value[:20]!r}, expected 1 or 0")
    return _YES[value]
