"""The age of log entries, by a clock that is never set. Pure; the time is an argument."""

from __future__ import annotations

from bisect import bisect_right

# The time between two notes is at most this fraction (1/PARTS) of their age.
PARTS = 100
# Notes are thinned out when there are this many, and then when their number has doubled.
MANY = 2000


class Ages:
    """Records how far the log had grown at which time.

    The timestamps in a log come from other machines' clocks. One entry dated two hours ahead, or a clock set two hours
    ahead, must not make everything look too old. `newest` is the offset of the log's end when the broker opened it.
    Offsets only grow. Times are seconds of a steady clock.
    """

    def __init__(self, newest: int, now: float) -> None:
        self.first = newest
        self.began_at = now
        self._times = [now]
        self._offsets = [newest]
        self._many = MANY

    def __len__(self) -> int:
        return len(self._times)

    def note(self, newest: int, now: float) -> None:
        """Record that the log now ends at `newest`."""
        if newest > self._offsets[-1]:
            self._times.append(now)
            self._offsets.append(newest)
            if len(self) > self._many:
                self._thin_out(now)

    def older_than(self, seconds: float, now: float) -> int:
        """Return the offset up to which every entry has been in the log for at least `seconds`; -1 if none is known.

        Later entries may also be that old, but by at most one hundredth.
        """
        index = bisect_right(self._times, now - seconds)
        return self._offsets[index - 1] if index else -1

    def _thin_out(self, now: float) -> None:
        # A note is removed when its neighbours are close together in relation to their age.
        times, kept = self._times, [0]
        for index in range(1, len(times) - 1):
            if times[index + 1] - times[kept[-1]] > (now - times[index + 1]) / PARTS:
                kept.append(index)
        kept.append(len(times) - 1)
        self._times = [times[index] for index in kept]
        self._offsets = [self._offsets[index] for index in kept]
        self._many = max(MANY, 2 * len(self))
