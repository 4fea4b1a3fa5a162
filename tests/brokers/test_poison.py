"""What anybody can put into an engine's log, and no stream can carry: it stops nothing, and is counted.

Each engine has a list of the worst that its protocol lets through. Another one is a line more.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from struct import pack
from urllib.parse import parse_qs, urlsplit

import pytest
from prometheus_client import generate_latest
from redis.asyncio import Redis

from qgstream.events.history import HistorySettings
from tests.brokers import raw_amqp
from tests.brokers.engines import Engine
from tests.brokers.raw_amqp import RawPublisher
from tests.brokers.serving import Served, open_stream, take
from tests.conftest import ExpectLog
from tests.http.asking import Client

# Puts each poison into the log of an engine.
Put = Callable[[Engine], Awaitable[int]]


def name_of(engine: Engine) -> str:
    return parse_qs(urlsplit(engine.url).query)["stream"][0]


# Redis: any fields, and any id.

FIELDS: list[tuple[str | bytes, ...]] = [
    ("topic", "t", "data", "x", "retry", "9" * 5000),
    ("topic", "t", "data", "x", "retry", "٣"),
    ("topic", "t", "data", "x", "retry", "1e3"),
    ("topic", "t", "data", b"\xed\xa0\x80"),  # a surrogate
    ("topic", b"\xed\xa0\x80", "data", "x"),
    ("topic", "a\0b", "data", "x"),
    ("topic", "t", "data", "[" * 100_000, "json", "1"),
    ("topic", "t", "data", "x", "event", "\x00"),
    ("topic", "t" * 10_000, "data", "x"),
    (*("topic", "t") * 65, *(f for n in range(65) for f in ("topic", f"t{n}")), "data", "x"),
    ("topic", "t", "data", "x", "private", b"\xff"),
    (b"\xff", b"\xff"),
    ("", ""),
]


async def into_redis(engine: Engine) -> int:
    redis = Redis(port=urlsplit(engine.url).port or 0, protocol=2)
    redis.response_callbacks.clear()
    for fields in FIELDS:
        await redis.execute_command("XADD", name_of(engine), "*", *fields)  # type: ignore[no-untyped-call]
    await redis.aclose()
    return len(FIELDS)


# NATS: any bytes in a subject but white space, any headers.

SUBJECTS = [
    b"\xff", b"\xed\xa0\x80", b"a\x0bb", b"a\x0cb", b"\x0b", b"a\x0b7", b"a\x00b", b"\x1f", b"\x85", b"%FF", b"%00",
    b"%2A", b"x" * 300,
]  # fmt: skip
HEADERS = [
    b"NATS/1.0",
    b"NATS/1.0\r\n",
    b"NATS/1.0 \xff\xff\r\n\r\n",
    b"NATS/1.0 503 \xff\r\n\r\n",
    b"NATS/1.0\r\nEvent: \xff\r\n\r\n" + b"\0",
    b"NATS/1.0\r\nPrivate: \xff\r\n\r\n",
    b"NATS/1.0\r\nPrivate: perhaps\r\n\r\n",
    b"NATS/1.0\r\nRetry: " + b"9" * 5000 + b"\r\n\r\n",
    b"NATS/1.0\r\nRetry: \xd9\xa3\r\n\r\n",
    b"NATS/1.0\r\nTopics: [" + b"9" * 5000 + b"]\r\n\r\n",
    b"NATS/1.0\r\nTopics: " + b"[" * 50_000 + b"\r\n\r\n",
    b'NATS/1.0\r\nTopics: ["t", "\\ud800"]\r\n\r\n',
    b"NATS/1.0\r\nEvent: %FF\r\n\r\n",
    b"NATS/1.0\r\nEvent: %00\r\n\r\n",
]


async def into_nats(engine: Engine) -> int:
    prefix = parse_qs(urlsplit(engine.url).query)["prefix"][0].encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(engine.url).port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
    for subject in SUBJECTS:
        writer.write(b"PUB %s.%s 1\r\nx\r\n" % (prefix, subject))
    for headers in HEADERS:
        writer.write(b"HPUB %s.t %d %d\r\n%s\xff\r\n" % (prefix, len(headers), len(headers) + 1, headers))
    writer.write(b"PUB %s.t 5000\r\n%s\r\n" % (prefix, b"\xff" * 5000))
    writer.write(b"PING\r\n")
    assert await reader.readline() == b"PONG\r\n"
    writer.close()
    await writer.wait_closed()
    return len(SUBJECTS) + len(HEADERS) + 1


# RabbitMQ: any header of any type. The body makes each of them no event, whatever the headers are.


def _long(name: bytes, value: bytes, kind: bytes = b"S") -> bytes:
    return pack(">B", len(name)) + name + kind + pack(">I", len(value)) + value


def _nested(depth: int) -> bytes:
    table = b""
    for _ in range(depth):
        table = _long(b"a", table, b"F")
    return table


TABLES = [
    _long(b"topics", b'["\\ud800"]'),
    _long(b"topics", b"[" + b"9" * 5000 + b"]"),
    _long(b"topics", b"[" * 50_000),
    _long(b"topics", b'["t"]', b"x"),
    _long(b"topics", b"\xff\xff"),
    _long(b"retry", b"9" * 5000),
    b"\x05retryt\x01",
    b"\x05retryd" + pack(">d", 1e300),
    b"\x05retryD" + pack(">BI", 255, 2**31),
    b"\x05retryT" + pack(">Q", 2**63),
    b"\x05retryl" + pack(">q", -(2**63)),
    b"\x05retryV",
    _long(b"event", b"a\x00b"),
    b"\x05eventT" + pack(">Q", 1),
    _long(b"private", b"true"),
    _long(b"idempotency_key", b"x", b"x"),
    _long(b"qgstream", b'{"kind": "event", "uid": "x", "seen": ' + b"9" * 5000 + b"}"),
    _long(b"qgstream", b'{"kind": "event", "uid": "x", "at": 1e999}'),
    _long(b"qgstream", b"[" * 50_000),
    b"\x0fx-stream-offsetS\x00\x00\x00\x01x",
    b"\x0fx-stream-offsetV",
    _nested(2000),
]


def _random_table(random: Random) -> bytes:
    kinds = {"t": 1, "b": 1, "B": 1, "s": 2, "u": 2, "I": 4, "i": 4, "l": 8, "f": 4, "d": 8, "D": 5, "T": 8, "V": 0}
    table = b""
    for name in random.sample(("topics", "event", "private", "idempotency_key", "qgstream", "CC", "x"), 3):
        kind = random.choice((*kinds, "S", "x"))
        size = kinds.get(kind, 4)
        value = random.randbytes(size) if kind in kinds else pack(">I", size) + random.randbytes(size)
        table += pack(">B", len(name)) + name.encode() + kind.encode() + value
    return table


async def into_rabbitmq(engine: Engine) -> int:
    random = Random(7)
    tables = [*TABLES, *(_random_table(random) for _ in range(30))]
    count = 0
    for table in tables:
        async with RawPublisher(urlsplit(engine.url).port or 0) as publisher:
            # RabbitMQ closes the connection at what is too much for itself: decimals, for one.
            with suppress(AssertionError, asyncio.IncompleteReadError):
                await publisher.publish(name_of(engine), b"t", raw_amqp.headers(table), b"\xff")
                count += 1
    assert count > 30
    return count


# A file: rows that somebody edited, or wrote. SQLite holds any type in any column.

ROWS = [
    "topics = 'no list'", "topics = '[' || topics", "topics = '[\"\\ud800\"]'", "topics = x'ff'", "topics = '[1]'",
    "topics = '[]'",
    "data = 'text'", "data = x'ff'", "data = 5", "data = x'5b', is_json = 1", "event = ''", "event = x'ff'",
    "event = char(10)", "retry_ms = 'soon'", "retry_ms = -1", "retry_ms = 1.5", "retry_ms = 9223372036854775807",
    "is_json = 'x'", "is_json = 2", "private = 'perhaps'", "private = -1", "published_at = 'yesterday'",
    "published_at = x'ff'",
]  # fmt: skip


async def into_sqlite(engine: Engine) -> int:
    path = urlsplit(engine.url).path
    with closing(sqlite3.connect(path)) as db:
        (newest,) = db.execute("SELECT newest FROM state").fetchone()
        for n, edit in enumerate(ROWS, 1):
            row = (newest + n, 1.9e9, 0, '["t"]', None, None, 0, 0, 100, b"x")
            db.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            db.execute(f"UPDATE log SET {edit} WHERE offset = ?", (newest + n,))
        # No broker has it open: as a person does it.
        db.execute("UPDATE state SET newest = ?", (newest + len(ROWS),))
        db.commit()
    return len(ROWS)


@pytest.mark.gen_test
async def test_rows_that_somebody_spoiled_are_passed_over(tmp_path: Path, expect_log: ExpectLog) -> None:
    expect_log("broker.skipped")
    engine = Engine(f"sqlite://{tmp_path}/events.db")
    async with Served(engine.broker()) as client:
        first = await client.hub.publish("t", "first")
    count = await into_sqlite(engine)
    # The window has no room for what was there before, so that the file is read once more for the replay.
    async with Served(engine.broker(), history=HistorySettings(max_events=1)) as client:
        met = skipped(client)
        assert met == count, "all of them were looked through for the window"
        last = await client.hub.publish("t", "last")
        stream, replay, _ = await open_stream(client, id=first.id)
        assert (replay, [event.id for event in await take(stream, 1)]) == ("complete", [last.id])


PUT: dict[str, Put] = {"redis": into_redis, "nats": into_nats, "rabbitmq": into_rabbitmq}


def skipped(client: Client) -> float:
    """As Prometheus reads it."""
    (line,) = [
        line
        for line in generate_latest(client.hub.metrics.registry).decode().splitlines()
        if line.startswith("qgstream_broker_skipped_total")
    ]
    return float(line.rpartition(" ")[2])


@pytest.mark.gen_test
async def test_poison_is_passed_over_and_counted(engine: Engine, remote: object, expect_log: ExpectLog) -> None:
    expect_log("broker.skipped")
    put = PUT[urlsplit(engine.url).scheme.replace("amqp", "rabbitmq")]
    async with Served(engine.broker()) as client:
        assert skipped(client) == 0
        first = await client.hub.publish("t", "first")
        stream, _, at = await open_stream(client)
        count = await put(engine)
        # The next events arrive, also for whoever reads the log again.
        last = await client.hub.publish("t", "last")
        assert [event.data for event in await take(stream, 1)] == ["last"]
        assert skipped(client) == count
        assert client.hub.broker.is_up
        found = await client.hub.broker.read(int(at.rpartition("-")[2]), 500)
        while not found:
            found = await client.hub.broker.read(int(at.rpartition("-")[2]), 500)
        assert [p.data for p in found] == [b"last"]
    # A process that starts finds it all there already.
    async with Served(engine.broker()) as client:
        assert skipped(client) >= count  # RabbitMQ's are met more than once, as the epoch is looked for
        stream, replay, _ = await open_stream(client, id=first.id)
        assert (replay, [event.id for event in await take(stream, 1)]) == ("complete", [last.id])
        await client.hub.publish("t", "next")
        assert [event.data for event in await take(stream, 1)] == ["next"]
