"""The name that somebody may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like this one, or None if none is."""
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` for the end of an error, or nothing if no known name is like this one."""
    near = nearest(name, known)
    return "" if near is None else f"; did you mean {near}?"
