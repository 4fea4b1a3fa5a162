"""Limits: settings, token buckets, and admission of streams. Pure: the time is an argument.

This module alone decides which streams are refused, by settings that an operator can change while the server runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from random import Random
from typing import Literal

from pydantic import ConfigDict, Field

from qgstream.reasons import RejectReason
from qgstream.settings import Section

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB
# The maximum of every limit: larger numbers overflow in kernel calls and in floating-point arithmetic.
MANY = 1_000_000_000
# The longest wait that the server tells a refused client: at a rate near 0 the exact wait may be infinite.
MAX_WAIT_SECONDS = 86_400.0
# The server adds up to this fraction of `retry_seconds` to each `retry:`. The clients of a killed process reconnect
# spread over 0.6 s, and not within one millisecond.
RETRY_JITTER = 0.2


class KeyLimits(Section):
    """`[limits.per_key.NAME]`: the limits of one publish key. They replace the limits for every key."""

    # Rejects `true` as a number.
    model_config = ConfigDict(strict=True)

    publish_rate: float | None = Field(None, ge=0, le=MANY)
    publish_burst: int | None = Field(None, ge=1, le=MANY)


class LimitSettings(Section):
    """The section `[limits]`: the limits of one process. 0 disables a limit if its description says so.

    Example::

        import qgstream

        limits = qgstream.LimitSettings(max_connections=20_000, max_connections_per_ip=100)
        hub = qgstream.Hub(limits=limits)
    """

    max_connections: int = Field(10_000, ge=0, le=MANY, description="Maximum number of open streams.")
    max_connections_per_ip: int = Field(
        0, ge=0, le=MANY, description="Maximum number of open streams from one address; 0 is off."
    )
    connect_rate_per_ip: float = Field(
        0, ge=0, le=MANY, description="New streams per second from one address, on average; 0 is off."
    )
    connect_burst_per_ip: int = Field(
        20, ge=1, le=MANY, description="New streams that one address may open at once before the rate applies."
    )
    max_topics_per_connection: int = Field(
        64, ge=1, le=10_000, description="Maximum number of `topic` parameters of one stream."
    )
    max_subscription_characters: int = Field(
        8192,
        ge=256,
        le=MIB,
        description="Maximum length of one stream's `topic` and `event` parameters together, in characters.",
    )
    max_connection_age_seconds: float = Field(
        0,
        ge=0,
        le=MANY,
        description="After this time the server tells a stream to reconnect, jittered by 20 %; 0 is off.",
    )
    max_backlog_bytes: int = Field(
        1 * MIB, ge=4 * KIB, le=TIB, description="The server closes a stream with a larger backlog as slow_consumer."
    )
    backlog_grace_seconds: float = Field(
        1,
        ge=0,
        le=60,
        description="How long a backlog may be over max_backlog_bytes, so that a short burst closes no stream.",
    )
    max_total_backlog_bytes: int = Field(
        256 * MIB,
        ge=64 * KIB,
        le=TIB,
        description="Memory for the backlogs of all streams. Above it the server closes the streams furthest behind.",
    )
    max_event_bytes: int = Field(256 * KIB, ge=1, le=GIB, description="Maximum size of an event's encoded data.")
    max_body_bytes: int = Field(
        8 * MIB, ge=1 * KIB, le=GIB, description="Maximum size of a published body (a batch of events)."
    )
    max_inflight_body_bytes: int = Field(
        64 * MIB,
        ge=1 * KIB,
        le=TIB,
        description="Maximum size of the bodies of all publishes in progress together; a publish over it gets 503.",
    )
    publish_rate_per_key: float = Field(
        0, ge=0, le=MANY, description="Events per second that one key may publish, on average; 0 is off."
    )
    publish_burst_per_key: int = Field(
        1000, ge=1, le=MANY, description="Events that one key may publish at once before the rate applies."
    )
    per_key: dict[str, KeyLimits] = Field(
        {},
        description="Limits of single publish keys, by their names in auth.publish_keys: publish_rate replaces "
        "publish_rate_per_key (0 is off), and publish_burst replaces publish_burst_per_key. Example: "
        "{alice = {publish_rate = 50, publish_burst = 100}}.",
    )
    publish_rate_per_ip: float = Field(
        0, ge=0, le=MANY, description="Events per second that one address may publish, on average; 0 is off."
    )
    publish_burst_per_ip: int = Field(
        1000, ge=1, le=MANY, description="Events that one address may publish at once before the rate applies."
    )
    auth_failure_rate_per_ip: float = Field(
        0,
        ge=0,
        le=MANY,
        description="Wrong keys and tokens per second from one address, on average; 0 is off. Above the rate, the "
        "server answers 429 and checks no key or token from this address.",
    )
    auth_failure_burst_per_ip: int = Field(
        20,
        ge=1,
        le=MANY,
        description="Wrong keys and tokens that one address may send at once before the rate applies.",
    )
    overload_response: Literal["auto", "error"] = Field(
        "auto",
        description="The answer over a connection limit. 'auto': an EventSource gets 200, a rejected message and retry "
        "(any other status stops an EventSource for good), and every other client gets 503 or 429. 'error': every "
        "client gets 503 or 429.",
    )
    retry_seconds: float = Field(
        3,
        gt=0,
        le=3600,
        description="`retry:` of every stream: how long a browser waits before it reconnects. "
        "Each stream gets a different time, up to 20 % longer.",
    )
    overload_retry_seconds: float = Field(
        10,
        gt=0,
        le=3600,
        description="`retry:` and Retry-After of a refused client: a random time from this value to twice this value.",
    )
    max_sockets: int = Field(
        0,
        ge=0,
        le=MANY,
        description="Maximum number of accepted sockets of every kind; 0 is max_connections + 10 % + 100. "
        "At the cap, the server closes the longest-idle connection to make room; if none is idle, it closes the new "
        "one.",
    )
    tcp_user_timeout_seconds: float = Field(
        30,
        ge=0,
        le=86_400,
        description="The kernel closes the connection of a peer that acknowledges nothing for this long (Linux); 0 is "
        "the kernel's default.",
    )
    send_buffer_bytes: int = Field(
        64 * KIB,
        ge=0,
        le=GIB,
        description="SO_SNDBUF of a stream; 0 is the kernel's default (up to 2.8 MB for a stalled one).",
    )


class TokenBucket:
    """A token bucket: at most `rate` tokens a second, sustained, and at most `burst` at once.

    The time is an argument, in seconds.
    """

    __slots__ = ("tokens", "updated_at")

    def __init__(self, burst: float, now: float) -> None:
        self.tokens = burst
        self.updated_at = now

    def take(self, amount: float, *, rate: float, burst: float, now: float) -> float:
        """Take `amount` tokens and return 0; or take nothing and return the wait in seconds (a day at most).

        Tokens are added continuously, not once a second, so the sustained rate is exact for every rate. A full bucket
        allows an amount above the burst, and then goes into debt.
        """
        wait = self.wait(amount, rate=rate, burst=burst, now=now)
        if not wait:
            self.tokens -= amount
        return wait

    def wait(self, amount: float, *, rate: float, burst: float, now: float) -> float:
        """Return the result of `take` without taking tokens."""
        self.tokens = min(burst, self.tokens + max(0.0, now - self.updated_at) * rate)
        self.updated_at = now
        needed = min(amount, burst)
        return 0.0 if self.tokens >= needed else min((needed - self.tokens) / rate, MAX_WAIT_SECONDS)


class RateLimiter:
    """A token bucket for each key. Full buckets are removed, so only recently used keys use memory."""

    # about 30 MB; above it the least recently used keys are removed, and start again with a full bucket
    MAX_KEYS = 100_000
    SWEPT_AT_ONCE = 2000  # takes less than a millisecond

    def __init__(self) -> None:
        # In the order of use. An OrderedDict, because finding the first entry of a plain dict walks over all deleted
        # entries.
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()
        self._unswept: list[Hashable] = []

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, amount: float, *, rate: float, burst: float, now: float) -> float:
        """The same as `TokenBucket.take`, for `key`; a rate of 0 means no limit."""
        if rate <= 0:
            return 0.0
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            if len(self._buckets) >= self.MAX_KEYS:
                self._buckets.popitem(last=False)
            bucket = TokenBucket(burst, now)
        self._buckets[key] = bucket  # moves the key to the end
        return bucket.take(amount, rate=rate, burst=burst, now=now)

    def wait(self, key: Hashable, amount: float, *, rate: float, burst: float, now: float) -> float:
        """The same as `TokenBucket.wait`, for `key`; a rate of 0 means no limit. Does not create a bucket for an
        unknown key."""
        bucket = self._buckets.get(key) if rate > 0 else None
        return 0.0 if bucket is None else bucket.wait(amount, rate=rate, burst=burst, now=now)

    def sweep(self, *, rate: float, burst: float, now: float) -> None:
        """Remove keys whose bucket is full again. Each call examines the next `SWEPT_AT_ONCE` keys."""
        if not self._unswept:
            self._unswept = list(self._buckets)
        for key in self._unswept[-self.SWEPT_AT_ONCE :]:
            bucket = self._buckets.get(key)
            if bucket is not None and bucket.tokens + (now - bucket.updated_at) * rate >= burst:
                del self._buckets[key]
        del self._unswept[-self.SWEPT_AT_ONCE :]


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a stream is refused. `per_client` is True for a limit of this client (429), False for the server's state
    (503)."""

    reason: RejectReason
    message: str
    per_client: bool
    wait_seconds: float = 0.0


class Admission:
    """Decides whether one more stream may open."""

    def __init__(self) -> None:
        self._rates = RateLimiter()

    def admit(
        self, limits: LimitSettings, client: str, *, now: float, connections: int, connections_of_client: int
    ) -> Rejection | None:
        """Return None to admit the stream. A stream that another limit refuses does not count towards the rate."""
        if connections >= limits.max_connections:
            return Rejection(
                "max_connections",
                f"too many open streams: got {connections}, expected at most {limits.max_connections}",
                False,
            )
        if limits.max_connections_per_ip and connections_of_client >= limits.max_connections_per_ip:
            return Rejection(
                "max_connections_per_ip",
                f"too many open streams from your address: got {connections_of_client}, "
                f"expected at most {limits.max_connections_per_ip}",
                True,
            )
        rate, burst = limits.connect_rate_per_ip, limits.connect_burst_per_ip
        wait = self._rates.take(client, 1, rate=rate, burst=burst, now=now)
        if wait:
            return Rejection(
                "connect_rate_per_ip",
                f"stream rate exceeded for your address: limit {rate:g} streams/s, burst {burst}",
                True,
                wait,
            )
        return None

    def sweep(self, limits: LimitSettings, now: float) -> None:
        """Remove some buckets that are no longer needed; call this method about once a second."""
        self._rates.sweep(rate=limits.connect_rate_per_ip, burst=limits.connect_burst_per_ip, now=now)


def jittered(seconds: float, random: Random, share: float = 1.0) -> float:
    """Return a random time between `seconds` and `seconds` plus the fraction `share` (by default twice `seconds`).

    Clients that disconnect together should not reconnect together.
    """
    return seconds * (1 + share * random.random())
