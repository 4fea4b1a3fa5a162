"""How the process was during the last hour: a sample every ten seconds, for operators who come later."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from qgstream.hub import Hub
from qgstream.logs import utc_iso
from qgstream.metrics import Totals
from qgstream.net.timer import Timer
from qgstream.service.reloads import Reloads
from qgstream.service.status import resident_bytes

INTERVAL_SECONDS = 10.0
# An hour. A sample takes about half a kilobyte.
MAX_SAMPLES = 360


class Sample(NamedTuple):
    """The `seconds` before the time `at` (unix seconds). An interval is longer than ten seconds when the loop was held,
    or the process was stopped.

    `connections`, `backlog_bytes` and `resident_bytes` are those of the moment `at`. The others are of the whole
    interval: how many, and which time 99 of 100 measurements stayed below (None without a measurement).
    """

    at: float
    seconds: float
    connections: int
    backlog_bytes: int
    resident_bytes: int | None
    opened: int
    closed: int
    rejected: int
    published: int
    delivered: int
    bytes_sent: int
    cpu_seconds: float
    publish_to_write_seconds: float | None
    loop_lag_seconds: float | None
    reloads: int

    def document(self) -> dict[str, object]:
        """As JSON."""
        fields: dict[str, object] = self._asdict()
        return {"timestamp": utc_iso(fields.pop("at"))} | fields  # type: ignore[arg-type]  # it is a float


class _Counts(NamedTuple):
    """What was counted since the start, at one moment."""

    at: float  # of the monotonic clock
    cpu_seconds: float
    reloads: int
    totals: Totals


class StatusHistory:
    """Takes the samples, and keeps those of the last hour in memory. They begin anew with each process.

    A sample costs less than a millisecond, however many streams are open.
    """

    def __init__(self, hub: Hub, reloads: Reloads) -> None:
        self._hub = hub
        self._reloads = reloads
        self._started_at = time.time()
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._last = self._count()
        self._timer = Timer(self.take, INTERVAL_SECONDS)

    def start(self) -> None:
        """Begin to take samples on the running loop."""
        self._last = self._count()
        self._timer.start()

    def stop(self) -> None:
        """Take no more."""
        self._timer.stop()

    def take(self) -> None:
        """Take a sample of the time since the last one: called by the timer."""
        before, now, live = self._last, self._count(), self._hub.live()
        self._last = now
        was, totals = before.totals, now.totals
        self._samples.append(
            Sample(
                at=time.time(),
                seconds=round(now.at - before.at, 3),
                connections=live.connections,
                backlog_bytes=live.backlog_bytes_total,
                resident_bytes=resident_bytes(),
                opened=totals.opened - was.opened,
                closed=sum(totals.closed.values()) - sum(was.closed.values()),
                rejected=sum(totals.rejected.values()) - sum(was.rejected.values()),
                published=totals.published - was.published,
                delivered=totals.delivered - was.delivered,
                bytes_sent=totals.bytes_sent - was.bytes_sent,
                cpu_seconds=round(now.cpu_seconds - before.cpu_seconds, 3),
                publish_to_write_seconds=quantile(0.99, was.lag, totals.lag),
                loop_lag_seconds=quantile(0.99, was.loop_lag, totals.loop_lag),
                reloads=now.reloads - before.reloads,
            )
        )

    def document(self, limit: int = MAX_SAMPLES) -> dict[str, object]:
        """The newest `limit` samples, oldest first, as JSON."""
        newest = list(self._samples)[-limit:]
        return {
            "started_at": utc_iso(self._started_at),
            "interval_seconds": INTERVAL_SECONDS,
            "samples": [sample.document() for sample in newest],
        }

    def _count(self) -> _Counts:
        return _Counts(time.monotonic(), time.process_time(), self._reloads.count, self._hub.metrics.totals)


_Buckets = Sequence[tuple[float | None, int]]


def quantile(part: float, before: _Buckets, after: _Buckets) -> float | None:
    """The value that `part` (0 to 1) of the measurements between two readings of one histogram stayed below; None
    without any.

    As Prometheus' histogram_quantile: in its bucket it is taken to be where it would be if all measurements of that
    bucket were at equal distances. Above the highest bound it is that bound.
    """
    counts = [(bound, count - then) for (bound, count), (_, then) in zip(after, before, strict=True)]
    rank = part * counts[-1][1]
    if rank <= 0:
        return None
    low, below = 0.0, 0
    for bound, count in counts:
        if bound is None:
            break
        if count >= rank:
            return round(low + (bound - low) * (rank - below) / (count - below), 6)
        low, below = bound, count
    return low
