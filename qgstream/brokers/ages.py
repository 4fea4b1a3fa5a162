"""How old the entries of a log are, by a clock that nobody sets. Pure; time is an argument."""

from __future__ import annotations

from bisect import bisect_right

# Between two notes lies at most this part of their age.
PARTS = 100
# Notes are thinned out when there are so many, and twice as many as after the last time.
MANY = 2000


class Ages:
    """Notes how far the log went at which time.

    The times that lie in a log are by the clocks of others, and of other days: an entry that is dated two hours ahead,
    or a clock that is set two hours ahead, must not make everything too old. `newest` is the offset of the log's end
    when it was found. Offsets only grow. The times are seconds of a steady clock.
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
        """The log goes up to `newest` now."""
        if newest > self._offsets[-1]:
            self._times.append(now)
            self._offsets.append(newest)
            if len(self) > self._many:
                self._thin_out(now)

    def older_than(self, seconds: float, now: float) -> int:
        """The offset up to which everything has been in the log for so long; -1 when that is not known of anything.

        What is behind it may have been there as long, but not longer by more than a hundredth.
        """
        index = bisect_right(self._times, now - seconds)
        return self._offsets[index - 1] if index else -1

    def _thin_out(self, now: float) -> None:
        # A note is left out when those beside it are close to each other, for their age.
        times, kept = self._times, [0]
        for index in range(1, len(times) - 1):
            if times[index + 1] - times[kept[-1]] > (now - times[index + 1]) / PARTS:
                kept.append(index)
        kept.append(len(times) - 1)
        self._times = [times[index] for index in kept]
        self._offsets = [self._offsets[index] for index in kept]
        self._many = max(MANY, 2 * len(self))
