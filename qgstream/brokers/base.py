"""The broker contract: an ordered log of publications, each with a position."""

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
# The size limit of one `read` (a single larger publication is allowed). A slow reader keeps such a page in memory.
MAX_READ_BYTES = 1024 * 1024
DEFAULT_TIMEOUT_SECONDS = 5.0


class Forgotten(Exception):
    """Part of the log after the requested offset was trimmed. `after` is the oldest offset from which a read can
    start."""

    def __init__(self, asked: int, after: int) -> None:
        super().__init__(f"got a read from offset {asked}, expected at least {after}: older entries were trimmed")
        self.after = after


@dataclass(frozen=True, slots=True)
class Opened:
    """The state of the log when a broker opened it.

    `position` is the position of the newest publication. `recent` holds the newest publications, oldest first, up to
    the bounds of the hub's window (`HistorySettings`; a few more are harmless). `recent` contains every publication
    after the offset `forgotten` that is still in the log. An engine with a shorter retention for some topics reports
    the last trimmed offset of each retention class in `forgotten_of`, by the pattern of its `TopicHistory`; "" is the
    class of all other topics. `earlier` maps earlier epochs of this log to the last offset of each epoch that is still
    valid.
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
    """The receiver of the log: the hub. Called only on the thread of the event loop."""

    def deliver(self, publications: Sequence[Publication]) -> None:
        """Take appended publications from any process, once, in the order of the log. Raises nothing."""

    def lost(self, position: Position, reason: ResetReason) -> None:
        """Continue at `position`; publications before it that were not delivered are lost.

        The reason is `too_old` (trimmed while the engine was away) or `epoch_changed` (another log). Every stream gets
        `reset`.
        """

    async def room(self) -> None:
        """Wait until `deliver` may be called again.

        A broker whose log other processes append to waits between two calls of `deliver`, so that publications do not
        pile up in this process.
        """
        return


class Broker(Protocol):
    """The interface of a broker, which stores the log. `Hub(broker=...)` accepts an implementation.

    All topics share one total order. Offsets only grow, from 0 to at most 19 digits; gaps are allowed.

    Example::

        import qgstream

        def is_ready(broker: qgstream.Broker) -> bool:
            return broker.is_up
    """

    @property
    def is_up(self) -> bool:
        """Whether the broker can accept publications now."""

    @property
    def skipped(self) -> int:
        """The number of unreadable log entries that were skipped since the start of this process.

        An entry counts each time it is read: by the tail, at the start, and in replays.
        """
        return 0

    @property
    def certificate_expires_at(self) -> float | None:
        """When the client certificate that this broker shows to its engine expires (Unix seconds); None without one."""
        return None

    @property
    def is_shared(self) -> bool:
        """Whether other processes can follow the same log, and so serve the clients of a process that is draining."""
        return True

    async def open(self, sink: Sink, history: HistorySettings) -> Opened:
        """Open the log. After this method has returned, `sink` receives every publication after `Opened.position`.

        Args:
            sink: The receiver of the publications.
            history: The settings of the hub's history.

        Returns:
            The position of the log, and its newest part.

        Raises:
            OSError: The engine cannot be reached, or the log cannot be used.
            Unavailable: The same, from an engine that says so.
        """

    async def check(self) -> None:
        """Check whether `open` would succeed, and release everything. Only for a broker that is not open.

        Like `open`, this method creates the log if there is none.

        Raises:
            OSError: The engine cannot be reached, or the log cannot be used.
            Unavailable: The same, from an engine that says so.
        """
        return

    async def append(self, publications: Sequence[Publication]) -> Sequence[int]:
        """Append all publications or none. (The documentation of an engine says if it cannot guarantee this.)

        The method returns after the publications are safe and `sink` has received them. So a publisher gets its
        response after its own events were delivered. The method sets `offset` and `published_at` of each appended
        publication. A publication whose `idempotency_key` was appended within the last five minutes is neither appended
        nor changed; the method returns its first offset.

        Args:
            publications: The publications to append.

        Returns:
            The offset of each.

        Raises:
            Unavailable: The engine is away (code `broker_down`). The error is raised within the broker's timeout. In
                this case it is unknown whether the publications were appended. An acknowledged publication is never
                lost.
        """

    async def read(self, after: int, limit: int, topics: Collection[str] = ()) -> Sequence[Publication]:
        """Return the publications after an offset, oldest first, for replays that start before the hub's window.

        Args:
            after: The offset.
            limit: The maximum number of publications; their size is at most about `MAX_READ_BYTES`. Only an empty
                result means that there are no more.
            topics: The patterns of the reader; an empty collection means all topics. `topics` is not a filter: an
                engine with several retention classes uses `topics` to decide whether to raise `Forgotten`.

        Returns:
            The publications.

        Raises:
            Forgotten: A publication after the offset was trimmed.
            Unavailable: The engine is away.
        """

    @property
    def selects(self) -> bool:
        """Whether `select` finds the events of some topics without a look at all others."""
        return False

    async def select(self, after: int, limit: int, topics: Collection[str]) -> Selection | None:  # noqa: ARG002
        """Read the publications of some topics after an offset, oldest first, for replays.

        Args:
            after: The offset.
            limit: Maximum number of publications.
            topics: The topic patterns that the publications must match.

        Returns:
            The publications, or None where `read` is faster, for instance when the patterns match most of the log.

        Raises:
            Forgotten: Some event after the offset was trimmed.
            Unavailable: The engine is away.
        """
        return None

    async def reach(self, offset: int) -> bool:  # noqa: ARG002
        """Wait until `sink` has received everything up to an offset.

        Another process may have delivered an event that this process has not received yet; the client then connects
        here with the id of that event. (The offset may also be a gap: a process that starts after a gap reports the
        position of the gap.) Two rules follow for False. The engine must have been asked after the call, and `sink`
        must first have received everything that the log held at that time. So no live event repeats an event that the
        client may already have. A broker with a single process has nothing to wait for.

        Args:
            offset: The offset.

        Returns:
            True when `sink` has received everything up to the offset; False if the log ends before the offset.

        Raises:
            Unavailable: The engine is away.
        """
        return False

    def keep(self, history: HistorySettings) -> None:  # noqa: ARG002
        """Apply new history settings. An engine with its own retention may ignore this call.

        Args:
            history: The new settings.
        """
        return

    async def close(self) -> None:
        """Stop delivering and release everything. Pending calls of `append` finish first."""


# For each scheme: the module, the class whose `from_url(url, timeout_seconds=...)` creates the broker, and the extra of
# the package that installs its library.
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
    """Create the broker for a URL without opening it; `Hub.start` opens the broker.

    Args:
        url: The URL of `broker.url`, such as `memory://` or `sqlite:///var/lib/qgstream/log.db`.
        timeout_seconds: The timeout of each query to an engine.

    Returns:
        The broker.

    Raises:
        ConfigError: The scheme is unknown, the broker cannot use the URL, or its library is not installed.

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
