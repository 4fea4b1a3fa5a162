"""Topic names and patterns."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.errors import InvalidField
from qgstream.events.topics import check_name, check_pattern, check_text, covers, matches, matches_any

NAMES = st.text("ab/", min_size=1, max_size=4)
PATTERNS = NAMES | st.builds(lambda prefix: prefix + "*", st.text("ab/", max_size=3))


@given(NAMES)
def test_names_are_taken_as_they_are(name: str) -> None:
    assert check_name(name) == name
    assert check_pattern(name) == name


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "empty"),
        (7, "got int"),
        (None, "got NoneType"),
        ("a" * 257, "257 characters, expected at most 256"),
        ("a\nb", "U\\+000A at character 1"),
        ("a\r", "U\\+000D"),
        ("\0", "U\\+0000"),
        ("a\x85", "U\\+0085"),
        ("\ud800", "U\\+D800"),
    ],
)
def test_what_no_name_can_be_is_said_with_its_field(value: object, message: str) -> None:
    for check in (check_name, check_pattern):
        with pytest.raises(InvalidField, match=message) as caught:
            check(value, field="topic")
        assert caught.value.field == "topic"


def test_a_star_is_for_the_end_of_a_pattern() -> None:
    assert check_pattern("*") == "*"
    assert check_pattern("a*") == "a*"
    for bad in ("a*b", "**", "*a"):
        with pytest.raises(InvalidField, match="only as the last character"):
            check_pattern(bad)
    with pytest.raises(InvalidField, match="without"):
        check_name("a*")


@given(st.text(st.characters() | st.sampled_from("\r\n\0\t\x7f\x85\ud800\u2028"), max_size=10))
def test_text_that_passes_is_one_line_of_utf_8(text: str) -> None:
    is_good = bool(text) and not {unicodedata.category(character) for character in text} & {"Cc", "Cs"}
    if is_good:
        assert check_text("event", text) == text
        assert text.encode().decode() == text
    else:
        with pytest.raises(InvalidField):
            check_text("event", text)


@given(PATTERNS, NAMES)
def test_a_prefix_matches_what_starts_with_it(pattern: str, name: str) -> None:
    expected = name.startswith(pattern[:-1]) if pattern[-1] == "*" else name == pattern
    assert matches(pattern, name) is expected
    assert matches_any(["zzz", pattern], name) is expected


@given(PATTERNS, PATTERNS, NAMES)
def test_a_grant_that_covers_a_pattern_matches_all_that_it_does(grant: str, pattern: str, name: str) -> None:
    if covers(grant, pattern) and matches(pattern, name):
        assert matches(grant, name)


def test_an_exact_grant_covers_no_prefix() -> None:
    assert not covers("a", "a*")
    assert covers("a*", "ab*")
    assert not covers("ab*", "a*")
    assert not matches_any([], "a")
