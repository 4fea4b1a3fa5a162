"""A subscriber: a cursor into a feed, and how it moves. No socket; a `Connection` is the subscriber that has one."""

from __future__ import annotations

from collections.abc import Callable

from qgstream.delivery.feed import Feed

# The cursor of a subscriber that must not be offered anything now: its socket is full, it is replaying, or it has gone.
PARKED = -1


class Subscriber:
    """Who is served from a feed.

    `send(data)` returns how many bytes were taken and raises `BlockingIOError` for none, any other `OSError` when the
    peer is gone: a socket's own `send`. `write_rest` is given what a `send` left over of one chunk; it must call
    `unpark` when that is out. Live exactly when `cursor` is not `PARKED`.
    """

    __slots__ = ("feed", "cursor", "parked_at", "rest_bytes", "send", "_events_before", "_bytes_before", "__weakref__")

    def __init__(self, feed: Feed[Subscriber], send: Callable[[bytes], int]) -> None:
        self.feed = feed
        self.send = send
        self.cursor = PARKED
        self.parked_at = 0
        self.rest_bytes = 0
        # Events and bytes sent are differences of cursors: nothing is counted while serving.
        self._events_before = 0
        self._bytes_before = 0

    # To be provided by the one that has the socket.

    def write_rest(self, rest: bytes | memoryview) -> None:
        """Send `rest` when the socket has room again, then call `unpark`."""
        raise NotImplementedError

    def fail(self, error: OSError) -> None:
        """The peer is gone: leave the feed."""
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
        """Count what it was sent past its feed, by a replay."""
        self._events_before += events
        self._bytes_before += bytes_

    def leave(self) -> None:
        """Leave the feed for good; the counts stay readable."""
        events, bytes_ = self.events_sent, self.bytes_sent
        self.feed.subscribers.pop(self, None)
        self.feed.unpark(self)
        self.feed.end_replay(self)
        self.cursor = PARKED
        self._events_before, self._bytes_before = events, bytes_

    @property
    def is_live(self) -> bool:
        """Whether it is served from its feed, even if its socket is full just now."""
        return self in self.feed.subscribers

    # Moving.

    def stop_short(self, cursor: int, taken_bytes: int) -> None:
        """The socket took only `taken_bytes` of what starts at `cursor`: wait for it, holding on to one chunk."""
        after, rest = self.feed.split(cursor, taken_bytes)
        self.park(after, rest)

    def park(self, cursor: int, rest: bytes | memoryview) -> None:
        """Serve nothing from the feed until `rest` is out; then go on at `cursor`."""
        self.cursor = PARKED
        self.parked_at = cursor
        self.rest_bytes = len(rest)
        self.feed.park(self)
        self.write_rest(rest)

    def unpark(self) -> None:
        """The socket has room again: live from where it was parked."""
        self.feed.unpark(self)
        self.rest_bytes = 0
        self.cursor = self.parked_at

    def serve(self) -> tuple[int, int]:
        """Offer everything it has not got, until its socket is full. Returns the events and bytes that were taken.

        The slow path, for one that comes back from being parked; the hub's rounds do the same for all at once.
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

    # What an operator sees.

    @property
    def backlog_bytes(self) -> int:
        """How much is waiting for this subscriber."""
        if self.cursor == PARKED:
            if self not in self.feed.parked:
                return self.rest_bytes
            return self.feed.end_bytes - self.feed.bytes_before(self.parked_at) + self.rest_bytes
        return self.feed.end_bytes - self.feed.bytes_before(self.cursor)

    @property
    def events_sent(self) -> int:
        """Events handed to the socket, replayed ones included."""
        return self._events_before + (self._at if self.is_live else 0)

    @property
    def bytes_sent(self) -> int:
        """Bytes of events handed to the socket, replayed ones included."""
        if not self.is_live:
            return self._bytes_before
        return self._bytes_before + self.feed.bytes_before(self._at) - self.rest_bytes

    @property
    def _at(self) -> int:
        return self.parked_at if self.cursor == PARKED else self.cursor
