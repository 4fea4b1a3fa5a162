"""The soak itself: a short one runs through, and what would be wrong with a long one is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.hostile.soak import Sample, growth, make_plan, problems, soak

MIB = 1 << 20
BEFORE = Sample(0, 50 * MIB, 8, 0.5, 0, 0, 0, 0, 0, 0, 0, 0)
GOOD = [
    Sample(n, (60 + min(n, 30)) * MIB, 50, n / 10, 40, 40 + n, n, 5, n * 100, min(n * 50, 1000), n * 50, n * 900)
    for n in range(100)
]
LAST = replace(GOOD[-1], connections=0, closed=GOOD[-1].opened, descriptors=8, topics=0, backlog_bytes=0)


def test_a_good_run_has_no_problems() -> None:
    assert problems(GOOD, LAST, BEFORE) == []
    assert growth(GOOD) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(
    ("samples", "last", "said"),
    [
        ([replace(one, resident=one.resident + int(one.seconds) * MIB // 3) for one in GOOD], LAST, "memory grew by"),
        ([*GOOD[:50], replace(GOOD[50], connections=41), *GOOD[51:]], LAST, "after 50 s: 41 streams open"),
        (GOOD, replace(LAST, connections=1, closed=LAST.opened - 1), "1 connections left behind"),
        (GOOD, replace(LAST, descriptors=9), "1 descriptors left behind"),
        (GOOD, replace(LAST, backlog_bytes=3), "3 backlog_bytes left behind"),
    ],
)
def test_what_is_wrong_is_found(samples: list[Sample], last: Sample, said: str) -> None:
    (problem,) = problems(samples, last, BEFORE)
    assert said in problem


def test_a_short_one(tmp_path: Path) -> None:
    document = soak(tmp_path, make_plan(5, subscribers=40), every_seconds=0.5)
    # In so short a time memory only fills.
    assert [problem for problem in document["problems"] if not problem.startswith("memory grew")] == []
    assert document["counts"]["received"] > 100
    assert len(document["samples"]) > 3
