"""Publish rates by topic, in bounded memory. Pure: the time is an argument, in seconds of any clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import nlargest

# The last minute, in steps. The counts of a step expire together.
STEP_SECONDS = 15.0
STEPS = 4
# The step of the current rates, which cover the last two seconds.
NOW_STEP_SECONDS = 0.5
# The maximum number of topics in one step. With 256 characters each, they take about 5 MB for the whole minute.
MAX_TOPICS = 1000


class TopicRates:
    """Counts publications by topic over the last minute, or over the last `STEPS` steps of another length.

    If there are more than `MAX_TOPICS` topics, only the busiest are counted, with the algorithm of Misra and Gries
    ("Finding repeated elements", 1982). It counts every topic that has more than a thousandth of the events of a step.
    No count is too low by more than this thousandth.
    """

    def __init__(self, now: float, *, step_seconds: float = STEP_SECONDS) -> None:
        self._step_seconds = step_seconds
        self._counts: dict[str, int] = {}
        self._steps: deque[dict[str, int]] = deque(maxlen=STEPS)
        self._step_ends_at = now + self._step_seconds
        self._started_at = now

    def count(self, topics: Iterable[str], now: float) -> None:
        """Count a publication to these topics."""
        if now >= self._step_ends_at:
            self._turn(now)
        counts = self._counts
        for topic in topics:
            counts[topic] = counts.get(topic, 0) + 1
        if len(counts) > 2 * MAX_TOPICS:
            self._thin_out()

    def _turn(self, now: float) -> None:
        while now >= self._step_ends_at:
            self._steps.append(self._counts)
            self._counts = {}
            self._step_ends_at += self._step_seconds
            if now - self._step_ends_at > (STEPS + 1) * self._step_seconds:  # no event for a long time: start again
                self._steps.clear()
                self._started_at = now
                self._step_ends_at = now + self._step_seconds

    def _thin_out(self) -> None:
        given_up = nlargest(MAX_TOPICS + 1, self._counts.values())[-1]
        self._counts = {topic: count - given_up for topic, count in self._counts.items() if count > given_up}

    def per_second(self, now: float) -> dict[str, float]:
        """Return the events per second of each counted topic, over the last `STEPS` steps, or since the start."""
        if now >= self._step_ends_at:
            self._turn(now)
        first_at = self._step_ends_at - (len(self._steps) + 1) * self._step_seconds
        seconds = max(1.0, now - max(first_at, self._started_at))
        sums: dict[str, int] = {}
        for counts in (*self._steps, self._counts):
            for topic, count in counts.items():
                sums[topic] = sums.get(topic, 0) + count
        return {topic: count / seconds for topic, count in sums.items()}
