"""Prometheus metrics behind methods: code calls a verb for each occurrence, and Prometheus sees the nouns.

Labels come from closed sets, and every label value is present from the start. Values such as open connections and
backlog are computed at the scrape, so that they cannot drift.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from math import inf

import tornado
from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qgstream.gauges import Gauges
from qgstream.reasons import (
    BAN_KINDS,
    CLOSE_REASONS,
    PUBLISH_RESULTS,
    REJECT_REASONS,
    REPLAY_RESULTS,
    TRANSPORTS,
    BanKind,
    CloseReason,
    PublishResult,
    RejectReason,
    ReplayResult,
    Transport,
)
from qgstream.version import __version__

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_AGE = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600)
_EVENTS = (0, 1, 10, 100, 1000, 10_000, 100_000)


@dataclass(frozen=True, slots=True)
class Live:
    """The values that are computed at the time of a scrape."""

    connections: int = 0
    connections_limit: int = 0
    topics: int = 0
    backlog_bytes_total: int = 0
    backlog_bytes_max: int = 0
    inflight_body_bytes: int = 0
    inflight_bodies_refused: int = 0
    history_events: int = 0
    history_bytes: int = 0
    broker_up: bool = True
    broker_skipped: int = 0
    draining: bool = False
    maintenance: bool = False


@dataclass(frozen=True, slots=True)
class Totals:
    """The counts since the start, for people. Buckets are (upper bound in seconds, cumulative count)."""

    opened: int
    closed: dict[str, int]
    rejected: dict[str, int]
    publishes: dict[str, int]
    published: int
    delivered: int
    bytes_sent: int
    lag: tuple[tuple[float | None, int], ...]
    loop_lag: tuple[tuple[float | None, int], ...]


class Metrics:
    """The instruments of one process.

    Args:
        registry: The registry of the metrics. The default is a new registry for each instance.

    Attributes:
        registry: The registry. Pass it to `prometheus_client.generate_latest`.

    Example::

        import qgstream
        from prometheus_client import generate_latest

        metrics = qgstream.Metrics()
        hub = qgstream.Hub(metrics=metrics)
        print(generate_latest(metrics.registry).decode())
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.gauges = Gauges()
        self._live: Callable[[], Live] = Live

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"qgstream_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"qgstream_{name}", text, buckets=buckets, registry=self.registry)

        self._opened = counter("connections_opened", "Streams opened.")
        # A separate metric and not a label of the metric above: alerts compare that metric with the number of open
        # streams.
        self._opened_by = counter("connections_opened_by_transport", "Streams opened, by transport.", "transport")
        self._closed = counter("connections_closed", "Streams ended, by reason.", "reason")
        self._rejected = counter("connections_rejected", "Streams refused, by reason.", "reason")
        self._published = counter("events_published", "Events appended to the log by this process.")
        self._publishes = counter("publishes", "Publishes over HTTP, by result.", "result")
        self._delivered = counter("events_delivered", "Events written to subscribers' sockets.")
        self._bytes = counter("bytes_sent", "Bytes of events written to subscribers' sockets.")
        self._heartbeats = counter("heartbeats", "Heartbeats sent.")
        self._replay = counter("replay", "Streams resumed from a Last-Event-ID, by result.", "result")
        self._age = histogram("connection_age_seconds", "Age of streams when they ended.", _AGE)
        self._fanout = histogram(
            "fanout_seconds", "The longest round over a feed, of each tenth of a second with one.", _FAST
        )
        self._lag = histogram(
            "publish_to_write_seconds",
            "Time from publish to the last subscriber's turn, the longest of each 0.1 s.",
            _FAST,
        )
        self._loop_lag = histogram("loop_lag_seconds", "Delay of a callback on the event loop, every 50 ms.", _FAST)
        self._replay_events = histogram("replay_events", "Events in one finished replay.", _EVENTS)
        # The names of sources come from the operator's configuration, so they are a closed set like the reasons.
        self._source_events = counter("source_events", "Events of a source that were appended to the log.", "source")
        self._source_refused = counter("source_refused", "Values of a source that are no valid events.", "source")
        self._source_failures = counter("source_failures", "Failures that ended a source's run.", "source")
        self._source_running = Gauge(
            "qgstream_source_running", "1 while a source runs.", ("source",), registry=self.registry
        )
        self._reload_failures = counter("config_reload_failures", "Reloads that were refused.")
        self._reloaded = Gauge(
            "qgstream_config_last_reload_successful", "1 unless the last reload was refused.", registry=self.registry
        )
        self._reloaded_at = Gauge(
            "qgstream_config_last_reload_success_timestamp_seconds",
            "When the configuration in effect was loaded, at the start or by a reload.",
            registry=self.registry,
        )
        self.config_loaded(time.time())
        self._bans = Gauge("qgstream_bans", "Bans in effect, by kind.", ("kind",), registry=self.registry)
        for kind in BAN_KINDS:
            self._bans.labels(kind)
        for closed in CLOSE_REASONS:
            self._closed.labels(closed)
        for rejected in REJECT_REASONS:
            self._rejected.labels(rejected)
        for published in PUBLISH_RESULTS:
            self._publishes.labels(published)
        for transport in TRANSPORTS:
            self._opened_by.labels(transport)
        for result in REPLAY_RESULTS:
            self._replay.labels(result)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(_LiveCollector(self))
        self.registry.register(self.gauges)

    def watch(self, live: Callable[[], Live]) -> None:
        """Compute `live()` at each scrape."""
        self._live = live

    def watch_bans(self, count: Callable[[BanKind], float]) -> None:
        """Compute `count(kind)` at each scrape."""
        for kind in BAN_KINDS:
            self._bans.labels(kind).set_function(partial(count, kind))

    @property
    def live(self) -> Live:
        """The current values."""
        return self._live()

    @property
    def totals(self) -> Totals:
        """The counts since the start."""
        return Totals(
            opened=_total(self._opened),
            closed=_by_reason(self._closed),
            rejected=_by_reason(self._rejected),
            publishes=_by_reason(self._publishes, "result"),
            published=_total(self._published),
            delivered=_total(self._delivered),
            bytes_sent=_total(self._bytes),
            lag=_buckets(self._lag),
            loop_lag=_buckets(self._loop_lag),
        )

    def opened(self, transport: Transport) -> None:
        """A stream was opened."""
        self._opened.inc()
        self._opened_by.labels(transport).inc()

    def closed(self, reason: CloseReason, age_seconds: float) -> None:
        """A stream ended."""
        self._closed.labels(reason).inc()
        self._age.observe(age_seconds)

    def rejected(self, reason: RejectReason) -> None:
        """A stream was refused."""
        self._rejected.labels(reason).inc()

    def published(self, events: int) -> None:
        """Events were appended to the log."""
        self._published.inc(events)

    def publish_ended(self, result: PublishResult) -> None:
        """A publish over HTTP has ended, with or without a response."""
        self._publishes.labels(result).inc()

    def delivered(self, events: int, bytes_: int) -> None:
        """Events were written to sockets: once for each subscriber."""
        self._delivered.inc(events)
        self._bytes.inc(bytes_)

    def heartbeats(self, sent: int) -> None:
        """Heartbeats were sent."""
        self._heartbeats.inc(sent)

    def resumed(self, result: ReplayResult) -> None:
        """A stream started with this result for its Last-Event-ID."""
        self._replay.labels(result).inc()

    def replayed(self, events: int) -> None:
        """A replay caught up with the live events."""
        self._replay_events.observe(events)

    def fanned_out(self, round_seconds: float, lag_seconds: float) -> None:
        """Rounds over feeds ended: the duration of the longest round, and the time from publish to the end for the
        oldest event."""
        self._fanout.observe(round_seconds)
        self._lag.observe(lag_seconds)

    def loop_was_late(self, seconds: float) -> None:
        """The event loop ran a callback this much later than due."""
        self._loop_lag.observe(seconds)

    def config_loaded(self, at: float) -> None:
        """A configuration took effect at this time (unix seconds)."""
        self._reloaded.set(1)
        self._reloaded_at.set(at)

    def config_rejected(self) -> None:
        """A reload was refused."""
        self._reloaded.set(0)
        self._reload_failures.inc()

    def knows_source(self, name: str) -> None:
        """Create the series of a source."""
        for instrument in (self._source_events, self._source_refused, self._source_failures, self._source_running):
            instrument.labels(name)

    def source_runs(self, name: str) -> AbstractContextManager[object]:
        """Mark a source as running for the duration of the block."""
        return self._source_running.labels(name).track_inprogress()

    def source_brought(self, name: str, events: int) -> None:
        """Events of a source were appended to the log."""
        self._source_events.labels(name).inc(events)

    def source_refused(self, name: str) -> None:
        """A source produced a value that cannot be published."""
        self._source_refused.labels(name).inc()

    def source_failed(self, name: str) -> None:
        """A failure ended a source's run."""
        self._source_failures.labels(name).inc()


def _total(counter: Counter) -> int:
    return sum(_by_reason(counter).values())


def _by_reason(counter: Counter, label: str = "reason") -> dict[str, int]:
    return {
        sample.labels.get(label, ""): int(sample.value)
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }


def _buckets(histogram: Histogram) -> tuple[tuple[float | None, int], ...]:
    """Return the bounds in JSON form: None for infinity."""
    return tuple(
        (None if (bound := float(sample.labels["le"])) == inf else bound, int(sample.value))
        for metric in histogram.collect()
        for sample in metric.samples
        if sample.name.endswith("_bucket")
    )


class _LiveCollector(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        live = self._metrics.live
        for name, text, value in (
            ("connections", "Streams open now.", live.connections),
            ("connections_limit", "limits.max_connections in effect.", live.connections_limit),
            ("topics", "Distinct subscriptions with a subscriber now.", live.topics),
            ("backlog_bytes", "Bytes waiting for all subscribers together.", live.backlog_bytes_total),
            ("backlog_largest_bytes", "Bytes waiting for the subscriber furthest behind.", live.backlog_bytes_max),
            ("inflight_body_bytes", "Bytes of publish bodies in flight.", live.inflight_body_bytes),
            ("history_events", "Events held for replay.", live.history_events),
            ("history_bytes", "Bytes of events held for replay.", live.history_bytes),
            ("broker_up", "1 while the broker answers.", live.broker_up),
            ("draining", "1 while the server is draining.", live.draining),
            ("maintenance", "1 while maintenance refuses streams.", live.maintenance),
        ):
            yield GaugeMetricFamily(f"qgstream_{name}", text, value=float(value))
        skipped = "Entries of the broker's log that could not be read and were skipped."
        yield CounterMetricFamily("qgstream_broker_skipped", skipped, value=float(live.broker_skipped))
        refused = "Publishes refused because of limits.max_inflight_body_bytes."
        yield CounterMetricFamily(
            "qgstream_inflight_bodies_refused", refused, value=float(live.inflight_bodies_refused)
        )
        build = GaugeMetricFamily("qgstream_build_info", "Versions.", labels=("version", "python", "tornado"))
        build.add_metric((__version__, platform.python_version(), tornado.version), 1)
        yield build
