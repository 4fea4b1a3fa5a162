"""Users: each has a topic of its own. What a server pays for many topics, beside the same with one topic."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence

from qgstream.bench.callers import Caller
from qgstream.bench.errors import BenchError
from qgstream.bench.session import HEALTH_PROBES_PER_SECOND, SETTLE_SECONDS, Figures, Session, cpu_us_per, ms
from qgstream.bench.stamps import MIN_BYTES, stamped

# The rows. The base of the ratios is ONE_TOPIC, BACK_ON_ONE or FEW_HELD.
ONE_TOPIC, OWN_TOPICS = "one topic for all", "a topic each, and one for all"
BACK_ON_ONE, NEW = "back on one topic", "new, on its own topic"
BACK_ON_OWN, BACK_WITH_PREFIX = "back on its own topic", "the same, and a prefix"
FEW_HELD, MANY_HELD = "these topics alone", "and all users' topics"

# The topic that all users share, and those that one user has.
SHARED, OWN = "bench", "own-{n}"
ALONE = "alone"
# Events of others that were published while the users were away.
BEHIND = 8000
# Clients that come back, and clients that ask for the latest values: enough for a figure, and soon over.
RETURNING = 1000
LATEST_CLIENTS = 20
# As many as a stream may name (`limits.max_topics_per_connection`).
PREFIXES = 64
HEALTH_BATCH_EVENTS = 300
FILL_EVENTS = 500
# A server may be silent for seconds before it sends what many clients missed. With nothing new for so long, it is lost.
QUIET_SECONDS = 15.0
_PATIENCE_SECONDS = 600.0

# What one measurement is called, its row, and its figures.
Measured = tuple[str, str, Figures]


def delivering(
    session: Session, row: str, users: int, *, rate: float, single_rate: float, seconds: float, payload_bytes: int
) -> Iterator[Measured]:
    """Open a stream for each user; publish to all users, to single users, and in batches while /health is asked."""
    is_shared_only = row == ONE_TOPIC
    session.open(users, topic=SHARED if is_shared_only else _topics(OWN, SHARED))
    idle_kib = session.memory(users)
    yield "users-shared", row, session.fan_out(rate, seconds, payload_bytes, topics=[SHARED])
    after_kib = session.memory(users)
    yield "users-memory", row, {"kib_per_stream": idle_kib, "kib_per_stream_after": after_kib}
    yield "users-health", row, health_in_batches(session, seconds, payload_bytes)
    singles = [OWN.replace("{n}", str(number)) for number in range(users)]
    if is_shared_only:
        # As many streams, and one more that has a topic alone: only the number of topics differs.
        session.open(1, topic=ALONE)
        singles = [ALONE]
    yield "users-single", row, session.fan_out(single_rate, seconds, payload_bytes, topics=singles, readers=1)


def remembering(session: Session, users: int, payload_bytes: int) -> Iterator[Measured]:
    """Clients that ask for the latest values, and clients that come back after an outage: the cost of what is held."""
    held = [f"held-{number:07}" for number in range(max(users, 2 * PREFIXES))]
    asked, others = held[:PREFIXES], held[PREFIXES:]
    latest = _topics(*(f"{topic}*" for topic in asked)) + "&replay=latest"
    clients, returning = min(LATEST_CLIENTS, users), min(RETURNING, users)
    come_back(session, returning, OWN, events=0)  # warm
    fill(session, asked, payload_bytes)
    yield "users-latest", FEW_HELD, come_back(session, clients, latest, events=PREFIXES)
    fill(session, others, payload_bytes)
    yield "users-latest", MANY_HELD, come_back(session, clients, latest, events=PREFIXES)

    seen_id = fill(session, [SHARED], payload_bytes)
    last_id = fill(session, [SHARED], payload_bytes)
    yield "users-resume", BACK_ON_ONE, come_back(session, returning, SHARED, events=1, last_id=seen_id)
    yield "users-resume", NEW, come_back(session, returning, OWN, events=0)
    fill(session, [OWN.replace("{n}", str(number)) for number in range(returning)], payload_bytes)
    fill(session, [others[number % len(others)] for number in range(BEHIND)], payload_bytes)
    yield "users-resume", BACK_ON_OWN, come_back(session, returning, OWN, events=1, last_id=last_id)
    with_prefix = _topics(OWN, "news/*")
    yield "users-resume", BACK_WITH_PREFIX, come_back(session, returning, with_prefix, events=1, last_id=last_id)


def history_events(users: int) -> int:
    """How many events `remembering` publishes: a server must hold all of them."""
    return max(users, 2 * PREFIXES) + 2 + min(RETURNING, users) + BEHIND


def fill(session: Session, topics: Sequence[str], payload_bytes: int) -> str:
    """Publish an event to each of these topics; the id of the last one."""
    subject, payload = session.subject, max(payload_bytes, MIN_BYTES)
    batches = [topics[first : first + FILL_EVENTS] for first in range(0, len(topics), FILL_EVENTS)]
    pending = iter(batches)
    left = len(batches)

    def request() -> bytes:
        nonlocal left
        left -= 1
        if not left:
            publisher.stop()
        return subject.mixed_request([(topic, stamped(payload, time.monotonic_ns())) for topic in next(pending)])

    publisher = Caller(subject, request, rate=None, seconds=_PATIENCE_SECONDS)
    session.run([publisher], "filling the history")
    if publisher.answered < len(batches):
        raise BenchError(f"filling the history failed: {dict(publisher.failures) or 'it took too long'}")
    last_id: str = json.loads(publisher.answer)["ids"][-1]
    return last_id


def come_back(session: Session, clients: int, topics: str, *, events: int, last_id: str | None = None) -> Figures:
    """Open streams, wait until each has got `events` events, and drop the streams.

    The CPU is that of the whole: handshake, replay, and the first moment after it.
    """
    subject, crew = session.subject, session.crew
    headers = [] if last_id is None else [f"Last-Event-ID: {last_id}"]
    crew.begin(sample_every=1_000_000)
    before = subject.usage()
    crew.open(clients, subject.get_request(topics, headers=headers))
    session.drain(clients * events, quiet_seconds=QUIET_SECONDS)
    time.sleep(SETTLE_SECONDS)
    after, report = subject.usage(), crew.report()
    crew.close()
    time.sleep(SETTLE_SECONDS)  # the server's work at the end of these streams belongs to no measurement
    return {
        "clients": clients,
        "deliveries": report.status.deliveries,
        "lost": clients * events - report.status.deliveries,
        "closed": report.status.closed,
        "handshake_p50_ms": ms(report.handshakes, 0.5),
        "handshake_p99_ms": ms(report.handshakes, 0.99),
        "cpu_us_per_client": cpu_us_per(before, after, clients),
    }


def health_in_batches(session: Session, seconds: float, payload_bytes: int) -> Figures:
    """Publish batches to the shared topic, one after the other, and ask for /health on new connections meanwhile."""
    subject, size = session.subject, max(payload_bytes, MIN_BYTES)
    session.crew.begin(sample_every=1_000_000)
    prober = Caller(
        subject, subject.health_request, rate=HEALTH_PROBES_PER_SECOND, seconds=_PATIENCE_SECONDS, keep_alive=False
    )
    prober.start()
    batches, deadline = 0, time.monotonic() + seconds
    try:
        while not batches or not (prober.answered or prober.failed) or time.monotonic() < deadline:
            fill(session, [SHARED] * HEALTH_BATCH_EVENTS, size)
            batches += 1
            session.drain(batches * HEALTH_BATCH_EVENTS * session.readers, quiet_seconds=QUIET_SECONDS)
    finally:
        prober.stop()
        prober.join()
    status = session.crew.status()
    return {
        "batches": batches,
        "deliveries": status.deliveries,
        "lost": batches * HEALTH_BATCH_EVENTS * session.readers - status.deliveries,
        "probes": prober.answered,
        "probes_failed": prober.failed,
        "health_p50_ms": ms(prober.latencies, 0.5),
        "health_p99_ms": ms(prober.latencies, 0.99),
        "health_max_ms": ms(prober.latencies, 1),
    }


def _topics(*names: str) -> str:
    """Several topics as the value of the parameter `topic` that a stream's request begins with."""
    return "&topic=".join(names)
