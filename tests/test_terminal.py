"""Text for a terminal: it has what JSON has, and nothing in it acts on the terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

from qgstream import logs, terminal
from qgstream.terminal import NO_COLOURS, colours, escape, is_terminal, log_line

FIELDS = {"timestamp": "2026-11-28T09:30:00.000000+00:00", "level": "info", "event": "events.connected", "env": "test"}


@pytest.fixture
def screen() -> Iterator[TextIO]:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        yield stream
    os.close(ours)


def line(**fields: object) -> str:
    return log_line(FIELDS | fields, NO_COLOURS, with_date=True)


def test_the_time_the_level_the_event_and_the_rest() -> None:
    assert line(connection=7, remote_ip="::1") == (
        "2026-11-28T09:30:00.000000+00:00 info    events.connected connection=7 remote_ip=::1 env=test"
    )
    assert re.match(r"\d\d:\d\d:00 info ", log_line(FIELDS, NO_COLOURS, with_date=False))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("word", "word"), ("two words", '"two words"'), ("", '""'), ("a=b", '"a=b"'), ('"', '"\\""'),
        ("a\nb", '"a\\nb"'),
        ("[x]", '"[x]"'), (None, "null"), (True, "true"), (1.5, "1.5"), (["a", "é"], '["a", "é"]'),
        ({"a": 1}, '{"a": 1}'),
        ({1}, '"{1}"'), ("\u202e", '"\\u202e"'), ("\x9b31m", '"\\x9b31m"'), (["\x1b[31m"], '["\\u001b[31m"]'),
    ],
)  # fmt: skip
def test_values(value: object, shown: str) -> None:
    assert line(x=value).endswith(f" x={shown} env=test")


@pytest.mark.parametrize("part", ["\x1b[2J", "\x9b2J", "\r", "\n", "\x07", "\u2028", "\u202e", "\ud800"])
def test_nothing_in_a_line_acts_on_the_terminal(part: str) -> None:
    forged = {"level": f"info{part}", "event": f"a{part}", "env": part, f"name{part}": part, "list": [part]}
    assert log_line(FIELDS | forged, NO_COLOURS, with_date=True).isprintable()
    traceback = line(exc_info=f"Traceback:\n\tValueError: {part}")
    assert all(shown.isprintable() for shown in traceback.split("\n"))
    assert escape(f"a{part}b").isprintable()


def test_a_traceback_has_lines_of_its_own() -> None:
    assert line(exc_info="Traceback:\n  File x").split("\n")[1:] == ["    Traceback:", "      File x"]


def test_colours_are_for_terminals(screen: TextIO) -> None:
    assert colours(screen, {}) != NO_COLOURS
    assert colours(screen, {"NO_COLOR": ""}) != NO_COLOURS  # https://no-color.org: not an empty string
    assert colours(screen, {"NO_COLOR": "0"}) == NO_COLOURS
    assert colours(screen, {"TERM": "dumb"}) == NO_COLOURS
    assert colours(io.StringIO(), {}) == NO_COLOURS


def test_what_is_no_terminal(screen: TextIO) -> None:
    closed = io.StringIO()
    closed.close()
    assert is_terminal(screen)
    assert not any(map(is_terminal, [None, closed, io.StringIO()]))


@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_colours_change_nothing_but_the_colour(screen: TextIO, level: str) -> None:
    fields = FIELDS | {"level": level, "reason": "x"}
    coloured = log_line(fields, colours(screen, {}), with_date=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == log_line(fields, NO_COLOURS, with_date=True)


@pytest.mark.parametrize(
    ("wanted", "on_terminal", "elsewhere"), [("auto", True, False), ("json", False, False), ("text", True, True)]
)
def test_auto_is_text_on_a_terminal(screen: TextIO, wanted: Any, on_terminal: bool, elsewhere: bool) -> None:
    settings = logs.LogSettings(format=wanted)
    assert (logs.is_text(settings, screen), logs.is_text(settings, io.StringIO())) == (on_terminal, elsewhere)


def test_text_has_the_fields_of_json() -> None:
    record = logging.LogRecord("tornado.x", logging.WARNING, "", 0, "token=%s went", ("s3cr3t",), None)
    record.__dict__ |= {"connection": 7, "topics": ["a"], "reason": "two words"}
    fields = json.loads(logs.Formatter("test").format(record))
    text = logs.TextFormatter("test", io.StringIO()).format(record)
    assert "s3cr3t" not in text
    for name, value in fields.items():
        assert (f"{name}={terminal._value(value)}" in text) or (
            name in ("timestamp", "level", "event") and value in text
        )
