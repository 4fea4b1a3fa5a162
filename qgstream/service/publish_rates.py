"""How fast events may be published: from one address, by one key, and by a key with a limit of its own. Pure."""

from __future__ import annotations

from qgstream.errors import TooManyRequests
from qgstream.limits import LimitSettings, RateLimiter, TokenBucket


class PublishRates:
    """The token buckets of publishers. Times are in seconds of any clock."""

    def __init__(self) -> None:
        self._of_addresses = RateLimiter()
        self._of_keys = RateLimiter()
        # Of the keys in `limits.per_key`, by name. Each has a rate of its own, so that `RateLimiter.sweep`, which knows
        # one rate, could not tell which of these buckets are full. The configuration bounds their number.
        self._own: dict[str, TokenBucket] = {}

    def charge(
        self, limits: LimitSettings, events: int, *, client: str, publisher: bytes, key: str | None, now: float
    ) -> None:
        """Take `events` from the rates of an address (`addresses.client_key`) and of a publisher; `key` is the name of
        its publish key, if it has one.

        Raises `TooManyRequests` when one of them is used up. Then nothing is taken from the other one: an address that
        publishes too much does not use up the rate of a key that others have too, and a key that publishes too much
        does not use up the rate of an address (of a proxy, for instance) from which others publish too.
        """
        ip_rate, ip_burst = limits.publish_rate_per_ip, limits.publish_burst_per_ip
        wait = self._of_addresses.wait(client, events, rate=ip_rate, burst=ip_burst, now=now)
        if wait:
            message = _message("address", events, ip_rate, ip_burst)
            raise TooManyRequests(message, retry_after_seconds=wait, code="publish_rate_per_ip")
        rate, burst = limits.publish_rate_per_key, limits.publish_burst_per_key
        own = limits.per_key.get(key) if key is not None else None
        if key is None or own is None:
            wait = self._of_keys.take(publisher, events, rate=rate, burst=burst, now=now)
        else:
            rate = rate if own.publish_rate is None else own.publish_rate
            burst = burst if own.publish_burst is None else own.publish_burst
            wait = self._take_own(key, events, rate, burst, now)
        if wait:
            message = _message("key", events, rate, burst)
            raise TooManyRequests(message, retry_after_seconds=wait, code="publish_rate_per_key")
        self._of_addresses.take(client, events, rate=ip_rate, burst=ip_burst, now=now)

    def _take_own(self, key: str, events: int, rate: float, burst: int, now: float) -> float:
        if rate <= 0:
            return 0.0
        bucket = self._own.get(key)
        if bucket is None:
            bucket = self._own[key] = TokenBucket(burst, now)
        return bucket.take(events, rate=rate, burst=burst, now=now)

    def sweep(self, limits: LimitSettings, now: float) -> None:
        """Free what is not needed any more; call it every minute or so."""
        self._of_addresses.sweep(rate=limits.publish_rate_per_ip, burst=limits.publish_burst_per_ip, now=now)
        self._of_keys.sweep(rate=limits.publish_rate_per_key, burst=limits.publish_burst_per_key, now=now)
        for key in self._own.keys() - limits.per_key.keys():
            del self._own[key]


def _message(whose: str, events: int, rate: float, burst: int) -> str:
    return f"got {events} more events from this {whose}, expected at most {rate:g} a second (and {burst} at once)"
