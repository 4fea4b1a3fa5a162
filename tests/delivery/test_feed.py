"""Chunks, and cursors into them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.delivery.feed import MAX_JOIN_BYTES, Feed
from qgstream.delivery.subscriber import PARKED, Subscriber
from qgstream.events.subscription import Subscription

CHUNKS = st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=12)


class Socket(Subscriber):
    """A subscriber whose socket takes `room` bytes; what is left over waits in `rest`."""

    __slots__ = ("received", "room", "rest", "error", "failed")

    def __init__(self, feed: Feed[Subscriber], room: int = 10**9) -> None:
        super().__init__(feed, self.take)
        self.received = b""
        self.room = room
        self.rest = b""
        self.error: OSError | None = None
        self.failed: OSError | None = None

    def take(self, data: bytes) -> int:
        assert not self.rest, "sent past what is still pending"
        if self.error is not None:
            raise self.error
        if not self.room:
            raise BlockingIOError
        taken = min(self.room, len(data))
        self.received += data[:taken]
        self.room -= taken
        return taken

    def write_rest(self, rest: bytes | memoryview) -> None:
        self.rest = bytes(rest)

    def drain(self, room: int) -> None:
        """The peer has read `room` bytes."""
        self.room = room
        taken = min(room, len(self.rest))
        self.received += self.rest[:taken]
        self.rest, self.room = self.rest[taken:], room - taken
        if not self.rest and self.cursor == PARKED:
            self.unpark()
            self.serve()

    def fail(self, error: OSError) -> None:
        self.failed = error
        self.leave()


def a_feed(*chunks: bytes) -> Feed[Subscriber]:
    feed: Feed[Subscriber] = Feed(Subscription())
    for chunk in chunks:
        feed.append(chunk)
    return feed


@given(CHUNKS, st.data())
def test_a_join_is_whole_chunks_within_the_bound(chunks: list[bytes], data: st.DataObject) -> None:
    feed = a_feed(*chunks)
    cursor = data.draw(st.integers(0, len(chunks) - 1))
    limit = data.draw(st.integers(1, 100))
    joined, end = feed.join(cursor, limit)
    assert joined == b"".join(chunks[cursor:end])
    assert end > cursor
    assert len(joined) <= limit or end == cursor + 1
    assert end == len(chunks) or len(joined) + len(chunks[end]) > limit


@given(CHUNKS, st.data())
def test_a_short_send_leaves_the_rest_of_one_chunk(chunks: list[bytes], data: st.DataObject) -> None:
    feed = a_feed(*chunks)
    cursor = data.draw(st.integers(0, len(chunks) - 1))
    joined, _ = feed.join(cursor, 10**9)
    taken = data.draw(st.integers(0, len(joined) - 1))
    after, rest = feed.split(cursor, taken)
    assert joined[:taken] + bytes(rest) == b"".join(chunks[cursor:after])
    assert 0 < len(rest) <= len(chunks[after - 1])


@given(CHUNKS, st.lists(st.integers(0, 60), max_size=30))
def test_whatever_the_socket_takes_arrives_once_and_in_order(chunks: list[bytes], rooms: list[int]) -> None:
    feed = a_feed()
    subscriber = Socket(feed, room=0)
    subscriber.join()
    steps = iter(rooms)
    for chunk in chunks:
        feed.append(chunk)
        subscriber.serve()
        subscriber.drain(next(steps, 0))
        sent = b"".join(chunks)
        assert sent.startswith(subscriber.received + subscriber.rest)
        # What is out of a rest is not known before it is out as a whole, so that much it may be too pessimistic.
        waiting = feed.end_bytes - len(subscriber.received)
        assert waiting <= subscriber.backlog_bytes <= waiting + 30 * bool(subscriber.rest)
        assert subscriber.bytes_sent == feed.end_bytes - subscriber.backlog_bytes
    subscriber.drain(10**9)
    assert subscriber.received == b"".join(chunks)
    assert (subscriber.backlog_bytes, subscriber.events_sent) == (0, len(chunks))
    subscriber.leave()
    assert (subscriber.events_sent, subscriber.bytes_sent) == (len(chunks), len(b"".join(chunks)))


def test_a_feed_holds_what_the_slowest_needs_and_no_more() -> None:
    feed = a_feed()
    slow, quick = Socket(feed, room=0), Socket(feed)
    slow.join()
    quick.join()
    for chunk in (b"one", b"two", b"three"):
        feed.append(chunk)
        for subscriber in (slow, quick):
            subscriber.serve()
        feed.forget(feed.end)
    assert quick.received == b"onetwothree"
    assert feed.held_bytes == len(b"twothree")  # `one` is the slow one's own, as its rest
    assert slow.backlog_bytes == len(b"onetwothree")
    slow.drain(10**9)
    feed.forget(feed.end)
    assert slow.received == quick.received
    assert (feed.held_bytes, feed.first, feed.end) == (0, 3, 3)


def test_nothing_is_dropped_that_a_round_has_not_reached() -> None:
    feed = a_feed(b"a", b"b", b"c")
    feed.forget(1)
    assert (feed.first, feed.held_bytes) == (1, 2)
    assert feed.join(1) == (b"bc", 3)


def test_who_joins_gets_what_comes_and_not_what_was() -> None:
    feed = a_feed(b"before")
    subscriber = Socket(feed)
    subscriber.join()
    feed.append(b"after")
    assert subscriber.serve() == (1, 5)
    assert subscriber.received == b"after"


@pytest.mark.parametrize("error", [ConnectionResetError(), BrokenPipeError(), TimeoutError()])
def test_a_peer_that_has_gone_leaves_the_feed(error: OSError) -> None:
    feed = a_feed()
    subscriber = Socket(feed)
    subscriber.join()
    subscriber.error = error
    feed.append(b"x")
    assert subscriber.serve() == (0, 0)
    assert subscriber.failed is error
    assert len(feed) == 0
    assert not subscriber.is_live


def test_what_was_sent_before_it_joined_counts() -> None:
    feed = a_feed(b"old", b"older", b"oldest")
    subscriber = Socket(feed)
    subscriber.sent(2, 10)
    subscriber.sent(3, 20)
    assert (subscriber.events_sent, subscriber.bytes_sent, subscriber.backlog_bytes) == (5, 30, 0)
    subscriber.join()
    feed.append(b"new")
    subscriber.serve()
    assert (subscriber.events_sent, subscriber.bytes_sent) == (6, 33)


def test_who_replays_belongs_to_the_feed_until_it_leaves_or_joins() -> None:
    feed = a_feed()
    live, joins, leaves = Socket(feed), Socket(feed), Socket(feed)
    live.join()
    feed.begin_replay(joins)
    feed.begin_replay(leaves)
    assert len(feed) == 3
    leaves.leave()
    joins.join()
    assert (list(feed.subscribers), feed.replaying, len(feed)) == ([live, joins], set(), 2)
    assert (leaves.is_live, joins.is_live) == (False, True)


def test_a_long_backlog_goes_out_in_several_sends_and_all_of_it_counts() -> None:
    feed = a_feed()
    subscriber = Socket(feed, room=2 * MAX_JOIN_BYTES + 10)
    subscriber.join()
    for _ in range(9):
        feed.append(b"x" * (MAX_JOIN_BYTES // 4))
    assert subscriber.serve() == (9, 2 * MAX_JOIN_BYTES + 10)  # eight of them, and the ninth is begun
    assert len(subscriber.rest) == MAX_JOIN_BYTES // 4 - 10
    assert subscriber.events_sent == 9


def test_a_subscriber_without_a_socket_says_so() -> None:
    subscriber = Subscriber(a_feed(), len)
    with pytest.raises(NotImplementedError):
        subscriber.write_rest(b"")
    with pytest.raises(NotImplementedError):
        subscriber.fail(OSError())


def test_a_feed_that_nobody_waits_for_has_no_sets_of_its_own() -> None:
    feed = a_feed()
    subscriber = Socket(feed)
    feed.begin_replay(subscriber)
    subscriber.join()
    feed.park(subscriber)
    feed.unpark(subscriber)
    assert feed.parked is feed.replaying is a_feed().parked
