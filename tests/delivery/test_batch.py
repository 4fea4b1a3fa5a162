"""A batch on its way to feeds: each gets what a plain reading of its subscription says, in order and once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qgstream.delivery.dispatch
from qgstream.delivery.batch import Batch
from qgstream.delivery.dispatch import Dispatch
from qgstream.delivery.fanout import Fanout
from qgstream.delivery.feed import Feed
from qgstream.delivery.router import Router
from qgstream.delivery.slices import Slices
from qgstream.delivery.subscriber import Subscriber
from qgstream.events.publication import Publication
from qgstream.events.subscription import Subscription
from qgstream.events.topics import PrivateTopics
from qgstream.limits import LimitSettings
from qgstream.metrics import Metrics
from qgstream.wire.framing import Framing
from tests.fakes import ManualSlices

NAMES = st.sampled_from(["a", "a/1", "a/2", "b", "b/1"])
PATTERNS = st.frozensets(NAMES | st.sampled_from(["a*", "a/*", "b*", "*"]), max_size=3)
PRIVATE = PrivateTopics()
KINDS = st.sampled_from(
    [(Framing.RAW, False), (Framing.RAW, True), (Framing.CHUNKED, False), (Framing.WEBSOCKET, False)]
)
SUBSCRIPTIONS = st.builds(
    lambda patterns, events, grants, kind: Subscription(patterns, events, kind[1], kind[0], grants, PRIVATE),
    PATTERNS, st.frozensets(st.sampled_from(["message", "x"]), max_size=1), PATTERNS, KINDS,
)  # fmt: skip
PUBLICATIONS = st.builds(
    lambda topics, event, private: Publication(tuple(topics), b"1", event=event, private=private),
    st.lists(NAMES, min_size=1, max_size=3, unique=True), st.sampled_from([None, "x"]),
    st.sampled_from([False, False, True]),
)  # fmt: skip


class Watched(Fanout):
    """Remembers what each feed was given, an item for each chunk."""

    def __init__(self) -> None:
        super().__init__(ManualSlices(), Metrics(), LimitSettings, lambda _: None)
        self.given: dict[Feed[Subscriber], list[bytes]] = {}

    def append(self, feed: Feed[Subscriber], chunk: bytes) -> None:
        self.extend(feed, [chunk], len(chunk))

    def extend(self, feed: Feed[Subscriber], chunks: object, size_bytes: int) -> None:
        assert isinstance(chunks, list)
        assert size_bytes == sum(map(len, chunks))
        self.given.setdefault(feed, []).extend(chunks)


@pytest.fixture
def seams() -> Iterator[None]:
    """Small numbers, so that a few feeds and publications meet every seam."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qgstream.delivery.dispatch, "VISITS_PER_LOOK", 2)
        patch.setattr(qgstream.delivery.dispatch, "LOOKS_AT_ONCE", 1)
        patch.setattr(qgstream.delivery.dispatch, "PUBLICATIONS_PER_WALK", 4)
        patch.setattr(qgstream.delivery.dispatch, "FEW_FEEDS", 1)
        yield


@pytest.mark.usefixtures("seams")
@given(
    st.lists(SUBSCRIPTIONS, min_size=1, max_size=6, unique=True),
    st.lists(st.lists(PUBLICATIONS, max_size=6), max_size=5),
    st.sampled_from([(), ("a*",), ("b", "a/1")]), st.sampled_from([None, (), ("b*",)]), st.integers(0, 9),
    st.sampled_from([-1, 1, 16]),
)  # fmt: skip
def test_each_feed_is_given_what_it_wants_in_order_and_once(
    subscriptions: list[Subscription], batches: list[list[Publication]], private: tuple[str, ...],
    later: tuple[str, ...] | None, steps: int, few: int,
) -> None:  # fmt: skip
    PRIVATE.patterns = frozenset(private)
    router, slices, fanout = Router(), ManualSlices(), Watched()
    dispatch = Dispatch(router, fanout, slices)
    qgstream.delivery.dispatch.FEW_FEEDS = few  # `seams` puts it back
    feeds = [router.feed(subscription) for subscription in subscriptions]
    for feed in feeds:
        Subscriber(feed, len).join()
    for number, publication in enumerate([publication for batch in batches for publication in batch], 1):
        publication.offset = number
    for batch in batches:
        dispatch.deliver(batch, "e")
    if later is not None:  # a reload in the middle: what is under way may have been looked at before
        for _ in range(steps):
            if len(slices):
                slices.step()
        given_before = {feed: len(chunks) for feed, chunks in fanout.given.items()}
        PRIVATE.patterns = frozenset(later)
    else:
        given_before = {}
    slices.run()
    assert (dispatch.is_idle, dispatch.queued_bytes) == (True, 0)
    for feed in feeds:
        subscription, given = feed.subscription, fanout.given.get(feed, [])
        wanted = [p for batch in batches for p in batch if subscription.wants(p)]
        expected = [subscription.frame(p, "e", {}) for p in wanted]
        if later is None:
            assert given == expected
        else:  # whatever it was given since is allowed, in order and once
            since = given[given_before.get(feed, 0) :]
            rest = iter(expected)
            assert all(chunk in rest for chunk in since)


@pytest.mark.parametrize("private", [False, True])
def test_streams_that_ask_alike_but_for_one_thing_are_told_apart(private: bool) -> None:
    one = Subscription(frozenset(["a"]), framing=Framing.RAW, private_topics=PrivateTopics())
    subscriptions = [
        one, replace(one, grants=frozenset(["a"])), replace(one, events=frozenset(["x"])), replace(one, envelope=True),
        replace(one, framing=Framing.CHUNKED), replace(one, private_topics=PrivateTopics(["a"])),
        replace(one, patterns=frozenset(["b"])),
    ]  # fmt: skip
    publications = [
        Publication(("a",), b"1", event="x", offset=1),
        Publication(("a",), b"2", private=private, offset=2),
        Publication(("b",), b"3", offset=3),
    ]
    for pair in [(one, other) for one in subscriptions for other in subscriptions if one != other]:
        router, fanout, slices = Router(), Watched(), ManualSlices()
        for subscription in pair:
            Subscriber(router.feed(subscription), len).join()
        Dispatch(router, fanout, slices).deliver(publications, "e")
        slices.run()
        check(router, fanout, publications)


def check(router: Router, fanout: Watched, publications: list[Publication]) -> None:
    for feed in router:
        expected = [feed.subscription.frame(p, "e", {}) for p in publications if feed.subscription.wants(p)]
        assert fanout.given.get(feed, []) == expected


@given(st.lists(SUBSCRIPTIONS, min_size=1, max_size=6, unique=True), st.lists(PUBLICATIONS, max_size=6))
def test_its_audience_are_those_who_want_any_of_it(
    subscriptions: list[Subscription], publications: list[Publication]
) -> None:
    PRIVATE.patterns = frozenset(["a/*"])
    router = Router()
    dispatch = Dispatch(router, Watched(), Slices())
    for subscription in subscriptions:
        Subscriber(router.feed(subscription), len).join()
    audience = asyncio.run(dispatch.audience(publications))
    assert audience == sum(any(map(s.wants, publications)) for s in subscriptions)


def test_what_is_public_is_chosen_and_framed_once_for_all_who_ask_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 000 feeds that want 300 events were 900 000 looks, and as many frames looked up."""
    looks, frame = [0], Subscription.frame

    def counted(self: Subscription, publication: Publication, epoch: str, made: dict[int, bytes]) -> bytes:
        looks[0] += 1
        return frame(self, publication, epoch, made)

    monkeypatch.setattr(Subscription, "frame", counted)
    monkeypatch.setattr(Subscription, "wants", lambda *_: pytest.fail("it asked each feed for each event"))
    router, fanout = Router(), Watched()
    for number in range(100):
        Subscriber(router.feed(Subscription(frozenset([f"user/{number}", "all"]), framing=Framing.RAW)), len).join()
    publications = [Publication(("all",), b"%d" % n, offset=n) for n in range(50)]
    slices = ManualSlices()
    Dispatch(router, fanout, slices).deliver(publications, "e")
    slices.run()
    assert looks[0] == 50
    assert len(fanout.given) == 100
    assert len({tuple(map(id, chunks)) for chunks in fanout.given.values()}) == 1


def test_streams_whose_grants_meet_nothing_that_they_ask_for_are_alike() -> None:
    batch = Batch([Publication(("all",), b"1")], "e")
    batch.ask(0, "all")
    one = Subscription(frozenset(["all", "user/1"]), grants=frozenset(["user/1"]))
    other = replace(one, patterns=frozenset(["all", "user/2"]), grants=frozenset(["user/2"]))
    assert batch.chunks_on(one, "all") is batch.chunks_on(other, "all")
