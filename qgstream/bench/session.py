"""A session: streams open on one subject, and the measurements with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count, cycle
from types import TracebackType
from typing import Self

from qgstream.bench.callers import Caller
from qgstream.bench.crew import Crew, Report, Status
from qgstream.bench.errors import BenchError
from qgstream.bench.histogram import Histogram
from qgstream.bench.processes import Cores, Usage
from qgstream.bench.stamps import MIN_BYTES, stamped
from qgstream.bench.subjects import Subject

# Keyed by the name in the JSON, which contains the unit. None means that the figure could not be measured.
Figures = dict[str, float | None]
Progress = Callable[[str], None]

# After opening: by then the server has finished its work after the responses (logs, the last accepts).
SETTLE_SECONDS = 1.0
# After the last publish: when nothing has arrived for this long, the missing events are lost.
QUIET_SECONDS = 2.0
DRAIN_SECONDS = 60.0
# The approximate number of latencies for each measurement: enough for a p99, and cheap.
SAMPLES = 200_000
HEALTH_PROBES_PER_SECOND = 50.0
BATCH_EVENTS = 100
BATCH_CONNECTIONS = 4


def _silent(_text: str) -> None:
    """Report no progress."""


class Session:
    """Measurements on one subject, whose streams are opened once."""

    def __init__(self, subject: Subject, cores: Cores, *, size: int = 1, progress: Progress = _silent) -> None:
        self.subject = subject
        self.readers = 0
        self._progress = progress
        self._cores = cores
        self.crew = Crew(subject, cores, size=size)
        self._rss_before: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.crew.stop()

    # Opening.

    def open(self, streams: int, *, topic: str = "bench", stalled: int = 0) -> Figures:
        """Open streams, all on one topic; with `{n}` in the topic, each on its own topic."""

        def look(status: Status) -> None:
            self._progress(f"opening streams: {status.opened} of {streams}")

        before, began = self.subject.usage(), time.monotonic()
        report = self.crew.open(streams, self.subject.get_request(topic), stalled=stalled, look=look)
        took = time.monotonic() - began
        after = self.subject.usage()
        self._settle(streams)
        self.readers = streams - stalled
        if self._rss_before is None and before is not None:
            self._rss_before = before.rss_bytes
        return {
            "handshakes_per_second": streams / took,
            "handshake_p50_ms": ms(report.handshakes, 0.5),
            "handshake_p99_ms": ms(report.handshakes, 0.99),
            "cpu_us_per_handshake": cpu_us_per(before, after, streams),
        }

    def _settle(self, streams: int) -> None:
        time.sleep(SETTLE_SECONDS)
        closed = self.crew.status().closed
        if closed:
            raise BenchError(
                f"the server closed {closed} of {streams} streams right after it opened them: check its limits"
            )

    def memory(self, streams: int) -> float | None:
        """Return the KiB of resident memory for each stream, compared with the memory before they opened."""
        now = self.subject.usage()
        if now is None or self._rss_before is None:
            return None
        return (now.rss_bytes - self._rss_before) / 1024 / streams

    def idle(self, seconds: float) -> Figures:
        """Publish nothing, and measure the cost of heartbeats."""
        before, bytes_before = self.subject.usage(), self.crew.status().bytes
        self._wait(seconds, lambda left: f"idle streams: {left:.0f} s left")
        after = self.subject.usage()
        cpu_us = cpu_us_per(before, after, seconds)
        return {
            "percent_of_core": None if cpu_us is None else cpu_us / 1e4,
            "bytes_per_second": (self.crew.status().bytes - bytes_before) / seconds,
        }

    # Publishing.

    def fan_out(
        self, rate: float, seconds: float, payload_bytes: int, *, topics: Sequence[str] = ("bench",),
        readers: int | None = None,
    ) -> Figures:  # fmt: skip
        """Publish at a rate for some seconds, and wait until all events have arrived, or no more arrive.

        The events go to `topics` in turn. Each event has `readers` readers (all streams that read, unless given).
        """
        readers = self.readers if readers is None else readers
        crew, subject = self.crew, self.subject
        payload_bytes = max(payload_bytes, MIN_BYTES)
        crew.begin(sample_every=max(1, int(rate * seconds * readers / SAMPLES)))
        turn = cycle(topics)
        publisher = Caller(
            subject, lambda: subject.publish_request(stamped(payload_bytes, time.monotonic_ns()), next(turn)),
            rate=rate, seconds=seconds,
        )  # fmt: skip
        load_before, before, began = crew.status().cpu_seconds, subject.usage(), time.monotonic_ns()
        self.run([publisher], "publishing")
        expected = publisher.answered * readers
        self.drain(expected)
        after, report = subject.usage(), crew.report()
        status = report.status
        took = (status.last_delivery_ns - began) / 1e9
        if not publisher.answered:
            raise BenchError(f"nothing was published: {dict(publisher.failures) or 'no response'}")
        return {
            "published": publisher.answered,
            "publish_failed": publisher.failed,
            "deliveries": status.deliveries,
            "deliveries_per_second": status.deliveries / took,
            "lost": expected - status.deliveries,
            "closed": status.closed,
            **_latency(report),
            "publish_p50_ms": ms(publisher.latencies, 0.5),
            "publish_p99_ms": ms(publisher.latencies, 0.99),
            "cpu_us_per_delivery": cpu_us_per(before, after, status.deliveries),
            # Near 100, the figures show the limit of the load, not of the server.
            "load_percent_of_core": 100 * (status.cpu_seconds - load_before) / took,
        }

    def drain(self, expected: int, *, quiet_seconds: float = QUIET_SECONDS) -> None:
        """Wait until so many events have come since `crew.begin`, or until none has come for `quiet_seconds`."""
        deadline = time.monotonic() + DRAIN_SECONDS
        deliveries, since = -1, time.monotonic()
        while deliveries < expected and time.monotonic() < min(deadline, since + quiet_seconds):
            now = self.crew.status().deliveries
            if now != deliveries:
                deliveries, since = now, time.monotonic()
                self._progress(f"waiting for the last deliveries: {deliveries} of {expected}")
            time.sleep(0.02)

    def health(self, rate: float, seconds: float, payload_bytes: int) -> Figures:
        """Measure a supervisor's probe while events are published: a new connection for each request."""
        subject = self.subject
        self.crew.begin(sample_every=1_000_000)
        publisher = Caller(
            subject, lambda: subject.publish_request(stamped(payload_bytes, time.monotonic_ns())),
            rate=rate, seconds=seconds,
        )  # fmt: skip
        prober = Caller(
            subject, subject.health_request, rate=HEALTH_PROBES_PER_SECOND, seconds=seconds, keep_alive=False
        )
        self.run([publisher, prober], "probing /health")
        self.drain(publisher.answered * self.readers)
        return {
            "probes": prober.answered,
            "probes_failed": prober.failed,
            "health_p50_ms": ms(prober.latencies, 0.5),
            "health_p99_ms": ms(prober.latencies, 0.99),
            "health_max_ms": ms(prober.latencies, 1),
        }

    def unheard(self, publishes: int, payload_bytes: int) -> Figures:
        """Publish to topics without subscribers, one after the other."""
        subject, numbers = self.subject, count()
        run = time.monotonic_ns()  # so that a second measurement has new topics too
        seconds = 60.0

        def request() -> bytes:
            number = next(numbers)
            if number >= publishes - 1:
                publisher.stop()
            return subject.publish_request(b"x" * payload_bytes, f"fresh-{run}-{number}")

        publisher = Caller(subject, request, rate=None, seconds=seconds)
        before = subject.usage()
        self.run([publisher], "publishing to fresh topics")
        after = subject.usage()
        if publisher.failed:
            raise BenchError(f"publishing failed: {dict(publisher.failures)}")
        return {
            "publish_p50_ms": ms(publisher.latencies, 0.5),
            "publish_p99_ms": ms(publisher.latencies, 0.99),
            "cpu_us_per_publish": cpu_us_per(before, after, publisher.answered),
        }

    def batches(self, seconds: float, payload_bytes: int) -> Figures:
        """Publish batches of newline-delimited JSON, each when the last response has arrived."""
        subject = self.subject
        body = subject.batch_request([b"x" * payload_bytes] * BATCH_EVENTS)
        callers = [Caller(subject, lambda: body, rate=None, seconds=seconds) for _ in range(BATCH_CONNECTIONS)]
        before, began = subject.usage(), time.monotonic()
        self.run(callers, "publishing batches")
        took = time.monotonic() - began
        after = subject.usage()
        events = BATCH_EVENTS * sum(caller.answered for caller in callers)
        failures = {why: number for caller in callers for why, number in caller.failures.items()}
        if failures or not events:
            raise BenchError(f"publishing batches failed: {failures or 'no response'}")
        latencies = Histogram()
        for caller in callers:
            latencies.merge(caller.latencies)
        return {
            "events_per_second": events / took,
            "batch_p50_ms": ms(latencies, 0.5),
            "batch_p99_ms": ms(latencies, 0.99),
            "cpu_us_per_event": cpu_us_per(before, after, events),
        }

    # Waiting.

    def run(self, callers: list[Caller], doing: str) -> None:
        """Run callers until the last one has ended."""
        for caller in callers:
            caller.start()
        try:
            while any(caller.is_alive() for caller in callers):
                answered = sum(caller.answered for caller in callers)
                self._progress(f"{doing}: {answered} responses")
                for caller in callers:
                    caller.join(0.1)
                self.subject.check()
        finally:
            for caller in callers:
                caller.stop()

    def _wait(self, seconds: float, say: Callable[[float], str]) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._progress(say(left))
            time.sleep(min(0.5, left))


def ms(histogram: Histogram, fraction: float) -> float | None:
    """The percentile of a histogram in milliseconds; None when the histogram is empty."""
    seconds = histogram.percentile(fraction)
    return None if seconds is None else seconds * 1000


def _latency(report: Report) -> Figures:
    return {
        f"latency_{name}_ms": ms(report.latencies, fraction)
        for name, fraction in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
    }


def cpu_us_per(before: Usage | None, after: Usage | None, per: float) -> float | None:
    """Microseconds of CPU between two usages for each of `per`; None when the usage cannot be read."""
    if before is None or after is None or not per:
        return None
    return (after.cpu_seconds - before.cpu_seconds) * 1e6 / per
