"""Heartbeats: one timer for all streams, a few streams at each tick."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

from pydantic import Field

from qgstream.delivery.connection import Connection
from qgstream.delivery.fanout import SENDS_PER_LOOK
from qgstream.delivery.subscriber import PARKED
from qgstream.hub import Hub
from qgstream.logs import LogThrottle, log
from qgstream.net.timer import Timer
from qgstream.reasons import CloseReason
from qgstream.settings import Section
from qgstream.wire import messages, sse
from qgstream.wire.framing import Framing

TICK_SECONDS = 0.05
# At most one minute: after a process was stopped for hours, it counts only this many missed ticks.
_MAX_MISSED = 1200


class HeartbeatSettings(Section):
    """`[heartbeat]`: heartbeats keep quiet streams open through proxies, and positions within the history.

    Heartbeats keep proxies from cutting quiet streams.

    Example::

        import qgstream

        heartbeat = qgstream.HeartbeatSettings(interval_seconds=15, format="comment")
        service = qgstream.Service(qgstream.Hub(), heartbeat=heartbeat)
    """

    interval_seconds: float = Field(5, gt=0, le=3600, description="Time between two heartbeats of one stream.")
    format: Literal["data", "comment"] = Field(
        "data",
        description="'data' is a message that onmessage gets; 'comment' fires no event, and also moves the position.",
    )


class Wheel:
    """A timer wheel of slots. A stream is in the slot of the tick at which it opened, so heartbeats are spread over
    time.

    The ticks are synchronous: an async callback that awaited each flush would stop for all streams when one client
    stalls. The same ticks end streams at their deadline, close streams whose closing message stalls, and measure the
    lag of the event loop.
    """

    def __init__(self, hub: Hub, settings: HeartbeatSettings) -> None:
        self._hub = hub
        self._tick = 0
        self._slots: dict[int, dict[Connection, None]] = {}
        # Heaps of (time, connection id, reason). A maximum age uses the monotonic clock, so a step of the wall clock
        # does not end all streams or none. The expiry of a token is a date, and uses the wall clock.
        self._ages: list[tuple[float, int, CloseReason]] = []
        self._dates: list[tuple[float, int, CloseReason]] = []
        self._callback = Timer(self.tick, TICK_SECONDS)
        self._failures = LogThrottle()
        self._settings = settings
        hub.on_open.append(self.add)
        hub.on_close.append(self.remove)

    def start(self) -> None:
        """Start the timer on the running loop."""
        self._callback.start()

    def stop(self) -> None:
        """Stop the timer."""
        self._callback.stop()

    @property
    def settings(self) -> HeartbeatSettings:
        """The interval and format in effect."""
        return self._settings

    @settings.setter
    def settings(self, settings: HeartbeatSettings) -> None:
        changed = settings.interval_seconds != self._settings.interval_seconds
        self._settings = settings
        if changed:
            connections = [connection for slot in self._slots.values() for connection in slot]
            self._slots.clear()
            for number, connection in enumerate(connections):
                self._put(connection, number % self._size)  # spread again over the new slots

    @property
    def _size(self) -> int:
        return max(1, round(self._settings.interval_seconds / TICK_SECONDS))

    def add(self, connection: Connection) -> None:
        """Add an open stream: its first heartbeat is due one interval from now."""
        self._put(connection, self._tick % self._size)
        age = self._hub.limits.max_connection_age_seconds
        if age:
            jitter = 1 + 0.2 * (2 * self._hub.random.random() - 1)
            self._end_at(self._ages, time.monotonic() + age * jitter, connection, "max_age")

    def _put(self, connection: Connection, slot: int) -> None:
        connection.slot = slot
        self._slots.setdefault(slot, {})[connection] = None

    def remove(self, connection: Connection) -> None:
        """Remove a stream that has ended."""
        slot = self._slots.get(connection.slot)
        if slot is not None:
            slot.pop(connection, None)
            if not slot:
                del self._slots[connection.slot]

    def end_at(self, connection: Connection, at: float, reason: CloseReason) -> None:
        """End the stream at the time `at` (Unix seconds), unless it has ended by then."""
        self._end_at(self._dates, at, connection, reason)

    def _end_at(
        self, deadlines: list[tuple[float, int, CloseReason]], at: float, connection: Connection, reason: CloseReason
    ) -> None:
        if len(deadlines) > 2 * len(self._hub.registry) + 1000:
            # Most entries belong to streams that ended long ago: a token may be valid for a year.
            deadlines[:] = [due for due in deadlines if self._hub.registry.get(due[1]) is not None]
            heapq.heapify(deadlines)
        heapq.heappush(deadlines, (at, connection.id, reason))

    def tick(self) -> None:
        """Run one tick. The timer calls this."""
        now = time.monotonic()
        missed = self._callback.missed
        self._measure(self._callback.late_seconds, missed)
        # Slots of missed ticks contain streams too. Without this, their next heartbeat would be one interval late.
        self._tick += 1 + missed
        for tick in range(self._tick - min(missed, self._size - 1), self._tick + 1):
            slot = self._slots.get(tick % self._size)
            if slot:
                self._hub.slices.add(self._beat(list(slot)))
        if self._ages and self._ages[0][0] <= now:
            self._hub.slices.add(self._end_due(self._ages, time.monotonic))
        if self._dates and self._dates[0][0] <= time.time():
            self._hub.slices.add(self._end_due(self._dates, time.time))
        self._hub.check_slow()
        self._hub.sweep()

    def _measure(self, late_seconds: float, missed: int) -> None:
        # Each tick that was due counts, also a missed one: work that arrived at that moment waited as long. Otherwise a
        # stall of one second would be a single sample among a hundred good ones ("coordinated omission").
        for number in range(min(missed, _MAX_MISSED) + 1):
            self._hub.metrics.loop_was_late(max(0.0, late_seconds - number * TICK_SECONDS))

    def _end_due(self, deadlines: list[tuple[float, int, CloseReason]], clock: Callable[[], float]) -> Iterator[None]:
        # In slices: a thousand tokens may expire in the same second.
        now = clock()
        while deadlines and deadlines[0][0] <= now:
            _, id, reason = heapq.heappop(deadlines)
            connection = self._hub.registry.get(id)
            if connection is not None:
                self._hub.end(connection, reason)
                yield

    def _beat(self, connections: list[Connection]) -> Iterator[None]:
        sent, position, frames = 0, self._hub.live_position, self._frames()
        for visit, connection in enumerate(connections, 1):
            if position != self._hub.live_position:
                # Frames are made again after each yield during which an event was published: an older id would move a
                # client back.
                position, frames = self._hub.live_position, self._frames()
            cursor, feed = connection.cursor, connection.feed
            if cursor != PARKED:  # a full socket needs no heartbeat: TCP_USER_TIMEOUT closes it if it is dead
                try:
                    sent += connection.say(frames[feed.subscription.framing, cursor == feed.end])
                except Exception as error:  # noqa: BLE001
                    self._fail(connection, error)
            elif connection.replay is not None and not connection.stream.writing():
                try:
                    connection.replay.beat(partial(self._frame, feed.subscription.framing))
                    sent += 1
                except Exception as error:  # noqa: BLE001
                    self._fail(connection, error)
            if not visit % SENDS_PER_LOOK:
                yield
        self._hub.metrics.heartbeats(sent)

    def _fail(self, connection: Connection, error: Exception) -> None:
        """Close a stream after an internal fault; the other streams still get their heartbeat."""
        if self._failures.is_due():
            log.error("heartbeat.failed", exc_info=error)
        connection.close("server_error")

    def _frame(self, framing: Framing, id: str | None) -> bytes:
        return _frame(framing, time.time(), id, comment=self._settings.format == "comment")

    def _frames(self) -> _Frames:
        position = self._hub.live_position
        id = None if position is None else str(position)
        return _Frames(time.time(), id, comment=self._settings.format == "comment")


class _Frames(dict[tuple[Framing, bool], bytes]):
    """Heartbeat frames by framing and by whether the client has caught up.

    Only a client that has caught up gets the position; any other client would skip the events that it still waits for.
    Each frame is made when the first stream needs it: most slots of the wheel contain one kind.
    """

    def __init__(self, now: float, id: str | None, *, comment: bool) -> None:
        super().__init__()
        self._now = now
        self._id = id
        self._comment = comment

    def __missing__(self, key: tuple[Framing, bool]) -> bytes:
        framing, caught_up = key
        frame = self[key] = _frame(framing, self._now, self._id if caught_up else None, comment=self._comment)
        return frame


def _frame(framing: Framing, now: float, id: str | None, *, comment: bool) -> bytes:
    # A WebSocket has no comments, and one onmessage for all messages.
    if comment and framing is not Framing.WEBSOCKET:
        return framing.wrap(sse.comment("heartbeat", id=id))
    return framing.frame(messages.heartbeat(now, id=id))
