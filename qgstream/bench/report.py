"""The report: results as tables for people, and as JSON for scripts."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tornado

from qgstream.bench import users
from qgstream.bench.processes import Cores
from qgstream.bench.scenarios import Options, Result
from qgstream.bench.session import Figures
from qgstream.bench.subjects import FLOOR, HEADERS_ONLY
from qgstream.version import __version__


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure divided by the same figure of another server, in the same run."""

    figure: str
    base: str
    title: str


@dataclass(frozen=True, slots=True)
class Table:
    """The table of a scenario. `columns` are figures and their headings; `title` may name options."""

    title: str
    columns: Mapping[str, str]
    ratio: Ratio | None = None


_FAN_OUT = {
    "deliveries_per_second": "deliveries/s",
    "lost": "lost",
    "latency_p50_ms": "p50 ms",
    "latency_p99_ms": "p99 ms",
    "cpu_us_per_delivery": "CPU us/delivery",
    "load_percent_of_core": "load's core %",
}

_RETURN = {
    "clients": "clients",
    "deliveries": "deliveries",
    "lost": "lost",
    "handshake_p50_ms": "p50 ms",
    "handshake_p99_ms": "p99 ms",
    "cpu_us_per_client": "CPU us/client",
}

TABLES: dict[str, Table] = {
    "handshakes": Table(
        "handshakes: {streams} streams opened, 256 at a time",
        {
            "handshakes_per_second": "handshakes/s",
            "handshake_p50_ms": "p50 ms",
            "handshake_p99_ms": "p99 ms",
            "cpu_us_per_handshake": "CPU us/handshake",
        },
        Ratio("cpu_us_per_handshake", HEADERS_ONLY.name, "x headers only"),
    ),
    "memory": Table(
        "memory: resident, for each of {streams} streams",
        {"kib_per_stream": "idle KiB", "kib_per_stream_after": "after traffic KiB"},
    ),
    "idle": Table(
        "idle: {streams} streams that only get heartbeats",
        {"percent_of_core": "% of a core", "bytes_per_second": "bytes/s"},
    ),
    "fanout": Table(
        "fanout: {streams} streams, {rate:g} events/s of {payload_bytes} bytes",
        _FAN_OUT,
        Ratio("cpu_us_per_delivery", FLOOR.name, "x floor's CPU"),
    ),
    "health": Table(
        "health: GET /health on a new connection, during the same",
        {"health_p50_ms": "p50 ms", "health_p99_ms": "p99 ms", "health_max_ms": "max ms", "probes_failed": "failed"},
    ),
    "flatout": Table(
        "flatout: {streams} streams, {flat_rate:g} events/s of {payload_bytes} bytes, or as fast as it goes",
        _FAN_OUT,
        Ratio("deliveries_per_second", FLOOR.name, "x floor's deliveries"),
    ),
    "flatout-1000": Table(
        "flatout-1000: 1000 streams, two and a half times the events/s of flatout",
        _FAN_OUT,
        Ratio("deliveries_per_second", FLOOR.name, "x floor's deliveries"),
    ),
    "topics": Table(
        "topics: publishing one by one to topics without subscribers",
        {"publish_p50_ms": "p50 ms", "publish_p99_ms": "p99 ms", "cpu_us_per_publish": "CPU us/publish"},
        Ratio("cpu_us_per_publish", "no streams", "x no streams"),
    ),
    "ndjson": Table(
        "ndjson: publishing batches of 100 events, four at a time, without subscribers",
        {
            "events_per_second": "events/s",
            "batch_p50_ms": "p50 ms",
            "batch_p99_ms": "p99 ms",
            "cpu_us_per_event": "CPU us/event",
        },
    ),
    "stalled": Table(
        "stalled: 900 readers, 20 events/s of 20 000 bytes, together with readers that never read",
        {
            "deliveries_per_second": "deliveries/s",
            "lost": "lost",
            "latency_p50_ms": "p50 ms",
            "latency_p99_ms": "p99 ms",
            "grown_mib": "memory grown MiB",
        },
    ),
    "users-shared": Table(
        "users: an event to all of {streams} users, {rate:g} events/s of {payload_bytes} bytes",
        _FAN_OUT,
        Ratio("cpu_us_per_delivery", users.ONE_TOPIC, "x one topic's CPU"),
    ),
    "users-single": Table(
        "users: an event to a single user, {flat_rate:g} events/s (with one topic for all: to one stream more, alone)",
        _FAN_OUT,
        Ratio("cpu_us_per_delivery", users.ONE_TOPIC, "x one topic's CPU"),
    ),
    "users-health": Table(
        f"users: GET /health on a new connection, while batches of {users.HEALTH_BATCH_EVENTS} events go to all users",
        {
            "health_p50_ms": "p50 ms",
            "health_p99_ms": "p99 ms",
            "health_max_ms": "max ms",
            "probes_failed": "failed",
            "batches": "batches",
            "lost": "lost",
        },
        Ratio("health_max_ms", users.ONE_TOPIC, "x one topic's max"),
    ),
    "users-memory": Table(
        "users: resident memory for each of {streams} streams",
        {"kib_per_stream": "idle KiB", "kib_per_stream_after": "after traffic KiB"},
        Ratio("kib_per_stream", users.ONE_TOPIC, "x one topic's idle"),
    ),
    "users-resume": Table(
        f"users: clients that missed one event; on their own topics, {users.BEHIND} events of others came after it",
        _RETURN,
        Ratio("cpu_us_per_client", users.BACK_ON_ONE, "x one topic's CPU"),
    ),
    "users-latest": Table(
        f"users: replay=latest with {users.PREFIXES} prefixes; the history holds as many topics, or {{streams}}",
        _RETURN,
        Ratio("cpu_us_per_client", users.FEW_HELD, "x few topics' CPU"),
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One server in one scenario: the median of each figure, and its runs."""

    scenario: str
    server: str
    figures: Figures
    runs: Sequence[Figures]


def rows(results: Iterable[Result]) -> list[Row]:
    """Return one row for each server in each scenario."""
    runs: dict[tuple[str, str], list[Figures]] = {}
    for result in results:
        runs.setdefault((result.scenario, result.server), []).append(result.figures)
    return [Row(scenario, server, _medians(figures), figures) for (scenario, server), figures in runs.items()]


def _medians(runs: Sequence[Figures]) -> Figures:
    medians: Figures = {}
    for name in runs[0]:
        values = [value for run in runs if (value := run.get(name)) is not None]
        medians[name] = median(values) if values else None
    return medians


def ratio(table: Table, row: Row, all_rows: Sequence[Row]) -> float | None:
    """Return the row's figure divided by the figure of the table's base, if both were measured."""
    if table.ratio is None:
        return None
    base = next((r for r in all_rows if r.scenario == row.scenario and r.server == table.ratio.base), None)
    mine, its = row.figures.get(table.ratio.figure), None if base is None else base.figures.get(table.ratio.figure)
    return mine / its if mine is not None and its else None


def tables(results: Iterable[Result], options: Options) -> str:
    """Return all tables in the order of TABLES; a scenario without results has no table."""
    all_rows = rows(results)
    blocks = []
    for scenario, table in TABLES.items():
        chosen = [row for row in all_rows if row.scenario == scenario]
        if chosen:
            blocks.append(table.title.format(**asdict(options)) + "\n" + _lines(table, chosen, all_rows))
    return "\n\n".join(blocks)


def _lines(table: Table, chosen: Sequence[Row], all_rows: Sequence[Row]) -> str:
    cells = [["", *table.columns.values(), *([table.ratio.title] if table.ratio else [])]]
    for row in chosen:
        line = [row.server, *(_cell(row.figures.get(figure)) for figure in table.columns)]
        if table.ratio:
            line.append(_cell(ratio(table, row, all_rows)))
        cells.append(line)
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  " + "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in cells
    )


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.{2 if abs(value) < 100 else 0}f}"


def document(
    results: Iterable[Result], options: Options, *, cores: Cores, started_at: str, finished: bool
) -> dict[str, Any]:
    """Return all results for a script: figures are named with their unit, ratios are named as in the tables."""
    all_rows = rows(results)
    return {
        "qgstream": __version__,
        "python": platform.python_version(),
        "tornado": tornado.version,
        "machine": machine(cores),
        "started_at": started_at,
        "finished": finished,
        "options": {
            name: sorted(value) if isinstance(value, frozenset) else value
            for name, value in asdict(options).items()
            if name != "broker"  # its URL may contain a password
        },
        "results": [
            {
                "scenario": row.scenario,
                "server": row.server,
                "figures": row.figures,
                "ratio": ratio(TABLES[row.scenario], row, all_rows),
                "runs": row.runs,
            }
            for row in all_rows
        ],
    }


def machine(cores: Cores) -> dict[str, Any]:
    """Return the machine on which the figures were measured."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "kernel": platform.release(),
        "server_cores": sorted(cores.server),
        "load_cores": sorted(cores.load),
        "load_average": os.getloadavg()[0],
    }
