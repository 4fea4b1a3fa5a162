"""The command line: one module for each subcommand.

A module here whose name has no leading underscore is a subcommand. It has `add_parser(subparsers)`, which adds its
parser and sets `run` as a default, and `run(args) -> int`, which returns the exit status: 0 is success, 1 is a problem
that was printed, 2 is an invalid command line. All modules are imported to build the parser, so slow imports belong
into `run`.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import pkgutil
import sys
from collections.abc import Sequence

from qgstream.cli import _streams
from qgstream.cli._parser import Parser
from qgstream.errors import QgstreamError
from qgstream.version import __version__

# Importing makes objects that stay. Going through them again and again was a tenth of the time of a start. `serve` sets
# its own thresholds when it has started.
_GC_THRESHOLDS = (50_000, 20, 50)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    if argv is None:  # in a process of its own
        gc.set_threshold(*_GC_THRESHOLDS)
    _streams.open_missing()
    try:
        try:
            status = _run(argv)
        finally:
            sys.stdout.flush()  # also the output of --help, which ends with SystemExit
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as in shells
    except BrokenPipeError:
        # The reader of the output has closed it (`qgstream ... | head`).
        _streams.drop(sys.stdout)
        return 141  # 128 + SIGPIPE
    except OSError as error:
        if not _streams.is_unwritable(error):
            raise
        _streams.drop(sys.stdout)
        _streams.say(f"standard output: {error.strerror}")
        return 1
    return status


def make_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="qgstream",
        description="A server for Server-Sent Events.",
        epilog="`qgstream help COMMAND` shows the help of a command.",
        examples=[
            "qgstream serve --dev",
            "qgstream tail --topic orders",
            "QGSTREAM_PUBLISH_KEY=dev qgstream publish orders '{\"order\": 7}'",
        ],
    )
    parser.add_argument("-V", "--version", action="version", version=f"qgstream {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__name__}.{module.name}").add_parser(subparsers)
    return parser


def _run(argv: Sequence[str] | None) -> int:
    parser = make_parser()
    args: argparse.Namespace = parser.parse_args(argv)
    if not hasattr(args, "run"):  # the name alone: what there is to type
        print(parser.format_help(), end="")
        return 0
    try:
        status: int = args.run(args)
    except QgstreamError as error:
        _streams.say(str(error))
        return 1
    return status
