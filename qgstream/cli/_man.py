"""The manual page of the command, made of its parsers, so that it has every command and flag. Pure.

Source: man(7). The page has no date, which would differ from build to build.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from qgstream.cli._parser import Parser, commands
from qgstream.version import __version__

_FILES = (
    ("QGSTREAM_CONFIG", "the configuration file, where --config does not name it"),
    ("QGSTREAM_SECTION__KEY", "a setting, for instance QGSTREAM_LIMITS__MAX_CONNECTIONS"),
    ("QGSTREAM_PUBLISH_KEY", "the key or token of `publish`"),
    ("QGSTREAM_TOKEN", "the key or token of `tail`"),
    ("QGSTREAM_ADMIN_KEY", "the key of `check-config --diff`"),
    ("NO_COLOR", "no colours on a terminal"),
)


def page(root: Parser) -> str:
    """The whole page."""
    return "\n".join(_page(root)) + "\n"


def _page(root: Parser) -> Iterator[str]:
    yield f'.TH QGSTREAM 1 "" "qgstream {__version__}" "User Commands"'
    yield ".SH NAME"
    yield r"qgstream \- " + _text((root.description or "").rstrip("."))
    yield ".SH SYNOPSIS"
    yield rf".B qgstream\fR {_text('COMMAND [FLAGS]')}"
    yield ".SH OPTIONS"
    yield from _options(root)
    yield ".SH COMMANDS"
    for name, parser in commands(root).items():
        yield f".SS qgstream {_text(name)}"
        usage = re.sub(r"\s+", " ", parser.format_usage().removeprefix("usage: ")).strip()
        yield from [".PP", _text(usage), ".PP", _text(parser.description or "")]
        yield from _options(parser)
        if parser.epilog:
            yield from [".PP", ".nf", *map(_text, parser.epilog.splitlines()), ".fi"]
        yield from [".PP", "Examples:", ".PP", ".nf", *(f"    {_text(line)}" for line in parser.examples), ".fi"]
    yield ".SH ENVIRONMENT"
    for name, about in _FILES:
        yield from [".TP", rf"\fB{_text(name)}\fR", _text(about)]
    yield ".SH EXIT STATUS"
    yield "0: done. 1: a problem, which was printed. 2: the command line cannot be understood. 130: Ctrl-C."


def _options(parser: Parser) -> Iterator[str]:
    for action in parser._actions:  # noqa: SLF001  # argparse has no other way to ask for them
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            continue
        names = ", ".join(rf"\fB{_text(flag)}\fR" for flag in action.option_strings)
        value = "" if action.nargs == 0 else _metavar(action)
        yield from [".TP", " ".join(filter(None, [names, value])), _text((action.help or "").replace("%%", "%"))]


def _metavar(action: argparse.Action) -> str:
    named = action.metavar or action.dest.upper()
    return rf"\fI{_text(named if isinstance(named, str) else ' '.join(named))}\fR"


def _text(text: str) -> str:
    """Text as roff takes it literally: no escape, no request at the beginning of a line, hyphens that can be copied."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return "\n".join(rf"\&{line}" if line[:1] in (".", "'") else line for line in text.split("\n"))
