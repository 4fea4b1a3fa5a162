"""Half an hour of trouble for one server, to see what only time shows: memory that grows, gauges that drift.

    python tests/hostile/soak.py --minutes 30 --out soak.json --plot soak.svg

The checker of tests/fleet publishes and judges; its subscribers come and go, stall, cut and resume; between its
rounds the configuration is reloaded, now and then with a file that is broken. Meanwhile the process is looked at. The
exit status is 0 if no event was lost, the gauges were exact and memory was flat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fleet.checker import HARSH, Checker, Verdict
from tests.fleet.crowd import RULES, Plan
from tests.fleet.judge import Rules
from tests.hostile.observing import cpu_seconds, descriptors, metrics, resident_bytes
from tests.serving import ServerProcess

# Of a run: until then buffers, the history and the allocator's arenas fill.
WARM_UP_SHARE = 0.2
FLAT = 0.05
# Settings that a reload can change, by turns; None is a file that cannot be read.
RELOADS: tuple[dict[str, object] | None, ...] = (
    {"limits.max_connections": 5000, "heartbeat.format": "comment"},
    None,
    {"limits.max_connections": 10_000, "heartbeat.format": "data"},
    {"limits.connect_burst_per_ip": 50},
)
# Small enough to be full in minutes, large enough that nobody who stalls on a slow machine falls out of it: 5000 were
# not, with four publishers at full speed.
HISTORY_EVENTS = 15_000
# Streams live longer than in a short run, for a machine that has other things to do.
SETTINGS: dict[str, object] = HARSH | {
    "limits__max_connection_age_seconds": 20,
    "history__max_events": HISTORY_EVENTS,
    "history__max_bytes": 256 * 1024 * 1024,
    "history__max_age_seconds": 3600,
    "drain__seconds": 0,
}


@dataclass(frozen=True)
class Sample:
    """The server at one moment, `seconds` after the first; `opened` and `closed` are counted, the rest is what is."""

    seconds: float
    resident: int
    descriptors: int
    cpu_seconds: float
    connections: int
    opened: int
    closed: int
    topics: int
    backlog_bytes: int
    history_events: int
    published: int
    delivered: int


class SoakedServer(ServerProcess):
    """Its log has a hundred thousand lines: those of streams are counted, and only the others kept."""

    def __init__(self, tmp_path: Path, **settings: Any) -> None:
        self.counts: Counter[str] = Counter()
        self._kept: list[dict[str, Any]] = []
        self._read = 0
        super().__init__(tmp_path, **settings)

    def lines(self) -> list[dict[str, Any]]:
        """The lines that are not about a stream."""
        with self.log_path.open("rb") as log:
            log.seek(self._read)
            text = log.read()
        text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        for line in map(json.loads, text.split(b"\n")[:-1]):
            self.counts[line["event"]] += 1
            if line["event"] not in ("events.connected", "events.disconnected"):
                self._kept.append(line)
        return self._kept


def sample(server: ServerProcess, began: float) -> Sample:
    """Look at the server. One scrape is one turn of its loop, so its numbers belong together."""
    now = metrics(server)
    return Sample(
        seconds=round(time.monotonic() - began, 1),
        resident=resident_bytes(server),
        descriptors=descriptors(server),
        cpu_seconds=cpu_seconds(server),
        connections=int(now["connections"]),
        opened=int(now["connections_opened_total"]),
        closed=int(sum(value for name, value in now.items() if name.startswith("connections_closed_total{"))),
        topics=int(now["topics"]),
        backlog_bytes=int(now["backlog_bytes"]),
        history_events=int(now["history_events"]),
        published=int(now["events_published_total"]),
        delivered=int(now["events_delivered_total"]),
    )


def warm(samples: Sequence[Sample]) -> list[Sample]:
    """Those behind the warm-up: once the history is as full as it gets."""
    full = 0.95 * max(one.history_events for one in samples)
    began = next(one.seconds for one in samples if one.history_events >= full)
    return [one for one in samples if one.seconds >= max(began, WARM_UP_SHARE * samples[-1].seconds)]


def growth(samples: Sequence[Sample]) -> float:
    """By what part memory grew from the first third behind the warm-up to the last: of medians, so that one page of
    replay at the moment of a sample is nothing."""
    judged = warm(samples)
    third = max(1, len(judged) // 3)
    first, last = (statistics.median(one.resident for one in part) for part in (judged[:third], judged[-third:]))
    return last / first - 1


def problems(samples: Sequence[Sample], last: Sample, before: Sample, *, flat: float = FLAT) -> list[str]:
    """What is wrong with a run: `before` anybody came, while they were there, and `last`, when all had left."""
    wrong = [
        f"after {one.seconds:.0f} s: {one.connections} streams open, of {one.opened} opened {one.closed} closed"
        for one in [*samples, last]
        if one.connections != one.opened - one.closed
    ]
    if (grown := growth(samples)) > flat:
        wrong.append(f"memory grew by {grown:.1%}, expected at most {flat:.0%}")
    left = {
        name: getattr(last, name) for name in ("connections", "topics", "backlog_bytes") if getattr(last, name)
    }  # fmt: skip
    if last.descriptors > before.descriptors:
        left["descriptors"] = last.descriptors - before.descriptors
    return wrong + [f"{number} {name} left behind" for name, number in left.items()]


class Soak:
    """The run itself: reloads by turns, samples all the time, and what was found."""

    def __init__(self, directory: Path, *, every_seconds: float) -> None:
        self._config = directory / "qgstream.toml"
        self._every_seconds = every_seconds
        self._reloads = 0
        self._write({})
        self.server = SoakedServer(directory, config=str(self._config), **SETTINGS)
        self._began = time.monotonic()
        self.before = sample(self.server, self._began)
        self.samples: list[Sample] = []

    def _write(self, settings: dict[str, object] | None) -> None:
        if settings is None:
            self._config.write_text("this is no TOML")
        else:
            self._config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))

    async def reload(self) -> None:
        """A disturbance of the checker's: the next configuration, which is taken or refused as it should be."""
        settings = RELOADS[self._reloads % len(RELOADS)]
        self._write(settings)
        self._reloads += 1
        good = sum(RELOADS[number % len(RELOADS)] is not None for number in range(self._reloads))
        event, count = ("config.reloaded", good) if settings is not None else ("config.rejected", self._reloads - good)
        self.server.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(self.server.wait_for_log, event, count=count)

    async def watch(self) -> None:
        """Sample until cancelled."""
        while True:
            self.samples.append(await asyncio.to_thread(sample, self.server, self._began))
            await asyncio.sleep(self._every_seconds)

    async def run(self, plan: Plan) -> dict[str, Any]:
        """The document about it."""
        watching = asyncio.create_task(self.watch())
        verdict = await Checker([self.server.url], plan, [self.reload]).run()
        watching.cancel()
        last = await self._calm()
        found = problems(self.samples, last, self.before)
        if verdict.violation is not None:
            found.insert(0, str(verdict.violation))
        if (said := await self._said(last)) != (last.opened, last.closed):
            found.append(f"{said} lines about streams, expected {(last.opened, last.closed)}")
        return self._document(plan, verdict, last, found)

    async def _calm(self) -> Sample:
        deadline = time.monotonic() + 60
        while True:
            last = await asyncio.to_thread(sample, self.server, self._began)
            is_calm = not last.connections and last.descriptors <= self.before.descriptors
            if is_calm or time.monotonic() > deadline:
                return last
            await asyncio.sleep(0.2)

    async def _said(self, last: Sample) -> tuple[int, int]:
        """The lines about streams: of their beginnings, and of their ends. The log is written behind the loop."""
        deadline = time.monotonic() + 60
        while True:
            await asyncio.to_thread(self.server.lines)
            said = (self.server.counts["events.connected"], self.server.counts["events.disconnected"])
            if min(said[0] - last.opened, said[1] - last.closed) >= 0 or time.monotonic() > deadline:
                return said
            await asyncio.sleep(0.02)

    def _document(self, plan: Plan, verdict: Verdict, last: Sample, found: list[str]) -> dict[str, Any]:
        judged = warm(self.samples)
        resident = [round(pick(one.resident for one in judged) / 2**20, 1) for pick in (min, max)]
        return {
            "minutes": round(last.seconds / 60, 1), "subscribers": plan.subscribers, "seed": plan.seed,
            "problems": found, "growth": round(growth(self.samples), 4),
            "warm_up_seconds": judged[0].seconds, "resident_mib": resident,
            "reloads": self._reloads, "counts": dict(sorted(verdict.counts.items())),
            "before": asdict(self.before), "last": asdict(last), "samples": [asdict(one) for one in self.samples],
        }  # fmt: skip


def soak(directory: Path, plan: Plan, *, every_seconds: float = 5.0) -> dict[str, Any]:
    """Start a server, soak it, and see it leave as it should."""
    run = Soak(directory, every_seconds=every_seconds)
    try:
        document = asyncio.run(run.run(plan))
        run.server.stop(expect=("config.rejected",))
    except BaseException:
        if run.server.process.poll() is None:
            run.server.kill()
        raise
    return document


def make_plan(seconds: float, *, seed: int = 1, subscribers: int = 120) -> Plan:
    """How much: a pace that leaves the machine time for other things."""
    # The history turns over many times: who has read nothing since the oldest event of it is told so.
    rules = Rules(RULES.short_lived, RULES.resets | {"too_old"}, RULES.closings, 0)
    return Plan(seconds=seconds, subscribers=subscribers, events_per_second=60, seed=seed, rules=rules)


def draw(document: dict[str, Any], path: Path) -> None:
    """Memory, streams and events over time. Needs matplotlib."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams |= {
        "svg.hashsalt": "qgstream", "svg.fonttype": "none", "font.size": 11, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd", "axes.axisbelow": True,
    }  # fmt: skip
    samples = document["samples"]
    minutes = [one["seconds"] / 60 for one in samples]
    rows: tuple[tuple[str, list[float], str], ...] = (
        ("resident memory, MiB", [one["resident"] / 2**20 for one in samples], "#0072B2"),
        ("open streams", [one["connections"] for one in samples], "#009E73"),
        ("opened so far, thousands", [one["opened"] / 1000 for one in samples], "#E69F00"),
        ("delivered so far, thousands", [one["delivered"] / 1000 for one in samples], "#D55E00"),
    )
    figure, all_axes = plt.subplots(len(rows), 1, sharex=True, figsize=(8, 8), layout="constrained")
    for axes, (name, values, colour) in zip(all_axes, rows, strict=True):
        axes.plot(minutes, values, color=colour, linewidth=1.5)
        axes.set_title(name, loc="left", fontsize=11)
        axes.set_ylim(0, max(values) * 1.15 or 1)
        axes.set_xlim(0, minutes[-1])
    all_axes[0].axvspan(0, document["warm_up_seconds"] / 60, color="#eeeeee")
    all_axes[-1].set_xlabel("minutes")
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--subscribers", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("soak.json"))
    parser.add_argument("--plot", type=Path, default=Path("soak.svg"), help="drawn where matplotlib is installed")
    args = parser.parse_args()
    plan = make_plan(args.minutes * 60, seed=args.seed, subscribers=args.subscribers)
    with tempfile.TemporaryDirectory() as directory:
        document = soak(Path(directory), plan)
    args.out.write_text(json.dumps(document) + "\n")
    try:
        draw(document, args.plot)
    except ModuleNotFoundError as error:
        print(f"no plot: {error}", file=sys.stderr)
    for name in ("minutes", "growth", "warm_up_seconds", "resident_mib", "reloads", "counts", "last", "problems"):
        print(f"{name}: {document[name]}")
    return 1 if document["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
