"""Failed authentications, counted for each address: a client that guesses is refused before its key or token is
checked. Pure."""

from __future__ import annotations

from collections.abc import Hashable

from qgstream.errors import TooManyRequests, Unauthorized
from qgstream.limits import LimitSettings, RateLimiter

# A token with one of these problems is genuine: its signature is correct. A device that wakes up with an expired token
# is not guessing.
_GENUINE = frozenset({"token_expired", "token_not_yet_valid"})


class Guesses:
    """The failed authentications of each client. Times are in seconds of any clock."""

    def __init__(self) -> None:
        self._rates = RateLimiter()

    def check(self, limits: LimitSettings, client: Hashable, now: float) -> None:
        """Raise `TooManyRequests` for a client with too many failures: its credentials are not checked."""
        rate, burst = limits.auth_failure_rate_per_ip, limits.auth_failure_burst_per_ip
        wait = self._rates.wait(client, 1, rate=rate, burst=burst, now=now)
        if wait:
            raise TooManyRequests(
                f"too many wrong keys or tokens from this address: limit {rate:g} failures/s, burst {burst}",
                retry_after_seconds=wait,
                code="auth_failure_rate_per_ip",
            )

    def failed(self, limits: LimitSettings, client: Hashable, error: Unauthorized, now: float) -> None:
        """Count a failure of this client."""
        if error.code not in _GENUINE:
            rate, burst = limits.auth_failure_rate_per_ip, limits.auth_failure_burst_per_ip
            self._rates.take(client, 1, rate=rate, burst=burst, now=now)

    def sweep(self, limits: LimitSettings, now: float) -> None:
        """Free the counts that are no longer needed. Call this about once a minute."""
        self._rates.sweep(rate=limits.auth_failure_rate_per_ip, burst=limits.auth_failure_burst_per_ip, now=now)
