"""`qgstream tail`: shows the published events as they arrive."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_URL = "http://127.0.0.1:8000"
_TOKEN_VARIABLE = "QGSTREAM_TOKEN"  # noqa: S105  # its name, not a token


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "tail",
        help="show events as they are published",
        description="Shows the events of a server: for people on a terminal; into a pipe or file one JSON object a "
        "line, with id, topic, event and data. It reconnects with the last id. When events were missed it says so: "
        'into a pipe as a line {"event": "reset", "reason": ...}, which has no topic.',
        epilog=f"A key or token comes from the environment: {_TOKEN_VARIABLE}. Exit status 0: --count events were "
        "shown; 1: refused, and the reason was printed; 2: wrong usage.",
        examples=[
            "qgstream tail",
            "qgstream tail --topic orders --topic 'logs/*' --since earliest",
            "qgstream tail --url https://events.example.com --json --count 10",
        ],
    )
    add = parser.add_argument
    add("--url", default=_URL, help=f"of the server ({_URL})")
    add("--topic", action="append", default=[], help="a name, or a prefix ending in '*' (repeatable; all without it)")
    add("--event", action="append", default=[], metavar="TYPE", help="only events of this type (repeatable)")
    add("--since", default="", metavar="ID", help="begin after this id; 'earliest' is everything that is held")
    add("--latest", action="store_true", help="begin with the newest event of each topic")
    add("--count", type=_whole, metavar="N", help="end after so many events")
    add("--json", action="store_true", help="JSON lines on a terminal too")
    add("--give-up", type=float, metavar="SECONDS", help="end when there was no stream for so long; without it, never")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Show events until there were enough, or the output has no reader any more."""
    import asyncio

    from qgstream.cli import _tail
    from qgstream.client.responses import ClientError, CredentialsRefused, Refused, UnusableToken, server_of
    from qgstream.client.stream import connect
    from qgstream.errors import QgstreamError

    server = ""
    show = _tail.ForPrograms() if args.json or not sys.stdout.isatty() else _tail.ForPeople()
    try:
        stream = connect(
            args.url, topics=args.topic, events=args.event, last_event_id=args.since,
            replay="latest" if args.latest else None, token=os.environ.get(_TOKEN_VARIABLE),
            give_up_seconds=args.give_up, on_reset=show.reset,
            on_state=lambda state: _tail.say_state(server, state),
        )  # fmt: skip
        server = server_of(args.url)
    except ValueError as error:
        args.parser.error(str(error))
    try:
        asyncio.run(_tail.tail(stream, show, args.count))
    except ClientError as error:
        said = f"{server}: {error}" if isinstance(error, Refused) else str(error)
        if isinstance(error, CredentialsRefused | UnusableToken):
            said += f"\na key or token comes from the environment: {_TOKEN_VARIABLE}"
        raise QgstreamError(said) from error
    return 0


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and text.strip("0")):
        raise argparse.ArgumentTypeError(f"got {text}, expected 1 or more")
    return int(text)
