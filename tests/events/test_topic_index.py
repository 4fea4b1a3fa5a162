"""What a window holds of each topic: a reader of some topics gets what a plain look through the window finds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qgstream.events.history
import qgstream.events.topic_index
import qgstream.replay.pages
from qgstream.events.history import MOST_LOOKS, TOPICS_SORTED, HistorySettings, TopicHistory, Window
from qgstream.events.pattern_sets import PatternSet
from qgstream.events.publication import Position, Publication
from qgstream.events.subscription import Subscription
from qgstream.events.topics import PrivateTopics
from qgstream.replay.pages import PAGE_PUBLICATIONS, ReplayPages
from qgstream.wire.framing import Framing

TOPICS = ("a", "a/1", "a/2", "b", "b/1", "chat")
PATTERNS = st.frozensets(st.sampled_from([*TOPICS, "a*", "a/*", "b*", "nobody", "nobody*", "*"]), max_size=4)
SUBSCRIPTIONS = st.builds(
    Subscription,
    PATTERNS,
    st.frozensets(st.sampled_from(["message", "note"]), max_size=1),
    grants=PATTERNS,
    private_topics=st.sampled_from([PrivateTopics(), PrivateTopics({"b*"})]),
    framing=st.just(Framing.RAW),
)
EVENTS = st.tuples(
    st.lists(st.sampled_from(TOPICS), min_size=1, max_size=3, unique=True),
    st.sampled_from([None, "note"]),
    st.booleans(),  # private
    st.sampled_from([0, 1, 7, 40]),  # seconds
)
SETTINGS = st.builds(
    HistorySettings,
    max_events=st.sampled_from([1000, 12, 3, 0]),
    max_age_seconds=st.sampled_from([1000, 30]),
    topics=st.lists(
        st.builds(
            TopicHistory,
            pattern=st.sampled_from(["a", "a/*", "b*", "chat", "*"]),
            max_age_seconds=st.sampled_from([None, 5, 500]),
            store=st.sampled_from([True, True, False]),
        ),
        max_size=3,
    ).map(tuple),
)


@pytest.fixture
def seams() -> Iterator[None]:
    """Small numbers, so that a few events and topics meet every seam. One reader looks at all: see `MOST_TOPICS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qgstream.events.history, "MOST_LOOKS", -1)
        patch.setattr(qgstream.events.history, "MOST_TOPICS", 4)
        patch.setattr(qgstream.events.topic_index, "MOST_SORTED", 5)
        patch.setattr(qgstream.replay.pages, "PAGE_PUBLICATIONS", 4)
        patch.setattr(qgstream.replay.pages, "PAGE_BYTES", 40)
        patch.setattr(qgstream.events.history, "TOPICS_SORTED", 2)
        yield


def replayed(pages: ReplayPages, window: Window, subscription: Subscription, offset: int) -> list[bytes]:
    """What a replay from there sends, an item for each event."""
    sent = b""
    while offset < window.newest:
        page = pages.after(subscription, offset)
        assert page.end > offset or not page.data  # else topics were sorted
        assert page.data.count(b"\n\n") == page.events
        sent += page.data
        offset = page.end
    return sent.split(b"\n\n")[:-1]


@pytest.mark.usefixtures("seams")
@given(st.data())
def test_a_replay_sends_what_a_plain_look_through_the_window_finds(data: st.DataObject) -> None:
    window, now = Window(data.draw(SETTINGS), Position("e", 0)), 1000.0
    recent, offset = data.draw(st.lists(EVENTS, max_size=8)), 0
    window.preload(
        [
            Publication(tuple(topics), b"%d" % number, event=event, private=private, offset=number, published_at=now)
            for number, (topics, event, private, _) in enumerate(recent, 1)
        ],
        len(recent), {}, now=now, unix_now=now,
    )  # fmt: skip
    offset, pages = len(recent), ReplayPages(window)
    for _ in range(data.draw(st.integers(1, 5))):
        for topics, event, private, seconds in data.draw(st.lists(EVENTS, max_size=12)):
            now += seconds
            offset += 1
            window.append(Publication(tuple(topics), b"%d" % offset, event=event, private=private, offset=offset), now)
        if data.draw(st.booleans()):
            window.settings = data.draw(SETTINGS)
            pages = ReplayPages(window)  # the pages of before may hold what is not stored any more
        window.forget(now)
        held = list(window.newest_first())[::-1]
        for topic in TOPICS:
            newest = max((one for one in held if topic in one.topics), key=lambda one: one.offset, default=None)
            assert window.newest_on(topic) in (newest, None)
        for subscription in data.draw(st.lists(SUBSCRIPTIONS, min_size=1, max_size=3)):
            complete = window.complete_after(subscription.patterns).offset  # nobody replays from before that
            for start in {complete, data.draw(st.integers(complete, offset)), offset}:
                expected = [
                    subscription.frame(one, "e", {}).removesuffix(b"\n\n")
                    for one in held
                    if one.offset > start and subscription.wants(one)
                ]
                assert replayed(pages, window, subscription, start) == expected
    window.settings = HistorySettings(max_events=0)
    window.forget(now)
    while not window.sort_topics(1):
        pass
    index = window._topics
    assert (index._of, index._outlived, index._prefix_index.count("")) == ({}, set(), 0)


def window_of(*topics: str, max_events: int = 100_000) -> Window:
    made = Window(HistorySettings(max_events=max_events), Position("e", 0))
    for topic in topics:
        append(made, topic)
    return made


def append(window: Window, *topics: str) -> Publication:
    publication = Publication(topics, b"1", offset=window.newest + 1)
    window.append(publication, 0.0)
    return publication


@pytest.mark.parametrize("patterns", [("mine",), ("mine", "news"), ("mine", "news/*"), ("mine/*",), ("m*", "x*", "y")])
def test_a_replay_looks_only_at_what_it_asks_for(patterns: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    window = window_of(*[f"user/{number % 3000}" for number in range(8000)])
    for number in range(5):
        append(window, "mine", "mine/1", f"other/{number}")
    looks, wants = [0], Subscription.wants

    def counted(self: Subscription, publication: Publication) -> bool:
        looks[0] += 1
        return wants(self, publication)

    monkeypatch.setattr(Subscription, "wants", counted)
    pages = ReplayPages(window)
    assert len(replayed(pages, window, Subscription(frozenset(patterns), framing=Framing.RAW), 0)) == 5
    assert looks[0] == 5


def test_few_events_are_looked_at_and_nothing_is_sorted_for_them() -> None:
    window = window_of(*[f"user/{number}" for number in range(1000)])
    part = window.page_of(PatternSet(["news/*"]), 1000 - MOST_LOOKS, PAGE_PUBLICATIONS)
    assert part is not None
    assert len(part.publications) == MOST_LOOKS
    assert window.page_of(PatternSet(["news/*"]), 999 - MOST_LOOKS, PAGE_PUBLICATIONS) is None
    assert window.page_of(PatternSet(["news/*"]), 0, PAGE_PUBLICATIONS) == ((), 1000)  # the rest was sorted for it


def test_a_replay_goes_on_while_new_topics_come_all_the_time() -> None:
    window = window_of(*[f"user/{number}" for number in range(2 * TOPICS_SORTED)])
    for number in range(10):
        append(window, f"new/{number}")
        if window.page_of(PatternSet(["news/*"]), 0, PAGE_PUBLICATIONS) is not None:
            return
    raise AssertionError("it is never done")


def test_pages_of_readers_of_one_topic_end_at_the_same_places() -> None:
    """Also where the topic has every second event, or every one with an even offset in a block."""
    window = window_of(*["mine", "other"] * 4000)
    ends: list[set[int]] = []
    for start in range(0, 400, 40):
        offset, found = start, set[int]()
        while offset < window.newest:
            part = window.page_of(PatternSet(["mine"]), offset, PAGE_PUBLICATIONS)
            assert part is not None
            assert 0 < len(part.publications) <= PAGE_PUBLICATIONS
            offset = part.end
            found.add(offset)
        ends.append({end for end in found if end > 2000})
    assert all(one == ends[0] for one in ends)
    assert 3000 / PAGE_PUBLICATIONS <= len(ends[0]) <= 4 * 3000 / PAGE_PUBLICATIONS


def test_a_topic_whose_newest_event_is_gone_has_no_newest_one() -> None:
    """An older one may be held for another topic's sake. It is no state: a newer one has replaced it."""
    long = TopicHistory(pattern="long", max_age_seconds=1000)
    made = Window(HistorySettings(max_age_seconds=10, topics=(long,)), Position("e", 0))
    both = append(made, "a", "long")
    append(made, "a")
    made.forget(50)
    assert [one.offset for one in made.newest_first()] == [1]
    assert made.newest_on("a") is None
    assert made.newest_on("long") is both
    assert list(made._topics.after(0, ["a"], 4)) == [both]
    third = append(made, "a")
    assert made.newest_on("a") is third


def test_what_is_forgotten_in_the_middle_leaves_nothing() -> None:
    long = TopicHistory(pattern="long", max_age_seconds=1000)
    made = Window(HistorySettings(max_age_seconds=10, topics=(long,)), Position("e", 0))
    for number in range(100):
        append(made, "a", *["long"][: number % 10 == 0])
    made.forget(50)
    assert [one.offset for one in made._topics.after(0, ["a"], 1000)] == list(range(1, 101, 10))
    assert sum(map(len, made._topics._of.values())) <= 2 * 20  # type: ignore[arg-type]
    made.forget(5000)
    assert len(made._topics) == 0


def test_a_long_topic_holds_no_more_than_twice_what_is_held_of_it() -> None:
    made = window_of(max_events=50)
    for _ in range(1000):
        append(made, "a")
        assert len(made._topics._of["a"] if made.newest > 1 else ()) <= 2 * 50 + 2  # type: ignore[arg-type]
    assert [one.offset for one in made._topics.after(0, ["a"], 1000)] == list(range(951, 1001))
