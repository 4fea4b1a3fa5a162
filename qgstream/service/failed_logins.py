"""Wrong keys and tokens, counted by address: guessing is refused before a key or token is looked at. Pure."""

from __future__ import annotations

from collections.abc import Hashable

from qgstream.errors import TooManyRequests, Unauthorized
from qgstream.limits import LimitSettings, RateLimiter

# A token with one of these is genuine: its signature was right. Phones that wake up with an old token guess nothing.
_GENUINE = frozenset({"token_expired", "token_not_yet_valid"})


class Guesses:
    """Failed authentications of each client. Times are in seconds of any clock."""

    def __init__(self) -> None:
        self._rates = RateLimiter()

    def check(self, limits: LimitSettings, client: Hashable, now: float) -> None:
        """Raise `TooManyRequests` for a client with too many failures: its credentials are not looked at."""
        rate, burst = limits.auth_failure_rate_per_ip, limits.auth_failure_burst_per_ip
        wait = self._rates.wait(client, 1, rate=rate, burst=burst, now=now)
        if wait:
            raise TooManyRequests(
                f"got too many wrong keys or tokens from your address, expected at most {rate:g} a second "
                f"(and {burst} at once)",
                retry_after_seconds=wait,
                code="auth_failure_rate_per_ip",
            )

    def failed(self, limits: LimitSettings, client: Hashable, error: Unauthorized, now: float) -> None:
        """Count a failure of this client."""
        if error.code not in _GENUINE:
            rate, burst = limits.auth_failure_rate_per_ip, limits.auth_failure_burst_per_ip
            self._rates.take(client, 1, rate=rate, burst=burst, now=now)

    def sweep(self, limits: LimitSettings, now: float) -> None:
        """Free what is not needed any more; call it every minute or so."""
        self._rates.sweep(rate=limits.auth_failure_rate_per_ip, burst=limits.auth_failure_burst_per_ip, now=now)
