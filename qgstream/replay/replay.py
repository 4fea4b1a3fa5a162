"""A replay: sends one subscriber the log, until the subscriber joins its feed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from qgstream.delivery.subscriber import Subscriber
from qgstream.events.history import RetentionClass, Window
from qgstream.events.publication import Publication
from qgstream.replay.pages import ReplayPage, ReplayPages

# Encodes a heartbeat, with an id or without.
MakeHeartbeat = Callable[[str | None], bytes]


class Replay:
    """Sends the steps of `state`, then the log after `offset`. The next page follows when the socket has room.

    When a page reaches the end of the log, the subscriber joins its feed in the same turn of the loop. So the
    subscriber misses no event and gets none twice. The replay calls `fetch(subscriber)` for events that are not in the
    window. `fetch` gives the events to `take` and continues the replay. With `everything` (`earliest`), events that are
    already gone do not count as missed.
    """

    __slots__ = (
        "subscriber", "window", "pages", "offset", "events", "waits_for", "is_stalled", "_message", "_heartbeat",
        "_first", "_state", "_is_fetched", "_generation", "_classes", "_fetch", "_join",
    )  # fmt: skip

    def __init__(
        self,
        subscriber: Subscriber,
        window: Window,
        pages: ReplayPages,
        offset: int,
        *,
        state: Iterator[Sequence[Publication]] | None = None,
        everything: bool = False,
        fetch: Callable[[Subscriber], None],
        join: Callable[[Subscriber], None],
    ) -> None:
        self.subscriber = subscriber
        self.window = window
        self.pages = pages
        self.offset = offset
        self.events = 0
        # The replay waits for `take` ("log") or for its turn to join ("turn"). It does not run meanwhile.
        self.waits_for: Literal["", "log", "turn"] = ""
        self.is_stalled = False  # the socket is full, and calls when it has room
        self._message: bytes | None = None
        self._heartbeat: MakeHeartbeat | None = None
        self._first: deque[Publication] = deque()
        self._state = state
        self._is_fetched = False  # `_first` holds fetched events, which can be fetched again
        self._watch(everything=everything)
        self._fetch = fetch
        self._join = join
        subscriber.feed.begin_replay(subscriber)

    def _watch(self, *, everything: bool = False) -> None:
        """Note the retention classes of the subscription, and up to where dropped events do not count as missed."""
        retention_classes = self.window.retention_classes_of(self.subscriber.feed.subscription.patterns)
        self._generation = self.window.generation
        self._classes: list[tuple[RetentionClass, int]] = [
            (retention_class, retention_class.forgotten if everything else 0) for retention_class in retention_classes
        ]  # fmt: skip

    def take(self, publications: Sequence[Publication], end: int) -> None:
        """Take fetched publications: all events to send up to the offset `end`."""
        self._first.extend(publications)
        self._is_fetched = True
        if not publications:
            self.offset = end

    def let_go(self) -> None:
        """Free fetched events that are not sent yet. The replay fetches them again when the socket has room."""
        if self._is_fetched:
            self._first.clear()

    def restart(self, window: Window, pages: ReplayPages, message: bytes) -> None:
        """Continue at the start of a new window, because the old log is gone. Send `message` instead of the rest.

        This method does not run the replay: the replay waits for its socket, or is scheduled already.
        """
        self.window, self.pages = window, pages
        self.offset = window.newest
        self._first.clear()
        self._state = None
        self._message = message
        self._watch()

    def beat(self, heartbeat: MakeHeartbeat) -> None:
        """Send a heartbeat at the next opportunity. Call this only while the socket has nothing to write.

        A replay may search a long log and find no event for its client, or wait for the broker. Without heartbeats the
        client would think that the connection is dead.
        """
        if self.subscriber not in self.subscriber.feed.replaying:
            return  # its closing message is out, and the connection closes in the next turn of the loop
        if self.waits_for == "log":
            self._offer(heartbeat(self._id))
        elif not self.waits_for:  # its turn comes soon
            self._heartbeat = heartbeat

    @property
    def _id(self) -> str | None:
        """The id up to which the client was told everything; None where there is no such place."""
        # The state lies before the offset, and is not sent yet.
        is_told = (
            self._message is None and self._state is None and (not self._first or self._first[0].offset > self.offset)
        )
        return f"{self.window.epoch}-{self.offset}" if is_told else None

    def run(self) -> Iterator[None]:
        """Continue until the socket is full or the end of the log is reached. A job for `Slices`."""
        subscriber = self.subscriber
        while subscriber in subscriber.feed.replaying:
            if self._heartbeat is not None:
                heartbeat, self._heartbeat = self._heartbeat, None
                if not self._offer(heartbeat(self._id)):
                    return
            if self._message is not None:
                page, self._message = ReplayPage(self._message, 1, self.offset), None
            elif self._first:
                page = self._page_of_first()
            elif self._state is not None:
                step = next(self._state, None)
                if step is None:
                    self._state = None
                elif step:
                    self._first.extend(step)
                else:
                    yield
                continue
            elif self._has_lost_something():
                self.waits_for = "log"
                self._fetch(subscriber)
                return
            elif self.offset == self.window.newest:
                self.waits_for = "turn"
                self._join(subscriber)
                return
            else:
                page = self.pages.after(subscriber.feed.subscription, self.offset)
                self.offset = page.end
            if page.events and not self._send(page):
                return
            yield

    def _has_lost_something(self) -> bool:
        if self._generation != self.window.generation:
            self._watch()  # after a reload the window has other retention classes
        return any(retention_class.forgotten > max(self.offset, missed) for retention_class, missed in self._classes)

    def _page_of_first(self) -> ReplayPage:
        page = self.pages.of(self.subscriber.feed.subscription, self._first)
        while self._first and self._first[0].offset <= page.end:
            self._first.popleft()
        self.offset = max(self.offset, page.end)  # the state is older than `offset`
        return page

    def _send(self, page: ReplayPage) -> bool:
        self.events += page.events
        self.subscriber.sent(page.events, len(page.data))
        return self._offer(page.data)

    def _offer(self, data: bytes) -> bool:
        """Offer bytes to the socket. Return False if the socket did not take them all, or if the peer is gone."""
        subscriber = self.subscriber
        try:
            taken = subscriber.send(data)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            subscriber.fail(error)
            return False
        if taken < len(data):
            subscriber.rest_bytes = len(data) - taken
            self.is_stalled = True
            subscriber.write_rest(memoryview(data)[taken:])
            return False
        return True
