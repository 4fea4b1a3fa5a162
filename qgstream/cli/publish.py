"""`qgstream publish`: events from arguments, standard input or files."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

from qgstream.cli import _lines, _streams
from qgstream.errors import QgstreamError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from qgstream.client.publisher import Publisher

URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "QGSTREAM_PUBLISH_KEY"
# A batch goes into the server's log in one piece, and all other clients wait for it: 1000 events take about 30 ms
# there.
_MOST_LINES = 1000
_MOST_BYTES = 1024 * 1024
_PROGRESS_SECONDS = 0.2


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "publish",
        help="publish events from arguments, lines of standard input, or files",
        description="Each DATA is an event; without one, each line of standard input (or of --file) is. What is JSON "
        "is published as JSON, anything else as a string. What comes slowly is published as it comes, what comes fast "
        "in batches; it is repeated until it is taken, and never published twice.",
        epilog=f"The publish key comes from the environment: {KEY_VARIABLE}. Exit status 0: everything was published; "
        "1: not everything, and the reason was printed; 2: wrong usage.",
        examples=[
            "QGSTREAM_PUBLISH_KEY=dev qgstream publish orders '{\"order\": 7}' --event created",
            "journalctl -f -o cat | QGSTREAM_PUBLISH_KEY=dev qgstream publish logs",
            "QGSTREAM_PUBLISH_KEY=dev qgstream publish --ndjson --file events.ndjson",
        ],
    )
    add = parser.add_argument
    add("topic", nargs="?", metavar="TOPIC", help="where to; not with --ndjson")
    add("data", nargs="*", metavar="DATA", help="what; without it, lines of standard input")
    add("--url", default=URL, help=f"of the server ({URL})")
    add("--file", action="append", metavar="FILE", help="lines of this file ('-' is standard input; repeatable)")
    add("--ndjson", action="store_true", help='lines are whole events: {"topic": ..., "data": ..., "event": ...}')
    add("--text", action="store_true", help="publish everything as strings, also what is JSON")
    add("--event", metavar="TYPE", help="their type")
    add("--retry-ms", type=int, metavar="MS", help="who gets them waits so long before reconnecting, from then on")
    add("--private", action="store_true", help="only for streams whose credentials grant the topic")
    add("--idempotency-key", metavar="KEY", help="of one DATA: within 5 minutes the same key publishes nothing new")
    add(
        "--deadline", type=float, default=30.0, metavar="SECONDS", help="how long to try each request (30; at most 240)"
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Publish, and print the result."""
    _check(args)
    from qgstream.client.publisher import Publisher

    try:
        publisher = Publisher(
            args.url, key=os.environ.get(KEY_VARIABLE), deadline_seconds=args.deadline,
            on_retry=_Impatience(args.url, args.deadline),
        )  # fmt: skip
    except ValueError as error:
        args.parser.error(str(error))
    except QgstreamError as error:
        _explain(args, error)
    with publisher:
        if args.data:
            return _publish_arguments(args, publisher)
        return _publish_lines(args, publisher)


def _check(args: argparse.Namespace) -> None:
    fields = [name for name in ("text", "event", "retry_ms", "private") if getattr(args, name)]
    if args.ndjson and (args.topic is not None or fields):
        got = "TOPIC" if args.topic is not None else f"--{fields[0].replace('_', '-')}"
        args.parser.error(f"got {got} with --ndjson, whose lines say everything themselves")
    if not args.ndjson and args.topic is None:
        args.parser.error("expected TOPIC, or --ndjson")
    if args.data and args.file:
        args.parser.error("got DATA and --file, expected one of them")
    if args.idempotency_key is not None and len(args.data) != 1:
        args.parser.error("--idempotency-key is for one DATA; lines get keys of their own")


def _publish_arguments(args: argparse.Namespace, publisher: Publisher) -> int:
    events = [_event(args, text) for text in args.data]
    try:
        if len(events) == 1:
            one = publisher.publish(**events[0], idempotency_key=args.idempotency_key)
            _report({"id": one.id, "subscribers": one.subscribers})
        else:
            _report({"published": len(events), "last_id": publisher.publish_all(events).ids[-1]})
    except QgstreamError as error:
        _explain(args, error)
    return 0


def _publish_lines(args: argparse.Namespace, publisher: Publisher) -> int:
    sources = args.file or [_lines.STANDARD_INPUT]
    progress, last_id = _Progress(_lines.size(sources)), None
    if sources == [_lines.STANDARD_INPUT] and sys.stdin.isatty():
        what = "events" if args.ndjson else f"lines to {args.topic!r}"
        _streams.say(f"publishing {what} to {args.url}, one for each line that you type; Ctrl-D ends")
    try:
        for batch in _lines.batches(sources, most_lines=_MOST_LINES, most_bytes=_MOST_BYTES):
            # A wrong line ends the command, and the lines before it are published: the input keeps its order.
            events, wrong = _events(args, batch)
            if events:
                try:
                    last_id = publisher.publish_all(events).ids[-1]
                except QgstreamError as error:
                    last = f" to {batch[len(events) - 1].number}" if len(events) > 1 else ""
                    _explain(args, error, where=f"{batch[0]}{last}")
                progress.add(len(events), sum(len(line.text.encode()) + 1 for line in batch))
            if wrong is not None:
                raise wrong
    except (QgstreamError, KeyboardInterrupt):
        progress.end(f"stopped; published before: {progress.count}")
        raise
    progress.end()
    _report({"published": progress.count, "last_id": last_id})
    return 0


def _events(args: argparse.Namespace, batch: list[_lines.Line]) -> tuple[list[dict[str, Any]], QgstreamError | None]:
    events: list[dict[str, Any]] = []
    for line in batch:
        try:
            events.append(_whole_event(line.text) if args.ndjson else _event(args, line.text))
        except QgstreamError as error:
            return events, _lines.BadInput(f"{line}: {error}")
    return events, None


def _event(args: argparse.Namespace, text: str) -> dict[str, Any]:
    from msgspec import Raw

    # JSON is sent as it was written: no number loses a digit.
    data: object = Raw(text.encode()) if not args.text and _is_json(text) else text
    return {
        "topic": args.topic, "data": data, "event": args.event, "retry_ms": args.retry_ms, "private": args.private,
    }  # fmt: skip


def _is_json(text: str) -> bool:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)  # NaN and Infinity are Python's, not JSON's

    try:
        json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _whole_event(text: str) -> dict[str, Any]:
    import msgspec

    from qgstream.events.draft import BYTE_ORDER_MARK, Body, parse_json

    raw = text.encode().removeprefix(BYTE_ORDER_MARK)
    parse_json(raw, max_event_bytes=_lines.MAX_LINE_BYTES, namespace=b"")  # raises the server's error
    body = msgspec.json.decode(raw, type=Body)
    return {
        "topic": body.topic, "data": body.data, "event": body.event, "retry_ms": body.retry, "private": body.private,
        "idempotency_key": body.idempotency_key,
    }  # fmt: skip


class _Impatience:
    """Says that a request is repeated, once for each reason: a command that is silent for 30 s seems to hang."""

    def __init__(self, url: str, deadline_seconds: float) -> None:
        self._url = url
        self._deadline_seconds = deadline_seconds
        self._said: set[str] = set()

    def __call__(self, error: QgstreamError, seconds: float) -> None:  # noqa: ARG002  # of `OnRetry`
        said = _about(self._url, error)
        if said not in self._said:
            self._said.add(said)
            _streams.say(f"{said}; trying again for up to {self._deadline_seconds:g} s (--deadline)")


def _about(url: str, error: QgstreamError) -> str:
    """The error, and the server that it is about."""
    from qgstream.client.responses import Refused, server_of

    return f"{server_of(url)}: {error}" if isinstance(error, Refused) else str(error)


def _explain(args: argparse.Namespace, error: QgstreamError, *, where: str | None = None) -> NoReturn:
    from qgstream.client.responses import CredentialsRefused, UnusableToken

    said = _about(args.url, error)
    if where is not None:
        said = f"{where}: {said}"
    if isinstance(error, CredentialsRefused | UnusableToken):
        said += f"\nthe publish key comes from the environment: {KEY_VARIABLE}"
    if getattr(error, "is_uncertain", False):
        said += "\nit may have been published all the same"
    raise QgstreamError(said) from error


def _report(outcome: dict[str, object]) -> None:
    """Print the published events. A failure to print does not change the exit status: a script that sees a status other
    than 0 publishes everything again."""
    try:
        print(json.dumps(outcome), flush=True)
    except OSError as error:
        _streams.drop(sys.stdout)
        _streams.say(f"standard output: {error.strerror}; everything was published: {json.dumps(outcome)}")


def progress(count: int, done_bytes: int, total_bytes: int | None, seconds: float) -> str:
    """How far it is after so many seconds. `total_bytes` is None for input whose end is not known."""
    said = f"{count} events, {count / seconds:.0f} a second" if seconds > 0 else f"{count} events"
    if not total_bytes or not done_bytes:
        return said
    share = min(1.0, done_bytes / total_bytes)
    left = round(seconds * (1 - share) / share)
    minutes, rest = divmod(left, 60)
    return f"{share:.0%}, {said}, {f'{minutes} min ' if minutes else ''}{rest} s left"


class _Progress:
    """The progress, on a terminal."""

    def __init__(self, total_bytes: int | None = None) -> None:
        self.count = 0
        self._bytes = 0
        self._total_bytes = total_bytes
        self._is_shown = sys.stderr.isatty()
        self._started_at = self._said_at = time.monotonic()

    def add(self, count: int, size_bytes: int = 0) -> None:
        self.count += count
        self._bytes += size_bytes
        now = time.monotonic()
        if self._is_shown and now - self._said_at >= _PROGRESS_SECONDS:
            self._said_at = now
            self._say(progress(self.count, self._bytes, self._total_bytes, now - self._started_at))

    def end(self, said: str = "") -> None:
        if self._is_shown:
            self._say("")
        if said:
            _streams.say(said)

    def _say(self, text: str) -> None:
        _streams.say(f"\r\x1b[K{text}", end="")
