"""The reference of the Python API: every public name is in it, with its arguments and an example that runs."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

import qgstream
from qgstream.settings import Section
from tests.documents import ROOT
from tests.serving import ServerProcess

NAMES = [name for name in qgstream.__all__ if not name.startswith("__")]
PAGES = sorted((ROOT / "docs" / "site").glob("python-*.md"))
# `.. autoclass:: qgstream.Hub`, and `:members: start, stop` or `:no-members:` in the lines below it.
_ENTRY = re.compile(r"^\.\. auto\w+:: qgstream\.(\w+)\n((?:   :.*\n)*)", re.MULTILINE)
_SECTION = re.compile(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", re.MULTILINE)
# Whose arguments the class of the same methods has.
SAID_ELSEWHERE = {("AsyncPublisher", "publish"), ("AsyncPublisher", "publish_all")}
# What an example shows without its name.
IMPLIED = {"Published", "PublishedAll", "Receipt", "Stream"}

each_name = pytest.mark.parametrize("name", NAMES)


def public(name: str) -> object:
    return getattr(qgstream, name)


def methods(kind: type) -> Iterator[tuple[str, Callable[..., object] | property]]:
    """The public methods and properties that a class of ours writes itself."""
    for name, value in vars(kind).items():
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            yield name, value


def entries() -> dict[str, set[str]]:
    """What the pages of the reference show: each name, and which of its methods."""
    found: dict[str, set[str]] = {}
    for page in PAGES:
        for name, options in _ENTRY.findall(page.read_text(encoding="utf-8")):
            assert name not in found, f"{name} is there twice"
            kind = public(name)
            own = {method for method, _ in methods(kind)} if isinstance(kind, type) else set()
            listed = re.search(r":members: (.*)", options)
            shown = set(listed[1].split(", ")) if listed else own
            assert shown <= own, f"{name} has no {shown - own}"
            found[name] = set() if ":no-members:" in options else shown
    return found


def documented(text: str | None) -> set[str]:
    """The names in the sections of arguments and attributes of a docstring."""
    names: set[str] = set()
    for section in _SECTION.findall(inspect.cleandoc(text or "")):
        names |= set(re.findall(r"^    (\w+): ", section, re.MULTILINE))
    return names


def arguments(callable_: Callable[..., object]) -> set[str]:
    return set(inspect.signature(callable_).parameters) - {"self"}


def example_of(name: str) -> str:
    found = re.search(r"^Example::\n\n((?:    .*\n?|\n)+)", inspect.getdoc(public(name)) or "", re.MULTILINE)
    return dedent(found[1]) if found else ""


def test_the_reference_has_every_public_name_and_no_other() -> None:
    assert set(entries()) == set(NAMES)


@each_name
def test_a_name_and_its_methods_say_what_they_are(name: str) -> None:
    thing = public(name)
    assert vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__
    if isinstance(thing, type):
        silent = [method for method, value in methods(thing) if not value.__doc__]
        assert silent == []


@each_name
def test_every_argument_is_documented(name: str) -> None:
    thing = public(name)
    if isinstance(thing, type) and issubclass(thing, Section):
        assert [key for key, field in thing.model_fields.items() if not field.description] == []
        return
    if isinstance(thing, type):
        missing = {}
        makers = [vars(thing)[maker] for maker in ("__init__", "initialize") if maker in vars(thing)]
        # A protocol is not called, and `connect` makes a stream.
        if makers and name not in ("Broker", "Stream"):
            missing[name] = {item for maker in makers for item in arguments(maker)} - documented(thing.__doc__)
        for method in entries()[name]:
            value = vars(thing)[method]
            if inspect.isfunction(value) and (name, method) not in SAID_ELSEWHERE:
                missing[method] = arguments(value) - documented(value.__doc__)
        assert {key: names for key, names in missing.items() if names} == {}
    else:
        assert callable(thing)
        assert arguments(thing) - documented(thing.__doc__) == set()


RUN = """
import ast, asyncio, contextlib, inspect, io, json, sys, traceback

async def run(code):
    async with asyncio.timeout(60):
        result = eval(code, {"__name__": "example"})
        if inspect.isawaitable(result):
            await result

for name, text in json.load(sys.stdin).items():
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            asyncio.run(run(compile(text, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)))
    except Exception:
        print(name, traceback.format_exc())
"""


def test_the_examples_run(tmp_path: Path) -> None:
    """All of them, one after the other in one process, against a server that has one event."""
    examples = {name: example_of(name) for name in NAMES}
    assert [name for name, text in examples.items() if f"qgstream.{name}" not in text and name not in IMPLIED] == []
    with ServerProcess(tmp_path, auth__publish_keys={"dev": "dev"}) as server:
        texts = {
            name: text.replace("http://localhost:8000", server.url)
            .replace(".listen(8888", ".listen(0")
            .replace("/var/lib/qgstream", str(tmp_path))
            for name, text in examples.items()
        }
        # The first one publishes what others read.
        in_order = {"Publisher": texts["Publisher"]} | texts
        done = subprocess.run(
            [sys.executable, "-c", RUN], input=json.dumps(in_order), cwd=tmp_path, capture_output=True, text=True,
            timeout=170, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
