"""Markdown as the tests of the documentation see it: prose, links, anchors and fenced blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/examples/*/README.md")),
    ROOT / "qgstream/web/README.md",
]

_NOTE = re.compile(r" *<!-- (.*) -->")
_FENCE = re.compile(r"^ *```(?P<info>.*)$")
_LINK = re.compile(r"(?<!!)\[(?:[^\]\[]|\[[^\]]*\])*\]\((?P<target>[^()\s]+)\)")
_IMAGE = re.compile(r"!\[[^\]]*\]\((?P<target>[^()\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: the first word after the fence is its language, the others say what is done with it.

    So does its note, a comment on the line above the fence: <!-- run -->, <!-- not run: why -->.
    """

    page: Path
    line: int
    language: str
    flags: frozenset[str]
    text: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def _split(page: Path) -> tuple[str, tuple[Block, ...]]:
    prose: list[str] = []
    blocks: list[Block] = []
    opened: tuple[int, list[str]] | None = None
    held: list[str] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if fence is None:
            (prose if opened is None else held).append(line)
        elif opened is None:
            opened, held = (number, fence["info"].split()), []
        else:
            assert not fence["info"], f"{page}:{number}: a fence inside a fence"
            language, *flags = opened[1] or [""]
            note = _NOTE.fullmatch(lines[opened[0] - 2]) if opened[0] > 1 else None
            text = dedent("\n".join(held))
            blocks.append(Block(page, opened[0], language, frozenset(flags), text, note[1] if note else ""))
            opened = None
    assert opened is None, f"{page}: its last fence is not closed"
    return "\n".join(prose), tuple(blocks)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _split(page)[0]


def blocks(*languages: str) -> list[Block]:
    """The fenced blocks of these languages, on all pages."""
    return [block for page in PAGES for block in _split(page)[1] if block.language in languages]


def blocks_of(page: Path) -> tuple[Block, ...]:
    """The fenced blocks of a page."""
    return _split(page)[1]


def links(page: Path) -> list[str]:
    """The targets of its links and images."""
    text = prose(page)
    return [match["target"] for pattern in (_LINK, _IMAGE) for match in pattern.finditer(text)]


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of its headings, as GitHub makes them: lower case, spaces to hyphens, punctuation dropped."""
    seen: dict[str, int] = {}
    found = []
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        found.append(f"{slug}-{count}" if count else slug)
    return frozenset(found)


def code(page: Path) -> Iterator[str]:
    """What stands in backticks in its prose."""
    yield from _CODE.findall(prose(page))


def rows(text: str, *, under: str | None = None) -> Iterator[list[str]]:
    """The rows of all tables in a text, as cells; or of those with a column of this name."""
    header: list[str] | None = None
    for line in text.splitlines():
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        header = header or cells
        is_rule = set("".join(cells)) <= {"-", ":"} and any(cells)
        if cells is not header and not is_rule and (under is None or under in header):
            yield cells


def words(cell: str) -> list[str]:
    """What stands in backticks in a cell."""
    return _CODE.findall(cell)


def first_column(page: Path) -> set[str]:
    """The words in backticks that the rows of a page's tables are about."""
    return {word for row in rows(prose(page)) for word in words(row[0])}
