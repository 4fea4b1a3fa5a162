"""Ages by a clock that nobody sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.brokers import ages
from qgstream.brokers.ages import MANY, PARTS, Ages


def test_what_was_there_is_as_old_as_the_first_look() -> None:
    found = Ages(7, 100.0)
    assert found.older_than(10, 109.9) == -1
    assert found.older_than(10, 110) == 7
    found.note(7, 111)
    assert len(found) == 1
    found.note(9, 112)
    assert [found.older_than(10, now) for now in (121.9, 122)] == [7, 9]
    assert found.older_than(0, 122) == 9


@given(st.lists(st.tuples(st.floats(0.01, 1000), st.integers(1, 5)), max_size=60), st.floats(0.1, 5000))
def test_nothing_is_older_than_it_is_and_hardly_younger(steps: list[tuple[float, int]], seconds: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ages, "MANY", 5)
        found, now, newest = Ages(0, 0.0), 0.0, 0
        came: list[tuple[int, float]] = [(0, 0.0)]
        for step, events in steps:
            now, newest = now + step, newest + events
            found.note(newest, now)
            came.append((newest, now))
        told = found.older_than(seconds, now)
        truly = max((offset for offset, at in came if at <= now - seconds), default=-1)
        at_least = max((offset for offset, at in came if at <= now - seconds * (1 + 2 / PARTS)), default=-1)
        gaps = max((step for step, _ in steps), default=0)
        assert told <= truly
        if gaps < seconds / PARTS:
            assert told >= at_least


def test_a_year_of_notes_is_few() -> None:
    found = Ages(0, 0.0)
    now, most = 0.0, 0
    for n in range(1, 200_000):
        now += 160
        found.note(n, now)
        most = max(most, len(found))
    assert most <= 2 * MANY + 1
    for seconds in (200, 3600, 86_400, 7 * 86_400, 200 * 86_400):
        at = found.older_than(seconds, now) * 160
        assert seconds <= now - at <= seconds * (1 + 2 / PARTS) + 2 * 160
