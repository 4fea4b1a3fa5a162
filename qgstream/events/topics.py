"""Topic names and patterns: checks and matches them. Pure.

A publication has names. Subscribers ask for patterns, and tokens grant patterns. A pattern is an exact name, or a
prefix that ends in `*`. The pattern `*` matches every topic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from qgstream.errors import InvalidField

# Long enough for a path of ids, and a stream can still ask for several topics within a URL of 8 KiB (the limit of
# nginx).
MAX_TOPIC_CHARACTERS = 256

# C0, DEL and C1: names do not need them, and attackers use them to inject fields. UTF-8 cannot encode lone surrogates,
# so they would cause an error after the publication has its position.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def check_text(field: str, value: object, *, max_characters: int = MAX_TOPIC_CHARACTERS) -> str:
    """Return `value` if it is one line of 1 to `max_characters` characters; otherwise raise `InvalidField`."""
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
    """Return a valid topic name, or raise `InvalidField`. A name has no `*`, which only patterns have."""
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
    """Return whether a valid pattern covers a valid name."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else pattern == name


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Return whether any of the patterns covers the name."""
    return any(matches(pattern, name) for pattern in patterns)


def overlap(one: str, other: str) -> bool:
    """Return whether some name could match both patterns."""
    return covers(one, other) or covers(other, one)


def may_ask(pattern: str, grants: Iterable[str], private: Iterable[str]) -> bool:
    """Return whether a stream may ask for this pattern. A name is also a pattern.

    If a private pattern covers the pattern, the stream needs a grant that overlaps with the pattern; otherwise it could
    never get an event. Every stream may ask for any other pattern. At delivery, the server leaves out private events
    without a grant. So every stream may ask for `*`, and gets only its own part.
    """
    if not any(covers(one, pattern) for one in private):
        return True
    return any(overlap(grant, pattern) for grant in grants)


class PrivateTopics:
    """The patterns of the topics whose events need a grant.

    All subscriptions of a process share one object, and use it at each delivery. A reload replaces `patterns`, so the
    change applies to all open streams at once, whatever their number.
    """

    __slots__ = ("patterns",)

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self.patterns = frozenset(patterns)


def covers(grant: str, pattern: str) -> bool:
    """Return whether `grant` matches every name that `pattern` can match."""
    if not pattern.endswith("*"):
        return matches(grant, pattern)
    return grant.endswith("*") and pattern.startswith(grant[:-1])
