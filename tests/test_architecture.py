"""docs/architecture.md shows the package as it is."""

from __future__ import annotations

import re

import pytest

from tests.documents import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([\w/]+)/` \| (.*?) ?\| ", PAGE, re.MULTILINE))


def rooms() -> dict[str, list[str]]:
    """The modules of each folder of the package, as the page names both."""
    package = ROOT / "qgstream"
    found: dict[str, list[str]] = {"web": []}
    for path in package.rglob("*.py"):
        if not path.stem.startswith("__"):
            folder = path.parent.relative_to(package)
            found.setdefault("qgstream" if str(folder) == "." else folder.as_posix(), []).append(path.stem)
    return found


def test_the_page_has_every_room() -> None:
    assert ROWS.keys() == rooms().keys()


@pytest.mark.parametrize("room", rooms())
def test_the_page_has_every_module_of_a_room(room: str) -> None:
    assert re.findall(r"`(\w+)`", ROWS.get(room, "")) == sorted(rooms()[room])


@pytest.mark.parametrize("room", sorted(rooms().keys() - {"qgstream", "web"}))
def test_a_room_says_what_it_is_for(room: str) -> None:
    source = (ROOT / "qgstream" / room / "__init__.py").read_text(encoding="utf-8")
    assert source.startswith('"""'), "expected a docstring"
