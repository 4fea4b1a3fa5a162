"""`qgstream help`: the help of a command, or the manual page of all of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "help",
        help="show the help of a command, or make the manual page",
        description="Shows the same as `qgstream COMMAND --help`. With --man it prints the manual page of qgstream "
        "and all its commands, in the language of man(7).",
        examples=[
            "qgstream help serve",
            "qgstream help --man | man -l -",
            "qgstream help --man > ~/.local/share/man/man1/qgstream.1",
        ],
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="a command; without it, the list of commands")
    parser.add_argument("--man", action="store_true", help="print the manual page")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    from qgstream.cli import make_parser
    from qgstream.cli._parser import commands, unknown_command

    root = make_parser()
    if args.man:
        if args.command is not None:
            args.parser.error("got --man with COMMAND, expected one of them: the page has all commands")
        from qgstream.cli._man import page

        print(page(root), end="")
        return 0
    known = commands(root)
    if args.command is not None and args.command not in known:
        args.parser.error(unknown_command(args.command, list(known)))
    print((root if args.command is None else known[args.command]).format_help(), end="")
    return 0
