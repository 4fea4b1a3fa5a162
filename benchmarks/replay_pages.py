"""How large the pages of a replay are, and whether they are shared (qgstream/replay/pages.py): many clients come back.

`python benchmarks/replay_pages.py`. All clients ask for the whole history of small events, as after an outage. The last
column is what a client costs that asks for it and never reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from experiment import Experiment, tuned

from qgstream.bench.callers import Caller
from qgstream.bench.crew import Crew
from qgstream.bench.errors import BenchError
from qgstream.bench.session import HEALTH_PROBES_PER_SECOND, Figures
from qgstream.bench.stamps import stamped
from qgstream.bench.subjects import Subject
from qgstream.replay.pages import CACHED_PAGES, PAGE_BYTES, PAGE_PUBLICATIONS

COLUMNS = {
    "deliveries_per_second": "deliveries/s",
    "cpu_us_per_delivery": "CPU us/delivery",
    "health_p50_ms": "/health p50 ms",
    "health_p99_ms": "p99 ms",
    "kib_per_stalled": "KiB/stalled replay",
}
EVENTS, PAYLOAD_BYTES = 10_000, 200
STALLED = 200
SLOWEST_PER_SECOND = 100_000  # deliveries; what is not there then is lost


def fill(subject: Subject) -> None:
    """Publish the history."""
    batch = [stamped(PAYLOAD_BYTES, 0)] * 1000
    left = EVENTS // len(batch)

    def request() -> bytes:
        nonlocal left
        left -= 1
        if not left:
            publisher.stop()
        return subject.batch_request(batch)

    publisher = Caller(subject, request, rate=None, seconds=60)
    publisher.start()
    publisher.join()
    if publisher.failed:
        raise BenchError(f"the history was not published: {dict(publisher.failures)}")


def replay(experiment: Experiment, subject: Subject) -> Figures:
    """All clients at once."""
    probes = {"rate": HEALTH_PROBES_PER_SECOND, "seconds": 60.0, "keep_alive": False}
    prober = Caller(subject, subject.health_request, **probes)  # type: ignore[arg-type]
    with Crew(subject, experiment.cores) as crew:
        before, began = subject.usage(), time.monotonic()
        prober.start()
        crew.open(experiment.streams, subject.get_request("bench&last_event_id=earliest"))
        expected = experiment.streams * EVENTS
        deadline = began + 60 + expected / SLOWEST_PER_SECOND
        while crew.status().deliveries < expected and time.monotonic() < deadline:
            time.sleep(0.02)
        took, after = time.monotonic() - began, subject.usage()
        prober.stop()
        prober.join()
        deliveries = crew.status().deliveries
    if deliveries != expected or before is None or after is None:
        raise BenchError(f"{deliveries} of {expected} events were replayed")
    return {
        "deliveries_per_second": deliveries / took,
        "cpu_us_per_delivery": (after.cpu_seconds - before.cpu_seconds) * 1e6 / deliveries,
        "health_p50_ms": 1000 * (prober.latencies.percentile(0.5) or 0),
        "health_p99_ms": 1000 * (prober.latencies.percentile(0.99) or 0),
    }


def stall(experiment: Experiment, subject: Subject) -> Figures:
    """Clients that never read what they asked for."""
    with Crew(subject, experiment.cores) as crew:
        before = subject.usage()
        crew.open(STALLED, subject.get_request("bench&last_event_id=earliest"), stalled=STALLED)
        time.sleep(1)
        after = subject.usage()
    assert before is not None
    assert after is not None
    return {"kib_per_stalled": (after.rss_bytes - before.rss_bytes) / 1024 / STALLED}


def main() -> None:
    """Change the size of a page, and whether it is kept for others."""
    experiment = Experiment(__doc__ or "", streams=300, seconds=0)

    def measure(**changes: int) -> Callable[[], Figures]:
        constants: dict[str, object] = {f"qgstream.replay.pages:{name}": value for name, value in changes.items()}

        def run() -> Figures:
            streams = max(experiment.streams, STALLED)
            with tuned(experiment.cores, constants, streams=streams) as subject:
                fill(subject)
                return stall(experiment, subject) | replay(experiment, subject)

        return run

    chosen = f"{PAGE_BYTES // 1024} KiB of {PAGE_PUBLICATIONS} events, {CACHED_PAGES} kept (chosen)"
    variants = {chosen: measure()}
    for kib in (4, 16, 64, 256, 1024):
        events = max(PAGE_PUBLICATIONS, kib * 4)  # or the number of events would be the bound
        name = f"{kib} KiB of {events} events, {CACHED_PAGES} kept"
        if name not in chosen:
            variants[name] = measure(PAGE_BYTES=kib * 1024, PAGE_PUBLICATIONS=events)
    variants[f"{PAGE_BYTES // 1024} KiB of {PAGE_PUBLICATIONS} events, none kept"] = measure(CACHED_PAGES=0)
    experiment.compare(variants, COLUMNS)


if __name__ == "__main__":
    main()
