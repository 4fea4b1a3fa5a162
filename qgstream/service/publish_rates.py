"""Publish rates: for one address, for one key, and for a key with its own limit. Pure."""

from __future__ import annotations

from qgstream.errors import TooManyRequests
from qgstream.limits import LimitSettings, RateLimiter, TokenBucket


class PublishRates:
    """The token buckets of publishers. Times are in seconds of any clock."""

    def __init__(self) -> None:
        self._of_addresses = RateLimiter()
        self._of_keys = RateLimiter()
        # The buckets of the keys in `limits.per_key`, by name. Each key has its own rate. `RateLimiter.sweep` knows one
        # rate, so it could not tell which of these buckets are full. The configuration bounds their number.
        self._own: dict[str, TokenBucket] = {}

    def charge(
        self, limits: LimitSettings, events: int, *, client: str, publisher: bytes, key: str | None, now: float
    ) -> None:
        """Take `events` from the rates of an address (`addresses.client_key`) and of a publisher; `key` is the name of
        the publish key, if there is one.

        Raises `TooManyRequests` when one of these rates is exceeded. Then nothing is taken from the other rate. So an
        address that publishes too fast does not use up the rate of a key that other publishers share. A key that
        publishes too fast does not use up the rate of an address (a proxy, for instance) that other publishers share.
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
        """Free the buckets that are no longer needed. Call this about once a minute."""
        self._of_addresses.sweep(rate=limits.publish_rate_per_ip, burst=limits.publish_burst_per_ip, now=now)
        self._of_keys.sweep(rate=limits.publish_rate_per_key, burst=limits.publish_burst_per_key, now=now)
        for key in self._own.keys() - limits.per_key.keys():
            del self._own[key]


def _message(whose: str, events: int, rate: float, burst: int) -> str:
    batch = f"; got {events} events at once" if events > 1 else ""
    return f"publish rate exceeded for this {whose}: limit {rate:g} events/s, burst {burst}{batch}"
