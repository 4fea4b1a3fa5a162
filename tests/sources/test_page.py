"""docs/sources.md: its module runs, its configurations are ones that a server starts with, its tables are complete."""

from __future__ import annotations

import asyncio
import inspect
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from qgstream import Hub, Service
from qgstream.process.config import load
from qgstream.sources.base import READY, Draft, open_sources
from qgstream.sources.lines import Parse
from qgstream.sources.runner import Intakes
from tests.documents import ROOT, Block, blocks_of, prose, rows, words
from tests.http.asking import until

PAGE, EXTENDING = ROOT / "docs" / "sources.md", ROOT / "docs" / "extending.md"
CONFIGURED = [
    block for page in (PAGE, EXTENDING, ROOT / "docs" / "running.md")
    for block in blocks_of(page) if block.language == "toml" and "[[sources]]" in block.text
]  # fmt: skip
MODULE, PROGRAM = (block.text for block in blocks_of(PAGE) if block.language == "python")
(OTHER,) = (block.text for block in blocks_of(EXTENDING) if "async def disk(" in block.text)


@pytest.fixture
def myapp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module of the page, where a project has it."""
    (tmp_path / "myapp").mkdir()
    (tmp_path / "myapp" / "feeds.py").write_text(f"{MODULE}\n{OTHER}")
    shutil.copy(ROOT / "docs" / "examples" / "rabbitmq_source.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("myapp.feeds", "myapp", "rabbitmq_source"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("block", CONFIGURED, ids=str)
def test_a_configuration_of_the_page_starts(block: Block, myapp: Path) -> None:
    path = myapp / "qgstream.toml"
    path.write_text(block.text)
    assert open_sources(load(path).config.sources)


@pytest.mark.gen_test
async def test_the_module_of_the_page_brings_prices(myapp: Path) -> None:
    (block,) = [block for block in CONFIGURED if block.page == PAGE and "import" in block.text]
    path = myapp / "qgstream.toml"
    path.write_text(block.text)
    async with Service(Hub()) as service:
        intakes = Intakes(service.hub, open_sources(load(path).config.sources))
        intakes.start()
        await until(lambda: len(service.hub.window) == 2)
        found = service.hub.window.page(0, 1_000_000)
        assert [(event.topics, event.event) for event in found] == [
            (("prices/ACME",), "changed"), (("prices/EMCA",), "changed"),
        ]  # fmt: skip
        assert all(99 <= json.loads(event.data)["price"] <= 101 for event in found)
        intakes.leave()
        await until(lambda: not intakes.running)


@pytest.mark.gen_test
async def test_the_module_of_the_page_about_extending_tells_of_the_disk(myapp: Path) -> None:
    (block,) = [block for block in CONFIGURED if "myapp.feeds:disk" in block.text]
    (myapp / "qgstream.toml").write_text(block.text)
    (source,) = open_sources(load(myapp / "qgstream.toml").config.sources)
    async for item in source.events():
        assert isinstance(item, Draft)
        assert isinstance(item.data, dict)
        assert (item.topic, item.event, item.data["path"]) == ("disk", "usage", "/")
        assert 0 <= item.data["percent"] <= 100
        break


@pytest.mark.gen_test
async def test_the_program_of_the_page_runs_sources_of_its_own() -> None:
    async def prices_of_mine():  # type: ignore[no-untyped-def]  # as people write it
        yield Draft("mine", 1)

    async with Service(Hub()) as service:
        names = {"asyncio": asyncio, "hub": service.hub, "prices_of_mine": prices_of_mine}
        exec(compile(PROGRAM, str(PAGE), "exec"), names)
        await until(lambda: len(service.hub.window) == 2)
        await names["task"]  # type: ignore[misc]  # it is over
        names["other"].cancel()  # type: ignore[attr-defined]
        await asyncio.wait([names["other"]])  # type: ignore[type-var]


def test_the_tables_have_every_source_with_its_options_and_their_defaults() -> None:
    table = {words(row[0])[0]: words(row[1]) for row in rows(prose(PAGE), under="options and their defaults")}
    assert table.keys() == READY.keys()
    for name, options in table.items():
        (source,) = [getattr(__import__(f"qgstream.sources.{name}", fromlist=[name]), name)]
        parameters = inspect.signature(source).parameters.values()
        expected = {
            f"{p.name} = {json.dumps(p.default)}" if p.default not in (None, p.empty) else p.name for p in parameters
        }
        assert set(options) == expected


def test_the_table_of_what_a_line_may_be_is_complete() -> None:
    table = [words(row[0])[0] for row in rows(prose(PAGE), under="`parse`")]
    assert table == list(get_args(Parse))
