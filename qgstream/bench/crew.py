"""The crew: all load processes, controlled as one."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from qgstream.bench.errors import BenchError
from qgstream.bench.histogram import Histogram
from qgstream.bench.processes import Cores, Program
from qgstream.bench.subjects import Subject

# How often the crew is asked for its progress.
LOOK_SECONDS = 0.1
OPEN_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Status:
    """What the whole crew has received so far."""

    opened: int
    failed: int
    closed: int
    deliveries: int
    bytes: int
    last_delivery_ns: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """The status, and the durations."""

    status: Status
    latencies: Histogram
    handshakes: Histogram
    failures: Counter[str]


class Crew:
    """`size` load processes that share the streams of one subject."""

    def __init__(self, subject: Subject, cores: Cores, *, size: int = 1) -> None:
        self._subject = subject
        self._members: list[Program] = []
        try:
            for _ in range(size):
                self._members.append(Program([sys.executable, "-m", "qgstream.bench.load"], cores=cores.load))
        except BaseException:
            self.stop()
            raise

    def open(
        self, streams: int, request: str, *, stalled: int = 0, look: Callable[[Status], None] = lambda _status: None
    ) -> Report:
        """Open streams; the first `stalled` of them never read. Raises `BenchError` unless all streams opened.

        `look` is called with the progress, about ten times a second.
        """
        subject, size, first = self._subject, len(self._members), 0
        for index, member in enumerate(self._members):
            share = streams // size + (index < streams % size)
            plan = {
                "do": "open", "host": subject.host, "port": subject.port, "family": int(subject.family),
                "request": request, "first": first, "streams": share, "stalled": stalled,
            }  # fmt: skip
            member.tell(json.dumps(plan))
            first += share
        for member in self._members:
            member.hear()
        deadline = time.monotonic() + OPEN_SECONDS
        while True:
            status = self.status()
            look(status)
            if status.opened + status.failed >= streams:
                break
            if time.monotonic() > deadline:
                raise BenchError(f"{status.opened} of {streams} streams opened within {OPEN_SECONDS:g} s")
            subject.check()
            time.sleep(LOOK_SECONDS)
        report = self.report()
        if status.failed:
            reasons = "; ".join(f"{count} x {why}" for why, count in report.failures.most_common(3))
            at = f"{subject.host} port {subject.port}"
            raise BenchError(f"{status.opened} of {streams} streams opened: {reasons} ({at})")
        return report

    def begin(self, *, sample_every: int = 1) -> None:
        """Count deliveries from now on, and measure latencies in one of `sample_every` reads."""
        self._ask({"do": "begin", "sample_every": sample_every})

    def status(self) -> Status:
        """Return the progress."""
        return _sum(self._ask({"do": "status"}))

    def report(self) -> Report:
        """Return the counts since `begin`, and the durations of the opening."""
        replies = self._ask({"do": "report"})
        latencies, handshakes = Histogram(), Histogram()
        failures: Counter[str] = Counter()
        for reply in replies:
            latencies.merge(Histogram(dict(reply["latencies"])))
            handshakes.merge(Histogram(dict(reply["handshakes"])))
            failures.update(reply["failures"])
        return Report(_sum(replies), latencies, handshakes, failures)

    def close(self) -> None:
        """Close all streams."""
        self._ask({"do": "close"})

    def _ask(self, command: dict[str, Any]) -> list[dict[str, Any]]:
        for member in self._members:
            member.tell(json.dumps(command))
        return [json.loads(member.hear()) for member in self._members]

    def stop(self) -> None:
        """End the processes."""
        for member in self._members:
            member.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def _sum(replies: list[dict[str, Any]]) -> Status:
    return Status(
        opened=sum(reply["opened"] for reply in replies),
        failed=sum(reply["failed"] for reply in replies),
        closed=sum(reply["closed"] for reply in replies),
        deliveries=sum(reply["deliveries"] for reply in replies),
        bytes=sum(reply["bytes"] for reply in replies),
        last_delivery_ns=max(reply["last_delivery_ns"] for reply in replies),
        cpu_seconds=sum(reply["cpu_seconds"] for reply in replies),
    )
