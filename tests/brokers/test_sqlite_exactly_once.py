"""The checker on the log on disk: a server that is killed comes back with everything, under the ids that it gave."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fleet.checker import DURABLE, HARSH, VARIANTS, check
from tests.fleet.crowd import Plan
from tests.fleet.fleet import Fleet

HARDSHIPS = (
    "complete", "reset for a false id", "earliest", "closing:drain", "closing:slow_consumer", "cuts", "stalls",
    "batches", "heartbeats", "publishes not answered",
)  # fmt: skip


@pytest.mark.parametrize("history_events", [10_000, 300], ids=["all in the window", "most from the file"])
def test_a_restart_is_nothing_that_a_subscriber_can_see(tmp_path: Path, history_events: int) -> None:
    url = f"sqlite://{tmp_path}/events.db?max_events=1000000"
    fleet = Fleet(tmp_path, HARSH | {"broker__url": url, "history__max_events": history_events}, variants=VARIANTS)
    plan = Plan(seconds=12, round_seconds=4, rules=DURABLE, hardships=HARDSHIPS)
    verdict = asyncio.run(check(fleet, plan, (fleet.restart_after_kill, fleet.restart_after_drain)))
    print(verdict)
    assert verdict.violation is None, verdict
    assert verdict.counts["restarts"] >= 2
    assert not [name for name in HARDSHIPS if not verdict.counts[name]], verdict
    assert not verdict.counts["reset:epoch_changed"]
