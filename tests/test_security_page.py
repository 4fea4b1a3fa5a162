"""docs/security.md names a test for what it says, and for each bound: each of them is there and runs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from qgstream.process.config import Config
from qgstream.settings import Section

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.partition("\n## Bounds\n")[2].partition("\n### ")[0].splitlines()
    if line.startswith("| ")
]
# Settings of these sections that are no bounds: what is said to clients, and bounds for some topics.
SECTIONS = ("limits", "history")
NO_BOUNDS = {"limits.overload_response", "limits.retry_seconds", "limits.overload_retry_seconds", "history.topics"}
# Bounds elsewhere.
OTHERS = {"server.keepalive_seconds", "broker.timeout_seconds", "heartbeat.interval_seconds"}


def names_of(body: list[ast.stmt]) -> Iterator[str]:
    """The tests of a module or class that pytest runs: not nested, and not always skipped."""
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from names_of(node.body)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            marks = [ast.unparse(mark) for mark in node.decorator_list]
            if not any(re.match(r"pytest\.mark\.(skip|skipif|xfail)\b", mark) for mark in marks):
                yield node.name


def settings(section: str) -> set[str]:
    kind = Config.model_fields[section].annotation
    fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else ()
    return {f"{section}.{name}" for name in fields}


@pytest.fixture(scope="module")
def there() -> set[str]:
    modules = [ast.parse(path.read_text(encoding="utf-8")) for path in TESTS.rglob("test_*.py")]
    return {name for module in modules for name in names_of(module.body)}


def test_every_test_that_is_named_runs(there: set[str]) -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 100
    assert named - there == set()


def test_every_bound_has_a_test(there: set[str]) -> None:
    head, *bounds = ROWS
    assert head[-1] == "held by"
    assert len(bounds) > 40
    for row in bounds:
        assert len(row) == len(head), row
        assert set(re.findall(r"`(test_\w+)`", row[-1])) & there, row


def test_every_setting_that_is_a_bound_has_a_row() -> None:
    named = {name for row in ROWS for name in re.findall(r"`(\w+\.\w+)`", row[1])}
    wanted = {name for section in SECTIONS for name in settings(section)} - NO_BOUNDS | OTHERS
    assert wanted - named == set()
    assert wanted | NO_BOUNDS <= {name for section in Config.model_fields for name in settings(section)}
