"""An engine for each test of the contract, and brokers on it that are closed whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from qgstream.brokers.base import Broker, Opened, Sink
from qgstream.events.history import HistorySettings
from qgstream.events.publication import Position, Publication
from qgstream.reasons import ResetReason
from tests.brokers.engines import ENGINES, Engine
from tests.brokers.machines import NATS, REDIS, REDIS_HELLO, Machine
from tests.brokers.rabbitmq_server import RabbitmqServer


class Tail(Sink):
    """A sink that writes down what it is told."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.opened: Opened
        self.delivered: list[Publication] = []
        self.lost_at: list[tuple[Position, ResetReason]] = []
        self._more = asyncio.Event()

    def deliver(self, publications: Sequence[Publication]) -> None:
        self.delivered += publications
        self._more.set()

    def lost(self, position: Position, reason: ResetReason) -> None:
        self.lost_at.append((position, reason))
        self._more.set()

    @property
    def offsets(self) -> list[int]:
        return [publication.offset for publication in self.delivered]

    async def until(self, condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
        """Return when it holds; it is looked at whenever something came."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._more.clear()
                await self._more.wait()


class Tails:
    """Opens brokers of the engine under test."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._open: list[Tail] = []

    async def open(self, history: HistorySettings | None = None, *, broker: Broker | None = None) -> Tail:
        tail = Tail(broker or self.engine.broker())
        self._open.append(tail)
        tail.opened = await tail.broker.open(tail, history or HistorySettings())
        return tail

    async def close(self) -> None:
        while self._open:
            await self._open.pop().broker.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of the contract runs on each engine that its promise is one of: it asks for `engine`, or also for
    `durable` (the log outlives its broker) or `remote` (it is on a machine that may go away)."""
    names = metafunc.fixturenames
    if "engine" in names:
        kinds = [
            name
            for name, kind in ENGINES.items()
            if (kind.is_durable or "durable" not in names) and (kind.is_remote or "remote" not in names)
        ]
        metafunc.parametrize("engine", kinds, indirect=True)


@pytest.fixture(scope="session")
def nats_machine(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], Path]) -> Iterator[Machine]:
    """A NATS server with JetStream. Each test has a stream of its own."""
    require_program("nats-server")
    machine = Machine(NATS, tmp_path_factory.mktemp("nats"))
    machine.start()
    yield machine
    machine.kill()


@pytest.fixture(scope="session")
def redis_machine(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], Path]
) -> Iterator[Machine]:
    """A Redis that writes down everything before it answers."""
    require_program("redis-server")
    machine = Machine(REDIS, tmp_path_factory.mktemp("redis"), hello=REDIS_HELLO)
    machine.start()
    yield machine
    machine.kill()


@pytest.fixture(scope="session")
def rabbitmq_machine(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], Path]
) -> Iterator[RabbitmqServer]:
    """One for all, because it takes seconds to start; each test has a stream and an exchange of its own."""
    machine = RabbitmqServer(require_program("rabbitmq-server"), tmp_path_factory.mktemp("rabbitmq"))
    try:
        machine.start()
        yield machine
    finally:
        machine.end()


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param].make(request)


@pytest.fixture
def durable(engine: Engine) -> Engine:
    return engine


@pytest.fixture
def remote(engine: Engine) -> Iterator[Machine]:
    """The server of the engine under test. It runs again after the test, whatever that did to it."""
    machine = engine.machine
    assert machine is not None
    yield machine
    machine.heal()


@pytest.fixture
def tails(io_loop: IOLoop, engine: Engine) -> Iterator[Tails]:
    tails = Tails(engine)
    yield tails
    io_loop.run_sync(tails.close)
