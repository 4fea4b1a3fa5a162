"""The state: the newest event of each topic, found in short steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qgstream.events.latest
from qgstream.events.history import HistorySettings, Window
from qgstream.events.latest import LOOKS, STEP_BYTES, state
from qgstream.events.publication import Position, Publication
from qgstream.events.subscription import Subscription
from qgstream.events.topics import matches_any

TOPICS = ("a", "a/1", "a/2", "b", "b/1", "c")
SOME = 3000  # of more than four times as many: found by their names


class CountingWindow(Window):
    """Counts what is looked at."""

    looks = 0

    def newest_on(self, topic: str) -> Publication | None:
        self.looks += 1
        return super().newest_on(topic)

    def sort_topics(self, most: int) -> bool:
        self.looks += most
        return super().sort_topics(most)

    def page(self, offset: int, size: int) -> list[Publication]:
        page = list(super().page(offset, size))
        self.looks += len(page)
        return page


def window(*topics: tuple[str, ...], size: int = 1, max_events: int = 1_000_000) -> CountingWindow:
    made = CountingWindow(HistorySettings(max_events=max_events, max_bytes=10**12), Position("e", 0))
    for each in topics:
        append(made, *each, size=size)
    return made


def append(window: Window, *topics: str, size: int = 1, event: str | None = None, private: bool = False) -> None:
    window.append(
        Publication(topics, b"x" * size, event=event, private=private, offset=window.newest + 1, published_at=0), 0.0
    )


def offsets(steps: Iterator[Sequence[Publication]]) -> list[int]:
    return [one.offset for step in steps for one in step]


def asked(*patterns: str, events: frozenset[str] = frozenset()) -> Subscription:
    return Subscription(frozenset(patterns), events)


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(TOPICS), min_size=1, unique=True), st.sampled_from("xyz"), st.booleans())
    ),
    st.frozensets(st.sampled_from(["a", "a*", "a/*", "b/1", "c*", "z", "*"])),
    st.frozensets(st.sampled_from("xy")),
    st.frozensets(st.sampled_from(["a*", "b"])),
    st.integers(0, 20),
    st.sampled_from([0, 2, 1000]),
    st.sampled_from([1, 3, 1000]),
)  # fmt: skip
def test_it_is_what_a_plain_reading_finds(
    events: list[tuple[list[str], str, bool]], patterns: frozenset[str], types: frozenset[str], grants: frozenset[str],
    max_events: int, most: int, looks: int,
) -> None:  # fmt: skip
    made = window(max_events=max_events)
    for topics, event, private in events:
        append(made, *topics, event=event, private=private)
    subscription = Subscription(patterns, types, grants=grants)
    newest = {topic: offset for offset, (topics, _, _) in enumerate(events, 1) for topic in topics}
    covered = [made.at(offset) for topic, offset in newest.items() if matches_any(patterns or ["*"], topic)]
    expected = sorted({one.offset for one in covered if one is not None and subscription.wants(one)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qgstream.events.latest, "MOST_TOPICS", most)
        patch.setattr(qgstream.events.latest, "LOOKS", looks)
        assert offsets(state(made, subscription)) == expected


def test_a_step_looks_at_few_topics_however_many_are_held() -> None:
    # 10 000 events with 64 topics each were looked at in one go, each topic by each of 64 patterns.
    made = window(*[tuple(f"t/{event}/{n}" for n in range(64)) for event in range(300)])
    for subscription in (
        asked("*"),
        asked(*[f"t/{n}*" for n in range(64)]),
        asked(*[f"none/{n}/*" for n in range(64)]),
    ):
        steps, before = state(made, subscription), made.looks
        for _ in steps:
            assert made.looks - before <= 4 * LOOKS
            before = made.looks


def test_it_costs_what_it_asks_for() -> None:
    made = window(*[(f"t/{n:06}",) for n in range(20_000)])
    offsets(state(made, asked("sorts the topics*")))
    made.looks = 0
    for prefixes, topics in (([f"t/0{n:04}*" for n in range(64)], 640), ([f"t/0{n:02}*" for n in range(4)], 4000)):
        made.looks = 0
        assert len(offsets(state(made, asked(*prefixes)))) == topics
        assert made.looks - LOOKS <= 2 * topics


@pytest.mark.parametrize("patterns", [("*",), ("t/1", "t/2")])
def test_nothing_is_sorted_for_names_or_for_everything(patterns: tuple[str, ...]) -> None:
    made = window(*[(f"t/{n}",) for n in range(LOOKS + 1)])
    steps = state(made, asked(*patterns))
    assert next(steps)
    offsets(steps)
    assert not made.sort_topics(1)


def test_a_pattern_within_another_is_asked_once() -> None:
    made = window(*[(f"t/{n}",) for n in range(100)])
    plain = offsets(state(made, asked("t/*")))
    made.looks = 0
    assert offsets(state(made, asked("t/*", *[f"t/{n}" for n in range(50)], *[f"t/{n}*" for n in range(9)]))) == plain
    assert made.looks <= LOOKS + 2 * 100


def test_nothing_is_no_step() -> None:
    made = window(("a",), ("b",))
    append(made, "b", event="other")
    assert list(state(made, asked("c*"))) == []
    assert list(state(made, asked("b", events=frozenset(["message"])))) == []
    assert next(state(window(*[(f"t/{n}",) for n in range(LOOKS + 1)]), asked("none*"))) == []  # not known yet


@pytest.mark.parametrize("others", [0, 4 * SOME])
def test_what_changes_meanwhile_is_left_to_the_log(others: int) -> None:
    made = window(*[(f"other/{n}",) for n in range(others)], *[(f"t/{n}",) for n in range(SOME)])
    while not made.sort_topics(LOOKS):
        pass
    steps = state(made, asked("t/*"))
    first = next(steps)
    append(made, f"t/{SOME - 1}")
    append(made, "t/new")
    assert [one.offset for one in first] + offsets(steps) == list(range(others + 1, others + SOME))


@pytest.mark.parametrize("others", [0, 4 * SOME])
def test_what_is_forgotten_meanwhile_is_left_out_and_not_kept_alive(others: int) -> None:
    made = window(*[(f"other/{n}",) for n in range(others)], *[(f"t/{n}",) for n in range(SOME)])
    while not made.sort_topics(LOOKS):
        pass
    steps = state(made, asked("t/*"))
    first = next(steps)
    made.settings = HistorySettings(max_events=10)
    made.forget(0)
    assert [one.offset for one in first] == list(range(others + 1, others + len(first) + 1))
    assert offsets(steps) == list(range(others + SOME - 9, others + SOME + 1))


def test_a_step_is_bounded_in_bytes() -> None:
    made = window(*[(f"t/{n}",) for n in range(20)], size=STEP_BYTES // 4)
    assert max(sum(len(one.data) for one in step) for step in state(made, asked("t/*"))) <= STEP_BYTES
