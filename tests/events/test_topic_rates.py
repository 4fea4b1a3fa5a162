"""Rates by topic: right for a minute, and bounded whatever is published."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.events.topic_rates import MAX_TOPICS, NOW_STEP_SECONDS, STEP_SECONDS, STEPS, TopicRates

MINUTE = STEPS * STEP_SECONDS


def test_a_steady_rate_is_told_from_the_first_second_on() -> None:
    rates = TopicRates(1000.0)
    assert rates.per_second(1000.0) == {}
    for tenth in range(3000):
        now = 1000.0 + tenth / 10
        rates.count(("a",), now)
        if tenth >= 20:
            assert rates.per_second(now)["a"] == pytest.approx(10, rel=0.06)


def test_the_rate_of_now_shows_a_flood_within_two_seconds_and_its_end() -> None:
    rates = TopicRates(0.0, step_seconds=NOW_STEP_SECONDS)
    rates.count(("steady",), 0.0)
    for tick in range(2000):
        rates.count(("flood",), 100 + tick / 1000)
        if tick == 999:
            assert rates.per_second(101.0)["flood"] == pytest.approx(1000, rel=0.01)  # nothing for long: anew
    assert rates.per_second(102.0)["flood"] >= 800
    assert rates.per_second(104.5) == {}


def test_a_burst_is_forgotten_after_the_minute() -> None:
    rates = TopicRates(0.0)
    for _ in range(600):
        rates.count(("a", "b"), 1.0)
    assert rates.per_second(1.0) == {"a": 600, "b": 600}
    assert rates.per_second(30.0)["a"] == pytest.approx(20)
    assert rates.per_second(MINUTE)["a"] == pytest.approx(10)
    assert rates.per_second(MINUTE + STEP_SECONDS) == {}


def test_after_a_long_silence_the_rate_is_that_of_now() -> None:
    rates = TopicRates(0.0)
    rates.count(("a",), 0.0)
    day = 86_400.0
    rates.count(("b",), day)
    rates.count(("b",), day + 1)
    assert rates.per_second(day + 2) == {"b": pytest.approx(1)}


def test_the_most_published_is_told_among_any_number_of_others() -> None:
    rates = TopicRates(0.0)
    others = 20 * MAX_TOPICS
    for number in range(others):
        rates.count((f"users/{number}",), 1.0)
        if number % 100 == 0:
            rates.count(("hot",), 1.0)
        assert len(rates._counts) <= 2 * MAX_TOPICS
    events = others + others // 100
    told = rates.per_second(1.0)
    assert others // 100 - events / MAX_TOPICS <= told["hot"] <= others // 100
    assert max(told, key=told.__getitem__) == "hot"


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 40)), max_size=200))
def test_no_count_is_high_and_few_topics_are_exact(events: list[tuple[str, float]]) -> None:
    rates = TopicRates(0.0)
    now = 0.0
    for topic, wait in events:
        now += wait / 10
        rates.count((topic,), now)
    told = rates.per_second(now)
    recent = now - MINUTE - STEP_SECONDS
    total: dict[str, int] = {}
    at = 0.0
    for topic, wait in events:
        at += wait / 10
        if at > recent:
            total[topic] = total.get(topic, 0) + 1
    for topic, rate in told.items():
        assert rate <= total[topic]
    if now < MINUTE:
        assert {topic: round(rate * max(1.0, now)) for topic, rate in told.items()} == total


def test_what_becomes_hot_late_is_told_too() -> None:
    rates = TopicRates(0.0)
    for _ in range(50):
        for number in range(MAX_TOPICS):
            rates.count((f"old/{number}",), 1.0)
    for number in range(40 * MAX_TOPICS):
        rates.count((f"users/{number}",), 1.0)
        if number % 100 == 0:
            rates.count(("hot",), 1.0)
    events = 50 * MAX_TOPICS + 40 * MAX_TOPICS + 400
    assert rates.per_second(1.0)["hot"] >= 400 - events / MAX_TOPICS
