"""What the cyclic collector takes from a handshake, and what its settings in qgstream/process/server.py leave of that.

`python benchmarks/collector.py`. A handshake that leaves no cycle leaves nothing to collect, but what lives is walked
all the same. The first rows keep a cycle, as Tornado's `detach` does unless it is broken (see handlers/events.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from experiment import Experiment, tuned

from qgstream.bench.session import Figures, Session
from qgstream.process.server import _GC_THRESHOLDS

COLUMNS = {
    "cpu_us_per_handshake": "CPU us/handshake",
    "collector_us_per_handshake": "collector us/handshake",
    "handshake_p99_ms": "p99 ms",
    "kib_per_stream": "KiB/stream",
}
THRESHOLDS = "qgstream.process.server:_GC_THRESHOLDS"
PYTHON = (700, 10, 10)


def main() -> None:
    """Measure all settings."""
    experiment = Experiment(__doc__ or "", streams=10_000, seconds=0)

    def measure(changes: dict[str, object]) -> Callable[[], Figures]:
        def run() -> Figures:
            with (
                tuned(experiment.cores, {"gc.time": True} | changes, streams=experiment.streams) as subject,
                Session(subject, experiment.cores) as session,
            ):
                began, said = time.monotonic(), subject.programs[0]
                figures = session.open(experiment.streams)
                before, after = _collected(said.said())
                figures["collector_us_per_handshake"] = (after - before) * 1e6 / experiment.streams
                figures["kib_per_stream"] = session.memory(experiment.streams)
                figures["took_seconds"] = time.monotonic() - began
                return figures

        return run

    cycles = {"gc.keep_cycles": True}
    chosen = _GC_THRESHOLDS
    variants = {
        f"cycles kept, {PYTHON}, not frozen": measure(cycles | {THRESHOLDS: PYTHON, "gc.no_freeze": True}),
        f"cycles kept, {chosen}, frozen": measure(cycles | {THRESHOLDS: chosen}),
        f"{PYTHON}, not frozen": measure({THRESHOLDS: PYTHON, "gc.no_freeze": True}),
        f"{PYTHON}, frozen": measure({THRESHOLDS: PYTHON}),
        f"{chosen}, not frozen": measure({THRESHOLDS: chosen, "gc.no_freeze": True}),
    }
    variants |= {
        f"{thresholds}, frozen" + (" (chosen)" if thresholds == chosen else ""): measure({THRESHOLDS: thresholds})
        for thresholds in ((5000, 20, 50), (20_000, 20, 50), (100_000, 20, 50), (0, 0, 0))
    }
    experiment.compare(variants, COLUMNS)


def _collected(said: str) -> tuple[float, float]:
    """Seconds in the collector before the first stream opened, and until now."""
    before, _, since = said.partition('"events.connected"')
    return _last_total(before), max(_last_total(before), _last_total(since))


def _last_total(said: str) -> float:
    return max((float(line.split()[1]) for line in said.splitlines() if line.startswith("gc ")), default=0.0)


if __name__ == "__main__":
    main()
