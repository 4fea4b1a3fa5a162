"""Every acknowledged event reaches every subscriber once and in order, or a `reset` tells it of the gap."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.fleet.checker import HARSH, VARIANTS, check
from tests.fleet.crowd import Plan
from tests.fleet.fleet import Fleet
from tests.fleet.sabotage import server_with

# What the run must have met with, or it showed nothing.
HARDSHIPS = (
    "complete", "reset:epoch_changed", "reset:too_old", "reset for a false id", "earliest", "closing:drain",
    "closing:slow_consumer", "closing:max_age", "cuts", "stalls", "batches", "heartbeats",
)  # fmt: skip


def test_every_event_arrives_exactly_once_in_order_or_is_told_as_missed(tmp_path: Path) -> None:
    plan = Plan(seconds=18, round_seconds=6, hardships=HARDSHIPS)
    verdict = asyncio.run(check(Fleet(tmp_path, HARSH, variants=VARIANTS), plan))
    print(verdict)
    assert verdict.violation is None, verdict
    assert verdict.counts["restarts"] >= 2
    assert not [name for name in HARDSHIPS if not verdict.counts[name]], verdict


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("late_join", "missing"),
        ("split_off_by_one", "missing"),
        ("resume_off_by_one", "again|out of order"),  # the latter of a stream that waited for its turn to join
        ("heartbeat_jumps", "out of order"),
        ("same_epoch", "same-"),
    ],
)
def test_a_server_with_a_fault_is_found_out(fault: str, told: str, tmp_path: Path) -> None:
    settings = HARSH | {"drain__seconds": 0.3, "heartbeat__interval_seconds": 0.05}
    fleet = Fleet(tmp_path, settings, make=server_with(fault))
    plan = Plan(seconds=90, round_seconds=1.5, subscribers=80, events_per_second=400)
    verdict = asyncio.run(check(fleet, plan))
    print(verdict)
    assert verdict.violation is not None, verdict
    assert re.search(told, str(verdict.violation))
