"""Which messages repeat another one: the same for every reader, wherever it began to read."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from qgstream.brokers.rabbitmq import repeats as rabbitmq_repeats
from qgstream.brokers.rabbitmq.marks import Slip
from qgstream.brokers.rabbitmq.messages import Entry
from qgstream.brokers.rabbitmq.repeats import REACH, Repeats, first_needed
from qgstream.events.publication import Publication


def entry(position: int, key: str | None, *, seen: int | None = None, at: float | None = None) -> Entry:
    """One of ours if it says what it had `seen`."""
    slip = None if seen is None else Slip("event", f"u{position}", seen, at)
    return Entry(position, Publication(("a",), b""), slip=slip, key=key, at=at)


def judged(entries: list[Entry], *, since: int = 0) -> list[int | None]:
    repeats = Repeats(since)
    return [repeats.take(entry) for entry in entries]


def test_a_key_is_taken_once_among_those_who_did_not_know_of_each_other() -> None:
    log = [entry(1, "k", seen=0), entry(2, "k", seen=0), entry(3, "k", seen=1), entry(4, "other", seen=0)]
    assert judged(log) == [None, 1, 1, None]
    # Who had seen it and publishes it all the same has a reason: five minutes are over.
    assert judged([entry(1, "k", seen=0), entry(9, "k", seen=1)]) == [None, None]
    assert judged([entry(1, None, seen=0), entry(2, None, seen=0)]) == [None, None]


def test_of_others_the_time_decides() -> None:
    assert judged([entry(1, "k", at=0), entry(2, "k", at=299), entry(3, "k", at=600)]) == [None, 1, None]
    assert judged([entry(1, "k", at=400), entry(2, "k", at=399)]) == [None, 1], "clocks differ"
    assert judged([entry(1, "k"), entry(2, "k", at=1)]) == [None, None]
    assert judged([entry(1, "k", at=1), entry(2, "k")]) == [None, None]


def test_what_is_far_away_is_no_repetition() -> None:
    assert judged([entry(1, "k", at=1), entry(1 + REACH, "k", at=1)]) == [None, 1]
    assert judged([entry(1, "k", at=1), entry(2 + REACH, "k", at=1)]) == [None, None]
    assert judged([entry(1, "k", seen=0), entry(2 + REACH, "k", seen=0)]) == [None, None]


def test_memory_is_bounded() -> None:
    repeats = Repeats(0)
    for position in range(1, 5 * REACH):
        repeats.take(entry(position, str(position), seen=0))
    assert len(repeats._copies) <= REACH + 1
    repeated = rabbitmq_repeats.MAX_REPEATED
    for position in range(5 * REACH, 5 * REACH + repeated + 10):
        repeats.take(entry(position, "same", seen=0))
    assert len(repeats._repeated) <= repeated
    assert repeats.knows(repeats.up_to - 5, repeats.up_to)
    assert not repeats.knows(0, repeats.up_to)


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    found = []
    position = 0
    for _ in range(draw(st.integers(1, 40))):
        position += draw(st.sampled_from([1, 1, 1, 2, REACH - 1, REACH]))
        key = draw(st.sampled_from(["a", "b", None]))
        at = draw(st.none() | st.sampled_from([0.0, 200.0, 400.0, 1000.0]))
        seen = draw(st.none() | st.integers(0, position - 1))
        found.append(entry(position, key, seen=seen, at=at))
    return found


@settings(max_examples=50)
@given(logs(), st.data())
@example([entry(1, "a", seen=0), entry(2, "a", seen=0), entry(3, "a", seen=1)], None)
def test_who_begins_in_the_middle_comes_to_the_same(log: list[Entry], data: st.DataObject | None) -> None:
    everything = Repeats(0)
    for each in log:
        everything.take(each)
    first = 2 if data is None else data.draw(st.integers(0, len(log) - 1))
    last = 3 if data is None else data.draw(st.integers(first + 1, len(log)))
    page = log[first:last]
    after = page[0].position - 1
    start = first_needed(page, after)
    later = Repeats(start)
    for each in log:
        if start < each.position <= page[-1].position:
            later.take(each)
    assert [later.is_repeated(each) for each in page] == [everything.is_repeated(each) for each in page]
    assert everything.knows(after, page[-1].position)
