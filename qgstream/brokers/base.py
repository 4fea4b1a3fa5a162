"""The broker contract: an ordered log of publications, each with its position."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import NamedTuple, Protocol, cast

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


class Selection(NamedTuple):
    """All that the log holds of some topics behind an offset, up to the offset `end`, which may lie behind the last of
    the publications. `end` is None when the log goes no further."""

    publications: Sequence[Publication]
    end: int | None


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
    """Owns the log: what a broker of your own must do. `Hub(broker=...)` takes one.

    There is one total order for all topics. Offsets only grow, from 0 to at most 19 digits; gaps are allowed.

    Example::

        import qgstream

        def is_ready(broker: qgstream.Broker) -> bool:
            return broker.is_up
    """

    @property
    def is_up(self) -> bool:
        """Whether the broker can take publications now."""

    @property
    def skipped(self) -> int:
        """How many entries of the log could not be read and were left out, since the start of this process. An entry
        counts each time that it is met: by the tail, at the start, and in replays.
        """
        return 0

    @property
    def certificate_expires_at(self) -> float | None:
        """When the certificate that this broker shows its engine expires, in Unix seconds; None without one."""
        return None

    @property
    def is_shared(self) -> bool:
        """Whether other processes can follow the same log, and so can take the clients of a process that leaves."""
        return True

    async def open(self, sink: Sink, history: HistorySettings) -> Opened:
        """Start to deliver: from the first publication after `Opened.position` on, `sink` is told of each; never
        before this call has returned.

        Args:
            sink: Who is told.
            history: What the hub keeps.

        Returns:
            Where the log is, and the newest part of it.

        Raises:
            OSError: The engine cannot be reached, or the log cannot be used.
            Unavailable: The same, from an engine that says so.
        """

    async def check(self) -> None:
        """Find out whether `open` would succeed, and let go of everything. For a broker that is not open. An engine
        makes its log here, as it does in `open`.

        Raises:
            OSError: The engine cannot be reached, or the log cannot be used.
            Unavailable: The same, from an engine that says so.
        """
        return

    async def append(self, publications: Sequence[Publication]) -> Sequence[int]:
        """Append all of the publications or none (an engine that cannot promise this says so). The call returns when
        they are safe and `sink` was told of them, so that a publisher is answered after its own event has come
        back.

        It sets `offset` and `published_at` of what it appends. A publication whose `idempotency_key` was appended
        within the last five minutes is not appended again and not changed: its first offset is returned.

        Args:
            publications: What to append.

        Returns:
            The offset of each.

        Raises:
            Unavailable: The engine is away (code `broker_down`), within the broker's timeout. Then nobody knows whether
                anything was appended; but nothing is acknowledged and lost.
        """

    async def read(self, after: int, limit: int, topics: Collection[str] = ()) -> Sequence[Publication]:
        """The publications after an offset, oldest first: for replays that begin before the history of the hub.

        Args:
            after: The offset.
            limit: At most so many publications, and about `MAX_READ_BYTES`. Only an empty answer means that there are
                no more.
            topics: The patterns that the reader is interested in; none is all. It is no filter, but an engine that
                forgets some topics earlier than others looks at it before it raises.

        Returns:
            The publications.

        Raises:
            Forgotten: The log has lost something after the offset.
            Unavailable: The engine is away.
        """

    @property
    def selects(self) -> bool:
        """Whether `select` finds the events of some topics without a look at all others."""
        return False

    async def select(self, after: int, limit: int, topics: Collection[str]) -> Selection | None:  # noqa: ARG002
        """The publications after an offset that these patterns cover, oldest first, for replays as `read` is; None
        where `read` is the better way, as it is where the patterns cover most of the log. Raises what `read` raises."""
        return None

    async def reach(self, offset: int) -> bool:  # noqa: ARG002
        """Wait until `sink` was told of everything up to an offset.

        Another process may have delivered what this one has not got yet, and its client comes here with that id. (There
        need be no event at the offset: a process that starts behind something that is none gives that place.) So False
        needs an answer of the engine that was asked for after this call; and False is returned when `sink` was told of
        all that the log held then, so that nothing that the client may have had already comes to it as a live event. A
        broker of one process has nothing to wait for.

        Args:
            offset: The offset.

        Returns:
            True when `sink` was told of everything up to the offset; False if the log does not go so far.

        Raises:
            Unavailable: The engine is away.
        """
        return False

    def keep(self, history: HistorySettings) -> None:  # noqa: ARG002
        """Take new history settings. An engine with a retention of its own may ignore them.

        Args:
            history: The new settings.
        """
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
    """Make the broker for a URL. `Hub.start` opens it.

    Args:
        url: The URL of `broker.url`, such as `memory://` or `sqlite:///var/lib/qgstream/log.db`.
        timeout_seconds: How long an engine may take to answer.

    Returns:
        The broker.

    Raises:
        ConfigError: There is no broker for the scheme, the broker cannot use the URL, or its library is not installed.

    Example::

        import qgstream

        hub = qgstream.Hub(broker=qgstream.open_broker("sqlite:///var/lib/qgstream/events.db"))
        await hub.start()
        await hub.publish("orders", {"order": 7})
        await hub.stop()
    """
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
