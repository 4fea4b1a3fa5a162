"""Draws docs/images/*.svg from benchmarks/results/*.json. Needs matplotlib: `pip install matplotlib`.

`python benchmarks/plot.py`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
RESULTS = HERE / "results"
IMAGES = HERE.parent / "docs" / "images"

# One colour for a server in every picture; told apart without colour by their marks. (Okabe and Ito's palette.)
STYLES: dict[str, tuple[str, str]] = {
    "qgstream": ("#0072B2", "o"),
    "bare send loop": ("#666666", "s"),
    "plain Tornado": ("#D55E00", "^"),
    "Nchan": ("#009E73", "D"),
    "sse-starlette on uvicorn": ("#CC79A7", "v"),
    "aiohttp-sse": ("#E69F00", "P"),
}
# Fixed, so that drawing the same figures again makes the same file.
mpl.rcParams |= {
    "svg.hashsalt": "qgstream", "svg.fonttype": "none", "font.size": 11, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6,
    "axes.axisbelow": True, "figure.facecolor": "white",
}  # fmt: skip


def load(name: str) -> dict[str, Any]:
    """The figures of an experiment."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def lines(axes: Axes, rows: Mapping[str, Mapping[str, float]], x: str, y: str) -> None:
    """One line for each server over `x`, named where it ends."""
    ends = []
    for server in ("plain Tornado", "qgstream", "bare send loop"):
        points = sorted((row[x], row[y]) for name, row in rows.items() if name.endswith(f", {server}"))
        colour, mark = STYLES[server]
        axes.plot(*zip(*points, strict=True), color=colour, marker=mark, linewidth=2, markersize=6, label=server)
        ends.append((points[-1], server))
    for (last_x, last_y), server in ends:
        axes.annotate(
            server, (last_x, last_y), xytext=(8, 0), textcoords="offset points", va="center", color=STYLES[server][0]
        )


def cost(name: str, x: str, label: str, title: str, ticks: Sequence[int], *, log: bool = False) -> None:
    """CPU for a delivery over `x`."""
    found = load(name)
    figure, axes = plt.subplots(figsize=(8, 4.2))
    axes.set_xscale("log")
    if log:
        axes.set_yscale("log")
        axes.set_yticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
        axes.minorticks_off()
    lines(axes, found["rows"], x, "cpu_us_per_delivery")
    axes.set_xticks(list(ticks), [f"{tick:,}".replace(",", "\N{NO-BREAK SPACE}") for tick in ticks])
    axes.minorticks_off()
    if not log:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("server's CPU, µs a delivery")
    axes.set_title(title, loc="left", fontsize=12)
    axes.margins(x=0.04)
    figure.subplots_adjust(left=0.09, right=0.82, top=0.9, bottom=0.14)
    save(figure, f"cost-{name}")


TOPIC_LINES = {
    "delivery to all": ("an event to all", "#0072B2", "o"),
    "back": ("client that comes back", "#D55E00", "^"),
    "back, with a prefix": ("the same, with a prefix", "#CC79A7", "v"),
    "latest, 64 patterns": ("replay=latest, 63 prefixes", "#009E73", "D"),
}


def topics() -> None:
    """Each cost over the number of topics, as a multiple of the same cost with one topic: benchmarks/topics.py."""
    rows = load("topics")["rows"]
    figure, axes = plt.subplots(figsize=(8, 4.2))
    axes.set_xscale("log")
    for kind, (label, colour, mark) in TOPIC_LINES.items():
        points = sorted((row["topics"], row["cpu_us"]) for name, row in rows.items() if name.partition(", ")[2] == kind)
        ratios = [(count, cost / points[0][1]) for count, cost in points]
        axes.plot(*zip(*ratios, strict=True), color=colour, marker=mark, linewidth=2, markersize=6, label=label)
    ticks = sorted({int(row["topics"]) for row in rows.values()})
    axes.set_xticks(ticks, [f"{tick:,}".replace(",", "\N{NO-BREAK SPACE}") for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("topics")
    axes.set_ylabel("server's CPU, x one topic")
    axes.set_title("Cost against topics", loc="left", fontsize=12)
    axes.legend(frameon=False)
    figure.subplots_adjust(left=0.09, right=0.97, top=0.9, bottom=0.14)
    save(figure, "cost-topics")


BARS = (
    ("cpu_us_per_delivery", "CPU, µs a delivery", "less is better"),
    ("flat_deliveries_per_second", "deliveries a second, flat out", "more is better"),
    ("kib_per_stream_after", "KiB a stream, after load", "less is better"),
    ("cpu_us_per_handshake", "CPU, µs a handshake", "less is better"),
)


def rivals(name: str) -> None:
    """Four panels, the same order of servers in each."""
    found = load(name)
    order = [server for server in STYLES if server in found["rows"]][::-1]
    figure, panels = plt.subplots(2, 2, figsize=(10, 6.4))
    for axes, (metric, label, direction) in zip(panels.flat, BARS, strict=True):
        values = [found["rows"][server][metric] for server in order]
        axes.barh(order, values, color=[STYLES[server][0] for server in order], height=0.65)
        axes.grid(visible=False)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xlim(0, max(values) * 1.25)
        axes.set_title(f"{label} ({direction})", loc="left", fontsize=11)
        for position, value in enumerate(values):
            axes.text(value, position, f"  {_short(value)}", va="center")
        if axes in panels[:, 1]:
            axes.set_yticks([])
    figure.subplots_adjust(left=0.2, right=0.98, top=0.94, bottom=0.03, hspace=0.25, wspace=0.08)
    save(figure, name)


def _short(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:,.0f}k".replace(",", "\N{NO-BREAK SPACE}")
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def reconnect_storm(outcomes: Mapping[str, Any]) -> None:
    """Who is back when, and who still comes: benchmarks/reconnect_storm.py."""
    figure, (waits, came) = plt.subplots(1, 2, figsize=(11, 4.2))
    everybody = {name: found for name, found in outcomes.items() if name.startswith("all come")}
    for (name, found), colour, style in zip(
        everybody.items(), ("#D55E00", "#0072B2", "#009E73"), ("--", "-", "-."), strict=True
    ):
        waits.plot(
            *zip(*found.waits[::100], strict=True), color=colour, linestyle=style, linewidth=2, label=_case(name)
        )
    waits.set(xlim=(0, 22), ylim=(0, 5.2), xlabel="came so many seconds after all streams ended", ylabel="waited, s")
    waits.set_title("12 500 clients come to each process", loc="left", fontsize=12)
    refused = {name: found for name, found in outcomes.items() if "refused" in name}
    for (name, found), colour, style in zip(refused.items(), ("#D55E00", "#0072B2"), ("--", "-"), strict=True):
        each = [number / found.storm.processes for number in found.came[:61]]
        came.plot(range(len(each)), each, color=colour, linestyle=style, linewidth=2, label=_case(name))
    came.set(
        xlim=(0, 60), ylim=(0, 420), xlabel="seconds after a host was lost", ylabel="who come to each process, a second"
    )
    came.set_title("389 clients for each process find no room", loc="left", fontsize=12)
    came.annotate("1389\nat 3 s", (4, 350), xytext=(4, 0), textcoords="offset points", fontsize=9)
    for axes in (waits, came):
        axes.legend(frameon=False, loc="upper right")
    figure.subplots_adjust(left=0.07, right=0.98, top=0.9, bottom=0.14, wspace=0.22)
    save(figure, "reconnect-storm")


def _case(name: str) -> str:
    return name.partition("; ")[2].replace("`", "")


def save(figure: Any, name: str) -> None:
    """Write one picture."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(path.relative_to(HERE.parent))


def main() -> None:
    """Draw everything there are figures for."""
    cost(
        "streams", "streams", "open streams", "Cost of a delivery against streams (100 bytes, 20 000 deliveries/s)",
        (100, 300, 1000, 3000, 10_000),
    )  # fmt: skip
    cost(
        "payloads", "payload_bytes", "bytes of payload", "Cost of a delivery against payload (500 streams)",
        (10, 100, 1000, 10_000, 100_000), log=True,
    )  # fmt: skip
    rivals("rivals-10000")
    if (RESULTS / "topics.json").exists():
        topics()


if __name__ == "__main__":
    main()
