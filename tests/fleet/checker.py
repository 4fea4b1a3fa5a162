"""Exactly once, in order, or told: the checker, as a library and as a command.

    python tests/fleet/checker.py --seconds 600 --seed 1
    python tests/fleet/checker.py --seconds 600 --servers 2 --broker redis://127.0.0.1:6379

Publishers note every id that they are answered; subscribers connect, reset, stall and resume with their last id at
random moments; servers leave and come back meanwhile. In rounds: some seconds of chaos, then calm in which everybody
catches up, and every subscriber is compared with the ledger. The first violation ends the run and is printed with the
history of the subscriber that saw it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fleet.crowd import RULES, Plan, Publisher, Subscriber, World
from tests.fleet.fleet import Fleet
from tests.fleet.judge import Rules
from tests.fleet.ledger import Violation
from tests.fleet.sabotage import FAULTS, server_with
from tests.serving import ServerProcess

# What makes trouble frequent: small buffers and backlogs, short ages and heartbeats, clients that come back soon.
HARSH: dict[str, object] = {
    "limits__max_backlog_bytes": 64 * 1024,
    "limits__send_buffer_bytes": 8 * 1024,
    "limits__max_connection_age_seconds": 6,
    "limits__retry_seconds": 0.1,
    "limits__overload_retry_seconds": 0.2,
    "heartbeat__interval_seconds": 0.5,
    "drain__seconds": 1.5,
    "history__topics": [{"pattern": "chatter*", "max_age_seconds": 1}],
}
# By turns: whether heartbeats fire an event or only move the position.
VARIANTS = ({"heartbeat__format": "data"}, {"heartbeat__format": "comment"})
# A log that outlives its servers: an id that one of them gave is never answered with a reset.
DURABLE = Rules(short_lived=RULES.short_lived, resets=frozenset(), closings=RULES.closings)
KEPT_EVENTS = 20_000
CALM_SECONDS = 60.0
# How long a run may go on to meet what it has not met.
HARDSHIP_SECONDS = 60.0

Disturbance = Callable[[], Awaitable[None]]


@dataclass
class Verdict:
    """What came of a run: `violation` is the first thing that went wrong, `counts` shows that there was something to
    go wrong."""

    violation: Violation | None
    counts: Counter[str]

    def __str__(self) -> str:
        counts = "\n".join(f"  {count:8} {name}" for name, count in sorted(self.counts.items()))
        return (f"VIOLATION {self.violation}" if self.violation else "well") + f"\n{counts}"


class Checker:
    """Runs subscribers and publishers against the servers that `urls` names at each moment.

    `disturbances` are called in turn, one in each round, at a random moment of its chaos.
    """

    def __init__(self, urls: Sequence[str], plan: Plan, disturbances: Sequence[Disturbance] = ()) -> None:
        self.plan = plan
        self._world = world = World(urls, plan)
        self.counts = world.counts
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._disturbances = disturbances
        self._random = Random(f"{plan.seed} checker")
        self._subscribers = [Subscriber(number, world) for number in range(plan.subscribers)]
        self._publishers = [Publisher(number, world) for number in range(plan.publishers)]
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> Verdict:
        """Check for `plan.seconds`, in whole rounds and with each disturbance once, or until the first violation."""
        violation = None
        end = time.monotonic() + self.plan.seconds
        last = end + HARDSHIP_SECONDS
        for subscriber in self._subscribers:
            self._spawn(subscriber.live())
        try:
            rounds = max(1, len(self._disturbances))
            while self.counts["rounds"] < rounds or time.monotonic() < (last if self._unmet() else end):
                await self._round()
                self.counts["rounds"] += 1
        except Violation as found:
            violation = found
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for publisher in self._publishers:
                publisher.close()
            self._failed.cancel()
        return Verdict(violation, self.counts)

    def _unmet(self) -> list[str]:
        return [name for name in self.plan.hardships if not self.counts[name]]

    async def _round(self) -> None:
        seconds = min(self.plan.round_seconds, self.plan.seconds)
        self._world.calm = asyncio.get_running_loop().create_future()
        chaos = [publisher.publish_for(seconds) for publisher in self._publishers]
        if self._disturbances:
            chaos.append(self._disturb(self._random.uniform(0.1, 0.6) * seconds))
        await self._all(chaos)
        self._world.calm.set_result(None)
        await self._all([self._catch_up()])

    async def _disturb(self, after_seconds: float) -> None:
        await asyncio.sleep(after_seconds)
        await self._disturbances[self.counts["rounds"] % len(self._disturbances)]()

    async def _catch_up(self) -> None:
        target = await self._publishers[0].mark()
        deadline = time.monotonic() + CALM_SECONDS
        behind = [subscriber.witness for subscriber in self._subscribers]
        while behind := [witness for witness in behind if not witness.reached(target)]:
            if time.monotonic() > deadline:
                raise behind[0].never_arrived(target)
            await asyncio.sleep(0.02)
        for subscriber in self._subscribers:
            subscriber.witness.settle()
        self._world.ledger.forget(epoch=target.epoch, keep=KEPT_EVENTS)

    async def _all(self, parts: Sequence[Coroutine[Any, Any, None]]) -> None:
        """Until all are done; raises the first failure of anything that is running."""
        tasks = [self._spawn(part) for part in parts]
        done: asyncio.Future[Any] = asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait({done, self._failed}, return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            self._failed.result()

    def _spawn(self, part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(part)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._failed.done():
            self._failed.set_exception(error)


async def check(fleet: Fleet, plan: Plan, disturbances: Sequence[Disturbance] = ()) -> Verdict:
    """Start the servers, check them while they are restarted (or else disturbed), and see them leave."""
    try:
        await fleet.start()
        disturbances = disturbances or (fleet.restart_after_drain, fleet.restart_after_kill)
        verdict = await Checker(fleet.urls, plan, disturbances).run()
        verdict.counts["restarts"] = fleet.restarts
        if verdict.violation is None:
            await fleet.stop()
        return verdict
    finally:
        fleet.kill()


async def _main(args: argparse.Namespace, plan: Plan) -> Verdict:
    if args.url:
        return await Checker(args.url, plan).run()
    with tempfile.TemporaryDirectory() as directory:
        make = server_with(args.fault) if args.fault else ServerProcess
        settings = HARSH | ({"broker__url": args.broker} if args.broker else {})
        fleet = Fleet(
            Path(directory), settings, variants=VARIANTS, count=args.servers, make=make, expect=("broker.down",)
        )  # fmt: skip
        return await check(fleet, plan)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Plan()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--subscribers", type=int, default=default.subscribers)
    parser.add_argument("--publishers", type=int, default=default.publishers)
    parser.add_argument("--events-per-second", type=float, default=default.events_per_second)
    parser.add_argument("--round-seconds", type=float, default=default.round_seconds)
    parser.add_argument("--url", action="append", help="check this server (repeatable) instead of starting one")
    parser.add_argument("--key", default=default.key, help="its publish key")
    parser.add_argument("--broker", metavar="URL", help="start servers with this durable broker.url")
    parser.add_argument("--servers", type=int, default=1, help="as many as share it")
    parser.add_argument("--fault", choices=FAULTS, help="serve with this fault, to see it found")
    args = parser.parse_args()
    rules = DURABLE if args.broker else RULES
    plan = Plan(
        args.seconds, args.round_seconds, args.subscribers, args.publishers, args.events_per_second, args.seed,
        args.key, rules,
    )  # fmt: skip
    verdict = asyncio.run(_main(args, plan))
    print(verdict)
    return 1 if verdict.violation else 0


if __name__ == "__main__":
    sys.exit(main())
