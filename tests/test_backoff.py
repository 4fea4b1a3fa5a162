"""Trying again: soon at first, then patiently, and never all at once."""

from __future__ import annotations

from random import Random

from qgstream.backoff import Backoff


def test_delays_double_up_to_the_limit_and_begin_anew() -> None:
    backoff = Backoff(first_seconds=0.1, limit_seconds=1.0, random=Random(1))
    expected = (0.1, 0.2, 0.4, 0.8, 1.0, 1.0)
    for whole in expected:
        assert whole / 2 <= backoff.seconds() <= whole
    backoff.reset()
    assert backoff.seconds() <= 0.1


def test_two_servers_do_not_wait_alike() -> None:
    delays = {Backoff(first_seconds=1.0).seconds() for _ in range(50)}
    assert len(delays) == 50
    assert max(delays) - min(delays) > 0.2
