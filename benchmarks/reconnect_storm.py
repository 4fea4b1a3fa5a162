"""What happens in the seconds after a host with 100 000 streams is lost, or all hosts are: a simulation, no sockets.

`python benchmarks/reconnect_storm.py` prints the table of docs/scale.md, and with `--plot` draws its picture. It takes
some seconds, and gives the same figures everywhere: the randomness is seeded, and no clock is read.

The model. All streams of the lost host end in the same moment, and their clients come back after their `retry:`, each
to one of the processes that are left, at random. A process takes what comes to it in order, one at a time, with what
its streams leave of its core. A client that finds `max_connections` streams is told `rejected` and comes back after the
`retry:` of that.

What it leaves out: the network between, the balancer's time to notice (add it to all times), that a process takes
clients in between its other work, and that the kernel keeps 1024 connections that are not accepted yet: who is over
that is tried again by TCP after 1, 3 and 7 seconds, which flattens a spike and comes on top of the waits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from random import Random

# Measured, in seconds of one core: docs/scale.md says where.
HANDSHAKE_SECONDS = 319e-6
COMES_BACK = 1.2  # a stream that resumes and has missed some events, in handshakes
REFUSED = 0.9
STREAM_SHARE = 3.2e-2 / 10_000  # of a core, for the heartbeats of a stream
DELIVERY_SECONDS = 10.4e-6
TAIL_SECONDS = 24e-6  # an event of the engine that nobody hears
# Streams that come at once do not come in the same microsecond: lines and clients differ by some tenths of a second.
SPREAD_SECONDS = 0.2


@dataclass(frozen=True)
class Storm:
    """One case: who is left, who comes, and what they were told."""

    clients: int  # that come back
    processes: int  # that they come to
    streams_each: int  # that are open there already
    max_connections: int = 20_000
    events_per_second: float = 1.0  # to each stream
    engine_events_per_second: float = 2000.0  # that every process reads
    retry_seconds: float = 3.0
    retry_is_jittered: bool = False
    refused_retry_seconds: float = 10.0
    refused_is_jittered: bool = True
    seconds: float = 120.0
    seed: int = 1

    @property
    def free_share(self) -> float:
        """What the streams that are open leave of a core."""
        streams = self.streams_each * (STREAM_SHARE + self.events_per_second * DELIVERY_SECONDS)
        return 1 - streams - self.engine_events_per_second * TAIL_SECONDS


@dataclass
class Process:
    """One that is left: its streams, and until when it is busy with those who came so far."""

    streams: int
    busy_until: float = 0.0
    longest_wait: float = 0.0

    def take(self, now: float, seconds: float) -> float:
        """Work for one who came; when it is done."""
        begins = max(now, self.busy_until)
        self.longest_wait = max(self.longest_wait, begins - now)
        self.busy_until = begins + seconds
        return self.busy_until


@dataclass(frozen=True)
class Outcome:
    """What came of it. `opened_at` are the seconds, after the loss, at which clients had their stream again, `waits`
    when each of them came and for how long it waited, and `came` how many came in each second."""

    storm: Storm
    opened_at: Sequence[float]
    waits: Sequence[tuple[float, float]]
    refusals: int
    longest_wait: float
    came: Sequence[int]

    def until(self, share: float) -> float | None:
        """When this share of the clients had their streams, or None if they never had."""
        needed = round(share * self.storm.clients)
        return self.opened_at[needed - 1] if len(self.opened_at) >= needed else None

    @property
    def busiest_second(self) -> float:
        """How many came to each process in the second in which most came."""
        return max(self.came) / self.storm.processes


def simulate(storm: Storm) -> Outcome:
    """Run one case."""
    random = Random(storm.seed)
    processes = [Process(storm.streams_each) for _ in range(storm.processes)]
    seconds_each = HANDSHAKE_SECONDS / storm.free_share
    turn = count()
    arrivals: list[tuple[float, int]] = []
    for _ in range(storm.clients):
        heappush(arrivals, (_retry(storm, random) + random.random() * SPREAD_SECONDS, next(turn)))
    opened_at: list[float] = []
    waits: list[tuple[float, float]] = []
    refusals = 0
    came = [0] * (int(storm.seconds) + 1)
    while arrivals and arrivals[0][0] <= storm.seconds:
        now, _ = heappop(arrivals)
        came[int(now)] += 1
        process = processes[random.randrange(storm.processes)]
        if process.streams >= storm.max_connections:
            refusals += 1
            again = process.take(now, REFUSED * seconds_each) + storm.refused_retry_seconds
            if storm.refused_is_jittered:
                again += random.random() * storm.refused_retry_seconds
        else:
            process.streams += 1
            waits.append((now, max(0.0, process.busy_until - now)))
            opened_at.append(process.take(now, COMES_BACK * seconds_each))
            continue
        heappush(arrivals, (again + random.random() * SPREAD_SECONDS, next(turn)))
    opened_at.sort()
    longest_wait = max(process.longest_wait for process in processes)
    return Outcome(storm, opened_at, waits, refusals, longest_wait, came)


def _retry(storm: Storm, random: Random) -> float:
    return storm.retry_seconds * (1 + (random.random() if storm.retry_is_jittered else 0))


# The cases of docs/scale.md. What counts is how many come to each process, so a part of the processes is enough: here
# 18 of 72, and 4 of 80.

ONE_OF_TEN = Storm(clients=25_000, processes=18, streams_each=12_500)
EVERYBODY = Storm(clients=50_000, processes=4, streams_each=0)
# Of 1389 that come to each, 1000 find room.
TOO_LITTLE_ROOM = replace(ONE_OF_TEN, max_connections=13_500)

CASES: Mapping[str, Storm] = {
    "one host of ten is lost; `retry:` 3 s": ONE_OF_TEN,
    "one host of ten is lost; `retry:` 3 to 6 s": replace(ONE_OF_TEN, retry_is_jittered=True),
    "all come at once; `retry:` 3 s": EVERYBODY,
    "all come at once; `retry:` 3 to 6 s": replace(EVERYBODY, retry_is_jittered=True),
    "all come at once; `retry:` 10 to 20 s": replace(EVERYBODY, retry_is_jittered=True, retry_seconds=10),
    "one of ten, limit 13 500; refused for 10 s": replace(TOO_LITTLE_ROOM, refused_is_jittered=False),
    "one of ten, limit 13 500; refused for 10 to 20 s": TOO_LITTLE_ROOM,
}
HEADINGS = ("", "half are back", "99 of 100", "all", "longest wait", "most in a second", "refused in 2 minutes")


def run() -> dict[str, Outcome]:
    """All cases."""
    return {name: simulate(storm) for name, storm in CASES.items()}


def rows(outcomes: Mapping[str, Outcome]) -> Iterator[Sequence[str]]:
    """The table; the last two columns are for each process."""
    for name, outcome in outcomes.items():
        yield (
            name, _seconds(outcome.until(0.5)), _seconds(outcome.until(0.99)), _seconds(outcome.until(1)),
            _seconds(outcome.longest_wait), _number(outcome.busiest_second),
            _number(outcome.refusals / outcome.storm.processes),
        )  # fmt: skip


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def markdown(outcomes: Mapping[str, Outcome]) -> str:
    """The table as docs/scale.md has it."""
    lines = ["| " + " | ".join(line) + " |" for line in (HEADINGS, *rows(outcomes))]
    return "\n".join([lines[0].replace("|  |", "| |"), "|---|" + "--:|" * (len(HEADINGS) - 1), *lines[1:]])


def main() -> None:
    """Print the table; draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "--plot", action="store_true", help="also draw docs/images/reconnect-storm.svg (needs matplotlib)"
    )
    args = parser.parse_args()
    outcomes = run()
    print(markdown(outcomes))
    if args.plot:
        from plot import reconnect_storm

        reconnect_storm(outcomes)


if __name__ == "__main__":
    main()
