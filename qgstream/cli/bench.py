"""`qgstream bench`: the performance of a server on this machine, compared with a minimal server."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from qgstream.cli import _streams
from qgstream.suggestions import did_you_mean

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from qgstream.bench.scenarios import Bench, Options, Result
    from qgstream.bench.subjects import Subject

SCENARIOS = {
    "handshakes": "open all streams",
    "memory": "resident memory for each stream, idle and after traffic",
    "idle": "heartbeats alone",
    "fanout": "--rate events a second to all streams",
    "health": "GET /health during fanout",
    "flatout": "--flat-rate events a second: as fast as it goes",
    "flatout-1000": "the same with 1000 streams and more events",
    "topics": "publishing to topics without subscribers, without and with a topic for each stream",
    "ndjson": "publishing batches, without subscribers",
    "stalled": "readers, without and with other readers that never read",
    "users": "a topic for each user and one for all, beside one topic: delivery, resume, latest, memory, /health",
}
QUICK = ("handshakes", "memory", "idle", "fanout", "health", "flatout", "ndjson")
KEY_VARIABLE = "QGSTREAM_PUBLISH_KEY"
_EPILOG = "\n".join(
    [
        "scenarios:",
        *(f"  {name:13} {about}" for name, about in SCENARIOS.items()),
        f"Without names: {', '.join(QUICK)}. `all` means every scenario.",
        "",
        f"With --url, the publish key comes from the environment: {KEY_VARIABLE}.",
    ]
)


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure this machine, or a running server",
        description="Starts a server on one core, loads it from the others, compares its cost with a bare send loop.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        examples=[
            "qgstream bench",
            "qgstream bench fanout --streams 2000 --seconds 5",
            "QGSTREAM_PUBLISH_KEY=dev qgstream bench --url http://127.0.0.1:8000 fanout",
        ],
    )
    parser.add_argument("scenarios", nargs="*", type=_scenario, metavar="SCENARIO", help="see below")
    add = parser.add_argument
    add("--streams", type=_whole, default=10_000, metavar="N", help="streams to open (10000)")
    add("--rate", type=_positive, default=4.0, metavar="R", help="events a second in fanout and health (4)")
    add("--flat-rate", type=_positive, default=200.0, metavar="R", help="events a second in flatout (200)")
    add(
        "--seconds", type=_positive, default=3.0, metavar="S", help="duration of the publishing in each measurement (3)"
    )
    add("--payload", type=_payload, default=100, metavar="BYTES", help="size of each event (100)")
    add("--repeat", type=_whole, default=1, metavar="K", help="number of runs; the medians are shown (1)")
    add("--compare", action="store_true", help="also measure a plain Tornado server: write and flush on each handler")
    add("--json", type=Path, metavar="FILE", help="write all figures to this file")
    add(
        "--processes",
        type=_whole,
        metavar="P",
        help="number of load processes (one for each core except the server's, at most 4)",
    )
    add("--broker", metavar="URL", help="broker of the started server (memory://)")
    add("--url", metavar="URL", help="measure the server at this URL instead of starting one")
    add("--pid", type=_whole, help="process of the server at --url, on this machine: CPU and memory are read from it")
    add("--metrics-url", metavar="URL", help="/metrics of the server at --url: CPU and memory are read from there")
    add("--allow-remote", action="store_true", help="allow --url to be another machine")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Measure, and print the results so far, also after Ctrl-C."""
    from qgstream.bench import report
    from qgstream.bench.errors import BenchError
    from qgstream.bench.processes import pin

    if not sys.platform.startswith("linux"):
        _streams.say("qgstream bench needs Linux: it uses epoll and /proc")
        return 1
    options, status = _options(args), 130
    bench = _bench(args, options)
    pin(0, bench.cores.load)
    if bench.cores.are_shared:
        _streams.say("one core for server and load: compare ratios, not figures")
    # A signal that ends this command must also end its servers, and the results so far are still printed.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    results: list[Result] = []
    try:
        for _ in range(args.repeat):
            for result in bench.run():
                results.append(result)
                _say(f"{result.scenario}: {result.server} done", keep=True)
        status = 0
    except KeyboardInterrupt:
        _say("stopped; these are the results so far", keep=True)
    except BenchError as error:
        _say(f"stopped: {error}", keep=True)
        status = 1
    finally:
        signal.signal(signal.SIGTERM, before)
    _say("")
    print(report.tables(results, options))
    if args.json is not None:
        document = report.document(results, options, cores=bench.cores, started_at=started_at, finished=status == 0)
        args.json.write_text(json.dumps(document, indent=2) + "\n")
    return status


def _options(args: argparse.Namespace) -> Options:
    from qgstream.bench.scenarios import Options

    names = list(SCENARIOS) if "all" in args.scenarios else args.scenarios or QUICK
    return Options(
        scenarios=frozenset(names), streams=args.streams, rate=args.rate, flat_rate=args.flat_rate,
        seconds=args.seconds, payload_bytes=args.payload, compare=args.compare, broker=args.broker,
    )  # fmt: skip


def _bench(args: argparse.Namespace, options: Options) -> Bench:
    """Check all arguments before anything is started."""
    import resource

    from qgstream.bench import descriptors
    from qgstream.bench.processes import Cores
    from qgstream.bench.scenarios import Bench

    subject = _subject(args)
    cores = Cores.divide()
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    room = descriptors.Room(descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[1], ports=high - low + 1)
    is_loopback = subject is None or subject.is_loopback
    descriptors.check(options.streams, room, starts_server=subject is None, is_loopback=is_loopback)
    processes = args.processes or min(4, max(1, len(cores.load - cores.server)))
    return Bench(
        options, cores, _say, subject=subject, with_floor=is_loopback,
        processes=descriptors.crew_size(options.streams, room, processes=processes),
    )  # fmt: skip


def _subject(args: argparse.Namespace) -> Subject | None:
    from qgstream.bench.subjects import at

    if args.url is None:
        for flag in ("pid", "metrics_url"):
            if getattr(args, flag) is not None:
                args.parser.error(f"--{flag.replace('_', '-')} is about the server at --url")
        return None
    if args.broker is not None:
        args.parser.error("--broker is for a server that is started, not for the one at --url")
    return at(
        args.url, key=os.environ.get(KEY_VARIABLE), pid=args.pid, metrics_url=args.metrics_url,
        allow_remote=args.allow_remote,
    )  # fmt: skip


def _say(text: str, *, keep: bool = False) -> None:
    """Print the progress: on a terminal, one line that is overwritten; elsewhere, only the lines to keep."""
    if sys.stderr.isatty():
        _streams.say(f"\r\x1b[K{text[:100]}", end="\n" if keep else "")
    elif keep:
        _streams.say(text)


def _scenario(text: str) -> str:
    if text not in SCENARIOS and text != "all":
        hint = did_you_mean(text, [*SCENARIOS, "all"]) or f", expected one of {', '.join(SCENARIOS)}, all"
        raise argparse.ArgumentTypeError(f"got {text!r}{hint}")
    return text


def _whole(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected 1 or more")
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}, expected more than 0")
    return number


def _payload(text: str) -> int:
    from qgstream.bench.stamps import MIN_BYTES

    number = int(text)
    if number < MIN_BYTES:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least {MIN_BYTES}, which the timestamp takes")
    return number
