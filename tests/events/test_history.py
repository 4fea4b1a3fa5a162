"""The newest part of the log: what is held, what is forgotten, and that nobody is told otherwise."""

from __future__ import annotations

import gc
import weakref
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qgstream.events import history as window_module
from qgstream.events.history import (
    EVENTS_PER_STEP,
    TOPICS_PER_APPEND,
    TOPICS_PER_STEP,
    HistorySettings,
    TopicHistory,
    Window,
)
from qgstream.events.pattern_sets import PatternSet
from qgstream.events.publication import Position, Publication
from tests.model import Ask, Bounds, Fact

TOPICS = ("a", "b", "b/1", "chat", "chat/x")
PATTERNS = [(), ("a",), ("b",), ("b*",), ("b/1",), ("chat*",), ("chat", "a"), ("*",), ("c", "b/*")]
START = Position("e", 0)

EXCEPTIONS = st.lists(
    st.builds(
        TopicHistory,
        pattern=st.sampled_from(["a", "b*", "b/1", "chat*", "*"]),
        max_age_seconds=st.sampled_from([None, 5, 50, 500]),
        store=st.sampled_from([True, True, False]),
    ),
    max_size=3,
)
SETTINGS = st.builds(
    HistorySettings,
    max_events=st.sampled_from([1000, 12, 3, 0]),
    max_bytes=st.sampled_from([10**6, 9000]),
    max_age_seconds=st.sampled_from([1000, 30]),
    topics=EXCEPTIONS.map(tuple),
)
PUBLICATIONS = st.tuples(
    st.lists(st.sampled_from(TOPICS), min_size=1, max_size=3, unique=True), st.sampled_from([1, 100, 2000]),
    st.sampled_from([0, 0, 1, 7, 40]),
)  # fmt: skip


def publication(offset: int, *topics: str, at: float = 0.0, size: int = 1) -> Publication:
    return Publication(topics or ("a",), b"x" * size, offset=offset, published_at=at)


def window(*publications: Publication, topics: tuple[TopicHistory, ...] = (), **bounds: float) -> Window:
    made = Window(HistorySettings.model_validate({**bounds, "topics": topics}), START)
    for one in publications:
        made.append(one, one.published_at)
    return made


def held(window: Window, size: int = 1000) -> list[int]:
    """All that its pages have."""
    found: list[int] = []
    while page := window.page(found[-1] if found else 0, size):
        found += [publication.offset for publication in page]
    return found


@given(st.data())
def test_it_holds_what_a_plain_reading_of_its_bounds_holds(data: st.DataObject) -> None:
    bounds = Bounds(data.draw(SETTINGS))
    window, facts, now = Window(bounds.settings, START), list[Fact](), 1000.0
    for _ in range(data.draw(st.integers(1, 8))):
        for topics, size, seconds in data.draw(st.lists(PUBLICATIONS, max_size=8)):
            now += seconds
            one = publication(len(facts) + 1, *topics, at=now, size=size)
            fact = Fact(one.offset, one.topics, now, one.size_bytes)
            window.append(one, now)
            bounds.add(facts, fact)
            assert window.stores(one) is bool(fact.kept)
        if data.draw(st.booleans()):
            bounds.change(data.draw(SETTINGS), facts, now)
            window.settings = bounds.settings
        window.forget(now)
        bounds.apply(facts, now)

        expected = [fact for fact in facts if fact.held]
        for size in (1, 3, 256):
            assert held(window, size) == [fact.offset for fact in expected]
        assert [one.offset for one in window.newest_first()] == [fact.offset for fact in reversed(expected)]
        assert len(window) == len(expected)
        assert window.size_bytes == sum(fact.size for fact in expected)
        assert window.newest == len(facts)
        assert window.position == Position("e", len(facts))
        for patterns in PATTERNS:
            check_resume(window, facts, patterns, bounds.floor)


def check_resume(window: Window, facts: list[Fact], patterns: tuple[str, ...], floor: int) -> None:
    ask, newest = Ask(patterns), len(facts)
    lost = [fact.offset for fact in facts if fact.lost]
    missed = [fact.offset for fact in facts if fact.lost and ask.topics(fact) & fact.kept]
    for offset in range(newest + 1):
        resumed = window.resume(f"e-{offset}", patterns)
        if resumed == "too_old":
            assert max(*lost, floor, 0) > offset, "nothing was forgotten since"
        else:
            assert resumed == Position("e", offset)
            assert max(missed, default=0) <= offset, "it said nothing of what was forgotten"
    assert window.resume(f"e-{newest}", patterns) == Position("e", newest)
    complete = window.complete_after(patterns)
    assert window.resume(str(complete), patterns) == complete
    # What lies on a shelf for another topic's sake may be held longer than the history of these.
    own = [fact.offset for fact in facts if fact.held and fact.kept <= ask.topics(fact)]
    earliest = window.resume("earliest", patterns)
    assert isinstance(earliest, Position)
    assert earliest.offset < min((offset for offset in own if offset > floor), default=newest + 1)


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("e-3", Position("e", 3)),
        ("e-2", Position("e", 2)),
        ("e-1", "too_old"),
        ("e-0", "too_old"),
        ("e-4", "unknown_id"),  # from the future: Nchan gave such a client nothing, for ever
        ("e-9999999999999999999", "unknown_id"),
        ("f-3", "epoch_changed"),
        ("f-9", "epoch_changed"),
        ("", "unknown_id"),
        ("3", "unknown_id"),
        ("e-03", Position("e", 3)),
        ("e--1", "unknown_id"),
        ("e-1e1", "unknown_id"),
        ("e-\u0663", "unknown_id"),
        ("x" * 10**6, "unknown_id"),
        ("\ufffd\ufffd", "unknown_id"),
        ("earliest", Position("e", 2)),
        ("Earliest", "unknown_id"),
    ],
)
def test_an_id_is_a_place_or_the_reason_why_not(id: str, expected: object) -> None:
    made = window(*(publication(n) for n in (1, 2, 3)), max_events=1)
    assert made.resume(id) == expected


def test_what_another_class_forgets_is_no_reset() -> None:
    exceptions = (TopicHistory(pattern="b*", max_age_seconds=10),)
    made = window(publication(1, "b", at=0), publication(2, "a", at=1), publication(3, "c", at=2), topics=exceptions)
    made.forget(50)
    assert made.resume("e-0", ["b"]) == "too_old"
    assert made.resume("e-0", ["b/x"]) == "too_old"  # the shelf is shared: it cannot tell
    assert made.resume("e-0") == "too_old"
    assert made.resume("e-0", ["a", "c*"]) == Position("e", 0)
    assert made.resume("e-1") == Position("e", 1)


def test_an_event_in_two_classes_is_missed_in_both() -> None:
    exceptions = (TopicHistory(pattern="long", max_age_seconds=1000), TopicHistory(pattern="chat", store=False))
    one = publication(1, "a", "long", "chat", at=0)
    made = window(one, publication(2, "other", at=1), topics=exceptions, max_age_seconds=100)
    made.forget(500)
    assert held(made) == [1]  # the longest-lived of its topics decides
    made.forget(2000)
    assert made.resume("e-0", ["long"]) == "too_old"
    assert made.resume("e-0", ["a"]) == "too_old"
    assert made.resume("e-0", ["chat"]) == Position("e", 0)


def test_an_event_in_one_class_and_in_the_last_is_missed_in_both() -> None:
    exceptions = (TopicHistory(pattern="long", max_age_seconds=1000),)
    made = window(publication(1, "a", "long", at=0), publication(2, "b", at=1), topics=exceptions)
    made.forget(5000)
    assert [made.resume("e-0", [topic]) for topic in ("long", "a")] == ["too_old"] * 2


def test_chatter_is_not_held_and_its_listeners_are_not_told() -> None:
    made = window(publication(1, "chat"), publication(2, "a"), topics=(TopicHistory(pattern="chat", store=False),))
    assert held(made) == [2]
    assert made.newest == 2
    assert made.resume("e-0", ["chat"]) == Position("e", 0)
    assert made.resume("earliest", ["chat"]) == Position("e", 2)


def test_earliest_is_everything_that_is_held_in_any_class() -> None:
    exceptions = (TopicHistory(pattern="b", max_age_seconds=10),)
    made = window(publication(1, "a", at=0), publication(2, "b", at=1), publication(3, "a", at=2), topics=exceptions)
    made.forget(50)
    assert made.resume("earliest") == Position("e", 0)
    assert made.resume("earliest", ["b"]) == Position("e", 2)
    assert made.complete_after(()) == Position("e", 2)
    assert held(made) == [1, 3]


def test_a_page_looks_behind_a_stretch_that_is_gone() -> None:
    exceptions = (TopicHistory(pattern="chat", max_age_seconds=10),)
    chatter = [publication(n, "chat", at=1) for n in range(2, 10)]
    late = [publication(n, "a", at=2) for n in range(10, 20)]
    made = window(publication(1, at=0), *chatter, *late, topics=exceptions)
    made.forget(50)
    assert [one.offset for one in made.page(1, 4)] == [10, 11, 12]  # and ends where every page of four does
    assert [one.offset for one in made.page(12, 4)] == [13, 14, 15, 16]
    assert made.page(19, 4) == []


def test_pages_of_all_readers_end_at_the_same_places_whatever_was_cut_off() -> None:
    made = window(*(publication(n) for n in range(1, 101)), max_events=30)
    ends = {made.page(offset, 8)[-1].offset for offset in range(70, 100)}
    assert ends == {72, 80, 88, 96, 100}
    made.settings = HistorySettings(max_events=25)  # what is gone is cut off with it
    assert {made.page(offset, 7)[-1].offset for offset in range(75, 100)} == {77, 84, 91, 98, 100}


def test_new_settings_forget_no_past_of_a_class() -> None:
    exceptions = (TopicHistory(pattern="b", max_age_seconds=10),)
    made = window(publication(1, "b", at=0), publication(2, "a", at=1), topics=exceptions)
    made.forget(50)
    generation = made.generation
    made.settings = HistorySettings(topics=exceptions)
    assert made.generation == generation  # nothing has changed
    assert made.resume("e-0", ["a"]) == Position("e", 0)
    made.settings = HistorySettings(max_events=1)
    assert made.generation > generation
    assert made.resume("e-0", ["a"]) == "too_old"  # which topics it was is not known any more
    assert held(made) == [2]


def test_new_settings_put_away_what_is_not_stored_any_more() -> None:
    made = window(publication(1, "a"), publication(2, "b"), publication(3, "c"))
    made.settings = HistorySettings(topics=(TopicHistory(pattern="b", store=False),))
    assert held(made) == [1, 3]
    assert made.size_bytes == 2 * publication(1).size_bytes
    assert made.newest_on("b") is None
    made.settings = HistorySettings(topics=(TopicHistory(pattern="*", store=False),))
    assert held(made) == []
    assert made.size_bytes == 0


def test_it_knows_the_newest_of_each_topic_while_that_is_held() -> None:
    both = publication(3, "a", "b/1")
    made = window(publication(1, "a"), publication(2, "c"), both, publication(4, "d"), max_events=10)
    assert made.sort_topics(10)
    assert made.topics_under(PatternSet(["a", "b*", "nobody"]), 2) == ["a", "b/1"]
    assert made.topics_under(PatternSet(["a*", "b*", "c*", "d"]), 4) == ["a", "b/1", "c", "d"]
    assert made.topics_under(PatternSet(["a*", "b*", "c*", "d*"]), 3) is None
    assert made.topics_under(PatternSet([]), 3) is None
    assert set(made.topics_under(PatternSet([]), 4) or ()) == {"a", "b/1", "c", "d"}
    assert made.topics_under(PatternSet(["a", "c"]), 1) is None
    assert made.newest_on("a") is made.newest_on("b/1") is made.at(3) is both
    made.settings = HistorySettings(max_events=1)
    made.forget(0)
    assert made.newest_on("a") is made.at(3) is made.at(5) is None
    assert not made.sort_topics(2)
    assert made.sort_topics(2)
    assert made.topics_under(PatternSet([]), 10) == ["d"]


def test_what_the_log_held_before_is_taken_over() -> None:
    exceptions = (TopicHistory(pattern="b", max_age_seconds=10),)
    made = Window(HistorySettings(topics=exceptions), Position("e", 5))
    made.preload(
        [publication(7, "a", at=100), publication(8, "a", at=4000)], 9, {"b": 8, "": 6}, now=4000, unix_now=4000
    )
    assert made.position == Position("e", 9)
    assert held(made) == [8]
    assert made.resume("e-7", ["a"]) == Position("e", 7)
    assert made.resume("e-6", ["a"]) == "too_old"
    assert made.resume("e-7", ["b"]) == "too_old"
    assert made.resume("e-8", ["b"]) == Position("e", 8)


def test_what_the_log_held_before_may_have_no_gap() -> None:
    exceptions = (TopicHistory(pattern="b", max_age_seconds=10),)
    made = Window(HistorySettings(topics=exceptions), Position("e", 0))
    made.preload([publication(1, "a"), publication(2, "b")], 2, {}, now=0, unix_now=0)
    assert made.resume("e-0") == Position("e", 0)
    assert held(made) == [1, 2]


@pytest.mark.parametrize(
    ("gone", "a", "b"), [({"": 6}, "too_old", Position("e", 5)), ({"b": 6}, Position("e", 5), "too_old")]
)
def test_what_the_log_had_forgotten_is_missed_by_those_whom_it_concerns(
    gone: dict[str, int], a: object, b: object
) -> None:
    made = Window(HistorySettings(topics=(TopicHistory(pattern="b"),)), Position("e", 5))
    made.preload([publication(7, "a"), publication(8, "b")], 8, gone, now=0, unix_now=0)
    assert (made.resume("e-5", ["a"]), made.resume("e-5", ["b"])) == (a, b)


@pytest.mark.parametrize("at", [0.0, 7200.0, 1e300, -1e300])
def test_the_time_that_an_event_says_decides_nothing(at: float) -> None:
    """One that was dated two hours ahead emptied a window of a thousand."""
    made = window(max_age_seconds=100)
    for offset in range(1, 1001):
        made.append(publication(offset, at=at if offset == 500 else 50), 50)
    made.append(publication(1001, at=50), 60)
    assert len(made) == 1001
    made.forget(150.1)
    assert held(made) == [1001], "it would be kept for ever, and all behind it"


@pytest.mark.parametrize(
    ("times", "kept"),
    [
        ([100, 990, 995], [2, 3]),
        ([990, 9e9, 995], [1, 2, 3]),
        ([990, -9e9, 995], [1, 2, 3]),
        ([-9e9, 100, 995], [3]),
        ([9e9, 100, 995], [1, 2, 3]),
    ],
)
def test_what_the_log_held_is_as_old_as_it_says_within_reason(times: list[float], kept: list[int]) -> None:
    made = Window(HistorySettings(max_age_seconds=100), Position("e", 0))
    publications = [publication(n, at=at) for n, at in enumerate(times, 1)]
    made.preload(publications, 3, {}, now=50, unix_now=1000)
    assert held(made) == kept
    made.forget(50 + 100.1)  # in the present of this process
    assert held(made) == []


def test_ages_outlive_new_settings() -> None:
    made = window(publication(1, "a", at=0), publication(2, "b", at=60), max_age_seconds=100)
    made.settings = HistorySettings(max_age_seconds=100, topics=(TopicHistory(pattern="b", max_age_seconds=30),))
    made.forget(95)
    assert held(made) == [1]
    made.forget(101)
    assert held(made) == []


def test_an_event_is_held_to_the_end_of_its_age() -> None:
    made = window(publication(1, "a", at=100), max_age_seconds=50)
    made.forget(150)
    assert held(made) == [1]
    made.forget(150.1)
    assert held(made) == []


def test_as_many_bytes_are_held_as_the_bound_says() -> None:
    made = window(*(publication(n) for n in range(1, 5)), max_bytes=2 * publication(1).size_bytes)
    assert held(made) == [3, 4]


class Watched(Publication):
    __slots__ = ("__weakref__",)


def test_what_is_forgotten_is_free_at_once() -> None:
    made = window(max_events=50)
    alive: weakref.WeakSet[Watched] = weakref.WeakSet()
    for offset in range(1, 1001):
        one = Watched(("a",), b"x", offset=offset)
        alive.add(one)
        made.append(one, 0)
        del one
        assert len(alive) <= 50
        assert len(made._log) <= 2 * 50 + 2
    gc.collect()
    assert len(made) == 50


def test_a_pattern_in_the_settings_is_checked() -> None:
    with pytest.raises(ValidationError, match=r"expected '\*' only as the last character"):
        TopicHistory(pattern="a*b")


# In steps: nobody may make a step long.


def dropped(window: Window) -> int:
    """Topics of all that a full window has dropped since it was filled."""
    return sum(1 for entry in window._log if not isinstance(entry, Publication)) + window._log_start


@pytest.mark.parametrize("topics", [1, 3])
def test_what_becomes_too_old_at_once_is_forgotten_in_steps(topics: int) -> None:
    names = [f"t{number}" for number in range(topics)]
    made = window(*(publication(offset, *names) for offset in range(1, 3001)), max_age_seconds=60)
    made.append(publication(3001), now=100)
    assert dropped(made) <= TOPICS_PER_APPEND
    made.forget_some(100, TOPICS_PER_STEP)
    before = dropped(made)
    assert before <= TOPICS_PER_APPEND + TOPICS_PER_STEP
    for _ in made.forgetting(100):
        assert dropped(made) <= before + TOPICS_PER_STEP // topics + 1
        before = dropped(made)
    assert held(made) == [3001]


def test_what_gives_way_to_a_large_event_is_forgotten_in_steps() -> None:
    made = window(*(publication(offset) for offset in range(1, 3001)), max_bytes=1_200_000)
    made.append(publication(3001, size=1_100_000), now=0)
    assert dropped(made) <= TOPICS_PER_APPEND
    steps = sum(1 for _ in made.forgetting(0))
    assert steps >= 2000 // TOPICS_PER_STEP
    assert made.size_bytes <= 1_200_000


def test_a_list_of_what_is_gone_here_and_there_is_rewritten_in_steps() -> None:
    short = TopicHistory(pattern="short/*", max_age_seconds=10)
    made = window(publication(1, "a"), topics=(short,), max_age_seconds=1000)
    for offset in range(2, 4001):
        made.append(publication(offset, f"{'short' if offset % 4 else 'long'}/1"), now=0)
    most = 0
    for _ in made.forgetting(20):
        most = max(most, len(made._log) - len(made))
    assert most > 2000
    assert len(made) == 1001
    assert len(made._log) < len(made) + most / 2
    assert held(made, 100) == [1, *range(4, 4001, 4)]


CHANGES = st.lists(st.tuples(SETTINGS, st.integers(0, 3)), min_size=1, max_size=3)


@given(st.lists(PUBLICATIONS, max_size=12), CHANGES, st.lists(PUBLICATIONS, max_size=12), st.data())
def test_new_bounds_are_taken_in_steps_while_others_append(
    before: list[Any], changes: list[Any], meanwhile: list[Any], data: st.DataObject
) -> None:
    made, now, newest = Window(data.draw(SETTINGS), START), 1000.0, 0

    def append(waiting: list[Any], most: int) -> None:
        nonlocal now, newest
        for topics, size, seconds in waiting[:most]:
            now, newest = now + seconds, newest + 1
            made.append(publication(newest, *topics, size=size), now)
        del waiting[:most]

    append(before, 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_module, "EVENTS_PER_STEP", 2)
        jobs = [made.change(settings) for settings, _ in changes]
        for job, (_, steps) in zip(jobs, changes, strict=True):
            for _ in islice(job, steps):  # and the next one begins, or this one goes on
                append(meanwhile, data.draw(st.integers(0, 2)))
                if data.draw(st.booleans()):
                    made.forget(now)
        while jobs:  # in any order: only the newest has a say
            job = data.draw(st.sampled_from(jobs))
            if next(job, job) is job:
                jobs.remove(job)
        append(meanwhile, 12)
        made.forget(now)
    there = [entry for entry in made._log if isinstance(entry, Publication)]
    assert len(made) == len(there) <= made.settings.max_events
    assert made.size_bytes == sum(one.size_bytes for one in there) <= made.settings.max_bytes
    assert [one.offset for one in there] == sorted({one.offset for one in there})
    for each in made._classes:
        assert [one for one in each.held if one in there] == [one for one in there if made._class_of(one) is each]
        assert list(each.since) == sorted(each.since)
        assert len(each.since) == len(each.held)
        # What lies on it and is gone is told.
        missing = set(range(1, newest + 1)) - {one.offset for one in there}
        assert made.resume("e-0") == "too_old" or not missing or not all(t.store for t in made.settings.topics)


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "EVENTS_PER_STEP", 2)


@pytest.mark.usefixtures("short_steps")
def test_the_newest_of_two_changes_counts() -> None:
    made = window(*(publication(offset) for offset in range(1, 11)))
    older, newer = made.change(HistorySettings(max_events=3)), made.change(HistorySettings(max_events=7))
    next(older)
    for job in (newer, older):
        assert list(job) in ([], [None] * 5)
    assert made.settings.max_events == 7


@pytest.mark.usefixtures("short_steps")
def test_what_is_forgotten_during_a_change_is_forgotten_once() -> None:
    made = window(*(publication(offset) for offset in range(1, 11)), max_events=10)
    job = made.change(HistorySettings(max_events=4))
    for _ in range(3):
        next(job)
    for offset in range(11, 17):
        made.append(publication(offset), now=0)
    assert list(job)
    made.forget(0)
    assert held(made) == [13, 14, 15, 16]
    assert made.size_bytes == sum(one.size_bytes for one in made.newest_first())
    assert made.resume("e-11") == "too_old"
    assert made.resume("e-12") == Position("e", 12)


def test_new_bounds_of_many_events_take_many_short_steps() -> None:
    made = window(*(publication(offset) for offset in range(1, 3001)))
    other = HistorySettings(max_events=1000, topics=(TopicHistory(pattern="b", max_age_seconds=5),))
    assert sum(1 for _ in made.change(other)) >= 3000 // EVENTS_PER_STEP
    assert made.settings == other
    made.forget(0)
    assert held(made) == list(range(2001, 3001))
