"""What the package says of itself: to an index, to pip, and to whoever works on it."""

from __future__ import annotations

import re
import runpy
import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from qgstream.brokers.base import _ENGINES
from qgstream.version import __version__
from tests.documents import ROOT

ADDRESS = "https://code.example.com/qgstream/blob/main"
LINK = re.compile(r"\]\(([^()\s]+)\)")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()

Metadata = Callable[[str], dict[str, Any]]


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Metadata:
    """What setup.py gives to setuptools, with this address of the source."""

    def read(repository: str) -> dict[str, Any]:
        given: dict[str, Any] = {}
        monkeypatch.setattr("setuptools.setup", given.update)
        monkeypatch.setenv("REPOSITORY_URL", repository)
        runpy.run_path(str(ROOT / "setup.py"))
        return given

    return read


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def test_an_index_page_has_no_link_that_leads_nowhere(metadata: Metadata) -> None:
    relative = [link for link in LINK.findall(without_code(README)) if ":" not in link]
    assert relative, "the README has no relative link, and this test finds nothing"
    given = metadata("")
    assert [link for link in LINK.findall(without_code(given["long_description"])) if ":" not in link] == []
    assert given["project_urls"] == {}
    given = metadata(f"{ADDRESS}/")
    links = LINK.findall(without_code(given["long_description"]))
    assert {link for link in links if not link.startswith("http")} == set()
    assert [link.removeprefix(f"{ADDRESS}/") for link in links if link.startswith(ADDRESS)] == relative
    assert {url.partition("/blob/main")[0] for url in given["project_urls"].values()} == {
        "https://code.example.com/qgstream"
    }


@pytest.mark.parametrize("repository", ["", ADDRESS])
def test_an_index_page_says_what_the_readme_says(metadata: Metadata, repository: str) -> None:
    shown = metadata(repository)["long_description"]
    assert re.findall(r"^```.*?^```", shown, re.MULTILINE | re.DOTALL) == re.findall(
        r"^```.*?^```", README, re.MULTILINE | re.DOTALL
    )
    texts = re.compile(r"\[((?:[^\]\[]|\[[^\]]*\])*)\]\([^()\s]+\)")
    assert texts.sub(r"\1", shown) == texts.sub(r"\1", README)


def test_the_extras_are_for_users_and_the_groups_for_those_who_work_on_it(metadata: Metadata) -> None:
    given = metadata("")
    assert set(given["extras_require"]) == {extra for _, _, extra in _ENGINES.values() if extra is not None}
    # The Makefile has a stamp for each group, and installs what the tests of the brokers need besides.
    makefile = (ROOT / "Makefile").read_text()
    assert set(re.findall(r"\$\(VENV\)/\.(\w+)", makefile)) - {"created", "installed", "pip"} == set(
        PROJECT["dependency-groups"]
    )
    (installed,) = re.findall(r"--editable '\.\[([\w,]+)\]' --group test", makefile)
    assert set(installed.split(",")) == set(given["extras_require"])


def test_what_is_said_of_python_agrees(metadata: Metadata) -> None:
    given = metadata("")
    versions = re.findall(
        r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(given["classifiers"]), re.MULTILINE
    )
    assert given["python_requires"] == f">={versions[0]}"
    assert PROJECT["tool"]["mypy"]["python_version"] == versions[0]
    assert given["version"] == __version__
