"""`qgstream token`: mints a token, or explains which of its checks fails."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from qgstream.cli import _settings
from qgstream.errors import ConfigError, QgstreamError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from qgstream.process.config import Config

_TTL_SECONDS = 3600.0
# Standard input may be a wrong and endless file. A token with more characters is refused unread.
_MAX_INPUT_BYTES = 64 * 1024


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "token",
        help="mint a token, or show which check of a token fails",
        description="Prints a token signed with auth.jwt.secret (HS algorithms only). With --explain it prints each "
        "check of a token or key instead; exit status 0 when it would be accepted, 1 when not.",
        examples=[
            "qgstream token --config production.toml --subject ann --subscribe 'users/ann/*'",
            "qgstream token --config production.toml --explain - < token.txt",
        ],
    )
    _settings.add_arguments(parser)
    parser.add_argument("--subject", metavar="NAME", help="the subject of the token (sub), as shown in the log")
    for verb in ("publish", "subscribe"):
        parser.add_argument(
            f"--{verb}",
            action="append",
            metavar="PATTERN",
            help=f"topic that it may {verb} to, or a prefix ending in '*' (repeatable)",
        )
    parser.add_argument(
        "--ttl", type=float, metavar="SECONDS", help=f"lifetime of the token (default {_TTL_SECONDS:g})"
    )
    parser.add_argument(
        "--explain",
        metavar="TOKEN",
        help="check this token or key; '-' reads it from standard input, because every user of the machine can "
        "read a command line",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Mint or explain a token."""
    asked = {f"--{name}" for name in ("subject", "publish", "subscribe", "ttl") if getattr(args, name) is not None}
    if args.explain is not None:
        if asked:
            args.parser.error(f"--explain takes no {' or '.join(sorted(asked))}")
        return _explain(_settings.load(args).config, args.explain)
    if args.subject is None:
        args.parser.error("expected --subject NAME to mint a token, or --explain TOKEN")
    return _mint(_settings.load(args).config, args)


def _mint(config: Config, args: argparse.Namespace) -> int:
    from qgstream.auth.tokens import mint

    if config.auth.jwt is None:
        raise ConfigError(["auth.jwt: not set, expected algorithms and a secret to mint a token"])
    ttl = _TTL_SECONDS if args.ttl is None else args.ttl
    print(mint(config.auth.jwt, args.subject, args.publish or (), args.subscribe or (), ttl, time.time()))
    return 0


def _explain(config: Config, given: str) -> int:
    from qgstream.auth.authenticator import Authenticator

    authenticator = Authenticator(config.auth)
    if given == "-":
        # A value that is not text is not a token either; the checks report it.
        try:
            given = sys.stdin.buffer.read(_MAX_INPUT_BYTES).decode(errors="replace").strip()
        except OSError as error:
            raise QgstreamError(f"standard input: {error.strerror}") from None
    checks = authenticator.explain(given, time.time())
    width = max(len(check.check) for check in checks)
    for check in checks:
        print(f"{'ok' if check.ok else 'failed':6}  {check.check:{width}}  {check.detail}")
    return 0 if all(check.ok for check in checks) else 1
