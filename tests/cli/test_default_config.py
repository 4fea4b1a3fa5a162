from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from qgstream.cli import main
from qgstream.cli.default_config import _option, default_config
from qgstream.settings import Section


class Options(Section):
    """`[x]`: options of every kind."""

    plain: int = Field(3, ge=0, description="A number.")
    between: int = Field(3, ge=1, le=9, description="A number.")
    above: float = Field(0.5, gt=0, le=60, description="A number.")
    small: int = Field(1, ge=1, lt=5, description="A number.")
    size_bytes: int = Field(2 * 1024**2, description="A size.")
    odd_bytes: int = Field(2 * 1024**2 + 1, description="A size.")
    choice: Literal["a", "bb"] = Field("a", description="A choice.")
    told: Literal["once", "twice"] = Field("once", description="'once' or 'twice'.")
    flag: bool = Field(False, description="On or off.")
    many: tuple[str, ...] = Field(('"', "ü"), description="Words.")
    unset: str | None = Field(None, description="A word.")
    shown: str | None = Field(None, description="A word.", examples=["like this"])
    needed: tuple[Literal["x", "y"], ...] = Field(description="Words.")
    long: int = Field(1, description=" ".join(["word"] * 40))
    silent: int = 1
    longer: tuple[str, ...] = Field(("a" * 60, "b" * 45, "c"), description="Words.")


@pytest.mark.parametrize(
    ("key", "lines"),
    [
        ("plain", ["# A number.", "#plain = 3"]),
        ("between", ["# A number. (1 to 9)", "#between = 3"]),
        ("above", ["# A number. (more than 0, at most 60)", "#above = 0.5"]),
        ("small", ["# A number. (1 or more, less than 5)", "#small = 1"]),
        ("size_bytes", ["# A size.", "#size_bytes = 2097152  # 2 MiB"]),
        ("odd_bytes", ["# A size.", "#odd_bytes = 2097153"]),
        ("choice", ['# A choice. (one of "a", "bb")', '#choice = "a"']),
        ("told", ["# 'once' or 'twice'.", '#told = "once"']),
        ("flag", ["# On or off.", "#flag = false"]),
        ("many", ["# Words.", '#many = ["\\"", "ü"]']),
        ("unset", ["# A word.", '#unset = "..."  # not set by default']),
        ("shown", ["# A word.", '#shown = "like this"  # not set by default']),
        ("needed", ["# Words.", '#needed = ["x"]  # not set by default']),
        ("long", ["# " + " ".join(["word"] * 23), "# " + " ".join(["word"] * 17), "#long = 1"]),
        ("silent", ["#silent = 1"]),
        ("longer", ["# Words.", "#longer = [", f'#    "{"a" * 60}", "{"b" * 45}",', '#    "c",', "#]"]),
    ],
)
def test_an_option(key: str, lines: list[str]) -> None:
    assert list(_option(key, Options.model_fields[key])) == ["", *lines]


def test_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["default-config"]) == 0
    assert capsys.readouterr() == (default_config(), "")


def test_no_line_is_too_long() -> None:
    assert max(map(len, default_config().splitlines())) <= 120
