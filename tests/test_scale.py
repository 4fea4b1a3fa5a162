"""The page about a million streams: its tables are what the simulation prints, its numbers follow from each other."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType

import pytest

from qgstream.events.publication import Publication
from qgstream.limits import LimitSettings
from qgstream.net.sockets import RESERVED_DESCRIPTORS, max_sockets
from qgstream.replay.log_reader import CACHED_BYTES
from qgstream.replay.runner import MAX_HELD_BYTES
from qgstream.service.drain import DrainSettings
from tests.documents import ROOT

PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
TEXT = re.sub(r"\s+", " ", PAGE)
STREAMS, HOSTS, EACH = 1_000_000, 10, 8
RATE, EVENTS = 1, 2000
PROCESSES = HOSTS * EACH
IN_EACH = STREAMS // PROCESSES
MIB = 1024**2


@pytest.fixture(scope="module")
def storm() -> ModuleType:
    """The script, which is in no package."""
    spec = importlib.util.spec_from_file_location("reconnect_storm", ROOT / "benchmarks" / "reconnect_storm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


def test_the_table_is_what_the_simulation_prints(storm: ModuleType) -> None:
    assert storm.markdown(storm.run()) in PAGE


def test_everybody_comes_to_an_end_or_is_refused(storm: ModuleType) -> None:
    small = storm.Storm(clients=500, processes=2, streams_each=10, max_connections=200, seconds=60)
    found = storm.simulate(small)
    assert len(found.opened_at) == 2 * 190
    assert sum(found.came) == len(found.opened_at) + found.refusals
    assert found == storm.simulate(small)
    assert found != storm.simulate(storm.replace(small, seed=2))
    # The last of those who come at once waits for all others.
    rush = storm.simulate(storm.Storm(clients=1000, processes=1, streams_each=0))
    work = 1000 * storm.COMES_BACK * storm.HANDSHAKE_SECONDS / rush.storm.free_share
    assert rush.until(1) == pytest.approx(3 + work, abs=0.25)


def test_the_constants_of_the_simulation_are_those_of_the_page(storm: ModuleType) -> None:
    for value, said in (
        (storm.HANDSHAKE_SECONDS * 1e6, "a handshake | {:.0f} µs"),
        (storm.DELIVERY_SECONDS * 1e6, "of 10 000 streams | {:.1f} µs"),
        (storm.STREAM_SHARE * 10_000 * 100, "10 000 streams | {:.1f} % of a core"),
        (storm.TAIL_SECONDS * 1e6, "read from NATS | {:.0f} µs"),
        (storm.COMES_BACK, "{:.1f} is used here"),
        (storm.REFUSED, "{:.1f} is used here"),
    ):
        assert said.format(value) in PAGE
    measured = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert all(said in measured for said in ("| 319 µs |", "| 10.4 µs |", "| 3.2 % of a core |"))
    tuning = (ROOT / "docs" / "tuning-limits.md").read_text(encoding="utf-8")
    assert re.search(r"memory = 53 MiB \+ streams . 5 KiB", tuning)
    assert re.search(r"\+ streams . 7 KiB", tuning)


def number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def cpu(storm: ModuleType, streams: float) -> list[float]:
    shares = [
        streams * storm.STREAM_SHARE, streams * RATE * storm.DELIVERY_SECONDS, EVENTS * storm.TAIL_SECONDS,
    ]  # fmt: skip
    return [100 * share for share in (*shares, sum(shares))]


def test_the_arithmetic_is_right(storm: ModuleType) -> None:
    left = STREAMS / (PROCESSES - EACH)
    for before, after in zip(cpu(storm, IN_EACH), cpu(storm, left), strict=True):
        assert f"| {before:.1f} % | {after:.1f} % |" in PAGE
    assert f"| {number(IN_EACH)} | {number(left)} |" in PAGE
    assert f"10 000 events a second are {10_000 * storm.TAIL_SECONDS:.0%}".replace("%", " %") in TEXT

    history = 60 * EVENTS
    size = Publication(("room/123456",), bytes(100)).size_bytes
    size += 49 - sys.getsizeof("")  # the page calculates with CPython 3.11; a text is smaller since 3.12
    held = history * size / MIB
    resident, kernel = 53 + IN_EACH * 5 / 1024, IN_EACH * 7 / 1024
    limits = LimitSettings()
    full = 128 + (limits.max_total_backlog_bytes + limits.max_inflight_body_bytes + CACHED_BYTES + MAX_HELD_BYTES) / MIB
    assert f"misses {number(history)} events" in TEXT
    assert f"`history.max_events = {history}` is {held:.0f} MiB" in TEXT
    assert f"53 + {IN_EACH * 5 / 1024:.0f} + {held:.0f} MiB resident and {kernel:.0f} MiB in the kernel" in TEXT
    assert f"{EACH * (resident + held + kernel) / 1024:.1f} GiB for a host; and" in TEXT
    assert f"{EACH * (resident + 1.25 * full + kernel) / 1024:.1f} GiB for a host. **Desc" in TEXT

    limit = LimitSettings(max_connections=20_000)
    assert f"needs {number(max_sockets(limit) + RESERVED_DESCRIPTORS)} descriptors" in TEXT
    assert f"({PROCESSES - 2 * EACH} processes, {number((PROCESSES - 2 * EACH) * 20_000)} places)" in TEXT

    host = STREAMS / HOSTS * (137 * RATE + 108 / 5)
    engine = PROCESSES * EVENTS * 158
    assert f"{host / 1e6:.1f} MB/s, or {host * 8 / 1e6:.0f} Mbit/s" in TEXT
    assert f"{engine / 1e6:.1f} MB/s, or {engine * 8 / 1e6:.0f} Mbit/s" in TEXT
    assert f"{3600 * EVENTS / 1e6} million events, {3600 * EVENTS * 158 / 1e9:.2f} GB" in TEXT
    assert f"up to {PROCESSES * 100} streams if they fall on all processes" in TEXT
    assert f"{number(STREAMS / HOSTS)} streams end" in TEXT
    assert f"to {PROCESSES - EACH} processes: {STREAMS / HOSTS / (PROCESSES - EACH):.0f} to each" in TEXT

    drain = DrainSettings().seconds
    assert f"`drain.seconds = {drain:g}` are {IN_EACH / drain:.0f} clients a second for {PROCESSES - 1} others" in TEXT
    assert f"{IN_EACH / drain / (PROCESSES - 1):.0f} for each" in TEXT
    assert f"take {PROCESSES * drain / 60:.0f} minutes" in TEXT


def test_what_the_limit_costs_is_what_the_simulation_says(storm: ModuleType) -> None:
    case = storm.TOO_LITTLE_ROOM
    outside = case.clients / case.processes - (case.max_connections - case.streams_each)
    assert f"leaves {outside:.0f} clients for each process outside" in TEXT
    come = sum(storm.simulate(case).came[40:120]) / 80 / case.processes
    assert f"about {come:.0f} a second, a hundredth of a core" in TEXT
    assert come * storm.REFUSED * storm.HANDSHAKE_SECONDS == pytest.approx(0.01, abs=0.005)
