"""What a delivery costs, against the number of streams and against the size of the payload.

`python benchmarks/sweeps.py --save`, then `python benchmarks/plot.py`. The number of deliveries a second stays the same
over the streams, so that only their number changes; the floor and a plain Tornado server see the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from experiment import Experiment

from qgstream.bench.processes import Cores
from qgstream.bench.session import Figures, Session
from qgstream.bench.subjects import FLOOR, PLAIN, Subject, start_module, start_qgstream

COLUMNS = {
    "cpu_us_per_delivery": "CPU us/delivery",
    "latency_p50_ms": "p50 ms",
    "latency_p99_ms": "p99 ms",
    "lost": "lost",
}
STREAMS = (100, 300, 1000, 3000, 10_000, 15_000)
DELIVERIES_PER_SECOND = 20_000
PAYLOADS = (10, 100, 1000, 10_000, 100_000)
PAYLOAD_STREAMS, PAYLOAD_RATE = 500, 8.0

SERVERS: dict[str, Callable[[Cores, int], AbstractContextManager[Subject]]] = {
    "qgstream": lambda cores, streams: start_qgstream(cores, streams=streams),
    "bare send loop": lambda cores, _streams: start_module(FLOOR, "qgstream.bench.floor", cores),
    "plain Tornado": lambda cores, _streams: start_module(PLAIN, "qgstream.bench.plain", cores),
}


def main() -> None:
    """Both sweeps."""
    experiment = Experiment(__doc__ or "", streams=max(STREAMS), seconds=3)
    cores = experiment.cores

    def measure(server: str, streams: int, rate: float, payload_bytes: int) -> Callable[[], Figures]:
        def run() -> Figures:
            with SERVERS[server](cores, streams) as subject, Session(subject, cores) as session:
                session.open(streams)
                figures = session.fan_out(rate, experiment.seconds, payload_bytes)
                return figures | {"streams": streams, "payload_bytes": payload_bytes}

        return run

    streams = {
        f"{count} streams, {server}": measure(server, count, DELIVERIES_PER_SECOND / count, 100)
        for count in STREAMS
        if count <= experiment.streams
        for server in SERVERS
    }
    experiment.compare(streams, COLUMNS, name="streams")
    print()
    payloads = {
        f"{size} bytes, {server}": measure(server, PAYLOAD_STREAMS, PAYLOAD_RATE, size)
        for size in PAYLOADS
        for server in SERVERS
    }
    experiment.compare(payloads, COLUMNS, name="payloads")


if __name__ == "__main__":
    main()
