"""A histogram of durations: small, mergeable, precise to one per cent. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log, log1p

# Each bucket is 1 % wider than the one before: a percentile is right to half a per cent, over any range, and a
# million durations between a microsecond and an hour are at most 2 200 numbers. HdrHistogram's default is 0.1 to 1 %.
_WIDTH = log1p(0.01)


class Histogram:
    """Counts durations, in seconds, by bucket."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: dict[int, int] = dict(counts or {})

    def __len__(self) -> int:
        return sum(self.counts.values())

    def add(self, seconds: float) -> None:
        """Count one; anything below a microsecond is a microsecond."""
        bucket = int(log(max(seconds, 1e-6) * 1e6) / _WIDTH)
        self.counts[bucket] = self.counts.get(bucket, 0) + 1

    def merge(self, other: Histogram) -> None:
        """Take over what another one has counted."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count

    def percentile(self, fraction: float) -> float | None:
        """The duration in seconds that `fraction` (0 to 1) of all do not exceed; None when there is none."""
        left = fraction * len(self)
        for bucket in sorted(self.counts):
            left -= self.counts[bucket]
            if left <= 0:
                return exp((bucket + 0.5) * _WIDTH) / 1e6
        return None

    def to_json(self) -> list[tuple[int, int]]:
        """Pairs of bucket and count."""
        return sorted(self.counts.items())
