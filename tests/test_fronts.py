"""No container is emptied from its front that finds its front by walking.

A plain dict or set keeps a hole for each entry that was deleted, until it grows again. To find its first entry, Python
walks all holes before it: a bounded memory of 100 000 entries, which deletes its oldest entry for each new one, took
463 us for each instead of 4. An `OrderedDict` knows its first entry.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from qgstream.brokers.idempotency import IdempotencyKeys

PACKAGE = Path(__file__).parent.parent / "qgstream"


def named(node: ast.expr) -> str | None:
    """The name of a variable or of an attribute, also behind `.keys()`, `.values()` and `.items()`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args:
        node = node.func.value
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def knows_its_front(tree: ast.AST) -> set[str]:
    """The names that are annotated as `OrderedDict` or `deque`, or that stand for such a name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).startswith(("OrderedDict", "deque")):
            found.add(named(node.target))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and named(node.value) in found:
            found |= {named(target) for target in node.targets}
    return {name for name in found if name is not None}


def ends_at_once(loop: ast.For) -> bool:
    """Whether the first turn of a loop is its last one."""
    goes_on = any(isinstance(inside, ast.Continue) for inside in ast.walk(loop))
    return isinstance(loop.body[-1], ast.Return | ast.Break) and not goes_on


def fronts(source: str) -> Iterator[str]:
    """Where a source takes the first entry of something that may have to be walked to find it."""
    tree = ast.parse(source)
    good = knows_its_front(tree)
    for node in ast.walk(tree):
        taken = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "next" and node.args:
            inner = node.args[0]
            if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id == "iter":
                taken = inner.args[0]
        elif isinstance(node, ast.For) and ends_at_once(node):
            taken = node.iter
        name = None if taken is None else named(taken)
        if taken is not None and name is not None and name not in good:
            yield f"line {taken.lineno}: the front of {name}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_walks_to_the_front_of_a_dict(path: Path) -> None:
    assert list(fronts(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("del self._d[next(iter(self._d))]", True),
        ("oldest = next(iter(d.values()))", True),
        ("for x in self._d:\n    close(x)\n    break", True),
        ("def f(d):\n    for x, y in d.items():\n        return x", True),
        ("d: OrderedDict[str, int] = OrderedDict()\ndel d[next(iter(d))]", False),
        ("self._d: OrderedDict[str, int] = OrderedDict()\nd = self._d\nnext(iter(d.values()))", False),
        ("for x in self._d:\n    if x:\n        break", False),
        ("for x in self._d:\n    if x:\n        continue\n    break", False),
        ("next(iter(f(x)))", False),
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(source: str, found: bool) -> None:
    assert bool(list(fronts(source))) is found


def test_keys_that_expire_together_are_not_all_forgotten_by_one_publisher() -> None:
    keys = IdempotencyKeys()
    for offset in range(1000):
        keys.remember(f"old {offset}", 0.0, offset)
    keys.remember("new", 400.0, 1000)
    assert 1000 - len(keys) < 10
    assert keys.first_offset("old 999", 400.0) is None
    for offset in range(1001, 2001):
        keys.remember(f"new {offset}", 400.0, offset)
    assert len(keys) == 1001, "those that have expired go all the same"


def test_the_oldest_key_is_the_one_that_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgstream.brokers.idempotency.MAX_KEYS", 3)
    keys = IdempotencyKeys()
    for offset, key in enumerate("abcd", 1):
        keys.remember(key, 0.0, offset)
    assert [keys.first_offset(key, 0.0) for key in "abcd"] == [None, 2, 3, 4]
    keys.remember("b", 1.0, 5)
    keys.remember("e", 1.0, 6)
    assert [keys.first_offset(key, 1.0) for key in "bcde"] == [5, None, 4, 6]
