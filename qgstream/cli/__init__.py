"""The command line: one module a subcommand.

A module here whose name has no leading underscore is a subcommand. It has `add_parser(subparsers)`, which adds its
parser and sets `run` as a default, and `run(args) -> int`, which returns the exit status: 0 is well, 1 is a problem
that was printed, 2 is a command line that cannot be understood. All of them are imported to build the parser, so what
is heavy is imported in `run`.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence

from qgstream.cli import _streams
from qgstream.cli._parser import Parser
from qgstream.errors import QgstreamError
from qgstream.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    _streams.open_missing()
    try:
        try:
            status = _run(argv)
        finally:
            sys.stdout.flush()  # what --help printed too, which ends by SystemExit
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells say it
    except BrokenPipeError:
        # Whoever read the output has left (`qgstream ... | head`).
        _streams.drop(sys.stdout)
        return 141  # 128 + SIGPIPE
    except OSError as error:
        if not _streams.is_unwritable(error):
            raise
        _streams.drop(sys.stdout)
        _streams.say(f"standard output: {error.strerror}")
        return 1
    return status


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="qgstream", description="A server for Server-Sent Events.")
    parser.add_argument("--version", action="version", version=f"qgstream {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__name__}.{module.name}").add_parser(subparsers)
    args: argparse.Namespace = parser.parse_args(argv)
    try:
        status: int = args.run(args)
    except QgstreamError as error:
        _streams.say(str(error))
        return 1
    return status
