"""Sets of patterns: they cover what their patterns cover."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.events.pattern_sets import PatternSet, narrowed, pattern_set
from qgstream.events.publication import Publication
from qgstream.events.subscription import Subscription, narrow
from qgstream.events.topics import PrivateTopics, covers, matches_any
from qgstream.wire.framing import Framing

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


@given(PATTERNS.map(frozenset), PATTERNS.map(frozenset), PATTERNS.map(frozenset), st.data())
def test_narrowed_grants_let_the_same_publications_pass(
    grants: frozenset[str], patterns: frozenset[str], private: frozenset[str], data: st.DataObject
) -> None:
    # Names at the patterns' edges are what could go wrong.
    edges = sorted({p.removesuffix("*") + end for p in grants | patterns for end in ("", "a", "b")} - {""})
    names = NAMES | st.sampled_from(edges) if edges else NAMES
    topics = tuple(data.draw(st.lists(names, min_size=1, max_size=3, unique=True)))
    publication = Publication(topics, b"x", private=data.draw(st.booleans()), offset=1)
    for framing, envelope in ((Framing.RAW, False), (Framing.RAW, True), (Framing.WEBSOCKET, False)):
        full = Subscription(
            patterns, envelope=envelope, framing=framing, grants=grants, private_topics=PrivateTopics(private)
        )
        less = narrow(full)
        assert less.wants(publication) is full.wants(publication)
        for topic in topics:
            if matches_any(patterns or ["*"], topic):
                assert less.accepts(publication, topic) is full.accepts(publication, topic)
        if full.wants(publication):
            # Of an envelope they decide the bytes, too: it names the topics that its reader may know of.
            assert less.frame(publication, "e", {}) == full.frame(publication, "e", {})
        assert less.is_allowed is full.is_allowed


@pytest.mark.parametrize(
    ("grants", "patterns", "expected"),
    [
        ({"a", "b*"}, {"c", "d*"}, set()),
        ({"a/1", "a/2", "b"}, {"a/*"}, {"a/1", "a/2"}),
        ({"*"}, {"a", "b*"}, {"a", "b*"}),
        ({"a*", "a/1"}, set(), {"a*"}),
        (set(), set(), set()),
        (set(), {"a"}, set()),
    ],
)
def test_narrowed_grants(grants: set[str], patterns: set[str], expected: set[str]) -> None:
    assert narrowed(frozenset(grants), frozenset(patterns)) == expected
