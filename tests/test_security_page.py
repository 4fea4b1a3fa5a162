"""docs/security.md names a test for what it says, and for each bound: each is there, runs, and is about that.

Whether a test would fail without its bound only breaking the code can say. What can be read is read here: each test
asserts something, and the test of a setting sets it, or compares with it.
"""

from __future__ import annotations

import ast
import re
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


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Module:
    """A file of tests: what each of them says, with everything in the file that it uses."""

    def __init__(self, path: Path) -> None:
        self._text = path.read_text(encoding="utf-8")
        self._names: dict[str, ast.stmt] = {}
        self.tests: dict[str, Definition] = {}
        body = ast.parse(self._text).body
        for node in body:
            if isinstance(node, Definition):
                self._names[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Name):
                        self._names[target.id] = node
        self._add(body)

    def _add(self, body: list[ast.stmt]) -> None:
        """Those that pytest runs: not nested, and not always skipped."""
        for node in body:
            if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
                self._add(node.body)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                marks = [ast.unparse(mark) for mark in node.decorator_list]
                if not any(re.match(r"pytest\.mark\.(skip|skipif|xfail)\b", mark) for mark in marks):
                    self.tests[node.name] = node

    def used_by(self, test: str) -> list[ast.stmt]:
        """The test, and of its file the fixtures, helpers, classes and constants that it uses, and theirs."""
        found: list[ast.stmt] = [self.tests[test]]
        for node in found:  # it grows meanwhile
            words = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
            words |= {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}  # fixtures
            words |= {
                each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)
            }
            found += [self._names[word] for word in words if word in self._names and self._names[word] not in found]
        return found


# What a call may fail with, beside `assert`: an exception that does not come, a condition that does not come true.
FAILS = re.compile(r"\b(raises|fail|until\w*|wait_\w+|expect\w*)$")


def asserts(nodes: list[ast.stmt]) -> bool:
    """Whether there is something that may fail."""
    return any(
        isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and FAILS.search(ast.unparse(node.func)))
        for stmt in nodes for node in ast.walk(stmt)
    )  # fmt: skip


def settings(section: str) -> set[str]:
    kind = Config.model_fields[section].annotation
    fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else ()
    return {f"{section}.{name}" for name in fields}


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    """Those with a test that is named: to take apart all of them takes seconds."""
    named = re.compile("|".join(set(re.findall(r"`(test_\w+)`", PAGE))))
    return [Module(path) for path in TESTS.rglob("test_*.py") if named.search(path.read_text(encoding="utf-8"))]


def by_name(modules: list[Module]) -> dict[str, list[Module]]:
    found: dict[str, list[Module]] = {}
    for module in modules:
        for test in module.tests:
            found.setdefault(test, []).append(module)
    return found


def test_every_test_that_is_named_runs_and_asserts(modules: list[Module]) -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 100
    there = by_name(modules)
    assert named - there.keys() == set()
    assert [name for name in named for module in there[name] if not asserts(module.used_by(name))] == []


def test_every_bound_has_a_test_that_is_about_it(modules: list[Module]) -> None:
    there = by_name(modules)
    head, *bounds = ROWS
    assert head[-1] == "held by"
    assert len(bounds) > 40
    for row in bounds:
        assert len(row) == len(head), row
        tests = [name for name in re.findall(r"`(test_\w+)`", row[-1]) if name in there]
        assert tests, row
        said = "\n".join(
            ast.unparse(node) for name in tests for module in there[name] for node in module.used_by(name)
        )  # fmt: skip
        for setting in re.findall(r"`\w+\.(\w+)`", row[1]):
            assert re.search(rf"\b(\w+__)?{setting}\b", said), f"none of {tests} says {setting}: {row}"


def test_every_setting_that_is_a_bound_has_a_row() -> None:
    named = {name for row in ROWS for name in re.findall(r"`(\w+\.\w+)`", row[1])}
    wanted = {name for section in SECTIONS for name in settings(section)} - NO_BOUNDS | OTHERS
    assert wanted - named == set()
    assert wanted | NO_BOUNDS <= {name for section in Config.model_fields for name in settings(section)}
