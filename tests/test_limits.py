"""Rates that hold in the long run, and who is let in."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.limits import MAX_WAIT_SECONDS, Admission, LimitSettings, RateLimiter, Rejection, TokenBucket, jittered


@pytest.mark.parametrize("rate", [0.1, 1, 7.3, 1000])
@pytest.mark.parametrize("burst", [2, 20])  # with 1, what comes back between two calls is lost
def test_the_sustained_rate_is_the_configured_one(rate: float, burst: int) -> None:
    """Centrifugo's limiter gave its burst and then 1/s, whatever was configured; its test looked at the burst."""
    bucket, admitted, seconds = TokenBucket(burst, 0.0), 0, 1000 if rate < 100 else 20
    step = 1 / (rate * 10)
    for tick in range(int(seconds / step)):
        admitted += bucket.take(1, rate=rate, burst=burst, now=tick * step) == 0
    assert admitted - burst == pytest.approx(rate * seconds, rel=0.01, abs=1.5)


@given(
    st.floats(0.1, 1000),
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5)), min_size=1, max_size=200),
)
def test_no_pattern_of_calls_gets_more_than_burst_and_rate(
    rate: float, burst: int, calls: list[tuple[float, int]]
) -> None:
    bucket, now, taken = TokenBucket(burst, 0.0), 0.0, 0
    largest = max(amount for _, amount in calls)
    for wait, amount in calls:
        now += wait
        if bucket.take(amount, rate=rate, burst=burst, now=now) == 0:
            taken += amount
        # One amount above the burst may leave a debt, which is paid before anything else is let through.
        assert taken <= burst + rate * now + max(0, largest - burst) + 1e-6 * (1 + now * rate)


def test_however_long_it_rests_it_holds_no_more_than_the_burst() -> None:
    bucket = TokenBucket(5, 0.0)
    let_through = [bucket.take(1, rate=2, burst=5, now=1e6) == 0 for _ in range(10)]
    assert let_through == [True] * 5 + [False] * 5


@given(st.floats(0.1, 100), st.integers(1, 50), st.integers(1, 80))
def test_after_the_wait_that_it_names_there_is_room(rate: float, burst: int, amount: int) -> None:
    bucket = TokenBucket(burst, 0.0)
    bucket.take(burst, rate=rate, burst=burst, now=0.0)
    wait = bucket.take(amount, rate=rate, burst=burst, now=0.0)
    assert wait > 0
    assert bucket.take(amount, rate=rate, burst=burst, now=wait * (1 + 1e-9)) == 0


def test_the_wait_that_it_names_is_as_long_as_it_must_be() -> None:
    bucket = TokenBucket(10, 0.0)
    assert bucket.take(4, rate=2, burst=10, now=0.0) == 0
    assert bucket.take(8, rate=2, burst=10, now=0.0) == 1.0  # six are left
    assert bucket.take(30, rate=2, burst=10, now=2.0) == 0  # full again: allowed, and in debt by twenty
    assert bucket.take(1, rate=2, burst=10, now=2.0) == 10.5
    assert bucket.take(1, rate=1e-9, burst=10, now=2.0) == MAX_WAIT_SECONDS


def test_a_clock_that_steps_back_gives_nothing() -> None:
    bucket = TokenBucket(1, 100.0)
    assert bucket.take(1, rate=1, burst=1, now=100.0) == 0
    assert bucket.take(1, rate=1, burst=1, now=0.0) > 0


def test_no_rate_is_no_limit_and_no_memory() -> None:
    limiter = RateLimiter()
    assert all(limiter.take("a", 10**9, rate=0, burst=1, now=0) == 0 for _ in range(10))
    assert len(limiter) == 0


def test_keys_do_not_share_and_are_forgotten_when_full() -> None:
    limiter = RateLimiter()
    for key in "ab":
        assert limiter.take(key, 1, rate=1, burst=1, now=0) == 0
        assert limiter.take(key, 1, rate=1, burst=1, now=0) > 0
    limiter.sweep(rate=1, burst=1, now=0.5)
    assert len(limiter) == 2
    limiter.sweep(rate=1, burst=1, now=1.5)
    assert len(limiter) == 0
    assert limiter.take("a", 8, rate=4, burst=8, now=100) == 0
    limiter.sweep(rate=4, burst=8, now=101.75)
    assert len(limiter) == 1
    limiter.sweep(rate=4, burst=8, now=102)
    assert len(limiter) == 0


def test_a_sweep_looks_at_few_keys_and_the_next_ones_at_the_others() -> None:
    limiter = RateLimiter()
    count = 10 * RateLimiter.SWEPT_AT_ONCE
    for key in range(count):
        limiter.take(key, 1, rate=1, burst=1, now=0)
    for left in range(count - RateLimiter.SWEPT_AT_ONCE, -1, -RateLimiter.SWEPT_AT_ONCE):
        limiter.sweep(rate=1, burst=1, now=2)
        assert len(limiter) == left


def test_the_number_of_keys_is_bounded_and_the_longest_unused_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RateLimiter, "MAX_KEYS", 3)
    limiter = RateLimiter()
    for key in "abc":
        limiter.take(key, 1, rate=1, burst=1, now=0)
    assert limiter.take("a", 1, rate=1, burst=1, now=0) > 0  # used again: b is the oldest now
    limiter.take("d", 1, rate=1, burst=1, now=0)
    assert len(limiter) == 3
    assert limiter.take("b", 1, rate=1, burst=1, now=0) == 0  # anew
    assert limiter.take("d", 1, rate=1, burst=1, now=0) > 0


def admit(limits: LimitSettings, admission: Admission, **at: float) -> str | None:
    here = {"now": 0.0, "connections": 0, "connections_of_client": 0} | at
    rejection = admission.admit(
        limits, "192.0.2.1", now=here["now"], connections=int(here["connections"]),
        connections_of_client=int(here["connections_of_client"]),
    )  # fmt: skip
    return None if rejection is None else f"{rejection.reason} {rejection.per_client}"


def test_each_limit_refuses_with_its_own_reason() -> None:
    limits = LimitSettings(max_connections=10, max_connections_per_ip=5, connect_rate_per_ip=1, connect_burst_per_ip=1)
    admission = Admission()
    assert admit(limits, admission, connections=10) == "max_connections False"
    assert admit(limits, admission, connections=5, connections_of_client=5) == "max_connections_per_ip True"
    assert admit(limits, admission) is None
    assert admit(limits, admission) == "connect_rate_per_ip True"
    assert admit(limits, admission, now=1.0) is None


@pytest.mark.parametrize(
    ("connections", "connections_of_client", "expected"),
    [
        (12, 0, Rejection("max_connections", "too many open streams: got 12, expected at most 10", False)),
        (
            6,
            7,
            Rejection(
                "max_connections_per_ip", "too many open streams from your address: got 7, expected at most 5", True
            ),
        ),
        (
            6,
            4,
            Rejection(
                "connect_rate_per_ip",
                "stream rate exceeded for your address: limit 0.5 streams/s, burst 1",
                True,
                wait_seconds=2.0,
            ),
        ),
    ],
)
def test_a_refusal_says_what_was_got_and_what_is_allowed(
    connections: int, connections_of_client: int, expected: Rejection
) -> None:
    limits = LimitSettings(
        max_connections=10, max_connections_per_ip=5, connect_rate_per_ip=0.5, connect_burst_per_ip=1
    )
    admission = Admission()
    assert admission.admit(limits, "a", now=0.0, connections=0, connections_of_client=0) is None
    refused = admission.admit(
        limits, "a", now=0.0, connections=connections, connections_of_client=connections_of_client
    )
    assert refused == expected
    assert admission.admit(limits, "b", now=0.0, connections=0, connections_of_client=0) is None  # its own rate


def test_a_refusal_costs_nothing_of_the_rate() -> None:
    limits = LimitSettings(max_connections=1, connect_rate_per_ip=0.001, connect_burst_per_ip=1)
    admission = Admission()
    for _ in range(5):
        assert admit(limits, admission, connections=1) == "max_connections False"
    assert admit(limits, admission) is None


def test_a_rate_is_remembered_until_it_is_whole_again() -> None:
    limits, admission = LimitSettings(connect_rate_per_ip=0.5, connect_burst_per_ip=2), Admission()
    assert [admit(limits, admission, now=10.0) for _ in range(2)] == [None] * 2
    assert admit(limits, admission, now=11.0) == "connect_rate_per_ip True"
    admission.sweep(limits, now=13.5)
    assert len(admission._rates) == 1
    admission.sweep(limits, now=15.0)
    assert len(admission._rates) == 0


def test_zero_switches_off_what_it_says() -> None:
    admission = Admission()
    for _ in range(100):
        assert admit(LimitSettings(), admission, connections_of_client=9999) is None
    assert admit(LimitSettings(max_connections=0), admission) == "max_connections False"
    admission.sweep(LimitSettings(), now=1.0)


def test_jitter_spreads_between_once_and_twice() -> None:
    random = Random(1)
    drawn = [jittered(10, random) for _ in range(1000)]
    assert min(drawn) >= 10
    assert max(drawn) <= 20
    bins = [sum(10 + i <= x < 11 + i for x in drawn) for i in range(10)]
    assert min(bins) > 50
