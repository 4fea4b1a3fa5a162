"""The checker across two servers that share an engine: clients move between them while one is killed, and while the
engine itself is killed and started again."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.brokers.engines import Engine
from tests.brokers.machines import Machine
from tests.fleet.checker import DURABLE, HARSH, VARIANTS, check
from tests.fleet.crowd import Plan
from tests.fleet.fleet import Fleet

HARDSHIPS = (
    "complete", "reset for a false id", "earliest", "cuts", "stalls", "batches", "heartbeats",
)  # fmt: skip
# What a publish may come to while the engine is away: which it is depends on the moment.
REFUSED = ("publishes answered 503", "publishes not answered")


def test_moving_between_servers_is_nothing_that_a_subscriber_can_see(
    engine: Engine, remote: Machine, tmp_path: Path
) -> None:
    async def bounce() -> None:
        await asyncio.to_thread(remote.kill)
        await asyncio.sleep(0.5)  # long enough for somebody to publish
        await asyncio.to_thread(remote.start)

    settings = HARSH | {"broker__url": engine.url, "broker__timeout_seconds": 3}
    fleet = Fleet(tmp_path, settings, variants=VARIANTS, count=2, expect=("broker.down",))
    plan = Plan(seconds=6, round_seconds=3, subscribers=80, rules=DURABLE, hardships=HARDSHIPS)
    verdict = asyncio.run(check(fleet, plan, (fleet.restart_after_kill, bounce)))
    print(verdict)
    assert verdict.violation is None, verdict
    assert verdict.counts["restarts"] >= 1
    assert not [name for name in HARDSHIPS if not verdict.counts[name]], verdict
    assert any(verdict.counts[name] for name in REFUSED), verdict
    assert not [name for name in verdict.counts if name.startswith("reset:") and name != "reset:too_old"], verdict
