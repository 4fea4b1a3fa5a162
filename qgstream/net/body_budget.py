"""The budget of request bodies in flight: the bytes of bodies that the process holds at a time. Pure."""

from __future__ import annotations

from qgstream.errors import Unavailable

# A publish takes less than a second, and a body arrives within 30 s.
_RETRY_SECONDS = 1.0


class BodyBudget:
    """Counts the decoded bytes of each body until the server has sent the response or closed the connection.

    Announced bytes (`Content-Length`) are not counted before they arrive, so idle clients take no room from others.
    """

    def __init__(self) -> None:
        self.held_bytes = 0
        self.refused = 0  # bodies

    def check(self, more_bytes: int, max_bytes: int, *, own_bytes: int = 0) -> None:
        """Raise `Unavailable` if `more_bytes` do not fit. `own_bytes` of the same body are already counted.

        The only body in flight always fits: `limits.max_body_bytes` bounds a single body.
        """
        others_bytes = self.held_bytes - own_bytes
        if others_bytes and self.held_bytes + more_bytes > max_bytes:
            self.refused += 1
            raise Unavailable(
                f"request bodies in flight: others hold {others_bytes} bytes, the limit with this one is {max_bytes}",
                retry_after_seconds=_RETRY_SECONDS,
                code="inflight_bodies",
            )

    def hold(self, more_bytes: int, max_bytes: int, *, own_bytes: int) -> int:
        """Count `more_bytes`, and return the new `own_bytes`. Raises the same error as `check`."""
        self.check(more_bytes, max_bytes, own_bytes=own_bytes)
        self.held_bytes += more_bytes
        return own_bytes + more_bytes

    def release(self, own_bytes: int) -> None:
        """Stop counting a body of `own_bytes`."""
        self.held_bytes -= own_bytes
