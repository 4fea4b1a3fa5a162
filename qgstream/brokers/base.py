"""The broker contract: an ordered log of publications, each with its position."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol, cast

from qgstream.errors import ConfigError
from qgstream.events.history import HistorySettings
from qgstream.events.publication import Position, Publication
from qgstream.reasons import ResetReason

# How long an idempotency key is remembered.
IDEMPOTENCY_SECONDS = 300.0
# What one `read` returns at most (unless a single publication is larger): a page that a slow reader keeps alive.
MAX_READ_BYTES = 1024 * 1024
DEFAULT_TIMEOUT_SECONDS = 5.0


class Forgotten(Exception):
    """What lies after this offset was trimmed in part. `after` is the oldest offset that a read can start after."""

    def __init__(self, asked: int, after: int) -> None:
        super().__init__(f"asked for what is after {asked}, and only what is after {after} is still there")
        self.after = after


@dataclass(frozen=True, slots=True)
class Opened:
    """The log as a broker found it.

    `position` is that of the newest publication. `recent` are the newest ones, oldest first, as many as the hub's
    window takes (the bounds of `HistorySettings`; a few more do no harm). Every publication after the offset
    `forgotten` is in `recent`, unless it is forgotten already: an engine that forgets some topics earlier says in
    `forgotten_of` up to which offset, by the pattern of their `TopicHistory`; "" stands for all other topics. `earlier`
    are epochs that this log had before, with the offset up to which ids of theirs are good here too.
    """

    position: Position
    recent: Sequence[Publication]
    forgotten: int
    forgotten_of: Mapping[str, int] = field(default_factory=dict)
    earlier: Mapping[str, int] = field(default_factory=dict)


class Sink(Protocol):
    """Who tails the log: the hub. Called on the loop's thread only."""

    def deliver(self, publications: Sequence[Publication]) -> None:
        """What was appended, by anybody, in the log's order, once. Raises nothing."""

    def lost(self, position: Position, reason: ResetReason) -> None:
        """The log goes on at `position`; what lies before it and was not delivered is gone (`too_old`: trimmed while
        the engine was away; `epoch_changed`: another log). Every stream is told `reset`."""

    async def room(self) -> None:
        """Return when `deliver` may be given more. A broker that tails a log to which others append waits for this
        between two calls of `deliver`: what they append must not pile up here."""
        return


class Broker(Protocol):
    """Owns the log. One total order for all topics; offsets only grow (from 0, at most 19 digits), gaps are allowed."""

    @property
    def is_up(self) -> bool:
        """Whether it can take publications now."""

    @property
    def skipped(self) -> int:
        """How many entries of the log could not be read and were passed over, since the start of this process. An entry
        counts each time that it is met: by the tail, at the start, and in replays."""
        return 0

    @property
    def certificate_expires_at(self) -> float | None:
        """Until when the certificate is valid that this broker shows its engine (Unix seconds); None without one."""
        return None

    @property
    def is_shared(self) -> bool:
        """Whether other processes can follow the same log, and so take the clients of one that leaves."""
        return True

    async def open(self, sink: Sink, history: HistorySettings) -> Opened:
        """Start. From the first publication after `Opened.position` on, `sink` is told; never before this returned.

        Raises `OSError` or `errors.Unavailable` when the engine cannot be reached or the log cannot be used.
        """

    async def check(self) -> None:
        """Find out whether `open` would succeed, and let go of everything. For a broker that is not open.

        Raises what `open` raises. An engine makes its log here, as it does in `open`.
        """
        return

    async def append(self, publications: Sequence[Publication]) -> Sequence[int]:
        """Append all or nothing (an engine that cannot says so), and return the offset of each once they are safe and
        `sink` was told of them: who publishes is answered after its own message came back.

        Sets `offset` and `published_at` (Unix seconds) of what was appended. A publication whose `idempotency_key` was
        appended within the last five minutes is not appended again and not touched: its first offset is returned.

        Raises `errors.Unavailable` (code `broker_down`) within the broker's timeout when the engine is away. Then it is
        not known whether anything was appended; but nothing is acknowledged and lost.
        """

    async def read(self, after: int, limit: int, topics: Collection[str] = ()) -> Sequence[Publication]:
        """The publications after an offset, oldest first: for replays that start before the hub's window.

        At most `limit`, and about `MAX_READ_BYTES`; only an empty answer means that there are no more. `topics` are the
        patterns that the reader is interested in (none: all); it is no filter, but an engine that forgets some topics
        earlier than others asks it before it raises.

        Raises `Forgotten` when something after the offset was trimmed, `errors.Unavailable` when the engine is away.
        """

    async def reach(self, offset: int) -> bool:  # noqa: ARG002
        """Return True when `sink` was told of everything up to this offset, or False if the log does not go so far.

        Another process may have delivered what this one has not got yet; its client comes here with that id. (There
        need be no event at it: a process that starts behind something that is none gives that place.) So False needs
        an answer of the engine that was asked for after this call; and it is returned when `sink` was told of all that
        the log held then: nothing that the client may have had already comes to it as a live event. A broker that has
        one process only has nothing to wait for. Raises `errors.Unavailable` when the engine is away.
        """
        return False

    def keep(self, history: HistorySettings) -> None:  # noqa: ARG002
        """The history settings were changed. Engines with a retention of their own may do without."""
        return

    async def close(self) -> None:
        """Stop delivering and let go of everything. What `append` has taken is answered first."""


# By scheme: the module and the class, whose `from_url(url, timeout_seconds=...)` makes the broker, and the extra of the
# package that brings what it needs.
_ENGINES: dict[str, tuple[str, str, str | None]] = {
    "memory": ("memory", "MemoryBroker", None),
    "sqlite": ("sqlite.broker", "SqliteBroker", None),
    "nats": ("nats.broker", "NatsBroker", "nats"),
    "nats+tls": ("nats.broker", "NatsBroker", "nats"),
    "tls": ("nats.broker", "NatsBroker", "nats"),
    "redis": ("redis.broker", "RedisBroker", "redis"),
    "rediss": ("redis.broker", "RedisBroker", "redis"),
    "redis+sentinel": ("redis.broker", "RedisBroker", "redis"),
    "amqp": ("rabbitmq.broker", "RabbitmqBroker", "rabbitmq"),
    "amqps": ("rabbitmq.broker", "RabbitmqBroker", "rabbitmq"),
}


def open_broker(url: str, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> Broker:
    """The broker for a URL, not opened yet. Raises `ConfigError` for a scheme that there is no broker for, for a URL
    that the broker cannot use, and when its library is not installed."""
    scheme = url.partition(":")[0]
    if scheme not in _ENGINES:
        raise ConfigError([f"broker.url: got the scheme {scheme!r}, expected one of {', '.join(_ENGINES)}"])
    module, name, extra = _ENGINES[scheme]
    try:
        engine = getattr(import_module(f"qgstream.brokers.{module}"), name)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").startswith("qgstream"):
            raise
        hint = f"{scheme} needs a library that is not installed ({error.name}): pip install 'qgstream[{extra}]'"
        raise ConfigError([f"broker.url: {hint}"]) from error
    return cast(Broker, engine.from_url(url, timeout_seconds=timeout_seconds))
