"""Limits changed while the server runs: what a reload leaves of them."""

from __future__ import annotations

from qgstream.limits import LimitSettings
from qgstream.tuning import carry_over


def test_an_emergency_limit_outlasts_a_reload_that_does_not_touch_it() -> None:
    before = LimitSettings(max_connections=500, retry_seconds=3)
    in_effect = before.model_copy(update={"max_connections": 50, "retry_seconds": 30, "max_event_bytes": 99})
    after = LimitSettings(max_connections=600, retry_seconds=3, max_topics_per_connection=5)
    limits, kept, reset = carry_over(in_effect, {"max_connections", "retry_seconds"}, before, after)
    assert (kept, reset) == (["retry_seconds"], ["max_connections"])
    assert limits == after.model_copy(update={"retry_seconds": 30.0})
    assert carry_over(before, (), before, after) == (after, [], [])
