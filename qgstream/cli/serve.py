"""`qgstream serve`: the server, until SIGTERM, SIGINT or SIGQUIT."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from qgstream.cli import _settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "serve",
        help="serve until SIGTERM, SIGINT or SIGQUIT",
        description=__doc__,
        examples=[
            "qgstream serve --dev",
            "qgstream serve --config production.toml",
            "qgstream serve -p 8001 --set limits.max_connections=20000",
            'QGSTREAM_AUTH__PUBLISH_KEYS=\'{"shop": "a-long-secret"}\' qgstream serve',
        ],
    )
    _settings.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the configuration and serve; SIGHUP loads it again."""
    from qgstream.process.signals import Signals

    signals = Signals()
    signals.hold()  # before the slow imports
    from qgstream.process import server

    return server.run(_settings.load(args), lambda: _settings.load(args), signals)
