"""The scenarios: the measurements of `qgstream bench`, their order, and the server with which each is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qgstream.bench import users
from qgstream.bench.processes import Cores
from qgstream.bench.session import Figures, Progress, Session
from qgstream.bench.subjects import FLOOR, HEADERS_ONLY, PLAIN, Dialect, Subject, start_module, start_qgstream

# Heartbeats are off: otherwise they would count as a part of small measurements.
NO_HEARTBEAT = {"heartbeat.interval_seconds": 3600}
PUBLISHES = 3000
# Enough to fill a stalled reader's socket and its backlog of 1 MiB within the shortest run.
STALLED_PAYLOAD_BYTES = 20_000
STALLED_RATE = 20.0
STALLED_SECONDS = 5.0
# Memory of an event in the history besides its data, at most.
HELD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Options:
    """The operator's options."""

    scenarios: frozenset[str]
    streams: int = 10_000
    rate: float = 4.0
    flat_rate: float = 200.0
    seconds: float = 3.0
    payload_bytes: int = 100
    compare: bool = False
    broker: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement."""

    scenario: str
    server: str
    figures: Figures


@dataclass(frozen=True, slots=True)
class Bench:
    """The parameters of the scenarios. `subject` is a server that is already running; without it, each scenario starts
    its own."""

    options: Options
    cores: Cores
    progress: Progress
    subject: Subject | None = None
    processes: int = 1
    # The floor of this machine says nothing about a server elsewhere.
    with_floor: bool = True

    def run(self) -> Iterator[Result]:
        """Measure the chosen scenarios, and yield each result as soon as there is one."""
        for names, scenario in _SCENARIOS:
            if self.options.scenarios & names:
                yield from scenario(self)

    def wants(self, name: str) -> bool:
        """Return whether a scenario was chosen."""
        return name in self.options.scenarios

    @contextmanager
    def ours(self, streams: int, **settings: object) -> Iterator[Session]:
        """Return a session with the server under test."""
        if self.subject is not None:
            with self.session(self.subject) as session:
                yield session
            return
        if self.options.broker is not None:
            settings["broker.url"] = self.options.broker
        self.progress("starting qgstream")
        server = start_qgstream(self.cores, streams=streams, settings=settings)
        with server as subject, self.session(subject) as session:
            yield session

    @contextmanager
    def other(self, dialect: Dialect, module: str) -> Iterator[Session]:
        """Return a session with a server for comparison."""
        self.progress(f"starting {dialect.name}")
        with start_module(dialect, f"qgstream.bench.{module}", self.cores) as subject, self.session(subject) as session:
            yield session

    def session(self, subject: Subject) -> Session:
        """Return a session whose progress names its server."""
        return Session(
            subject, self.cores, size=self.processes,
            progress=lambda text: self.progress(f"{subject.name}: {text}"),
        )  # fmt: skip


def _streams(bench: Bench) -> Iterator[Result]:
    """Measure with all streams open on one topic."""
    options = bench.options
    with bench.ours(options.streams) as session:
        yield from _on_streams(bench, session, idle_seconds=max(6.0, options.seconds))
    if bench.with_floor and (bench.wants("fanout") or bench.wants("flatout")):
        with bench.other(FLOOR, "floor") as session:
            yield from _on_streams(bench, session)
    if bench.with_floor and bench.wants("handshakes"):
        with bench.other(HEADERS_ONLY, "plain") as session:
            yield Result("handshakes", session.subject.name, session.open(options.streams))
    if options.compare:
        with bench.other(PLAIN, "plain") as session:
            yield from _on_streams(bench, session)


def _on_streams(bench: Bench, session: Session, *, idle_seconds: float = 0.0) -> Iterator[Result]:
    options, server = bench.options, session.subject.name
    opening = session.open(options.streams)
    is_floor = session.subject.dialect is FLOOR
    if bench.wants("handshakes") and not is_floor:
        yield Result("handshakes", server, opening)
    idle_memory = session.memory(options.streams)
    if bench.wants("idle") and idle_seconds:
        yield Result("idle", server, session.idle(idle_seconds))
    if bench.wants("fanout"):
        yield Result("fanout", server, session.fan_out(options.rate, options.seconds, options.payload_bytes))
    if bench.wants("health") and idle_seconds:
        yield Result("health", server, session.health(options.rate, options.seconds, options.payload_bytes))
    if bench.wants("flatout"):
        yield Result("flatout", server, session.fan_out(options.flat_rate, options.seconds, options.payload_bytes))
    if bench.wants("memory") and not is_floor:
        after = session.memory(options.streams)
        yield Result("memory", server, {"kib_per_stream": idle_memory, "kib_per_stream_after": after})


def _flatout_1000(bench: Bench) -> Iterator[Result]:
    """Fewer streams and more events: the batches are small."""
    options, streams = bench.options, min(1000, bench.options.streams)

    def measure(session: Session) -> Iterator[Result]:
        session.open(streams)
        figures = session.fan_out(2.5 * options.flat_rate, options.seconds, options.payload_bytes)
        yield Result("flatout-1000", session.subject.name, figures)

    with bench.ours(streams) as session:
        yield from measure(session)
    if bench.with_floor:
        with bench.other(FLOOR, "floor") as session:
            yield from measure(session)
    if options.compare:
        with bench.other(PLAIN, "plain") as session:
            yield from measure(session)


def _topics(bench: Bench) -> Iterator[Result]:
    """The cost of a publish to a topic without subscribers must not depend on the subscribers of other topics."""
    options = bench.options
    with bench.ours(options.streams, **NO_HEARTBEAT) as session:
        session.unheard(PUBLISHES // 10, options.payload_bytes)  # warm up
        yield Result("topics", "no streams", session.unheard(PUBLISHES, options.payload_bytes))
        session.open(options.streams, topic="own-{n}")
        figures = session.unheard(PUBLISHES, options.payload_bytes)
        yield Result("topics", f"{options.streams} streams, a topic each", figures)


def _ndjson(bench: Bench) -> Iterator[Result]:
    """Measure how fast events can be written to the log."""
    options = bench.options
    with bench.ours(options.streams) as session:
        session.batches(0.5, options.payload_bytes)  # warm up
        yield Result("ndjson", session.subject.name, session.batches(options.seconds, options.payload_bytes))


def _stalled(bench: Bench) -> Iterator[Result]:
    """Readers that never read must not slow down the others, and must cost no more memory than their backlogs."""
    streams = min(1000, bench.options.streams)
    stalled = streams // 10
    seconds = max(STALLED_SECONDS, bench.options.seconds)
    for name, slow in (("none stalled", 0), (f"{stalled} more, stalled", stalled)):
        with bench.ours(streams + stalled) as session:
            session.open(streams - stalled + slow, stalled=slow)
            before = session.memory(streams) or 0.0
            figures = session.fan_out(STALLED_RATE, seconds, STALLED_PAYLOAD_BYTES)
            after = session.memory(streams) or 0.0
            figures["grown_mib"] = (after - before) * streams / 1024
            yield Result("stalled", name, figures)


def _users(bench: Bench) -> Iterator[Result]:
    """Many topics must cost what one topic costs, for the same events to the same number of streams."""
    options = bench.options
    for row in (users.ONE_TOPIC, users.OWN_TOPICS):
        with bench.ours(options.streams + 1, **NO_HEARTBEAT) as session:
            delivering = users.delivering(
                session, row, options.streams, rate=options.rate, single_rate=options.flat_rate,
                seconds=options.seconds, payload_bytes=options.payload_bytes,
            )  # fmt: skip
            yield from (Result(*measured) for measured in delivering)
    held = users.history_events(options.streams)
    history = {"history.max_events": held, "history.max_bytes": held * (options.payload_bytes + HELD_BYTES)}
    with bench.ours(options.streams, **NO_HEARTBEAT, **history) as session:
        remembering = users.remembering(session, options.streams, options.payload_bytes)
        yield from (Result(*measured) for measured in remembering)


_SCENARIOS: tuple[tuple[frozenset[str], Callable[[Bench], Iterator[Result]]], ...] = (
    (frozenset({"handshakes", "memory", "idle", "fanout", "health", "flatout"}), _streams),
    (frozenset({"flatout-1000"}), _flatout_1000),
    (frozenset({"topics"}), _topics),
    (frozenset({"ndjson"}), _ndjson),
    (frozenset({"stalled"}), _stalled),
    (frozenset({"users"}), _users),
)
