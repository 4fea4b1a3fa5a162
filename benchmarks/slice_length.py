"""How long a slice of a fan-out may be (qgstream/delivery/slices.py): throughput against the wait of everything else.

`python benchmarks/slice_length.py`. One constant at a time is changed. "quiet" is 4 events a second to all streams,
where only /health interrupts; "flat out" is 200 a second, where publishes interrupt all the time.
"""

from __future__ import annotations

from collections.abc import Callable

from experiment import Experiment, tuned

from qgstream.bench.session import Figures, Session
from qgstream.delivery.slices import BUSY_SLICE_SECONDS, SLICE_SECONDS, TURNS_BETWEEN

COLUMNS = {
    "health_p50_ms": "quiet: /health p50 ms",
    "health_p99_ms": "p99 ms",
    "cpu_us_per_delivery": "CPU us/delivery",
    "flat_deliveries_per_second": "flat out: deliveries/s",
    "flat_latency_p99_ms": "p99 ms",
    "flat_publish_p50_ms": "publish p50 ms",
    "flat_publish_p99_ms": "p99 ms",
}
QUIET_RATE, FLAT_RATE = 4.0, 200.0


def main() -> None:
    """Change one constant at a time."""
    experiment = Experiment(__doc__ or "", streams=10_000, seconds=3)

    def measure(changes: dict[str, object]) -> Callable[[], Figures]:
        def run() -> Figures:
            with (
                tuned(experiment.cores, changes, streams=experiment.streams) as subject,
                Session(subject, experiment.cores) as session,
            ):
                session.open(experiment.streams)
                quiet = session.fan_out(QUIET_RATE, experiment.seconds, 100)
                probed = session.health(QUIET_RATE, experiment.seconds, 100)
                flat = session.fan_out(FLAT_RATE, experiment.seconds, 100)
                return quiet | probed | {f"flat_{name}": value for name, value in flat.items()}

        return run

    def variants(name: str, chosen: float, *values: float) -> dict[str, Callable[[], Figures]]:
        marks = {value: " (chosen)" if value == chosen else "" for value in values}
        return {
            f"{name} = {value:g}{mark}": measure({f"qgstream.delivery.slices:{name}": value})
            for value, mark in marks.items()
        }

    slices = variants("SLICE_SECONDS", SLICE_SECONDS, 0.001, 0.002, 0.005, 0.02, 0.1)
    busy = variants("BUSY_SLICE_SECONDS", BUSY_SLICE_SECONDS, 0.0003, 0.001, 0.003, 0.01)
    turns = variants("TURNS_BETWEEN", TURNS_BETWEEN, 0, 1, 5, 10, 30)
    experiment.compare(slices | busy | turns, COLUMNS)


if __name__ == "__main__":
    main()
