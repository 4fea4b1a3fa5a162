"""`qgstream check-config`: whether the configuration can be used, without starting anything."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from qgstream.cli import _settings, _streams

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "check-config",
        help="check the configuration without starting",
        description="Prints ok and warnings, or every problem on standard error; exit status 0 or 1.",
    )
    _settings.add_arguments(parser)
    parser.add_argument("--show", action="store_true", help="also print every key, its value and where it came from")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the configuration and say what there is to say."""
    from qgstream.auth import Authenticator
    from qgstream.brokers.base import open_broker
    from qgstream.server import tls_context
    from qgstream.sources.base import open_sources

    loaded = _settings.load(args)
    config = loaded.config
    # What `serve` refuses at its start is refused here: these read the files, know the brokers and
    # import the sources that are named.
    Authenticator(config.auth)
    tls_context(config.server)
    open_broker(config.broker.url)
    open_sources(config.sources)
    print("ok")
    for warning in loaded.warnings:
        _streams.say(f"warning: {warning}")
    if args.show:
        for key, value, source in loaded.effective():
            print(f"{key} = {json.dumps(value, ensure_ascii=False)}  # {source}")
    return 0
