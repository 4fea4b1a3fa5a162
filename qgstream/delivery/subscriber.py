"""A subscriber: a cursor into a feed, and how the cursor moves. A `Connection` is a subscriber with a socket."""

from __future__ import annotations

from collections.abc import Callable

from qgstream.delivery.feed import Feed

# The cursor of a subscriber that gets nothing from its feed now: its socket is full, it replays, or it is gone.
PARKED = -1


class Subscriber:
    """A reader of a feed.

    `send(data)` works like `socket.send`. It returns how many bytes it took, raises `BlockingIOError` if it can take
    none, and raises another `OSError` if the peer is gone. `write_rest` sends the rest of a chunk that `send` took in
    part, and then calls `unpark`. The feed serves a subscriber only while its `cursor` is not `PARKED`.
    """

    __slots__ = ("feed", "cursor", "parked_at", "rest_bytes", "send", "_events_before", "_bytes_before", "__weakref__")

    def __init__(self, feed: Feed[Subscriber], send: Callable[[bytes], int]) -> None:
        self.feed = feed
        self.send = send
        self.cursor = PARKED
        self.parked_at = 0
        self.rest_bytes = 0
        # The numbers of sent events and bytes are differences of cursors, so that a send need not count them.
        self._events_before = 0
        self._bytes_before = 0

    # The subclass with the socket implements these.

    def write_rest(self, rest: bytes | memoryview) -> None:
        """Send `rest` when the socket has room again, then call `unpark`."""
        raise NotImplementedError

    def fail(self, error: OSError) -> None:
        """Leave the feed: the peer is gone."""
        raise NotImplementedError

    # Joining and leaving.

    def join(self) -> None:
        """Go live at the end of the feed."""
        feed = self.feed
        feed.end_replay(self)
        feed.subscribers[self] = None
        self.cursor = feed.end
        self._events_before -= feed.end
        self._bytes_before -= feed.end_bytes

    def sent(self, events: int, bytes_: int) -> None:
        """Count events and bytes that a replay sent, and not the feed."""
        self._events_before += events
        self._bytes_before += bytes_

    def leave(self) -> None:
        """Leave the feed for good. The counts stay readable."""
        events, bytes_ = self.events_sent, self.bytes_sent
        self.feed.subscribers.pop(self, None)
        self.feed.unpark(self)
        self.feed.end_replay(self)
        self.cursor = PARKED
        self._events_before, self._bytes_before = events, bytes_

    @property
    def is_live(self) -> bool:
        """Whether the feed serves this subscriber, even if the socket is full at the moment."""
        return self in self.feed.subscribers

    # Moving.

    def stop_short(self, cursor: int, taken_bytes: int) -> None:
        """Park after the socket took only `taken_bytes` from `cursor` on. Keep the rest of one chunk."""
        after, rest = self.feed.split(cursor, taken_bytes)
        self.park(after, rest)

    def park(self, cursor: int, rest: bytes | memoryview) -> None:
        """Get nothing from the feed until `rest` is out; then continue at `cursor`."""
        self.cursor = PARKED
        self.parked_at = cursor
        self.rest_bytes = len(rest)
        self.feed.park(self)
        self.write_rest(rest)

    def unpark(self) -> None:
        """Continue where the subscriber was parked: the socket has room again."""
        self.feed.unpark(self)
        self.rest_bytes = 0
        self.cursor = self.parked_at

    def serve(self) -> tuple[int, int]:
        """Send everything that is new to this subscriber, until the socket is full. Return the events and bytes sent.

        This is the slow path, for a subscriber that was parked. The rounds of `Fanout` do the same for all subscribers.
        """
        feed, events, bytes_ = self.feed, 0, 0
        while PARKED != self.cursor < feed.end:
            start = self.cursor
            data, end = feed.join(start)
            try:
                taken = self.send(data)
            except BlockingIOError:
                taken = 0
            except OSError as error:
                self.fail(error)
                break
            bytes_ += taken
            if taken == len(data):
                self.cursor = end
                events += end - start
            else:
                self.stop_short(start, taken)
                events += self.parked_at - start
        return events, bytes_

    # For operators.

    @property
    def backlog_bytes(self) -> int:
        """The bytes that wait for this subscriber."""
        if self.cursor == PARKED:
            if self not in self.feed.parked:
                return self.rest_bytes
            return self.feed.end_bytes - self.feed.bytes_before(self.parked_at) + self.rest_bytes
        return self.feed.end_bytes - self.feed.bytes_before(self.cursor)

    @property
    def events_sent(self) -> int:
        """The events given to the socket, including replayed events."""
        return self._events_before + (self._at if self.is_live else 0)

    @property
    def bytes_sent(self) -> int:
        """The bytes of events given to the socket, including replayed events."""
        if not self.is_live:
            return self._bytes_before
        return self._bytes_before + self.feed.bytes_before(self._at) - self.rest_bytes

    @property
    def _at(self) -> int:
        return self.parked_at if self.cursor == PARKED else self.cursor
