"""The hub: publishes events, starts streams with their replays, and knows the open streams. One in each process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from random import Random
from types import MappingProxyType
from typing import cast

from tornado.iostream import IOStream

from qgstream.brokers.base import Broker, Sink
from qgstream.brokers.memory import MemoryBroker
from qgstream.delivery.connection import Connection, ConnectionOwner, tune_socket
from qgstream.delivery.dispatch import LOOKS_AT_ONCE, Dispatch
from qgstream.delivery.fanout import Fanout
from qgstream.delivery.ingest import Ingest
from qgstream.delivery.registry import Registry
from qgstream.delivery.router import Router
from qgstream.delivery.slices import Slices
from qgstream.delivery.subscriber import Subscriber
from qgstream.delivery.websocket import WebSocketConnection
from qgstream.events.draft import draft
from qgstream.events.history import HistorySettings, Window
from qgstream.events.publication import Position, Publication
from qgstream.events.subscription import Subscription
from qgstream.events.topic_rates import NOW_STEP_SECONDS, TopicRates
from qgstream.limits import RETRY_JITTER, LimitSettings, jittered
from qgstream.logs import LogThrottle, excerpt, log
from qgstream.metrics import Live, Metrics
from qgstream.net.body_budget import BodyBudget
from qgstream.reasons import REPLAY_RESULTS, CloseReason, ReplayResult, ResetReason
from qgstream.replay.resume import StreamStart, decide_start
from qgstream.replay.runner import ReplayRunner
from qgstream.talkers import Asker, Talkers, data_bytes
from qgstream.wire import messages
from qgstream.wire.framing import Framing

# The hub closes a connection that has not taken its closing message within this time.
CLOSING_SECONDS = 5.0
_NOT_STARTED = "the hub is not started: await hub.start() first"
# The log fields of each result. They are the fields of `connected`, and with `reset` comes its reason.
_REPLAY_FIELDS: Mapping[ReplayResult, Mapping[str, str]] = {
    result: {"replay": result} if result in ("none", "complete") else {"replay": "reset", "reason": result}
    for result in REPLAY_RESULTS
}
_NOTHING: Mapping[str, object] = MappingProxyType({})
# Closing reasons after which the server would refuse or close the same client again at once: `retry` is longer.
_RECONNECT_LATER: frozenset[CloseReason] = frozenset({"access_changed", "kicked", "slow_consumer"})


@dataclass(frozen=True, slots=True)
class Receipt:
    """The response to a publish through a hub.

    Attributes:
        ids: The positions of the events in the log, in their order.
        subscribers: The number of streams of this process that get at least one of the events.
        repeated: How many of the ids belong to earlier events with the same idempotency key.

    Example::

        import qgstream

        hub = qgstream.Hub()
        await hub.start()
        receipt = await hub.publish("orders", {"order": 7})
        print(receipt.id, receipt.subscribers)
        await hub.stop()
    """

    ids: tuple[str, ...]
    subscribers: int
    repeated: int = 0

    @property
    def id(self) -> str:
        """The id of the only event, or of the last one."""
        return self.ids[-1]


class Hub(ConnectionOwner, Sink):
    """Reads the log of a broker into the history of this process, and delivers it to the streams of this process.

    Everything runs on the event loop of the thread that calls `start`.

    Args:
        broker: The broker (see `open_broker`); by default the memory of this process.
        limits: The limits of this process.
        history: How many events this process keeps for clients that reconnect.
        metrics: The metrics of the hub; by default new ones on a registry of their own.
        slices: Runs long work in short slices, so that the event loop stays free. For tests.

    Attributes:
        broker: The broker.
        limits: The limits in effect; `reload` changes them.
        metrics: The metrics of the hub.

    Example::

        import qgstream

        hub = qgstream.Hub()
        await hub.start()
        await hub.publish("orders", {"order": 7}, event="created")
        await hub.stop()
    """

    def __init__(
        self,
        *,
        broker: Broker | None = None,
        limits: LimitSettings | None = None,
        history: HistorySettings | None = None,
        metrics: Metrics | None = None,
        slices: Slices | None = None,
    ) -> None:
        self.broker = broker or MemoryBroker()
        self.limits = limits or LimitSettings()
        self.metrics = metrics or Metrics()
        self.slices = Slices() if slices is None else slices  # an idle `Slices` is empty, and so false
        self.registry = Registry()
        self.router = Router()
        self.bodies = BodyBudget()  # of publishes over HTTP
        self.rates = TopicRates(time.monotonic())
        self.rates_now = TopicRates(time.monotonic(), step_seconds=NOW_STEP_SECONDS)  # of the last two seconds
        self.talkers = Talkers()
        self.random = Random()
        self.draining = False
        self.is_cutting = False  # the drain is over, and closes the remaining streams without a closing message
        self.needs_broker = False  # whether to refuse new streams while the broker is away
        self.maintenance = False  # no streams until the maintenance ends (see `maintenance.Maintenance`)
        # Connections with a closing message under way, and the deadline of each, earliest first.
        self._closing: OrderedDict[Connection, float] = OrderedDict()
        self._is_sweeping = False
        self.on_open: list[Callable[[Connection], None]] = []
        self.on_close: list[Callable[[Connection], None]] = []
        self._history = history or HistorySettings()
        self._window: Window | None = None
        self._failures = LogThrottle()
        self._fanout = Fanout(self.slices, self.metrics, lambda: self.limits, self._drop_slow, self._drop_failed)
        self._dispatch = Dispatch(self.router, self._fanout, self.slices)
        self._ingest = Ingest(self.slices, self._take, self._dispatch.fail, self._forgetting)
        self._replay_runner = ReplayRunner(
            self.broker, self.slices, self.metrics, in_turn=self._dispatch.call, fell_behind=self._drop_slow
        )
        self.metrics.watch(self.live)
        self.metrics.gauges.watch_limits(lambda: self.limits, lambda: self._history)
        self.metrics.gauges.watch_certificate("broker", lambda: self.broker.certificate_expires_at)

    # Start, stop and reload.

    async def start(self) -> None:
        """Open the broker and start to deliver its events.

        Raises:
            OSError: The hub cannot reach the broker, or cannot use its log.
            Unavailable: The broker's engine is away.
        """
        if self._window is None:
            opened = await self.broker.open(self, self._history)
            self._begin(Position(opened.position.epoch, opened.forgotten), opened.earlier)
            self.window.preload(
                opened.recent, opened.position.offset, opened.forgotten_of, now=time.monotonic(), unix_now=time.time()
            )

    def _begin(self, position: Position, earlier: Mapping[str, int] | None = None) -> None:
        if earlier is None and self._window is not None and self._window.epoch == position.epoch:
            earlier = self._window.earlier
        self._window = Window(self._history, position, earlier)
        self._replay_runner.read(self._window)

    async def stop(self) -> None:
        """Close every stream and the broker at once. To close the streams slowly, call `Service.drain` first."""
        for connection in self.registry:
            connection.close("drain")
        await self._replay_runner.close()
        await self.broker.close()

    def reload(self, *, limits: LimitSettings, history: HistorySettings) -> None:
        """Apply new limits and history settings from now on. No stream is closed because of them.

        Args:
            limits: The new limits.
            history: The new history settings.
        """
        self.limits = limits
        self._history = history
        self.broker.keep(history)
        if self._window is not None:
            self.slices.begin(self._change(self._window, history), LOOKS_AT_ONCE)

    def _change(self, window: Window, history: HistorySettings) -> Iterator[None]:
        yield from window.change(history)
        yield from window.forgetting(time.monotonic())

    def _forgetting(self) -> Iterator[None]:
        return self.window.forgetting(time.monotonic())

    def forget(self) -> None:
        """Drop events that are too old, and sort the topics of new events. A timer calls this."""
        self.slices.begin(chain(self._forgetting(), self.window.sorting()), LOOKS_AT_ONCE)

    @property
    def is_started(self) -> bool:
        """Whether the log is open, so that there is a window."""
        return self._window is not None

    @property
    def window(self) -> Window:
        """The newest part of the log, in memory."""
        if self._window is None:
            raise RuntimeError(_NOT_STARTED)
        return self._window

    @property
    def live_position(self) -> Position | None:
        """The position of a subscriber that has all of its feed. None while the feeds are behind the log."""
        return self.window.position if self._dispatch.is_idle else None

    # Publishing.

    async def publish(
        self,
        topic: str | Iterable[str],
        data: object,
        *,
        event: str | None = None,
        retry_ms: int | None = None,
        private: bool = False,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Publish one event. The call returns as soon as the event is in the log.

        Args:
            topic: The topic, or a list of topics. A subscriber of several of them gets the event once.
            data: A string, which the hub sends unchanged, or any value that JSON can hold.
            event: The type of the event.
            retry_ms: The new reconnection delay of browsers that get the event, in milliseconds.
            private: Whether only streams whose credentials grant the topic get the event.
            idempotency_key: A name for the event. The hub publishes one event for a key within five minutes.

        Returns:
            The id of the event, and the number of streams that get it.

        Raises:
            InvalidField: The value of a field is not valid.
            TooLarge: The data is larger than `limits.max_event_bytes`, or larger than the broker accepts.
            Unavailable: The broker is away.
        """
        publication = draft(
            topic, data, event=event, retry_ms=retry_ms, private=private, idempotency_key=idempotency_key,
            max_event_bytes=self.limits.max_event_bytes,
        )  # fmt: skip
        receipt = await self.publish_all([publication])
        fresh = 1 - receipt.repeated
        self.talkers.brought("application", "hub.publish", fresh, data_bytes([publication.data]), time.monotonic())
        return receipt

    async def publish_all(self, publications: Sequence[Publication]) -> Receipt:
        """Publish a batch: all of its events in their order, or none of them.

        The events are next to each other in the log, unless the broker's engine cannot guarantee that.

        Args:
            publications: The events. The hub does not check them again.

        Returns:
            The ids of the events, and the number of streams that get at least one of them.

        Raises:
            TooLarge: An event is larger than the broker accepts.
            Unavailable: The broker is away.
        """
        if self._window is None:
            raise RuntimeError(_NOT_STARTED)  # the broker is not open either, and its error would say that it is away
        await self.room()
        offsets = await self.broker.append(publications)
        await self._ingest.done()  # the publisher may resume from the id at once
        # A repeated event keeps the offset of the earlier event with the same idempotency key. The hub does not deliver
        # a repeated event again.
        fresh = [p for p, offset in zip(publications, offsets, strict=True) if p.offset == offset]
        self.metrics.published(len(fresh))
        epoch = self.window.epoch
        subscribers = await self._dispatch.audience(fresh)
        repeated = len(offsets) - len(fresh)
        return Receipt(tuple([f"{epoch}-{offset}" for offset in offsets]), subscribers, repeated)

    async def room(self) -> None:
        """Wait while this process has more than `max_total_backlog_bytes` of appended events to deliver.

        Publishers slow down to the rate at which this process can send, and do not slow down other streams. A broker
        also waits for this before it delivers more events of other processes.
        """
        await self._fanout.room()
        await self._ingest.done()
        while self._dispatch.queued_bytes > self.limits.max_total_backlog_bytes:
            await self._dispatch.done()

    # The methods of `Sink`, which the broker calls.

    def deliver(self, publications: Sequence[Publication]) -> None:
        """Take new publications of the log into the window, and deliver them to the streams."""
        self._ingest.add(publications)

    def _take(self, publications: Sequence[Publication]) -> None:
        try:
            self._take_all(publications)
        except Exception:
            # An error in the server. The window may lack some publications, and the hub does not know which stream got
            # which of them. So a new window starts after them, and every stream gets a `reset`.
            if self._failures.is_due():
                log.exception("hub.deliver_failed")
            position = Position(self.window.epoch, publications[-1].offset)
            log.warning("broker.lost", extra={"reason": "too_old", "id": str(position)})
            self._begin_anew(position, "too_old")

    def _take_all(self, publications: Sequence[Publication]) -> None:
        window, now = self.window, time.monotonic()
        for publication in publications:
            window.append(publication, now)
            self.rates.count(publication.topics, now)
            self.rates_now.count(publication.topics, now)
        self._dispatch.deliver(publications, window.epoch)

    def lost(self, position: Position, reason: ResetReason) -> None:
        """Start a new window, and send every stream a `reset`: a part of the log was lost before it arrived here."""
        log.warning("broker.lost", extra={"reason": reason, "id": str(position)})
        self._ingest.call(lambda: self._begin_anew(position, reason))

    def _begin_anew(self, position: Position, reason: ResetReason) -> None:
        self._begin(position)
        message = messages.reset(time.time(), id=str(position), reason=reason)
        self._dispatch.tell(message)
        for connection in self.registry:
            if connection.replay is not None:
                self._replay_runner.restart(connection, connection.feed.subscription.framing.frame(message))

    # Subscribing. Call `open` and `adopt` in the same turn of the loop, so that the result of `open` is still valid.

    def is_outside_window(self, subscription: Subscription, last_event_id: str | None) -> bool:
        """Whether only the broker can decide if this id can be resumed. Then call `look_up` before `open`."""
        if not last_event_id:
            return False
        self.window.forget_some(time.monotonic())
        if last_event_id == "earliest" or self._is_ahead(last_event_id):
            return True
        return self.window.resume(last_event_id, subscription.patterns) == "too_old"

    def _is_ahead(self, last_event_id: str) -> bool:
        position, window = Position.parse(last_event_id), self.window
        return position is not None and position.epoch == window.epoch and position.offset > window.newest

    async def look_up(self, subscription: Subscription, last_event_id: str) -> Position | ResetReason | None:
        """Find where a stream starts if the window alone cannot decide that; see `is_outside_window`.

        Args:
            subscription: What the stream asked for.
            last_event_id: The id of the client.

        Returns:
            The position to start at (see `ReplayRunner.look_back`). None: the window can decide, for example because it
            has caught up with the process that gave the id. `unknown_id`: the log does not have this id. That result
            stays valid even if the log grows past the id before `open` is called.

        Raises:
            Unavailable: The broker cannot be reached.
        """
        if self._is_ahead(last_event_id):
            offset = int(last_event_id.rpartition("-")[2])
            reached = await self.broker.reach(offset)
            await self._ingest.done()
            if not reached:
                return "unknown_id"
            if self._is_ahead(last_event_id):
                self.window.newest = offset  # there are no events in between
        return await self._replay_runner.look_back(subscription, last_event_id)

    def open(
        self,
        subscription: Subscription,
        last_event_id: str | None,
        *,
        latest: bool = False,
        older: Position | ResetReason | None = None,
        ignored: Collection[str] = (),
    ) -> StreamStart:
        """Decide how a stream starts; see `decide_start`. `older` is the result of `look_up`."""
        self.window.forget_some(time.monotonic())
        return decide_start(
            self.window, subscription, last_event_id, latest=latest, older=older, ignored=ignored, now=time.time(),
            retry_ms=int(jittered(self.limits.retry_seconds, self.random, RETRY_JITTER) * 1000),
        )  # fmt: skip

    def adopt(
        self, stream: IOStream, subscription: Subscription, start: StreamStart, *, ip: str, client_key: str,
        user_agent: str, asker: Asker | None = None, said: Mapping[str, object] = _NOTHING,
    ) -> Connection:  # fmt: skip
        """Take over a detached stream whose headers and first messages are written.

        Args:
            stream: The stream, detached from its HTTP connection.
            subscription: What the stream asked for.
            start: The result of `open`.
            ip: The address of the client.
            client_key: The address or network that the limits count by (see `addresses.client_key`).
            user_agent: The `User-Agent` of the client.
            asker: The credentials of the client.
            said: More fields for the log line `events.connected`.

        Returns:
            The connection, which is registered.
        """
        tune_socket(stream, self.limits)
        kind = WebSocketConnection if subscription.framing is Framing.WEBSOCKET else Connection
        connection = kind(
            self, stream, self.router.feed(subscription), id=self.registry.next_id(), ip=ip, client_key=client_key,
            user_agent=user_agent, opened_at=time.time(),
        )  # fmt: skip
        if asker is not None:
            connection.named = asker.user or asker.key
            self.talkers.opened(asker, time.monotonic())
        self.registry.add(connection)
        self.metrics.opened(connection.transport)
        self.metrics.resumed(start.result)
        topics = excerpt(subscription.patterns)
        more = len(subscription.patterns) - len(topics)
        log.info(
            "events.connected",
            extra={
                "connection": connection.id, "remote_ip": ip, **(asker.fields if asker is not None else {}),
                "topics": topics,
                **({"more_topics": more} if more else {}),
                **_REPLAY_FIELDS[start.result], "user_agent": user_agent, "transport": connection.transport, **said,
            },
        )  # fmt: skip
        if start.replay_from is not None:
            self._replay_runner.start(connection, start, start.replay_from)
        elif not self._dispatch.is_idle:
            self._replay_runner.start(connection, start, self.window.newest)  # an empty replay, which joins in turn
        else:
            connection.join()
            if stream.writing():
                connection.park(connection.cursor, b"")
        for opened in self.on_open:
            opened(connection)
        return connection

    # The methods of `ConnectionOwner`, which connections call.

    def has_room(self, connection: Connection) -> None:
        """Go on with the replay or the feed: the socket has room again."""
        if connection.replay is not None:
            self._replay_runner.has_room(connection)
        else:
            self._fanout.has_room(connection)

    def leaving(self, connection: Connection) -> None:
        """Set the deadline of a closing message, and free the chunks that only this stream waited for."""
        self._closing[connection] = time.monotonic() + CLOSING_SECONDS
        self._fanout.settle(connection.feed)

    def closed(self, connection: Connection) -> None:
        """Release everything that an ended stream held, and log its reason."""
        self.registry.remove(connection)
        self._closing.pop(connection, None)
        self._fanout.settle(connection.feed)
        self.router.release(connection.feed)
        if connection.replay is not None:
            self.metrics.delivered(connection.events_sent, connection.bytes_sent)  # the part that was sent
            self._replay_runner.ended(connection)
        age = max(0.0, time.time() - connection.opened_at)
        reason = connection.reason or "server_error"
        self.metrics.closed(reason, age)
        code = {} if connection.close_code is None else {"close_code": int(connection.close_code)}
        log.info(
            "events.disconnected",
            extra={
                "connection": connection.id, "remote_ip": connection.ip, "reason": reason, **code,
                **({"cut": True} if self.is_cutting else {}),
                "seconds": round(age, 3), "events": connection.events_sent, "bytes": connection.bytes_sent,
            },
        )  # fmt: skip
        for closed in self.on_close:
            closed(connection)

    # Ending.

    def end(self, connection: Connection, reason: CloseReason, *, retry_ms: int | None = None) -> None:
        """Send a closing message with a reason and a `retry`, then close the connection."""
        if not connection.is_open or connection.reason is not None:
            return
        if retry_ms is None:
            retry_ms = self.retry_ms(later=reason in _RECONNECT_LATER)
        self._fanout.flush(connection)
        if self.registry.get(connection.id) is None:
            return  # the flush found that the peer is gone
        framing = connection.feed.subscription.framing
        message = messages.closing(time.time(), reason=reason, retry_ms=retry_ms)
        connection.end(reason, framing.frame(message) + framing.end(reason))

    def check_slow(self) -> None:
        """Close the slow consumers. A timer calls this, because a stalled reader causes no socket event."""
        self._fanout.check_slow()

    def sweep(self) -> None:
        """Close connections that did not take their closing message in time. A timer calls this."""
        # All connections get the same time, so the first one has the earliest deadline.
        if self._closing and next(iter(self._closing.values())) <= time.monotonic() and not self._is_sweeping:
            self._is_sweeping = True
            self.slices.add(self._sweep())

    def _sweep(self) -> Iterator[None]:
        try:
            now = time.monotonic()
            for connection, deadline in list(self._closing.items()):
                if deadline > now:
                    break
                if connection in self._closing:
                    connection.close("client")  # the reason of the closing message stays
                    yield
        finally:
            self._is_sweeping = False

    def _drop_slow(self, subscriber: Subscriber) -> None:
        self.end(cast(Connection, subscriber), "slow_consumer")

    def _drop_failed(self, subscriber: Subscriber) -> None:
        cast(Connection, subscriber).close("server_error")  # no closing message: part of an event may be out

    def retry_ms(self, *, later: bool = False) -> int:
        """Return a jittered `retry`, in milliseconds. With `later`, the client should not reconnect soon."""
        seconds = self.limits.overload_retry_seconds if later else self.limits.retry_seconds
        return int(jittered(seconds, self.random) * 1000)

    def live(self) -> Live:
        """Return the current values, for a scrape of the metrics."""
        backlogs = [subscriber.backlog_bytes for subscriber in self._fanout.slow]
        return Live(
            connections=len(self.registry),
            connections_limit=self.limits.max_connections,
            topics=len(self.router),
            backlog_bytes_total=sum(backlogs),
            backlog_bytes_max=max(backlogs, default=0),
            inflight_body_bytes=self.bodies.held_bytes,
            inflight_bodies_refused=self.bodies.refused,
            history_events=len(self._window) if self._window is not None else 0,
            history_bytes=self._window.size_bytes if self._window is not None else 0,
            broker_up=self.broker.is_up,
            broker_skipped=self.broker.skipped,
            draining=self.draining,
            maintenance=self.maintenance,
        )
