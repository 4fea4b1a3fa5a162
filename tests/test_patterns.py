"""Sets of patterns: they cover what their patterns cover."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qgstream.patterns import PatternSet, pattern_set
from qgstream.topics import covers, matches_any

NAMES = st.text(alphabet="ab/\U0010ffff", min_size=1, max_size=4)
PATTERNS = st.lists(NAMES | st.builds("{}*".format, st.text(alphabet="ab/\U0010ffff", max_size=3)), max_size=8)


@given(PATTERNS, NAMES)
def test_it_covers_what_its_patterns_cover(patterns: list[str], name: str) -> None:
    assert PatternSet(patterns).covers(name) is matches_any(patterns or ["*"], name)


@given(PATTERNS)
def test_a_pattern_that_another_covers_is_left_out(patterns: list[str]) -> None:
    kept = list(PatternSet(patterns))
    assert not [(one, other) for one in kept for other in kept if one != other and covers(one, other)]
    assert all(any(covers(one, pattern) for one in kept) for pattern in patterns)
    assert len(set(kept)) == len(kept)


def test_the_set_of_equal_patterns_is_made_once() -> None:
    assert pattern_set(frozenset(["a*", "b"])) is pattern_set(frozenset(["b", "a*"]))
