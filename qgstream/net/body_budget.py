"""Bodies in flight: how many bytes of bodies the process holds at one moment, for all publishers together. Pure."""

from __future__ import annotations

from qgstream.errors import Unavailable

# A publish takes less than a second, and a body 30 s at most.
_RETRY_SECONDS = 1.0


class Bodies:
    """Counts what has come of each body, decoded, until its publish is answered or its connection is closed.

    What a client only announced is not counted: clients that send nothing take no room from others.
    """

    def __init__(self) -> None:
        self.held_bytes = 0
        self.refused = 0  # bodies

    def check(self, more_bytes: int, max_bytes: int, *, own_bytes: int = 0) -> None:
        """Raise `Unavailable` when so many bytes more do not fit, for a body of which `own_bytes` are held.

        A body fits when there is no other: its own bound is `limits.max_body_bytes`.
        """
        others_bytes = self.held_bytes - own_bytes
        if others_bytes and self.held_bytes + more_bytes > max_bytes:
            self.refused += 1
            raise Unavailable(
                f"bodies of publishes in flight: {others_bytes} bytes, at most {max_bytes} with this one expected",
                retry_after_seconds=_RETRY_SECONDS,
                code="inflight_bodies",
            )

    def hold(self, more_bytes: int, max_bytes: int, *, own_bytes: int) -> int:
        """Count so many bytes more, and return the new `own_bytes`; or raise what `check` raises."""
        self.check(more_bytes, max_bytes, own_bytes=own_bytes)
        self.held_bytes += more_bytes
        return own_bytes + more_bytes

    def release(self, own_bytes: int) -> None:
        """A body is gone."""
        self.held_bytes -= own_bytes
