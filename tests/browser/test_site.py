"""The documentation site that `make docs` makes: whole, searchable, and all of it from its own server."""

from __future__ import annotations

import fcntl
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import expect

import qgstream
from tests.browser.conftest import serving_files
from tests.browser.engines.base import Tab
from tests.documents import ROOT

OpenTab = Callable[..., Tab]
SITE = ROOT / "build" / "site"
# What a browser loads by itself, as tag and attribute.
LOADED = {
    ("script", "src"), ("img", "src"), ("img", "srcset"), ("source", "src"), ("source", "srcset"), ("iframe", "src"),
    ("embed", "src"), ("object", "data"), ("video", "src"), ("video", "poster"), ("audio", "src"), ("track", "src"),
    ("input", "src"), ("use", "href"), ("image", "href"), ("form", "action"),
}  # fmt: skip
# Links of a page to others of which a browser loads nothing.
UNLOADED = {"next", "prev", "index", "search", "canonical", "author", "help", "license"}


class Page(HTMLParser):
    """What a page loads, links to and can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        self.loads += [values[name] for name in values if (tag, name) in LOADED]
        if tag == "link" and not set(values.get("rel", "").split()) <= UNLOADED:
            self.loads.append(values["href"])
        if tag in ("a", "link"):
            self.links += [values[name] for name in ("href",) if name in values]
        self.loads += re.findall(r"url\(([^)]*)\)", values.get("style", ""))


def is_elsewhere(url: str) -> bool:
    parts = urlsplit(url.strip("'\" "))
    return bool(parts.netloc or parts.scheme not in ("", "data"))


@pytest.fixture(scope="module")
def site(require_program: Callable[[str], Path]) -> Path:
    """The site. In CI it is made before the tests; where it is old, it is made here, by one process at a time."""
    require_program("make")
    venv = Path(sys.prefix).name if Path(sys.prefix).parent == ROOT else sys.prefix
    make = ["make", f"VENV={venv}"]
    # Sphinx is not installed here: pip would change what the other tests run on.
    if subprocess.run([*make, "--question", f"{venv}/.docs"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("needs Sphinx: make docs")
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([*make, "docs"], cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return SITE


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_page_of_the_documentation_is_there(pages: dict[Path, Page]) -> None:
    written = [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/examples/*/README.md"), *ROOT.glob("docs/site/*.md")]
    written += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    made = {path.relative_to(SITE).with_suffix("") for path in pages}
    assert {path.relative_to(ROOT).with_suffix("") for path in written} - made == set()
    # Each is in the navigation, which is on each page.
    linked = {(SITE / unquote(urlsplit(link).path)).resolve() for link in pages[SITE / "index.html"].links}
    assert {SITE / path.relative_to(ROOT).with_suffix(".html") for path in written} - linked == {SITE / "README.html"}


def test_nothing_comes_from_another_server(site: Path, pages: dict[Path, Page]) -> None:
    loaded = {(path.name, url) for path, page in pages.items() for url in page.loads}
    assert len(loaded) > 100
    for path in site.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        found = re.findall(r"url\(([^)]*)\)|@import\s+(['\"][^'\"]*)", text)
        loaded |= {(path.name, first or second) for first, second in found}
    assert {(name, url) for name, url in loaded if is_elsewhere(url)} == set()


def test_every_link_and_anchor_leads_somewhere(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            has_anchor = not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].ids
            if not target.is_file() or not has_anchor:
                broken.append((path.name, link))
    assert broken == []


def documented() -> Iterator[str]:
    """The Python names that the site describes, from its inventory (a header of four lines, and the rest packed)."""
    lines = zlib.decompress((SITE / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    for line in lines:
        name, kind, _ = line.split(" ", 2)
        if kind.startswith("py:"):
            yield name


def test_the_reference_has_every_public_name(site: Path) -> None:
    names = {f"qgstream.{name}" for name in qgstream.__all__ if not name.startswith("__")}
    assert names - set(documented()) == set()


@pytest.mark.engines("chromium")
def test_somebody_finds_a_page_and_reads_it(site: Path, open_tab: OpenTab) -> None:
    requests: list[str] = []
    with serving_files(site) as port:
        own = f"http://127.0.0.1:{port}/"
        tab = open_tab("about:blank")
        page = tab.page
        page.on("request", lambda request: requests.append(request.url))
        page.goto(own)
        expect(page.get_by_role("heading", level=1)).to_contain_text("qgstream")
        page.get_by_role("textbox", name="Search").fill("epoch_changed")
        page.keyboard.press("Enter")
        page.locator("#search-results").get_by_role("link", name="Resuming", exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("Resuming")
        assert page.evaluate("document.querySelector('article').innerText.includes('epoch_changed')")
        # Nothing is wider than a phone but what scrolls by itself.
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        tab.close()
    assert len(requests) > 5
    assert [url for url in requests if not url.startswith((own, "data:", "about:"))] == []
