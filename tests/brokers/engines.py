"""The engines that the contract is run on. Another one: write its function, and add it to the table.

A function gets the test's request and gives an `Engine`. One that needs a program or a server asks for it by
`request.getfixturevalue`, so that without it the test is skipped, and fails in CI (`require_program`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from qgstream.brokers.base import Broker, open_broker
from tests.brokers.machines import Machine
from tests.brokers.rabbitmq_server import RabbitmqServer

PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Engine:
    """A log of a test's own. `url` names it; every broker that is opened on it finds what the others left.

    `longer_url` names the same log and keeps more of it than the history settings say, where the engine can do that;
    `shorter_url` less, where the engine does not count events. `machine` is the server that it lives on, where that is
    another process: a test may hang and kill it, and must start it again. `has_gaps`: its offsets do not follow each
    other one by one.
    """

    url: str
    longer_url: str | None = None
    machine: Machine | None = None
    has_gaps: bool = False
    shorter_url: str | None = None

    def broker(self, *, timeout_seconds: float = PATIENCE_SECONDS) -> Broker:
        """One more broker on the log, not opened. An engine on a busy machine may need seconds for an answer."""
        return open_broker(self.url, timeout_seconds=timeout_seconds)


@dataclass(frozen=True)
class Kind:
    """How to get an engine. `is_durable`: its log outlives its broker. `is_remote`: it is on a machine of its own."""

    make: Callable[[pytest.FixtureRequest], Engine]
    is_durable: bool = True
    is_remote: bool = False


def memory(_request: pytest.FixtureRequest) -> Engine:
    return Engine("memory://")


def sqlite(request: pytest.FixtureRequest) -> Engine:
    folder: Path = request.getfixturevalue("tmp_path")
    url = f"sqlite://{folder}/events.db"
    return Engine(url, f"{url}?max_events=100000&max_bytes=100000000")


def nats(request: pytest.FixtureRequest) -> Engine:
    machine: Machine = request.getfixturevalue("nats_machine")
    name = f"tests-{uuid4().hex}"
    url = f"nats://127.0.0.1:{machine.port}/{name}?prefix={name}"
    return Engine(url, f"{url}&max_events=100000&max_bytes=100000000", machine)


def redis(request: pytest.FixtureRequest) -> Engine:
    machine: Machine = request.getfixturevalue("redis_machine")
    url = f"redis://127.0.0.1:{machine.port}/?stream=tests-{uuid4().hex}"
    return Engine(url, f"{url}&max_events=100000&max_bytes=100000000", machine, has_gaps=True)


def rabbitmq(request: pytest.FixtureRequest) -> Engine:
    machine: RabbitmqServer = request.getfixturevalue("rabbitmq_machine")
    name = f"tests-{uuid4().hex}"
    url = f"amqp://127.0.0.1:{machine.port}?stream={name}&exchange={name}"
    return Engine(
        url, f"{url}&max_bytes=100000000", machine, has_gaps=True, shorter_url=f"{url}&max_bytes=200000"
    )  # fmt: skip


ENGINES: dict[str, Kind] = {
    "memory": Kind(memory, is_durable=False),
    "sqlite": Kind(sqlite),
    "nats": Kind(nats, is_remote=True),
    "redis": Kind(redis, is_remote=True),
    "rabbitmq": Kind(rabbitmq, is_remote=True),
}
