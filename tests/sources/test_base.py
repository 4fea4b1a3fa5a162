"""How a source of the configuration is found, and how each mistake in naming one is told."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qgstream.errors import ConfigError
from qgstream.process.config import load
from qgstream.sources import base
from qgstream.sources.base import READY, Draft, SourceSettings, open_sources

FEEDS = """
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nowhere import Price

async def prices(*, count: int = 2, topic: str = "prices"):
    for number in range(count):
        yield {"topic": topic, "data": number}

async def annotated(*, price: "Price | None" = None) -> "AsyncIterator[Price]":
    yield {"topic": "a", "data": price}

async def no_generator():
    return 5

class Feeds:
    @staticmethod
    async def inner():
        yield {"topic": "a", "data": 1}

number = 5
"""


@pytest.fixture
def feeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module beside the configuration, as a project has it: the working directory is not on the path yet."""
    (tmp_path / "somebodys_feeds.py").write_text(FEEDS)
    (tmp_path / "broken_feeds.py").write_text("x = 1\nx.y\n")
    (tmp_path / "needy_feeds.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    for name in ("somebodys_feeds", "broken_feeds", "needy_feeds"):
        sys.modules.pop(name, None)


def settings(**table: object) -> SourceSettings:
    return SourceSettings.model_validate({name.rstrip("_"): value for name, value in table.items()})


async def run(*sources: SourceSettings) -> list[Any]:
    return [item for source in open_sources(sources) async for item in source.events()]


def problems(*sources: SourceSettings) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        open_sources(sources)
    return caught.value.problems


@pytest.mark.gen_test
async def test_a_function_of_ones_own_is_called_with_its_options(feeds: Path) -> None:
    mine = settings(import_="somebodys_feeds:prices", options={"count": 1, "topic": "mine"})
    plain = settings(import_="somebodys_feeds:prices", name="other", restart="always")
    assert await run(mine) == [{"topic": "mine", "data": 0}]
    assert await run(plain) == [{"topic": "prices", "data": 0}, {"topic": "prices", "data": 1}]
    assert await run(settings(import_="somebodys_feeds:Feeds.inner")) == [{"topic": "a", "data": 1}]
    assert [(source.name, source.restart) for source in open_sources([mine, plain])] == [
        ("prices", "on-failure"), ("other", "always"),
    ]  # fmt: skip
    assert sys.path[-1] == str(feeds), "last, so that it hides nothing"


@pytest.mark.gen_test
async def test_annotations_that_only_a_type_checker_can_read_do_no_harm(feeds: Path) -> None:
    assert await run(settings(import_="somebodys_feeds:annotated", options={"price": 1})) == [{"topic": "a", "data": 1}]


@pytest.mark.parametrize("name", READY)
def test_every_ready_made_one_is_found(name: str) -> None:
    needed = {"process": {"command": ["true"]}, "file": {"path": "/x"}, "url": {"url": "http://localhost"}}
    (source,) = open_sources([settings(use=name, options=needed.get(name, {}))])
    assert source.name == name


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"import_": "somebodys_feeds:price"}, ".import: somebodys_feeds:price: somebodys_feeds has no price"),
        ({"import_": "somebodys_feeds:Feeds.other"}, "somebodys_feeds has no Feeds.other"),
        ({"import_": "no_such_feeds:x"}, ".import: no_such_feeds:x: cannot be imported: ModuleNotFoundError"),
        ({"import_": "needy_feeds:x"}, "cannot be imported: ModuleNotFoundError: No module named 'not_installed_anywh"),
        ({"import_": "broken_feeds:x"}, "AttributeError: 'int' object has no attribute 'y' ("),
        ({"import_": "somebodys_feeds:no_generator"}, "got a coroutine function, expected an async generator function"),
        ({"import_": "somebodys_feeds:number"}, ".import: somebodys_feeds:number: got int, expected an"),
        ({"import_": "somebodys_feeds:Feeds"}, "got type, expected an async generator function"),
        ({"use": "clok"}, ".use: got 'clok', expected one of clock, file, process, url; did you mean clock?"),
        ({"use": "clock", "options": {"interval": 1}}, ".options.interval: unknown option; did you mean int"),
        ({"use": "clock", "options": {"interval_seconds": "hush"}}, ".interval_seconds: expected a valid number"),
        ({"use": "clock", "options": {"interval_seconds": 0}}, ".options.interval_seconds: expected greater than 0"),
        ({"use": "clock", "options": {"interval_seconds": True}}, ".interval_seconds: expected a valid number"),
        ({"use": "file"}, ".options.path: not set, expected a value"),
        ({"use": "process", "options": {"command": []}}, ".options.command: expected at least 1 item"),
        ({"use": "process", "options": {"command": ["a", 5]}}, ".options.command[1]: expected a valid string"),
        ({"use": "process", "options": {"command": ["a"], "env": {"A": 5}}}, ".options.env.A: expected a valid string"),
        ({"use": "url", "options": {"url": "ftp://hush"}}, ".options.url: expected a URL that begins"),
    ],
)  # fmt: skip
def test_every_mistake_is_told_by_its_place_and_no_option_is_shown(
    feeds: Path, table: dict[str, object], said: str
) -> None:
    good = settings(use="clock", name="good")
    (problem,) = problems(good, settings(**table))
    assert problem.startswith("sources[1].")
    assert said in problem
    assert "hush" not in problem


def test_all_mistakes_are_told_at_once(feeds: Path) -> None:
    wrong = settings(use="file", options={"pth": "x", "parse": "xml"})
    assert problems(wrong, settings(use="nothing"), settings(import_="broken_feeds:x")) == [
        "sources[0].options.path: not set, expected a value",
        "sources[0].options.parse: expected 'text', 'json' or 'event'",
        "sources[0].options.pth: unknown option; did you mean path?",
        "sources[1].use: got 'nothing', expected one of clock, file, process, url",
        (
            "sources[2].import: broken_feeds:x: cannot be imported: AttributeError: 'int' object has no attribute 'y' "
            f"({feeds}/broken_feeds.py, line 2)"
        ),
    ]


# In the configuration.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[sources]]\n", "sources[0]: got neither use nor import, expected one of them"),
        ("[[sources]]\nuse = 'clock'\nimport = 'a:b'\n", "sources[0]: got use and import, expected one of them"),
        ("[[sources]]\nimport = 'a.b'\n", "sources[0].import: got 'a.b', expected"),
        ("[[sources]]\nuse = 'clock'\nname = 'a b'\n", "sources[0].name: got 'a b', expected"),
        ("[[sources]]\nuse = 'clock'\nrestart = 'never'\n", "sources[0].restart: got 'never', expected 'on-fail"),
        ("[[sources]]\nuse = 'clock'\nopts = {}\n", "sources[0].opts: unknown key; did you mean options?"),
        ("[[sources]]\nuse = 'clock'\noptions = 'hush'\n", "sources[0].options: got a value that is not shown,"),
        ("[sources]\nuse = 'clock'\n", "sources: got one table, expected a list of them: [[sources]]"),
        ("[[source]]\nuse = 'clock'\n", "source: unknown key; did you mean sources?"),
        ("[[sources]]\nuse = 'clock'\n" * 2, "sources: got the name 'clock' more than once, expected one of its own"),
        ("[[sources]]\nuse = 'clock'\n[[sources]]\nimport = 'a:clock'\n", "sources: got the name 'clock' more than on"),
    ],
)  # fmt: skip
def test_what_a_file_may_not_say(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"file {path}: {said}")
    assert "hush" not in str(caught.value)


def test_they_come_from_the_file_and_from_the_environment_and_not_by_flag(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[[sources]]\nuse = 'clock'\n[sources.options]\ntopic = 'hush'\n[[sources]]\nimport = 'a:b'\n")
    loaded = load(path)
    assert [source.label for source in loaded.config.sources] == ["clock", "b"]
    assert loaded.config.sources[0].options == {"topic": "hush"}
    shown = {key: value for key, value, _ in loaded.effective()}["sources"]
    assert shown == [
        {"use": "clock", "import": None, "name": None, "restart": "on-failure", "options": "(not shown)"},
        {"use": None, "import": "a:b", "name": None, "restart": "on-failure", "options": {}},
    ]
    loaded = load(path, {"QGSTREAM_SOURCES": '[{"use": "clock", "name": "other"}]'})
    assert [source.label for source in loaded.config.sources] == ["other"]
    for key in ("sources", "sources[0].use", "sources.use"):
        with pytest.raises(ConfigError, match="sources cannot be set by a flag, because every process") as caught:
            load(path, {}, {key: "hush"})
        assert "hush" not in str(caught.value)


# What packages bring.


async def brought() -> AsyncIterator[Draft]:
    yield Draft("brought", 1)


def bring(monkeypatch: pytest.MonkeyPatch, **targets: str) -> None:
    points = EntryPoints(EntryPoint(name.rstrip("_"), to, base.ENTRY_POINTS) for name, to in targets.items())
    monkeypatch.setattr(base, "entry_points", lambda *, group: points.select(group=group))


@pytest.mark.gen_test
async def test_a_package_brings_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bringing", SimpleNamespace(brought=brought))
    bring(monkeypatch, weather="bringing:brought", clock="bringing:brought")
    assert await run(settings(use="weather")) == [Draft("brought", 1)]
    # Ours come first, whatever somebody brings.
    async for item in open_sources([settings(use="clock")])[0].events():
        assert isinstance(item, Draft)
        assert item.topic == "clock"
        break
    assert problems(settings(use="wether")) == [
        "sources[0].use: got 'wether', expected one of clock, file, process, url, weather; did you mean weather?"
    ]


def test_two_packages_that_bring_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    bring(monkeypatch, weather="one:x", weather_="two:x")
    assert problems(settings(use="weather")) == [
        "sources[0].use: weather: several packages have a source of this name: one:x, two:x"
    ]
