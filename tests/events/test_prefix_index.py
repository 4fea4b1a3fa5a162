"""Names in order: a set that is sorted a few names at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qgstream.events.prefix_index import PrefixIndex

TEXTS = st.text(alphabet="ab\ud7ff\U0010ffff", max_size=3)


@given(st.lists(st.tuples(TEXTS, st.integers(0, 3))), st.lists(TEXTS))
def test_it_has_the_names_under_a_prefix_in_order(changes: list[tuple[str, int]], prefixes: list[str]) -> None:
    names, expected = PrefixIndex(), set[str]()
    for name, most in changes:
        if name in expected:
            names.discard(name)
        else:
            names.add(name)
        expected ^= {name}
        names.settle(most)
    while not names.settle(1):
        pass
    for prefix in ("", *prefixes):
        under = sorted(name for name in expected if name.startswith(prefix))
        assert list(names.under(prefix)) == under
        assert names.count(prefix) == len(under)


def test_it_sorts_no_more_at_a_time_than_it_is_told() -> None:
    names = PrefixIndex()
    for number in range(10):
        names.add(str(number))
    settled = [names.settle(3) for _ in range(4)]
    assert settled == [False, False, False, True]
    for number in range(5):
        names.discard(str(number))
    names.add("new")
    settled = [names.settle(3) for _ in range(2)]
    assert settled == [False, True]
    assert list(names.under("")) == ["5", "6", "7", "8", "9", "new"]


def test_what_comes_and_goes_unasked_for_leaves_nothing() -> None:
    names = PrefixIndex()
    for number in range(1000):
        names.add(str(number))
        names.discard(str(number))
    assert names.settle(0)
