"""How fast events may be published: each address, each key, and keys with limits of their own."""

from __future__ import annotations

from typing import Any

import pytest

from qgstream.errors import TooManyRequests
from qgstream.limits import LimitSettings
from qgstream.service.publish_rates import PublishRates


def limits(**values: Any) -> LimitSettings:
    return LimitSettings(**values)


def refusal(
    rates: PublishRates, settings: LimitSettings, events: int = 1, *, client: str = "a", key: str | None = "k",
    now: float = 0,
) -> TooManyRequests | None:  # fmt: skip
    publisher = (key or "token").encode()
    try:
        rates.charge(settings, events, client=client, publisher=publisher, key=key, now=now)
    except TooManyRequests as error:
        return error
    return None


def admitted(rates: PublishRates, settings: LimitSettings, *, seconds: int = 100, **who: Any) -> int:
    """How many single events get through, asked for ten times a second and at first all at once."""
    return sum(refusal(rates, settings, now=tick / 10, **who) is None for tick in range(seconds * 10))


def test_each_address_has_a_rate() -> None:
    rates, settings = PublishRates(), limits(publish_rate_per_ip=2, publish_burst_per_ip=5)
    assert admitted(rates, settings, client="a", key="k") == pytest.approx(205, abs=1)
    assert admitted(rates, settings, client="b", key="k") == pytest.approx(205, abs=1)
    error = refusal(rates, settings, client="a", now=100)
    assert error is None or error.code == "publish_rate_per_ip"


@pytest.mark.parametrize("own", [{}, {"slow": {"publish_rate": 0.001, "publish_burst": 1}}])
def test_a_key_that_is_too_fast_takes_nothing_from_its_address(own: dict[str, Any]) -> None:
    settings = limits(
        publish_rate_per_ip=0.001, publish_burst_per_ip=5, publish_rate_per_key=0.001, publish_burst_per_key=4,
        per_key=own,
    )  # fmt: skip
    rates = PublishRates()
    assert refusal(rates, settings, 1 if own else 4, key="slow") is None
    for _ in range(10):
        error = refusal(rates, settings, key="slow")
        assert error is not None
        assert error.code == "publish_rate_per_key"
    assert refusal(rates, settings, 4 if own else 1, key="other") is None
    error = refusal(rates, settings, key="other")
    assert error is not None
    assert error.code == "publish_rate_per_ip"


def test_an_address_that_is_too_fast_takes_nothing_from_its_key() -> None:
    settings = limits(
        publish_rate_per_ip=0.001, publish_burst_per_ip=1, publish_rate_per_key=0.001, publish_burst_per_key=2
    )
    rates = PublishRates()
    assert refusal(rates, settings, client="a") is None
    for _ in range(10):
        assert refusal(rates, settings, client="a") is not None
    assert refusal(rates, settings, client="b") is None


def test_keys_with_limits_of_their_own_have_these() -> None:
    own = {"slow": {"publish_rate": 1, "publish_burst": 2}, "fast": {"publish_rate": 5}, "free": {"publish_rate": 0}}
    rates, settings = PublishRates(), limits(publish_rate_per_key=3, publish_burst_per_key=4, per_key=own)
    expected = {"slow": 102, "fast": 504, "free": 1000, "other": 304}
    assert {key: admitted(rates, settings, key=key) for key in expected} == pytest.approx(expected, abs=1)
    # A token that is called as the key is another publisher.
    assert refusal(rates, settings, key=None, now=100) is None


def test_a_limit_of_one_key_needs_none_for_all() -> None:
    rates, settings = PublishRates(), limits(per_key={"slow": {"publish_rate": 1, "publish_burst": 1}})
    assert refusal(rates, settings, key="slow") is None
    error = refusal(rates, settings, key="slow")
    assert error is not None
    assert (error.code, error.retry_after_seconds) == ("publish_rate_per_key", 1)
    assert "limit 1 events/s, burst 1" in str(error)
    assert refusal(rates, settings, 10_000, key="other") is None


def test_an_address_that_floods_takes_nothing_from_others_with_the_same_key() -> None:
    settings = limits(
        publish_rate_per_ip=1, publish_burst_per_ip=5, publish_rate_per_key=0.001, publish_burst_per_key=9
    )
    rates = PublishRates()
    assert sum(refusal(rates, settings, client="flood") is None for _ in range(1000)) == 5
    assert sum(refusal(rates, settings, client="other") is None for _ in range(1000)) == 4


def test_sweeping_gives_nobody_a_new_burst() -> None:
    own = {"slow": {"publish_rate": 0.001, "publish_burst": 1}}
    settings = limits(publish_rate_per_key=1000, publish_rate_per_ip=1000, per_key=own)
    rates = PublishRates()
    assert refusal(rates, settings, key="slow") is None
    assert refusal(rates, settings, key="other") is None
    rates.sweep(settings, 60)
    assert refusal(rates, settings, key="slow", now=60) is not None
    assert (len(rates._of_keys), len(rates._own)) == (0, 1)
    rates.sweep(limits(), 60)  # a reload took its limit away
    assert not rates._own
