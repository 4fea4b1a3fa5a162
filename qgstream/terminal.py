"""Text for a terminal: its colours, lines of the log, and characters that must not act on it. Pure."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple, TextIO


class Colours(NamedTuple):
    """The escape sequences of a terminal (ECMA-48, SGR); all are empty where there are no colours."""

    dim: str = ""
    bold: str = ""
    red: str = ""
    yellow: str = ""
    plain: str = ""


NO_COLOURS = Colours()
_COLOURS = Colours(dim="\x1b[2m", bold="\x1b[1m", red="\x1b[31m", yellow="\x1b[33m", plain="\x1b[0m")

# A value that needs no quotes: one word, which cannot be taken for anything else.
_WORD = re.compile(r"[^\s\"'=\[\]{}\\]+")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at this stream. False for a stream that is closed, or that is no file."""
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):
        return False


def colours(stream: TextIO | None, environ: Mapping[str, str] = os.environ) -> Colours:
    """The colours of a stream: none unless it is a terminal, and none with `NO_COLOR` (https://no-color.org: set to
    anything but the empty string) or `TERM=dumb`."""
    if not is_terminal(stream) or environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return NO_COLOURS
    return _COLOURS


def escape(text: str) -> str:
    """The text with control characters, line separators, changes of direction and lone surrogates escaped (`\\x1b`,
    `\\u202e`), so that it cannot move the cursor or forge a line."""
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() else c.encode("unicode_escape").decode() for c in text])


def log_line(fields: Mapping[str, Any], colours: Colours, *, with_date: bool) -> str:
    """One record of the log for people: the time, the level, the event, then `name=value` for each other field.

    `with_date`: the time is UTC with its date, as in JSON; otherwise it is the clock on the wall. A traceback follows
    in lines of its own, which are indented.
    """
    dim, bold, plain = colours.dim, colours.bold, colours.plain
    rest = dict(fields)
    stamp, level, event = str(rest.pop("timestamp")), str(rest.pop("level")), str(rest.pop("event"))
    env, traceback = rest.pop("env"), rest.pop("exc_info", None)
    if not with_date:
        stamp = f"{datetime.fromisoformat(stamp).astimezone():%H:%M:%S}"
    colour = {"warning": colours.yellow, "error": colours.red, "critical": colours.red}.get(level, dim)
    words = [f"{dim}{stamp}{plain}", f"{colour}{escape(level):7}{plain}", f"{bold}{escape(event)}{plain}"]
    words += [f"{dim}{escape(name)}={plain}{_value(value)}" for name, value in rest.items()]
    words.append(f"{dim}env={_value(env)}{plain}")
    line = " ".join(words)
    if traceback is not None:
        line += "".join(f"\n    {escape(part.expandtabs())}" for part in str(traceback).split("\n"))
    return line


def _value(value: object) -> str:
    if isinstance(value, str) and _WORD.fullmatch(value) and value.isprintable():
        return value
    return escape(json.dumps(value, ensure_ascii=False, default=str))
