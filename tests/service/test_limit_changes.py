"""Limits changed while the server runs: those of single keys, and what a reload leaves of them."""

from __future__ import annotations

from typing import Any

import pytest

from qgstream.errors import Conflict, InvalidField
from qgstream.limits import LimitSettings
from qgstream.service.limit_changes import carry_over, tune

KEYS = ("alice", "bob")


def per_key(limits: LimitSettings) -> dict[str, Any]:
    return {name: own.model_dump(exclude_none=True) for name, own in limits.per_key.items()}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"alice": {"publish_rate": 5, "publish_burst": 9}}),
        ({"alice": {"publish_rate": 1}}, {"alice": {"publish_rate": 1, "publish_burst": 9}}),
        ({"alice": {"publish_burst": None}}, {"alice": {"publish_rate": 5}}),
        ({"alice": {}}, {"alice": {"publish_rate": 5, "publish_burst": 9}}),
        ({"alice": None}, {}),
        ({"gone": None}, {"alice": {"publish_rate": 5, "publish_burst": 9}}),
        (
            {"bob": {"publish_burst": 2.0}},
            {"alice": {"publish_rate": 5, "publish_burst": 9}, "bob": {"publish_burst": 2}},
        ),
        ({"alice": None, "bob": {"publish_rate": 0}}, {"bob": {"publish_rate": 0}}),
    ],
)
def test_the_limits_of_one_key_change_and_no_other(changes: Any, expected: Any) -> None:
    limits = LimitSettings.model_validate({"per_key": {"alice": {"publish_rate": 5, "publish_burst": 9}}})
    assert per_key(tune(limits, {"per_key": changes}, streams=0, keys=KEYS)) == expected
    assert per_key(tune(limits, {"max_connections": 5}, streams=0)) == per_key(limits)


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        (5, "per_key", "got 5, expected"),
        ([], "per_key", "got [], expected"),
        (None, "per_key", "got None, expected"),
        ({"alice": 5}, "per_key.alice", "got 5, expected a table"),
        ({"alice": {"publish_rate": -1}}, "per_key.alice.publish_rate", "got -1, expected greater than or equal to 0"),
        ({"alice": {"publish_rate": "5"}}, "per_key.alice.publish_rate", "got '5', expected a valid number"),
        ({"alice": {"publish_rate": True}}, "per_key.alice.publish_rate", "got True, expected a valid number"),
        ({"alice": {"publish_rate": float("nan")}}, "per_key.alice.publish_rate", "got nan, expected a finite number"),
        ({"alice": {"publish_rate": 1e300}}, "per_key.alice.publish_rate", "less than or equal to 1000000000"),
        ({"alice": {"publish_burst": 0}}, "per_key.alice.publish_burst", "got 0, expected greater than or equal to 1"),
        ({"alice": {"publish_burst": 1.5}}, "per_key.alice.publish_burst", "got 1.5, expected a valid integer"),
        ({"alice": {"rate": 1}}, "per_key.alice.rate", "unknown limit"),
    ],
)
def test_a_wrong_limit_of_one_key_is_named(changes: Any, field: str, message: str) -> None:
    with pytest.raises(InvalidField) as caught:
        tune(LimitSettings(), {"per_key": changes}, streams=0, keys=KEYS)
    assert caught.value.field == field
    assert message in str(caught.value)


def test_a_name_that_no_key_has_is_a_conflict_and_not_repeated() -> None:
    with pytest.raises(Conflict, match=r"^per_key: got an unknown name, expected that of a key") as caught:
        tune(LimitSettings(), {"per_key": {"carol": {"publish_rate": 5}}}, streams=0, keys=KEYS)
    assert "carol" not in str(caught.value)


def test_an_emergency_limit_outlasts_a_reload_that_does_not_touch_it() -> None:
    before = LimitSettings(max_connections=500, retry_seconds=3)
    in_effect = before.model_copy(update={"max_connections": 50, "retry_seconds": 30, "max_event_bytes": 99})
    after = LimitSettings(max_connections=600, retry_seconds=3, max_topics_per_connection=5)
    limits, kept, reset = carry_over(in_effect, {"max_connections", "retry_seconds"}, before, after)
    assert (kept, reset) == (["retry_seconds"], ["max_connections"])
    assert limits == after.model_copy(update={"retry_seconds": 30.0})
    assert carry_over(before, (), before, after) == (after, [], [])
