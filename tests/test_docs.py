"""The documentation is true of the code: what it names exists, what exists is named, and what it shows happens."""

from __future__ import annotations

import ast
import asyncio
import functools
import importlib.metadata
import json
import pkgutil
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.web import Application

import qgstream.cli
from qgstream import errors, routes
from qgstream.brokers.base import _ENGINES
from qgstream.events.draft import Body
from qgstream.http import api_reference, openapi
from qgstream.http.app import admin_app, public_app
from qgstream.http.streams import _PARAMETERS
from qgstream.hub import Hub
from qgstream.metrics import Metrics
from qgstream.process.config import Config, load
from qgstream.process.config_diff import FIXED
from qgstream.process.config_loading import Catalogue, field_names
from qgstream.reasons import CLOSE_REASONS, PUBLISH_RESULTS, REJECT_REASONS, REPLAY_RESULTS
from qgstream.service.service import Service
from tests.console import Console
from tests.deploy.programs import free_port
from tests.documents import (
    PAGES,
    ROOT,
    Block,
    anchors,
    blocks,
    blocks_of,
    code,
    first_column,
    links,
    prose,
    rows,
    words,
)
from tests.publishing import publish
from tests.serving import RawClient, ServerProcess

DOCS = ROOT / "docs"
HTTP, METRICS, RUNNING = DOCS / "http-interface.md", DOCS / "metrics.md", DOCS / "running.md"
LIMITS, WHY = DOCS / "tuning-limits.md", DOCS / "why-did-my-client-disconnect.md"

CATALOGUE = Catalogue(Config, environment_prefix="QGSTREAM_")
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "qgstream").rglob("*.py"))}

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def each(*languages: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", blocks(*languages), ids=str)


@functools.cache
def all_calls() -> dict[str, list[tuple[ast.Call, Path]]]:
    """Every call in the package by the last name of what is called."""
    found: dict[str, list[tuple[ast.Call, Path]]] = {}
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                found.setdefault(ast.unparse(node.func).rpartition(".")[2], []).append((node, path))
    return found


def calls(function: str) -> list[tuple[ast.Call, Path]]:
    """Every call of a function or method of this name in the package."""
    return all_calls().get(function, [])


def section_of(page: Path, title: str) -> str:
    return prose(page).split(f"\n## {title}\n")[1].split("\n## ")[0]


def constants(nodes: Iterable[ast.AST | None]) -> set[str]:
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@functools.cache
def all_constants() -> set[str]:
    """Every string in the package."""
    return {text for tree in SOURCES.values() for text in constants(ast.walk(tree))}


# Links.


@by_page
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / path) if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        reached.add(page)
        files = {(page.parent / target.partition("#")[0]).resolve() for target in links(page) if ":" not in target}
        new |= {file for file in files if file.suffix == ".md" and file.exists()} - reached
    assert set(PAGES) - reached == set()


@by_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = {name for text in code(page) for name in re.findall(r"^[\w/.-]+\.(?:py|toml)$", text)}
    places = (ROOT, ROOT / "qgstream", ROOT / "tests", page.parent)
    assert {name for name in named if not any((place / name).exists() for place in places)} == set()


# Settings.

_SETTING = re.compile(rf"\b(?:{'|'.join(Config.model_fields)})(?:\.[a-z_]+)+")
# `limits.in_effect` in a log looks like a setting, and is none.
LOG_EVENTS = {
    event
    for level in ("debug", "info", "warning", "error", "exception")
    for call, _ in calls(level)
    if ast.unparse(call.func).split(".")[0] in ("log", "access_log")
    for event in constants(call.args[:1])
} | {event for name in ("audit", "see", "see_refusal") for call, _ in calls(name) for event in constants(call.args[:1])}


@by_page
def test_every_setting_that_is_named_exists(page: Path) -> None:
    named = {name for text in code(page) for name in _SETTING.findall(text.replace("[]", ""))}
    items = {key: key_of.item for key, key_of in CATALOGUE.keys.items() if key_of.item is not None}
    nested = {f"{key}.{name}" for key, item in items.items() for name in field_names(item)}
    files = {name for name in named if name.endswith((".py", ".md", ".conf"))}
    assert named - CATALOGUE.keys.keys() - CATALOGUE.tables.keys() - nested - LOG_EVENTS - files == set()


@by_page
def test_every_variable_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = CATALOGUE.environment.keys() | all_constants()
    # The example of a name that is not ours, and a name cut short by its dots.
    named = set(re.findall(r"\bQGSTREAM_[A-Z_]+[A-Z]\b", text)) - {"QGSTREAM_PORT"}
    assert named - known == set()


def test_every_limit_is_in_the_page_about_limits() -> None:
    named = first_column(LIMITS)
    assert {key for key in CATALOGUE.keys if key.startswith("limits.")} - named == set()


def test_every_other_setting_is_in_the_page_about_running() -> None:
    named = first_column(RUNNING)
    assert {key for key in CATALOGUE.keys if not key.startswith("limits.")} - named == set()


def test_what_needs_a_restart_is_documented_and_nothing_else_is() -> None:
    (row,) = rows(section_of(RUNNING, "Reload"))
    assert set(words(row[1])) == set(FIXED)
    sections = {word.partition(".")[0] for word in words(row[0]) + words(row[1])}
    assert sections == Config.model_fields.keys()


def test_every_broker_is_in_the_page_about_brokers() -> None:
    section = section_of(DOCS / "brokers.md", "Which one")
    urls = [url for row in rows(section, under="processes") for url in words(row[0])]
    assert {url.partition(":")[0] for url in urls} == set(_ENGINES)


def shown(value: object) -> set[str]:
    """How a default may be written in a table."""
    if isinstance(value, bool):
        return {str(value).lower()}
    if value in (None, (), {}):
        return {"none", ""}
    if isinstance(value, tuple):
        return {", ".join(f"`{item}`" for item in value)}
    if isinstance(value, int | float):
        sizes = {f"{value / 1024**n:g} {unit}" for n, unit in ((1, "KiB"), (2, "MiB")) if value >= 1024**n}
        return {f"{value:g}", f"{value:.0f}", f"{value:g} (off)"} | sizes
    return {str(value), f"`{value}`"}


def test_the_defaults_in_the_tables_are_the_defaults() -> None:
    wrong = []
    for page in (LIMITS, RUNNING):
        for row in rows(prose(page), under="default"):
            for key in CATALOGUE.keys.keys() & set(words(row[0])):
                info = CATALOGUE.keys[key].info
                default = None if info.is_required() else info.get_default(call_default_factory=True)
                said = row[1].partition(": ")[0]
                if said not in shown(default):
                    wrong.append(f"{page.name}: {key}: {row[1]}")
    assert wrong == []


@each("toml")
def test_a_configuration_that_is_shown_can_be_used(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "shown.toml"
    path.write_text(block.text, encoding="utf-8")
    assert load(path).warnings == ()


# Metrics.


def registered() -> dict[str, str]:
    """Every metric by the name that a scrape shows, and its type."""
    families = {family.name: family.type for family in Metrics().registry.collect()}
    return {f"{name}_total" if kind == "counter" else name: kind for name, kind in families.items()}


def documented_metrics() -> dict[str, str]:
    return {name: row[1] for row in rows(prose(METRICS), under="type") for name in words(row[0])}


def test_every_metric_is_documented_with_its_type_and_no_other_is() -> None:
    assert documented_metrics() == registered()


@by_page
def test_every_metric_that_is_named_exists(page: Path) -> None:
    histograms = {name for name, kind in registered().items() if kind == "histogram"}
    known = registered().keys() | {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    named = set(re.findall(r"\bqgstream_[a-z_]+\b", page.read_text(encoding="utf-8")))
    assert {name for name in named if not name.endswith("_")} - known == set()


def test_every_label_value_is_documented() -> None:
    assert {*CLOSE_REASONS, *REJECT_REASONS, *REPLAY_RESULTS, *PUBLISH_RESULTS} - set(code(METRICS)) == set()


# Reasons.


@pytest.mark.parametrize("reason", [*CLOSE_REASONS, *REJECT_REASONS])
def test_every_reason_has_its_section_and_its_row(reason: str) -> None:
    assert reason in anchors(WHY)
    assert reason in first_column(HTTP)


# Errors.


def codes() -> dict[str, set[int]]:
    """Every error code that the package can answer with, and the statuses that it comes with."""
    status_of = {
        name: kind.status for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.QgstreamError)
    }  # fmt: skip
    found: dict[str, set[int]] = {}
    for name, kind in vars(errors).items():
        if name in status_of and name != "QgstreamError":
            found.setdefault(kind.code, set()).add(kind.status)
    for name, status in status_of.items():
        for call, _ in calls(name):
            for word in constants(keyword.value for keyword in call.keywords if keyword.arg == "code"):
                found.setdefault(word, set()).add(status)
    found["server_error"] = {errors.QgstreamError.status}
    # `code=rejection.reason`: what handlers/events.py answers to those who are no EventSource.
    found |= {"max_connections": {503}, "max_connections_per_ip": {429}, "connect_rate_per_ip": {429}}
    return found


def test_every_error_code_is_documented_with_its_status_and_no_other_is() -> None:
    section = section_of(HTTP, "Errors")
    documented = [(word, int(row[1])) for row in rows(section) for word in words(row[0])]
    assert len(documented) == len(dict(documented)), "a code has two rows"
    assert {word: {status} for word, status in documented} == codes()


def described_codes() -> dict[str, set[int]]:
    """Every code that the description of the public interface names, and the statuses that it stands at."""
    found: dict[str, set[int]] = {}
    for group in api_reference.read(openapi.public_document()).groups:
        for operation in group.operations:
            for response in operation.responses:
                for word in response.codes:
                    found.setdefault(word, set()).add(int(response.status))
    return found


# No answer of a path: what does not get as far as one, what only /admin answers, and the base of others.
UNDESCRIBED = {
    "bad_request", "malformed_request", "request_timeout", "target_too_long", "expectation_failed", "headers_too_large",
    "not_implemented", "http_version_not_supported", "server_error", "invalid_configuration", "not_found",
    "method_not_allowed", "too_many_requests", "unavailable",
    "filter_required", "no_admin_keys", "conflict", "config_rejected", "too_many_viewers",
}  # fmt: skip


def test_the_description_has_every_error_code_with_its_status_and_no_other() -> None:
    described = described_codes()
    assert {word: statuses for word, statuses in codes().items() if word not in UNDESCRIBED} == described


def test_the_description_has_the_words_of_the_streams() -> None:
    variants = {
        variant["properties"]["event"]["const"]: variant["properties"]
        for variant in openapi.document()["components"]["schemas"]["ServerMessage"]["oneOf"]
    }
    assert set(variants["closing"]["reason"]["enum"]) == set(CLOSE_REASONS)
    # Those that are told, and not only counted.
    assert set(variants["rejected"]["reason"]["enum"]) == set(REJECT_REASONS) - {"max_sockets", "unauthorized"}
    assert {"none", "complete", *variants["reset"]["reason"]["enum"]} == set(REPLAY_RESULTS)


# Paths, parameters and fields.


def paths() -> set[str]:
    async def tables() -> set[str]:
        service = Service(Hub())
        apps = (public_app(service), admin_app(service))
        return {
            rule.matcher.regex.pattern.removesuffix("$")
            for app in apps for rule in app.wildcard_router.rules if hasattr(rule.matcher, "regex")
        }  # fmt: skip

    return asyncio.run(tables())


def test_every_path_is_documented() -> None:
    found = {path for text in code(HTTP) for path in re.findall(r"(/[\w/{}.-]*)", text)}
    documented = {re.sub(r"\{\w+\}", "{id}", path) for path in found}
    served = {re.sub(r"\([^)]*\)", "{id}", path).replace("/?", "").replace("\\", "") for path in paths()} - {".*"}
    assert served - documented == set()


def test_every_parameter_of_the_stream_is_documented() -> None:
    readers = ("get_query_argument", "get_query_arguments", "_flag", "_values")
    asked = {
        name for reader in readers for call, path in calls(reader)
        if path.name in ("streams.py", "base.py") for name in constants(call.args[:1])
    }  # fmt: skip
    assert {"topic", "event", "envelope", "replay", "access_token"} <= asked
    assert (asked | {"last_event_id", "lastEventId", "lastEventID"}) - set(code(HTTP)) == set()


def test_the_description_has_every_parameter_of_the_stream() -> None:
    operation = openapi.document()["paths"]["/events"]["get"]
    named = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"}
    assert named | {"access_token"} == set(_PARAMETERS)


def test_the_description_has_every_field_of_a_publication() -> None:
    assert openapi.document()["components"]["schemas"]["Event"]["properties"].keys() == set(Body.__struct_fields__)


def test_every_field_of_a_publication_is_documented() -> None:
    section = section_of(HTTP, "`POST /events`: publish")
    assert set(Body.__struct_fields__) - {word for row in rows(section) for word in words(row[0])} == set()


# Logs and commands.


def test_every_line_of_the_log_is_documented_and_no_other_is() -> None:
    section = section_of(RUNNING, "Logs")
    assert {event for row in rows(section) for event in words(row[0])} == LOG_EVENTS


def commands() -> set[str]:
    names = [module.name for module in pkgutil.iter_modules(qgstream.cli.__path__)]
    return {name.replace("_", "-") for name in names if not name.startswith("_")}


def shell_lines() -> Iterator[tuple[Block, str]]:
    for block in blocks("sh", "bash", "console"):
        for line in block.text.splitlines():
            if block.language != "console" or line.startswith("$ "):
                yield block, line.removeprefix("$ ")


def test_every_command_is_documented() -> None:
    everything = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert {name for name in commands() if f"qgstream {name}" not in everything} == set()


def test_every_command_that_is_shown_exists_with_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong = []
    for block, line in shell_lines():
        wrong += [f"{block}: make {name}" for name in re.findall(r"(?:^|\s)make ([a-z]+)", line) if name not in targets]
        for name, rest in re.findall(r"(?:^|[\s/(])qgstream ([a-z][a-z-]*)([^|;)]*)", line):
            if name not in commands():
                wrong.append(f"{block}: qgstream {name}")
                continue
            with pytest.raises(SystemExit):
                qgstream.cli.main([name, "--help"])
            known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
            flags = re.findall(r"(?<!\S)(--[a-z-]+)", rest)
            wrong += [f"{block}: {name} {flag}" for flag in flags if flag not in known]
    assert wrong == []


@each("sh", "bash")
def test_a_shell_block_can_be_parsed(block: Block) -> None:
    subprocess.run(["/bin/bash", "-n", "-c", block.text], check=True)


PROGRAMS = re.compile(r"(?:^|[;(|&] *|[A-Z_]=\S+ )(qgstream|uvicorn|python|pip|pytest|ruff|mypy) ")


@by_page
def test_a_program_that_is_called_is_on_the_path(page: Path) -> None:
    """`make run` puts nothing there: a command says where its program is, or the page has told how to put it there."""
    is_active, wrong = False, []
    for block in blocks_of(page):
        if block.language in ("sh", "bash", "console"):
            for line in block.text.splitlines():
                is_active |= line == ". .venv/bin/activate"
                if not is_active and PROGRAMS.search(line.removeprefix("$ ")):
                    wrong.append(f"{block}: {line}")
    assert wrong == []


# What is shown happens.


@each("python", "sh", "bash", "javascript", "html", "jsx", "console")
def test_a_snippet_is_run_or_says_why_not(block: Block) -> None:
    """Beside it, in a comment on the line above: <!-- run by FILE -->, or <!-- not run: REASON -->."""
    if is_followed(block) or {"page", "listens"} & block.flags or block in EMBEDDED or block in PARTS:
        return
    if block.language == "html":  # all of them: tests/browser/test_client_docs.py
        return
    by, _, rest = block.note.removeprefix("run by ").partition(", ")
    if block.note.startswith("run by "):
        assert rest in ("", "as far as it asks the server"), block.note
        said = (ROOT / by).read_text(encoding="utf-8")
        assert block.page.name in said or block.page.parent.name in said, f"{by} does not know {block.page.name}"
    else:
        assert block.note.startswith("not run: "), f"{block}: nobody runs it, and nothing says why"
        for file in re.findall(r"tests/[\w/]+(?:\.py)?", block.note):
            assert (ROOT / file).exists(), file


RUNNERS = {"python": [sys.executable, "-c"], "sh": ["/bin/bash", "-euo", "pipefail", "-c"]}


def is_followed(block: Block) -> bool:
    return block.language == "console" or "run" in block.flags or block.note == "run"


FOLLOWED = [page for page in PAGES if any(map(is_followed, blocks_of(page)))]


@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: page.name)
def test_the_page_shows_what_happens(page: Path, tmp_path: Path, require_program: Callable[[str], Path]) -> None:
    require_program("curl")
    with ServerProcess(tmp_path, config=str(ROOT / "conf/dev.toml"), auth__publish_keys='{"dev": "dev"}') as server:
        console = Console(tmp_path, port=server.port)
        try:
            for block in blocks_of(page):
                if block.language == "console":
                    console.run(block)
                elif is_followed(block):
                    done = subprocess.run(
                        [*RUNNERS[block.language], console.in_this_run(block.text)], cwd=tmp_path,
                        env=console.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                        check=False,
                    )  # fmt: skip
                    assert (done.returncode, done.stderr) == (0, ""), f"{block}: {done.stderr}"
        finally:
            console.close()
        if any(line["event"] == "drain.started" for line in server.lines()):
            server.process.wait(60)  # the page ended it


@each("python")
def test_python_can_be_compiled(block: Block) -> None:
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@pytest.mark.parametrize("block", [block for block in blocks("python") if "listens" in block.flags], ids=str)
def test_a_program_that_listens_shows_events_until_ctrl_c(block: Block, tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        text = block.text.replace("localhost:8000", f"127.0.0.1:{server.port}")
        assert text != block.text
        with subprocess.Popen([sys.executable, "-u", "-c", text], stdout=subprocess.PIPE, text=True) as listener:
            assert listener.stdout is not None
            try:
                server.wait_for_log("events.connected")
                id = publish(server, "orders", {"order": 7}, event="created")["id"]
                assert listener.stdout.readline() == f"{id} created {{'order': 7}}\n"
            finally:
                listener.kill()


def installed_with_the_package() -> set[str]:
    requirements = importlib.metadata.requires("qgstream") or []
    names = {
        re.split(r"[^\w.-]", requirement)[0].lower() for requirement in requirements if "extra ==" not in requirement
    }
    modules = importlib.metadata.packages_distributions()
    return {module for module, owners in modules.items() if names & {owner.lower() for owner in owners}} | {"qgstream"}


@each("python")
def test_a_page_says_what_to_install_for_what_it_imports(block: Block) -> None:
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(block.text))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                     else [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
    }  # fmt: skip
    foreign = imported - sys.stdlib_module_names - installed_with_the_package()
    text = block.page.read_text(encoding="utf-8")
    missing = {name for name in foreign if not re.search(rf"pip install [^`\n]*{name.replace('_', '[-_]')}", text)}
    assert missing == set()


EMBEDDED = [block for block in blocks("python") if "asyncio.run(main())" in block.text and ".listen(" in block.text]


@pytest.mark.parametrize("block", EMBEDDED, ids=str)
def test_an_application_of_ten_lines_says_where_it_serves_and_ends_on_ctrl_c(block: Block) -> None:
    port = free_port()
    program = block.text.replace("8888", str(port))
    assert program.count(str(port)) == 3
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            url, command = re.findall(r"^(http://\S+); publish with: (curl .*)$", said)[0]
            client = RawClient(port).get(url.partition(str(port))[2] + "?topic=orders")
            client.until(b'"connected"')
            subprocess.run(shlex.split(command), check=True, capture_output=True, timeout=60)
            client.until(b'event: created\ndata: {"order":7}\n\n')
            client.close()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""
        finally:
            process.kill()


PARTS = [block for block in blocks("python") if block.note == "a part of a program"]


@pytest.mark.gen_test
@pytest.mark.parametrize("block", PARTS, ids=str)
async def test_a_part_of_a_program_runs_in_one(block: Block) -> None:
    """In a program that has the names which the pages use: hub, service, app, server and loop."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with Service(Hub()) as service:
        app = Application([*routes(service)])
        names: dict[str, Any] = {
            "asyncio": asyncio, "hub": service.hub, "service": service, "app": app, "server": HTTPServer(app),
            "loop": asyncio.get_running_loop(),
        }  # fmt: skip
        text = block.text.replace("8888", str(free_port()))
        code = compile(text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        if (running := eval(code, names)) is not None:
            await running
        if "leave" in names:
            await names["leave"](service, names["server"])
        if "future" in names:
            assert (await asyncio.wrap_future(names["future"])).id
        names["server"].stop()
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@each("json")
def test_json_is_json(block: Block) -> None:
    for document in block.text.split("\n") if block.text.count("\n{") else [block.text]:
        json.loads(document)


@each("javascript", "html")
def test_javascript_can_be_parsed(block: Block, tmp_path: Path, require_program: Callable[[str], Path]) -> None:
    node = require_program("node")
    scripts = (
        re.findall(r"<script[^>]*>(.*?)</script>", block.text, re.DOTALL) if block.language == "html" else [block.text]
    )
    assert scripts
    for script in scripts:
        (tmp_path / "shown.mjs").write_text(script, encoding="utf-8")
        subprocess.run([node, "--check", tmp_path / "shown.mjs"], check=True)
