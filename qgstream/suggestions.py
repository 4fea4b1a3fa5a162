"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# No name that is known is half as long. The comparison takes time by the length, and a client chooses the name.
_MAX_CHARACTERS = 200


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most similar to this name, or None if none is similar."""
    if len(name) > _MAX_CHARACTERS:
        return None
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` for the end of an error, or an empty text if no known name is similar."""
    near = nearest(name, known)
    return "" if near is None else f"; did you mean {near}?"
