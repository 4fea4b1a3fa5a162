"""Framing: what encoding once saves, and what HTTP/1.1's chunks cost over a body that ends with the connection.

`python benchmarks/framing.py`. The first table is time in this process alone, the second a server's.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable

from experiment import Experiment, tuned

from qgstream.bench.session import Figures, Session
from qgstream.events.publication import Publication
from qgstream.events.subscription import Subscription
from qgstream.wire import sse

ENCODING = {"us_per_event": "us/event"}
FRAMING = {"cpu_us_per_delivery": "CPU us/delivery", "bytes_per_delivery": "bytes/delivery", "lost": "lost"}
PAYLOAD = b"x" * 100
LINES = b"\n".join([b"x" * 24] * 4)
RATE = 40_000


def _time(function: Callable[[], object]) -> Callable[[], Figures]:
    def run() -> Figures:
        number, seconds = timeit.Timer(function).autorange()
        return {"us_per_event": seconds / number * 1e6}

    return run


class _Raw(Session):
    """Streams of HTTP/1.0."""

    def open_raw(self, streams: int) -> None:
        self.crew.open(streams, self.subject.get_request().replace("HTTP/1.1", "HTTP/1.0"))
        self.readers = streams


def main() -> None:
    """Both tables."""
    experiment = Experiment(__doc__ or "", streams=5000, seconds=3)
    subscription, envelope = Subscription(), Subscription(envelope=True)

    def encode(data: bytes, subscription: Subscription) -> bytes:
        return subscription.frame(Publication(("bench",), data, is_json=False), "epoch")

    known = Publication(("bench",), PAYLOAD, is_json=False)
    encodings: dict[str, Callable[[], object]] = {
        "for each subscriber": lambda: encode(PAYLOAD, subscription),
        "for each subscriber, several lines": lambda: encode(LINES, subscription),
        "for each subscriber, in an envelope": lambda: encode(PAYLOAD, envelope),
        "once (looked up)": lambda: subscription.frame(known, "epoch"),
        "of which the chunk": lambda: sse.chunk(PAYLOAD),
    }
    print("encoding")
    experiment.compare({name: _time(function) for name, function in encodings.items()}, ENCODING, name="encoding")

    def measure(*, raw: bool) -> Callable[[], Figures]:
        def run() -> Figures:
            with (
                tuned(experiment.cores, {}, streams=experiment.streams) as subject,
                _Raw(subject, experiment.cores) as session,
            ):
                if raw:
                    session.open_raw(experiment.streams)
                else:
                    session.open(experiment.streams)
                before = session.crew.status().bytes
                figures = session.fan_out(RATE / experiment.streams, experiment.seconds, len(PAYLOAD))
                received = session.crew.status().bytes - before
                return figures | {"bytes_per_delivery": received / (figures["deliveries"] or 1)}

        return run

    print("\nframing")
    experiment.compare({"chunked": measure(raw=False), "raw": measure(raw=True)}, FRAMING)


if __name__ == "__main__":
    main()
