"""Runs the replays of a hub, and fetches from the broker the events that the window does not have."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import cast

from qgstream.backoff import Backoff
from qgstream.brokers.base import Broker, Forgotten
from qgstream.delivery.connection import Connection
from qgstream.delivery.slices import Slices
from qgstream.delivery.subscriber import Subscriber
from qgstream.errors import Unavailable
from qgstream.events.history import Window
from qgstream.events.publication import Position
from qgstream.events.subscription import Subscription
from qgstream.logs import LogThrottle, log
from qgstream.metrics import Metrics
from qgstream.replay.log_reader import LogReader
from qgstream.replay.pages import ReplayPages
from qgstream.replay.replay import Replay
from qgstream.replay.resume import StreamStart

# The maximum size of fetched events that the replays have not sent yet, for all replays together. A stalled reader
# holds a page of 1 MiB, so a thousand of them would hold a gigabyte. Above this bound the runner frees the page that
# waits longest. The replay fetches this page again when its reader continues.
MAX_HELD_BYTES = 64 * 1024 * 1024


class ReplayRunner:
    """Runs each replay until its connection is live.

    `in_turn(callback)` calls back when the feeds have everything that the log has now (`Dispatch.call`).
    `fell_behind(subscriber)` closes a subscriber that reads more slowly than the broker trims its log.
    """

    def __init__(
        self,
        broker: Broker,
        slices: Slices,
        metrics: Metrics,
        *,
        in_turn: Callable[[Callable[[], None]], None],
        fell_behind: Callable[[Subscriber], None],
    ) -> None:
        self._log_reader = LogReader(broker)
        self._slices = slices
        self._metrics = metrics
        self._in_turn = in_turn
        self._fell_behind = fell_behind
        self._fetching: set[asyncio.Task[None]] = set()
        # The size of the last fetched page of each replay. The first entry is the oldest; its page may be sent already.
        self._holders: OrderedDict[Replay, int] = OrderedDict()
        self._held_bytes = 0
        self._failures = LogThrottle()

    def read(self, window: Window) -> None:
        """Let replays read this window from now on."""
        self._window = window
        self._pages = ReplayPages(window)

    async def close(self) -> None:
        """Cancel the fetches, and close the log reader."""
        for task in self._fetching:
            task.cancel()
        await asyncio.gather(*self._fetching, return_exceptions=True)
        await self._log_reader.close()

    async def look_back(self, subscription: Subscription, last_event_id: str) -> Position | None:
        """Find where a stream starts if its id is older than the window.

        Returns None if the broker has no older events than the window. Raises `errors.Unavailable` if the broker cannot
        be reached.
        """
        window, patterns = self._window, subscription.patterns
        limit = window.complete_after(patterns)
        position = window.locate(last_event_id) or Position(window.epoch, 0)
        while position < limit:
            try:
                await self._log_reader.after(position.offset, patterns, window)  # the replay will find it there
            except Forgotten as forgotten:
                if last_event_id != "earliest":
                    return None
                position = Position(window.epoch, max(forgotten.after, position.offset + 1))
            else:
                return position
        return None

    def start(self, connection: Connection, start: StreamStart, replay_from: int) -> None:
        """Start the replay of a new connection after the offset `replay_from`, as `start` says."""
        connection.replay = Replay(
            connection, self._window, self._pages, replay_from, state=start.latest, everything=start.everything,
            fetch=self._fetch, join=self._join,
        )  # fmt: skip
        self.go_on(connection)

    def go_on(self, connection: Connection) -> None:
        """Continue a replay that is not running, as soon as its socket has room."""
        replay = connection.replay
        if not connection.stream.writing():
            self._slices.add(self._guarded(connection, replay.run()))
        elif not replay.is_stalled:
            replay.is_stalled = True
            connection.write_rest(b"")  # calls back when the pending bytes are out

    def _guarded(self, connection: Connection, run: Iterator[None]) -> Iterator[None]:
        try:
            yield from run
        except Exception as error:  # noqa: BLE001
            self._fail(connection, error)

    def _fail(self, connection: Connection, error: Exception) -> None:
        """Close the connection after an error in the server. The client reconnects with its id."""
        if self._failures.is_due():
            log.error("replay.failed", exc_info=error)
        connection.close("server_error")

    def has_room(self, connection: Connection) -> None:
        """Continue a replay whose socket has room again."""
        connection.rest_bytes = 0
        replay = connection.replay
        replay.is_stalled = False
        if not replay.waits_for:  # otherwise the socket had a part of a heartbeat left
            self.go_on(connection)

    def restart(self, connection: Connection, message: bytes) -> None:
        """Continue a replay in the new window after `message`, because the old log is gone."""
        connection.replay.restart(self._window, self._pages, message)

    def _join(self, subscriber: Subscriber) -> None:
        connection = cast(Connection, subscriber)
        replay = connection.replay

        def join() -> None:
            if connection.replay is replay:  # the replay has not ended meanwhile
                connection.join()
                self._joined(connection, replay.events)

        self._in_turn(join)

    def ended(self, connection: Connection) -> None:
        """Release the replay of a connection that is live, or closed."""
        self._held_bytes -= self._holders.pop(connection.replay, 0)
        connection.replay = None

    def _joined(self, connection: Connection, events: int) -> None:
        self.ended(connection)
        self._metrics.replayed(events)
        self._metrics.delivered(connection.events_sent, connection.bytes_sent)

    def _fetch(self, subscriber: Subscriber) -> None:
        task = asyncio.get_running_loop().create_task(self._fetch_older(cast(Connection, subscriber)))
        self._fetching.add(task)
        task.add_done_callback(self._fetching.discard)

    async def _fetch_older(self, connection: Connection) -> None:
        """Fetch events from the broker for a replay, and continue the replay."""
        replay, window, backoff = connection.replay, self._window, Backoff()
        patterns = connection.feed.subscription.patterns
        if replay is None:
            return  # the client disconnected before this task started
        while connection.replay is replay and replay.window is window:
            newest = window.newest
            try:
                log_range = await self._log_reader.after(replay.offset, patterns, window)
            except Forgotten:  # the broker trims its log faster than this client reads
                self._fell_behind(connection)
                return
            except Unavailable:
                await asyncio.sleep(backoff.seconds())
                continue
            except Exception as error:  # noqa: BLE001
                self._fail(connection, error)
                return
            if connection.replay is replay and replay.window is window:
                # Leave events for later that the window does not have yet: no replay is ahead of its window.
                end = newest if log_range.end is None else min(log_range.end, window.newest)
                replay.take([p for p in log_range.publications if p.offset <= end], end)
                self._hold(replay, log_range.size_bytes)
            break
        if connection.replay is replay and connection.is_open:
            replay.waits_for = ""
            self.go_on(connection)

    def _hold(self, replay: Replay, size_bytes: int) -> None:
        self._held_bytes += size_bytes - self._holders.pop(replay, 0)
        self._holders[replay] = size_bytes
        while self._held_bytes > MAX_HELD_BYTES and len(self._holders) > 1:
            oldest, held_bytes = self._holders.popitem(last=False)
            self._held_bytes -= held_bytes
            oldest.let_go()
