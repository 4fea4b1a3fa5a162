"""The name that somebody may have meant."""

from __future__ import annotations

import difflib

import pytest

from qgstream.suggestions import did_you_mean, nearest


def test_the_most_similar_name() -> None:
    assert nearest("topc", ["topic", "data"]) == "topic"
    assert did_you_mean("topc", ["topic", "data"]) == "; did you mean topic?"
    assert did_you_mean("xyzzy", ["topic", "data"]) == ""


def test_a_name_of_a_megabyte_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def compare(name: str, *_args: object, **_options: object) -> list[str]:
        compared.append(name)
        return []

    monkeypatch.setattr(difflib, "get_close_matches", compare)
    assert nearest("t" * 200, ["topic"]) is None
    assert nearest("topic" * 200_000, ["topic"]) is None
    assert compared == ["t" * 200]
