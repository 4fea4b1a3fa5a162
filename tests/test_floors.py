"""The house stands on its floors: a module imports only from floors below its own, and importing one does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qgstream"

# From the ground up. The whole number is the floor; the decimals are the stairs between modules of one floor. A name
# with a star is for the files that somebody will add to a folder: they know what is below them and not each other.
FLOORS: dict[float, tuple[str, ...]] = {
    0.0: ("errors", "settings", "version", "reasons", "bench", "brokers", "handlers", "sources"),
    1.0: ("sse", "topics", "publication", "limits", "addresses", "logs", "rates", "reading"),
    1.04: ("bodies", "content_codings", "cookies", "refusals"),
    1.05: (
        "environment",
        "host",
        "lingering",
        "names",
        "namespaces",
        "notify",
        "origins",
        "patterns",
        "secret",
        "timer",
        "ws",
    ),
    1.055: ("request_head", "tls"),
    1.06: ("allowed_hosts", "clients_stream", "cors", "framing"),
    1.07: ("chunked",),
    1.08: ("request_connection",),
    1.09: ("certificates", "reaper", "signals"),
    1.1: ("claims", "draft", "slices", "sockets", "subscription", "window", "sources.options"),
    1.15: ("jwt_settings",),
    1.18: ("keys",),
    1.19: ("evidence",),
    1.2: (
        "arrivals",
        "guesses",
        "messages",
        "openapi",
        "pages",
        "publish_rates",
        "sources.base",
        "state",
        "tokens",
        "tuning",
    ),
    1.21: ("gauges",),
    1.25: ("metrics", "sources.lines"),
    1.3: (
        "auth",
        "opening",
        "reloads",
        "sources.*",
    ),
    1.35: ("bans",),
    1.4: ("talkers",),
    1.41: ("refusal_log",),
    2.0: ("brokers.base",),
    2.05: (
        "brokers.ages",
        "brokers.backoff",
        "brokers.idempotency",
        "brokers.nats_inbox",
        "brokers.nats_messages",
        "brokers.options",
        "brokers.redis_scripts",
        "brokers.skips",
        "brokers.sqlite_file",
        "brokers.sqlite_names",
    ),
    2.055: ("brokers.vouching",),
    2.06: ("brokers.remote", "brokers.sqlite_log"),
    2.07: (
        "brokers.nats_client",
        "brokers.nats_life",
        "brokers.nats_stream",
        "brokers.rabbitmq_link",
        "brokers.rabbitmq_marks",
        "brokers.rabbitmq_options",
    ),
    2.08: ("brokers.rabbitmq_messages", "brokers.rabbitmq_witness"),
    2.09: ("brokers.rabbitmq_outbox", "brokers.rabbitmq_repeats"),
    2.1: ("brokers.*",),
    2.2: ("archive",),
    2.4: ("answers",),
    2.41: ("envelope", "transport"),
    2.5: ("client", "publisher"),
    3.0: ("feed",),
    3.1: ("subscriber",),
    3.2: ("fanout", "replay", "router"),
    3.3: ("dispatch",),
    4.0: ("connection",),
    4.05: ("websocket",),
    4.1: ("registry",),
    4.2: ("replays",),
    5.0: ("hub",),
    5.1: ("census", "intake", "overview"),
    6.0: ("access", "evictions", "heartbeat", "drain", "jwks", "viewers"),
    6.1: ("maintenance",),
    6.5: ("service",),
    7.0: ("handlers.base",),
    7.05: ("handlers.admin", "handlers.page", "handlers.streams"),
    7.1: ("handlers.*",),
    8.0: ("app", "config"),
    8.1: ("changes",),
    8.5: ("",),  # qgstream itself: the names that a program embeds
    9.0: ("server", "doctor"),
    9.05: ("preflight",),
    9.1: ("bench.errors", "bench.histogram", "bench.stamps"),
    9.2: ("bench.floor", "bench.load", "bench.plain", "bench.processes"),
    9.3: ("bench.subjects",),
    9.4: ("bench.callers", "bench.crew", "bench.descriptors"),
    9.5: ("bench.session",),
    9.6: ("bench.scenarios",),
    9.7: ("bench.report",),
    9.95: ("cli._streams",),
    10.0: ("cli._*",),
    10.05: ("cli._diff",),
    10.1: ("cli.*",),
    10.2: ("cli",),
    10.3: ("__main__",),
}
# A folder that is one program of several files: they may know each other, in no circle.
PROGRAMS = ("bench",)


def floor_of(module: str) -> float | None:
    names = [(name, floor) for floor, row in FLOORS.items() for name in row]
    exact = [floor for name, floor in names if name == module]
    starred = [floor for name, floor in names if "*" in name and fnmatchcase(module, name)]
    return next(iter(exact + starred), None)


def modules() -> dict[str, Path]:
    """Every module of the package: its name below `qgstream.`, and its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        *folders, name = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(folders if name == "__init__" else [*folders, name])] = path
    return found


MODULES = modules()


def imports(source: str) -> Iterator[str]:
    """The modules of the package that a source imports anywhere, functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: expected an absolute import"
            # `from qgstream.cli import _settings` is about the module qgstream.cli._settings.
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("qgstream.") in MODULES else str(node.module) for name in full]
        else:
            continue
        yield from (name.removeprefix("qgstream").lstrip(".") for name in names if name.split(".")[0] == "qgstream")


def of_one_program(module: str, target: str) -> bool:
    return any(module.startswith(f"{name}.") and target.startswith(f"{name}.") for name in PROGRAMS)


def climbs(module: str, source: str) -> list[str]:
    """What is wrong with a module's imports."""
    floor = floor_of(module)
    if floor is None:
        return [f"qgstream.{module} stands on no floor: add it to the table"]
    wrong = []
    for target in imports(source):
        below = floor_of(target)
        if below is None:
            wrong.append(f"qgstream.{module} imports qgstream.{target}, which does not exist")
        elif below >= floor and not of_one_program(module, target):
            wrong.append(f"qgstream.{module} (floor {floor}) imports qgstream.{target} (floor {below})")
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_floors_below_its_own(module: str) -> None:
    assert climbs(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("topics", "from qgstream.hub import Hub", "qgstream.topics (floor 1.0) imports qgstream.hub (floor 5.0)"),
        ("topics", "def f():\n    import qgstream.hub", "imports qgstream.hub"),
        ("topics", "from qgstream import limits", "imports qgstream.limits (floor 1.0)"),
        ("hub", "from qgstream import Hub", "imports qgstream. (floor 8.5)"),
        ("handlers.demo", "from qgstream.handlers.events import x", "imports qgstream.handlers.events (floor 7.1)"),
        ("cli.serve", "from qgstream.cli import check_config", "imports qgstream.cli.check_config"),
        ("cli.serve", "from qgstream.cli import main", "imports qgstream.cli (floor 10.2)"),
        ("utilities", "", "qgstream.utilities stands on no floor"),
    ],
)
def test_a_climb_is_seen(module: str, source: str, said: str) -> None:
    (problem,) = climbs(module, source)
    assert said in problem


def test_no_import_goes_in_a_circle() -> None:
    graph = {module: set(imports(path.read_text(encoding="utf-8"))) - {module} for module, path in MODULES.items()}
    assert set(TopologicalSorter(graph).static_order()) == MODULES.keys()  # raises CycleError


def test_no_floor_is_kept_for_a_module_that_is_gone() -> None:
    named = {name for row in FLOORS.values() for name in row if "*" not in name}
    assert named - MODULES.keys() == set()


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


IMPORT_EVERYTHING = """
import asyncio, gc, importlib, logging, os, signal, sys, threading
import tornado.ioloop

def refuse(*args, **kwargs):
    raise AssertionError("an import made an event loop")

asyncio.new_event_loop = asyncio.get_event_loop = asyncio.SelectorEventLoop.__init__ = refuse
environ, signals = dict(os.environ), [signal.getsignal(number) for number in signal.valid_signals()]
descriptors, collector = set(os.listdir("/proc/self/fd")), gc.get_threshold()

for name in {names!r}:
    importlib.import_module(name)

loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
ours = [logger for logger in loggers if logger.name.split(".")[0] in ("root", "qgstream", "tornado")]
assert not [logger for logger in ours if logger.handlers], "an import configured logging"
assert not [logger.name for logger in ours if logger.level not in (logging.NOTSET, logging.root.level)]
assert threading.enumerate() == [threading.main_thread()], "an import started a thread"
assert dict(os.environ) == environ, "an import changed the environment"
assert [signal.getsignal(number) for number in signal.valid_signals()] == signals, "an import handles signals"
assert set(os.listdir("/proc/self/fd")) == descriptors, "an import opened a descriptor"
assert gc.get_threshold() == collector, "an import tuned the collector"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/fd")
def test_importing_every_module_does_nothing() -> None:
    names = [f"qgstream.{module}".rstrip(".") for module in MODULES]
    assert run_python(IMPORT_EVERYTHING.format(names=names)) == ""


def test_the_package_brings_no_broker_but_memory_and_nothing_optional() -> None:
    # What measures coverage in the child has modules of its own.
    code = "import sys; before = set(sys.modules); import qgstream; print(*set(sys.modules) - before)"
    loaded = set(run_python(code).split())
    brokers = {name for name in loaded if name.startswith("qgstream.brokers.")}
    assert brokers <= {f"qgstream.brokers.{name}" for name in ("backoff", "base", "idempotency", "memory")}
    assert loaded & {"redis", "aio_pika", "aiormq", "nats", "sqlite3", "qgstream.cli", "qgstream.server"} == set()


def test_the_server_does_not_pay_for_the_client() -> None:
    loaded = set(run_python("import sys, qgstream.server, qgstream.cli.serve; print(*sys.modules)").split())
    assert loaded & {"httpx", "anyio", "qgstream.answers", "qgstream.client", "qgstream.publisher"} == set()
