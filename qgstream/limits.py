"""Limits: their settings, a token bucket, and admission. Pure: the time is an argument.

What is refused, and what an operator tunes while the server runs, is decided here and nowhere else.
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
# No limit is larger: numbers beyond it overflow in the kernel's calls and in the arithmetic of floats.
MANY = 1_000_000_000
# What a refused client is told at most: at a rate near 0 the true answer may be infinite.
MAX_WAIT_SECONDS = 86_400.0
# Each `retry:` of `retry_seconds` is longer by up to this share of it: the clients of a process that was killed come
# back over 0.6 s, and not all in the same millisecond.
RETRY_JITTER = 0.2


class KeyLimits(Section):
    """`[limits.per_key.NAME]`: the limits of one publish key, in place of those for every key."""

    # `true` is no number here, wherever it is written.
    model_config = ConfigDict(strict=True)

    publish_rate: float | None = Field(None, ge=0, le=MANY)
    publish_burst: int | None = Field(None, ge=1, le=MANY)


class LimitSettings(Section):
    """The section `[limits]`: what one process accepts. 0 switches a limit off where its description says so.

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
    """`rate` tokens a second, sustained, and at most `burst` at once. The time is an argument, in seconds."""

    __slots__ = ("tokens", "updated_at")

    def __init__(self, burst: float, now: float) -> None:
        self.tokens = burst
        self.updated_at = now

    def take(self, amount: float, *, rate: float, burst: float, now: float) -> float:
        """Take `amount` and return 0, or take nothing and return the seconds until it would be there (a day at most).

        Tokens come back continuously, not in steps of a second: the sustained rate is the configured one at any rate.
        An amount above the burst is allowed when the bucket is full, and leaves it in debt.
        """
        wait = self.wait(amount, rate=rate, burst=burst, now=now)
        if not wait:
            self.tokens -= amount
        return wait

    def wait(self, amount: float, *, rate: float, burst: float, now: float) -> float:
        """What `take` would return. Nothing is taken."""
        self.tokens = min(burst, self.tokens + max(0.0, now - self.updated_at) * rate)
        self.updated_at = now
        needed = min(amount, burst)
        return 0.0 if self.tokens >= needed else min((needed - self.tokens) / rate, MAX_WAIT_SECONDS)


class RateLimiter:
    """A token bucket for each key. Full buckets are forgotten, so memory is bounded by the keys of the last moments."""

    MAX_KEYS = 100_000  # about 30 MB; beyond it the longest unused go, and start anew with a full bucket
    SWEPT_AT_ONCE = 2000  # less than a millisecond

    def __init__(self) -> None:
        # In the order of use. Not a plain dict: to find its first entry, Python walks all that were deleted.
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()
        self._unswept: list[Hashable] = []

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, amount: float, *, rate: float, burst: float, now: float) -> float:
        """Like `TokenBucket.take`, for `key`; a rate of 0 is no limit."""
        if rate <= 0:
            return 0.0
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            if len(self._buckets) >= self.MAX_KEYS:
                self._buckets.popitem(last=False)
            bucket = TokenBucket(burst, now)
        self._buckets[key] = bucket  # at the end again
        return bucket.take(amount, rate=rate, burst=burst, now=now)

    def wait(self, key: Hashable, amount: float, *, rate: float, burst: float, now: float) -> float:
        """Like `TokenBucket.wait`, for `key`; a rate of 0 is no limit. A key that is not known stays so."""
        bucket = self._buckets.get(key) if rate > 0 else None
        return 0.0 if bucket is None else bucket.wait(amount, rate=rate, burst=burst, now=now)

    def sweep(self, *, rate: float, burst: float, now: float) -> None:
        """Forget keys whose bucket has filled up again. Each call looks at the next `SWEPT_AT_ONCE` keys."""
        if not self._unswept:
            self._unswept = list(self._buckets)
        for key in self._unswept[-self.SWEPT_AT_ONCE :]:
            bucket = self._buckets.get(key)
            if bucket is not None and bucket.tokens + (now - bucket.updated_at) * rate >= burst:
                del self._buckets[key]
        del self._unswept[-self.SWEPT_AT_ONCE :]


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a stream is refused. `per_client`: it is this client's doing (429), not the server's state (503)."""

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
        """None to let it in. The rate is charged only to those who pass the other limits."""
        if connections >= limits.max_connections:
            return Rejection(
                "max_connections", f"open streams: {connections}, at most {limits.max_connections} allowed", False
            )
        if limits.max_connections_per_ip and connections_of_client >= limits.max_connections_per_ip:
            return Rejection(
                "max_connections_per_ip",
                f"open streams from your address: {connections_of_client}, "
                f"at most {limits.max_connections_per_ip} allowed",
                True,
            )
        rate, burst = limits.connect_rate_per_ip, limits.connect_burst_per_ip
        wait = self._rates.take(client, 1, rate=rate, burst=burst, now=now)
        if wait:
            return Rejection(
                "connect_rate_per_ip",
                f"your address opens streams too fast, at most {rate:g} a second (and {burst} at once) allowed",
                True,
                wait,
            )
        return None

    def sweep(self, limits: LimitSettings, now: float) -> None:
        """Free some of what is not needed any more; call it every second or so."""
        self._rates.sweep(rate=limits.connect_rate_per_ip, burst=limits.connect_burst_per_ip, now=now)


def jittered(seconds: float, random: Random, share: float = 1.0) -> float:
    """Between `seconds` and that plus `share` of it (by default twice `seconds`): what comes at once must not come back
    at once."""
    return seconds * (1 + share * random.random())
