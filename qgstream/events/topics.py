"""Topic names and patterns: validate and match. Pure.

A name is what a publication carries; a pattern is what a subscriber asks for or a token grants: an exact name, or a
prefix that ends in `*`. `*` alone is every topic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from qgstream.errors import InvalidField

# Long enough for a path of ids, short enough that 64 of them fit any URL limit (8 KiB at nginx).
MAX_TOPIC_CHARACTERS = 256

# C0, DEL and C1: they have no place in a name and are how field injection is tried. Lone surrogates cannot be
# encoded as UTF-8, so they would fail after the publication has its position.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def check_text(field: str, value: object, *, max_characters: int = MAX_TOPIC_CHARACTERS) -> str:
    """Return `value` if it is a non-empty single line of at most `max_characters`; else raise `InvalidField`."""
    if not isinstance(value, str):
        raise InvalidField(field, f"got {type(value).__name__}, expected a string")
    if not value:
        raise InvalidField(field, "got an empty string, expected at least one character")
    if len(value) > max_characters:
        raise InvalidField(field, f"got {len(value)} characters, expected at most {max_characters}")
    bad = _FORBIDDEN.search(value)
    if bad:
        raise InvalidField(
            field,
            f"got U+{ord(bad[0]):04X} at character {bad.start()}, "
            "expected no control characters and no lone surrogates",
        )
    return value


def check_name(value: object, *, field: str = "topic") -> str:
    """Return a valid topic name, or raise `InvalidField`. A name has no `*`: that is what makes a pattern."""
    name = check_text(field, value)
    if "*" in name:
        raise InvalidField(field, f"got {name!r}, expected a name without '*' (patterns are for subscribers)")
    return name


def check_pattern(value: object, *, field: str = "topic") -> str:
    """Return a valid pattern (a name, or a prefix ending in `*`), or raise `InvalidField`."""
    pattern = check_text(field, value)
    if "*" in pattern[:-1]:
        raise InvalidField(field, f"got {pattern!r}, expected '*' only as the last character")
    return pattern


def matches(pattern: str, name: str) -> bool:
    """Whether a valid pattern covers a valid name."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else pattern == name


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Whether any of the patterns covers the name."""
    return any(matches(pattern, name) for pattern in patterns)


def overlap(one: str, other: str) -> bool:
    """Whether some name could match both patterns."""
    return covers(one, other) or covers(other, one)


def may_ask(pattern: str, grants: Iterable[str], private: Iterable[str]) -> bool:
    """Whether a stream may ask for this pattern; a name is a pattern, too.

    A pattern that lies within a private one needs a grant that meets it, or nothing could ever be delivered. Any other
    is allowed, and what it meets of private topics is held back at delivery unless a grant lets it pass: `*` is for
    everybody, and gives everybody their own part.
    """
    if not any(covers(one, pattern) for one in private):
        return True
    return any(overlap(grant, pattern) for grant in grants)


class PrivateTopics:
    """The patterns of the topics whose events need a grant.

    Every subscription of a process has the same object, and asks it at each delivery. So `patterns`, which a reload
    replaces, holds for streams that are open already, at once and whatever their number.
    """

    __slots__ = ("patterns",)

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self.patterns = frozenset(patterns)


def covers(grant: str, pattern: str) -> bool:
    """Whether every name that `pattern` can match is also matched by `grant`."""
    if not pattern.endswith("*"):
        return matches(grant, pattern)
    return grant.endswith("*") and pattern.startswith(grant[:-1])
