"""From a publication to the feeds that want it, and what a subscription wants."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.delivery.feed import Feed
from qgstream.delivery.router import Router
from qgstream.delivery.subscriber import Subscriber
from qgstream.events.publication import Publication
from qgstream.events.subscription import Subscription
from qgstream.events.topics import PrivateTopics
from qgstream.wire.framing import Framing
from qgstream.wire.sse import Parser

NAMES = st.text("ab/", min_size=1, max_size=3)
PATTERNS = st.frozensets(NAMES | st.builds(lambda p: p + "*", st.text("ab/", max_size=2)), max_size=3)
SUBSCRIPTIONS = st.builds(
    Subscription,
    patterns=PATTERNS,
    events=st.frozensets(st.sampled_from(["message", "x"]), max_size=2),
    grants=PATTERNS,
    private_topics=PATTERNS.map(PrivateTopics),
)
PUBLICATIONS = st.builds(
    Publication,
    st.lists(NAMES, min_size=1, max_size=3, unique=True).map(tuple),
    st.just(b"1"),
    event=st.sampled_from([None, "x", "y"]),
    private=st.booleans(),
)


def meets(patterns: frozenset[str], name: str) -> bool:
    return any(name.startswith(p[:-1]) if p.endswith("*") else p == name for p in patterns)


def naively(subscription: Subscription, publication: Publication) -> bool:
    """The contract in one breath, for one topic at a time."""
    type_fits = not subscription.events or (publication.event or "message") in subscription.events
    return type_fits and any(
        (not subscription.patterns or meets(subscription.patterns, topic))
        and (
            meets(subscription.grants, topic)
            or not (publication.private or meets(subscription.private_topics.patterns, topic))
        )
        for topic in publication.topics
    )


@given(st.lists(SUBSCRIPTIONS, max_size=6, unique=True), PUBLICATIONS)
def test_the_patterns_and_feeds_that_ask_for_it_are_found_once_and_no_others(
    subscriptions: list[Subscription], publication: Publication
) -> None:
    router = Router()
    for subscription in subscriptions:
        router.feed(subscription)
        assert subscription.wants(publication) is naively(subscription, publication)
    for topic in publication.topics:
        patterns = list(router.patterns(topic))
        assert len(patterns) == len(set(patterns))
        assert set(patterns) == {p for s in subscriptions for p in s.patterns or ("*",) if meets(frozenset([p]), topic)}
        for pattern in patterns:
            asking = [feed.subscription for feed in router.asking(pattern)]
            assert asking == [s for s in subscriptions if pattern in (s.patterns or ("*",))]
    asked = {feed.subscription for topic in publication.topics for feed in router.meeting(topic)}
    assert asked == {s for s in subscriptions for t in publication.topics if not s.patterns or meets(s.patterns, t)}


@given(st.lists(SUBSCRIPTIONS, max_size=6, unique=True))
def test_nothing_is_left_of_feeds_that_nobody_follows(subscriptions: list[Subscription]) -> None:
    router = Router()
    feeds = [router.feed(subscription) for subscription in subscriptions]
    assert len(router) == len(subscriptions)
    assert list(router) == feeds
    for feed in feeds:
        router.release(feed)
        router.release(feed)  # a second goodbye does nothing
    assert (router._feeds, router._exact, router._prefix) == ({}, {}, {})


def test_equal_subscriptions_share_a_feed_and_a_followed_one_stays() -> None:
    router = Router()
    feed = router.feed(Subscription(patterns=frozenset({"a"})))
    assert router.feed(Subscription(patterns=frozenset({"a"}))) is feed
    subscriber = Subscriber(feed, len)
    subscriber.join()
    router.release(feed)
    assert list(router) == [feed]
    subscriber.leave()
    router.release(feed)
    assert list(router) == []


def test_a_topic_that_nobody_hears_looks_at_no_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mercure scans every subscriber for a fresh topic: 6 ms with 5 000 of them."""
    router = Router()
    for n in range(5000):
        router.feed(Subscription(patterns=frozenset({f"user/{n}"})))
    looked_at: list[object] = []
    monkeypatch.setattr(Subscription, "accepts", lambda *arguments: looked_at.append(arguments))
    monkeypatch.setattr(Feed, "__hash__", looked_at.append)
    assert list(router.patterns("fresh")) == []
    assert looked_at == []


@pytest.mark.parametrize("framing", Framing)
def test_an_event_is_encoded_once_for_all_of_its_kind(framing: Framing) -> None:
    publication = Publication(("a",), b'{"n": 1}', event="x", retry_ms=5, offset=3)
    made: dict[int, bytes] = {}
    first = Subscription(patterns=frozenset({"a"}), framing=framing).frame(publication, "e", made)
    assert Subscription(framing=framing).frame(publication, "e", made) is first
    payload = b'retry: 5\nid: e-3\nevent: x\ndata: {"n": 1}\n\n'
    assert (
        first
        == {
            Framing.CHUNKED: b"2a\r\n" + payload + b"\r\n",
            Framing.RAW: payload,
            Framing.WEBSOCKET: b'\x81\x47{"id": "e-3", "topic": "a", "event": "x", "retry": 5, "data": {"n": 1}}',
        }[framing]
    )
    ends = {Framing.CHUNKED: b"0\r\n\r\n", Framing.RAW: b"", Framing.WEBSOCKET: b"\x88\x07\x03\xe9drain"}
    assert framing.end("drain") == ends[framing]


@pytest.mark.parametrize(
    ("publication", "expected"),
    [
        (Publication(("a",), b'{"n": 1}', offset=3), {"id": "e-3", "topic": "a", "event": None, "data": {"n": 1}}),
        (
            Publication(("a", "b"), b'one\r\n"two"', is_json=False, event="x", offset=4),
            {"id": "e-4", "topic": ["a", "b"], "event": "x", "data": 'one\r\n"two"'},
        ),
    ],
)
def test_an_envelope_says_where_an_event_is_from(publication: Publication, expected: object) -> None:
    frame = Subscription(envelope=True, framing=Framing.RAW).frame(publication, "e", {})
    (event,) = Parser().feed(frame)
    assert json.loads(event.data) == expected


# Names of private topics.

KINDS = st.sampled_from([(Framing.RAW, True), (Framing.CHUNKED, True), (Framing.WEBSOCKET, False)])


def named(subscription: Subscription, publication: Publication) -> list[str]:
    """The topics that a frame names."""
    frame = subscription.frame(publication, "e", {})
    # Neither a chunk's size nor a frame's head has a brace, and names have none here.
    envelope = json.loads(frame[frame.index(b"{") : frame.rindex(b"}") + 1])
    assert (envelope["id"], envelope["data"]) == (f"e-{publication.offset}", 1)
    topic = envelope["topic"]
    return [topic] if isinstance(topic, str) else list(topic)


@given(st.lists(SUBSCRIPTIONS, min_size=1, max_size=6), KINDS, PUBLICATIONS, PATTERNS)
def test_an_envelope_names_the_topics_that_its_reader_may_know(
    subscriptions: list[Subscription], kind: tuple[Framing, bool], publication: Publication, later: frozenset[str]
) -> None:
    framing, envelope = kind
    for subscription in [replace(s, framing=framing, envelope=envelope) for s in subscriptions]:
        for private in (subscription.private_topics.patterns, later):  # as a reload has it
            subscription.private_topics.patterns = private
            if subscription.wants(publication):
                assert named(subscription, publication) == [
                    topic for topic in publication.topics
                    if not (publication.private or meets(private, topic))
                    or (meets(subscription.grants, topic) and meets(subscription.patterns or frozenset("*"), topic))
                ]  # fmt: skip


@pytest.mark.parametrize("kind", [(Framing.CHUNKED, True), (Framing.WEBSOCKET, False)])
def test_readers_who_may_know_the_same_share_a_frame(kind: tuple[Framing, bool]) -> None:
    framing, envelope = kind
    private = PrivateTopics({"user/*"})
    publication = Publication(("pub", "user/7"), b"1", offset=3)

    def reader(*grants: str) -> Subscription:
        return Subscription(framing=framing, envelope=envelope, grants=frozenset(grants), private_topics=private)

    made: dict[int, bytes] = {}
    frames = [reader(f"user/{number}").frame(publication, "e", made) for number in range(100)]
    assert len({id(frame) for frame in frames}) == 2
    assert frames[7] is reader("*").frame(publication, "e", made)
    assert named(reader("user/7"), publication) == ["pub", "user/7"]
    assert named(reader("user/8"), publication) == ["pub"]


@pytest.mark.parametrize("kind", [(Framing.CHUNKED, False), (Framing.CHUNKED, True), (Framing.WEBSOCKET, False)])
def test_events_of_one_topic_cost_nothing_more(kind: tuple[Framing, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    framing, envelope = kind
    monkeypatch.setattr(Subscription, "accepts", lambda *_: pytest.fail("asked who may know it"))
    subscription = Subscription(
        framing=framing, envelope=envelope, grants=frozenset({"a"}), private_topics=PrivateTopics({"a"})
    )
    publication = Publication(("a",), b"1", private=True)
    made: dict[int, bytes] = {}
    assert subscription.frame(publication, "e", made) is subscription.frame(publication, "e", made)
