"""What the experiments share: variants measured in turn, a table of medians, and a file for the plots.

Each experiment is one command (`python benchmarks/write_paths.py`) and takes --streams, --seconds and --repeat. Server
and load are pinned to different cores where there are two. Absolute figures drift from machine to machine and from hour
to hour: compare the rows of one run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qgstream.bench.processes import Cores, pin
from qgstream.bench.report import machine
from qgstream.bench.session import Figures
from qgstream.bench.subjects import Subject, start_qgstream

HERE = Path(__file__).parent
RESULTS = HERE / "results"


class Experiment:
    """One experiment: its command line, its rows, and how they are shown and kept."""

    def __init__(self, text: str, *, streams: int, seconds: float, repeat: int = 3) -> None:
        parser = argparse.ArgumentParser(description=text.partition("\n\n")[0])
        parser.add_argument("--streams", type=int, default=streams, help=f"streams to open ({streams})")
        parser.add_argument("--seconds", type=float, default=seconds, help=f"of each measurement ({seconds:g})")
        parser.add_argument("--repeat", type=int, default=repeat, help=f"how often; medians are shown ({repeat})")
        parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/")
        args = parser.parse_args()
        self.name = Path(sys.argv[0]).stem
        self.streams: int = args.streams
        self.seconds: float = args.seconds
        self.repeat: int = args.repeat
        self.save: bool = args.save
        self.cores = Cores.divide()
        pin(0, self.cores.load)

    def compare(
        self, variants: Mapping[str, Callable[[], Figures]], columns: Mapping[str, str], *, name: str | None = None
    ) -> dict[str, Figures]:
        """Measure every variant `repeat` times, in turn, so that all see the same hours; print and keep medians."""
        runs: dict[str, list[Figures]] = {variant: [] for variant in variants}
        for number in range(self.repeat):
            for variant, measure in variants.items():
                _say(f"{number + 1}/{self.repeat} {variant}")
                runs[variant].append(measure())
        _say("")
        medians = {variant: _medians(figures) for variant, figures in runs.items()}
        print(table(medians, columns))
        if self.save:
            self.keep(name or self.name, {"columns": dict(columns), "rows": medians, "runs": runs})
        return medians

    def keep(self, name: str, found: Mapping[str, Any]) -> None:
        """Write figures, and what they were taken on, to results/."""
        about = {
            "experiment": self.name, "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(self.cores), "streams": self.streams, "seconds": self.seconds, "repeat": self.repeat,
        }  # fmt: skip
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(about | dict(found), indent=2) + "\n")


def tuned(cores: Cores, changes: Mapping[str, object], *, streams: int, **settings: object) -> Subject:
    """A server of ours in which constants are changed: `{"qgstream.delivery.slices:SLICE_SECONDS": 0.001}`."""
    command = [str(HERE / "tuned.py"), json.dumps(dict(changes))]
    return start_qgstream(cores, streams=streams, settings=settings, command=command)


def table(rows: Mapping[str, Figures], columns: Mapping[str, str]) -> str:
    """Rows of figures under headings."""
    lines = [["", *columns.values()]]
    lines += [[name, *(_cell(figures.get(figure)) for figure in columns)] for name, figures in rows.items()]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def _say(text: str) -> None:
    """Progress, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _medians(runs: Sequence[Figures]) -> Figures:
    medians: Figures = {}
    for figure in runs[0]:
        values = [value for run in runs if (value := run.get(figure)) is not None]
        medians[figure] = statistics.median(values) if values else None
    return medians


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 1000 or value == int(value) else f"{value:.2f}"
