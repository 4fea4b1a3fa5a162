"""Importing a module does nothing, and brings only what it needs. Which room may import which is in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def modules() -> list[str]:
    found = []
    for path in sorted((ROOT / "qgstream").rglob("*.py")):
        *folders, name = path.relative_to(ROOT).with_suffix("").parts
        found.append(".".join(folders if name == "__init__" else [*folders, name]))
    return found


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
    assert run_python(IMPORT_EVERYTHING.format(names=modules())) == ""


def test_the_package_brings_no_broker_but_memory_and_nothing_optional() -> None:
    # What measures coverage in the child has modules of its own.
    code = "import sys; before = set(sys.modules); import qgstream; print(*set(sys.modules) - before)"
    loaded = set(run_python(code).split())
    brokers = {name for name in loaded if name.startswith("qgstream.brokers.")}
    assert brokers <= {f"qgstream.brokers.{name}" for name in ("base", "idempotency", "memory")}
    others = {"redis", "aio_pika", "aiormq", "nats", "sqlite3", "qgstream.cli", "qgstream.process"}
    assert loaded & others == set()


def test_the_server_does_not_pay_for_the_client() -> None:
    loaded = set(run_python("import sys, qgstream.process.server, qgstream.cli.serve; print(*sys.modules)").split())
    assert loaded & {"httpx", "anyio", "qgstream.client"} == set()
