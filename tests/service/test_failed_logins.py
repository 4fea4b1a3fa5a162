"""Wrong keys: the burst, the rate, what counts, and that memory is bounded."""

from __future__ import annotations

import pytest

from qgstream.errors import TooManyRequests, Unauthorized
from qgstream.limits import LimitSettings
from qgstream.service.failed_logins import Guesses

LIMITS = LimitSettings(auth_failure_rate_per_ip=2, auth_failure_burst_per_ip=5)
WRONG = Unauthorized("no", code="unknown_key")


def looked_at(guesses: Guesses, *, client: str = "a", error: Unauthorized = WRONG, seconds: int = 100) -> int:
    """Of guesses at every tenth of a second."""
    count = 0
    for tick in range(seconds * 10):
        refusal = refused(guesses, client, tick / 10)
        if refusal is None:
            count += 1
            guesses.failed(LIMITS, client, error, tick / 10)
        else:
            assert refusal.code == "auth_failure_rate_per_ip"
            assert 0 < refusal.retry_after_seconds <= 0.5
    return count


def refused(guesses: Guesses, client: str, now: float) -> TooManyRequests | None:
    try:
        guesses.check(LIMITS, client, now)
    except TooManyRequests as refusal:
        return refusal
    return None


def test_the_rate_holds_for_each_client() -> None:
    guesses = Guesses()
    assert [looked_at(guesses, client=name) for name in ("a", "b")] == pytest.approx([205, 205], abs=1)


@pytest.mark.parametrize("code", ["token_expired", "token_not_yet_valid"])
def test_a_genuine_token_is_no_guess(code: str) -> None:
    assert looked_at(Guesses(), error=Unauthorized("late", code=code)) == 1000


@pytest.mark.parametrize("code", ["bad_signature", "token_malformed", "wrong_scheme", "unknown_key_id"])
def test_everything_else_is(code: str) -> None:
    assert looked_at(Guesses(), error=Unauthorized("no", code=code)) < 210


def test_who_only_asks_is_not_remembered() -> None:
    guesses = Guesses()
    for number in range(100):
        guesses.check(LIMITS, number, 0)
    assert len(guesses._rates) == 0
    guesses.failed(LIMITS, "a", WRONG, 0)
    guesses.sweep(LIMITS, 0)
    assert len(guesses._rates) == 1
    guesses.sweep(LIMITS, 1)
    assert len(guesses._rates) == 0


def test_without_a_limit_nothing_is_counted() -> None:
    guesses, off = Guesses(), LimitSettings()
    for _ in range(100):
        guesses.check(off, "a", 0)
        guesses.failed(off, "a", WRONG, 0)
    assert len(guesses._rates) == 0
