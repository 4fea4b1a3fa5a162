"""The hunt for mutants (tests/mutants.py) knows what it hunts, and its copy is the same program."""

from __future__ import annotations

from tests.mutants import EQUAL, ROOT, TESTS, path_of, undecorated, written

PROPERTIES = """
class Box:
    @property
    def size(self) -> int:
        \"\"\"How large.\"\"\"

        return self._size

    @size.setter
    def size(self, size: int) -> None:
        self._size = 2 * size

    @property
    def half(self) -> int:
        return self._size // 2
"""
DIFF = """
--- qgstream/feed.py
+++ qgstream/feed.py
@@ -1,3 +1,3 @@
 def half(self) -> int:
-    return self._size // 2
+    return (
+        self._size / 2)
"""


def test_it_hunts_in_modules_that_are_there_with_tests_that_are_there() -> None:
    assert [name for name in TESTS if not (ROOT / path_of(name)).exists()] == []
    assert [test for tests in TESTS.values() for test in tests if not (ROOT / "tests" / test).exists()] == []
    assert set(EQUAL) <= set(TESTS)


def test_a_property_without_its_decorator_is_a_property_still() -> None:
    source = undecorated(PROPERTIES)
    assert "@" not in source
    names: dict[str, type] = {}
    exec(source, names)
    box = names["Box"]()
    box.size = 3
    assert (box.size, box.half) == (6, 3)


def test_a_mutant_is_known_by_the_lines_that_it_has_instead() -> None:
    assert written(DIFF) == "return ( self._size / 2)"
