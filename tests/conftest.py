"""What every test gets: programs that must be there, silence in the logs, and a loop that ends empty."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import pytest
import tornado
from tornado.ioloop import IOLoop

IN_CI = os.environ.get("CI") == "true"

# A developer's own settings must not decide what the tests see.
for _name in [name for name in os.environ if name.startswith("QGSTREAM_")]:
    del os.environ[_name]
# Some images of Python set it. Each of the hundreds of servers that the tests start would then compile all its modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell starts background jobs with SIGINT ignored. Programs that the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# `timeout`, and whoever cancels a run, send SIGTERM. As after Ctrl-C, fixtures end the programs that they have started.
signal.signal(signal.SIGTERM, signal.default_int_handler)

# Time on a shared machine says nothing about an example. In CI the examples are always the same: a run fails there for
# a change.
hypothesis.settings.register_profile("qgstream", deadline=None, print_blob=True, derandomize=IN_CI)
hypothesis.settings.load_profile("qgstream")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None]:
    """Without the cyclic collector: nothing that collecting makes is garbage, and it stays for the whole run.

    A third of the time of collecting went to that, and part of each `gc.collect()` of a test.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


# `make test-fast`.

_WITH_PROGRAMS = ("brokers", "browser", "cli", "deploy", "hostile", "interop", "fleet")


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).parts[0]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even read those folders for a run that deselects all that is in them: that takes half of the time."""
    if config.option.markexpr != "not programs":
        return None
    return (collection_path.name in _WITH_PROGRAMS and collection_path.parent == Path(__file__).parent) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts other programs: tests of these folders, and modules that import what starts a server."""
    for item in items:
        module = getattr(item, "module", None)
        if _folder(item) in _WITH_PROGRAMS or hasattr(module, "ServerProcess") or hasattr(module, "subprocess"):
            item.add_marker("programs")


# `make coverage`.

# Their tests are about what whole processes do. Those of other folders are about what test processes see in themselves,
# and measuring the servers that they start would make each start cost half as much again.
_WITH_MEASURED_PROGRAMS = ("cli", "fleet", "process")
_MEASURE = "COVERAGE_PROCESS_CONFIG"  # coverage in this process sets it, and begins in each child that has it
_measure = os.environ.get(_MEASURE)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global _measure  # noqa: PLW0603  # pytest has one session
    _measure = os.environ.pop(_MEASURE, _measure)
    if _measure is not None and _folder(item) in _WITH_MEASURED_PROGRAMS:
        os.environ[_MEASURE] = _measure


# A run that tests less than it seems to.


def pytest_report_header() -> str:
    rules = "a skipped test fails" if IN_CI else "tests whose program is missing are skipped"
    return f"qgstream: Python {sys.version.split()[0]}, Tornado {tornado.version}, CI={IN_CI}: {rules}"


# The beginning of a reason to skip that holds in CI too: no program that could be installed would change it.
NOT_PERMITTED = "not permitted here: "


def _fail_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        if str(reason).startswith(f"Skipped: {NOT_PERMITTED}"):
            return
        report.outcome = "failed"
        report.longrepr = f"skipped, and in CI nothing is: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_skipped(report)
    return report


def _executed(reporter: pytest.TerminalReporter) -> int:
    return sum(
        report.when == "call"
        for outcome in ("passed", "failed", "xfailed", "xpassed")
        for report in reporter.stats.get(outcome, ())
        if isinstance(report, pytest.TestReport)
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"qgstream: {_executed(terminalreporter)} tests were executed")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    # pytest itself calls a run well in which every test was skipped.
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    collecting_only = session.config.option.collectonly
    if exitstatus == pytest.ExitCode.OK and not collecting_only and isinstance(reporter, pytest.TerminalReporter):
        session.exitstatus = exitstatus if _executed(reporter) else pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.fixture(scope="session")
def require_program() -> Callable[[str], Path]:
    """The path of a program; without it the test is skipped, and in CI it fails (.ci/run installs them)."""

    def find(name: str) -> Path:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"needs the program {name}")
        return Path(path)

    return find


# A silent run is part of passing.


@dataclass
class _Expected:
    pattern: re.Pattern[str]
    logger: str
    required: bool
    seen: int = 0

    def matches(self, record: logging.LogRecord) -> bool:
        return (record.name + ".").startswith(self.logger + ".") and bool(self.pattern.search(record.getMessage()))


# The attributes that logging itself gives a record; all others say what happened.
_OF_ANY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime"}


@dataclass
class ExpectLog:
    """Call it with a regular expression to allow a record at WARNING or above, and to require it."""

    expected: list[_Expected] = field(default_factory=list)
    unexpected: list[logging.LogRecord] = field(default_factory=list)

    def __call__(self, pattern: str, *, logger: str = "qgstream", required: bool = True) -> None:
        self.expected.append(_Expected(re.compile(pattern), logger, required))

    def see(self, record: logging.LogRecord) -> None:
        matching = [expected for expected in self.expected if expected.matches(record)]
        for expected in matching:
            expected.seen += 1
        if not matching:
            self.unexpected.append(record)  # its `extra` comes later

    def verify(self) -> None:
        missing = [expected.pattern.pattern for expected in self.expected if expected.required and not expected.seen]
        problems = [f"unexpected log record: {_described(record)}" for record in self.unexpected]
        problems += [f"no log record matches {pattern!r}" for pattern in missing]
        if problems:
            pytest.fail("\n".join(problems), pytrace=False)


def _described(record: logging.LogRecord) -> str:
    extra = {name: value for name, value in vars(record).items() if name not in _OF_ANY_RECORD}
    trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
    return f"{record.levelname} {record.name}: {record.getMessage()} {extra or ''} {trace}".rstrip()


@pytest.fixture(autouse=True)
def expect_log() -> Iterator[ExpectLog]:
    """Fails the test on any log record at WARNING or above that it did not announce with `expect_log(pattern)`.

    It watches records where they are made, so no handler, level or propagation set by the code under test hides one.
    """
    watch = ExpectLog()
    make = logging.getLogRecordFactory()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def make_and_see(*args: object, **kwargs: object) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if record.levelno >= logging.WARNING:
            watch.see(record)
        return record

    logging.setLogRecordFactory(make_and_see)
    yield watch
    logging.setLogRecordFactory(make)
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        if not type(handler).__module__.startswith("_pytest."):
            root.removeHandler(handler)
    watch.verify()


@pytest.fixture
def io_loop() -> Iterator[IOLoop]:
    """pytest-tornado's fixture, without what Tornado has deprecated, and failing on tasks that a test leaves behind."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield IOLoop.current()
    try:
        # Connections that were closed at the end of the test need a few turns to notice it.
        tasks = asyncio.all_tasks(loop)
        pending = loop.run_until_complete(asyncio.wait(tasks, timeout=20))[1] if tasks else set()
        if pending:
            pytest.fail("tasks left behind:\n" + "\n".join(map(repr, pending)), pytrace=False)
    finally:
        IOLoop.current().close(all_fds=True)
        asyncio.set_event_loop(None)
