"""RabbitMQ in particular: publishers that know nothing of us, and what can become of a stream."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, closing
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import aio_pika
import pytest
from aiormq import Channel
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from tornado.ioloop import IOLoop

from qgstream.brokers.base import open_broker
from qgstream.brokers.rabbitmq import broker as rabbitmq
from qgstream.brokers.rabbitmq import outbox as rabbitmq_outbox
from qgstream.brokers.rabbitmq.broker import RabbitmqBroker
from qgstream.brokers.rabbitmq.link import Link, Reader
from qgstream.brokers.rabbitmq.marks import Slip
from qgstream.errors import ConfigError, Unavailable
from qgstream.events.draft import parse_json
from qgstream.events.history import HistorySettings
from qgstream.events.namespaces import namespace
from qgstream.events.publication import Publication
from tests.brokers import engines, raw_amqp
from tests.brokers.conftest import Tail, Tails
from tests.brokers.engines import Engine
from tests.brokers.rabbitmq_server import RabbitmqServer
from tests.brokers.raw_amqp import RawPublisher
from tests.conftest import ExpectLog
from tests.documents import ROOT, blocks_of
from tests.http.asking import until
from tests.serving import RawClient, ServerProcess


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> Engine:
    return engines.rabbitmq(request)


@pytest.fixture
def tails(io_loop: IOLoop, stream: Engine) -> Iterator[Tails]:
    tails = Tails(stream)
    yield tails
    io_loop.run_sync(tails.close)


def name_of(stream: Engine) -> str:
    """That of the stream and of its exchange."""
    return parse_qs(urlsplit(stream.url).query)["stream"][0]


def event(data: str, key: str | None = None) -> Publication:
    return Publication(("a",), data.encode(), is_json=False, idempotency_key=key)


def data_of(tail: Tail) -> list[str]:
    return [publication.data.decode() for publication in tail.delivered]


@asynccontextmanager
async def channel_to(url: str) -> AsyncGenerator[aio_pika.abc.AbstractChannel, None]:
    """A plain client's."""
    connection = await aio_pika.connect(urlsplit(url)._replace(query="").geturl())
    async with connection:
        yield await connection.channel()


async def publish(stream: Engine, *messages: tuple[str, aio_pika.Message]) -> None:
    async with channel_to(stream.url) as channel:
        exchange = await channel.get_exchange(name_of(stream))
        for routing_key, message in messages:
            await exchange.publish(message, routing_key)


# Publishers that know nothing of us.


@pytest.mark.gen_test
async def test_what_any_client_publishes_is_an_event(stream: Engine, tmp_path: Path) -> None:
    url = f"{stream.url}&max_bytes=10000000"
    server = await asyncio.to_thread(ServerProcess, tmp_path, broker__url=url)
    with server, closing(RawClient(server.port)) as client:
        await asyncio.to_thread(client.get("/events?topic=orders/*").until, b'"connected"')
        await publish(stream, ("elsewhere", aio_pika.Message(b"x")))
        (shown,) = [block.text for block in blocks_of(ROOT / "docs" / "brokers.md") if block.language == "python"]
        shown = shown.replace("amqp://guest:guest@localhost/", urlsplit(stream.url)._replace(query="").geturl())
        program = shown.replace('"qgstream"', f'"{name_of(stream)}"')
        await (await asyncio.create_subprocess_exec(sys.executable, "-c", program)).wait()
        received = await asyncio.to_thread(client.until, b'data: {"order": 7}')
        assert b"event: created" in received
        assert b"elsewhere" not in received


@pytest.mark.gen_test
async def test_properties_and_headers_say_what_json_says_elsewhere(stream: Engine, tails: Tails) -> None:
    tail = await tails.open()
    message = aio_pika.Message
    headers = {"retry": 5000, "private": True, "event": "from a header", "topics": '["日本/東京", "b", "c"]'}
    await publish(
        stream,
        ("a", message(b"text")),
        ("a", message(b"[1,\n2]", content_type="application/JSON; charset=utf-8", type="created")),
        ("a", message(b'{"problem": 1}', content_type="application/problem+json")),
        ("日本/東京", message("Bücher".encode(), headers=headers, type="ignored", content_type="text/html")),  # type: ignore[arg-type]
        ("#", message(b"")),
    )
    await tail.until(lambda: len(tail.delivered) == 5)
    assert [(p.topics, p.data.decode(), p.is_json, p.event, p.retry_ms, p.private) for p in tail.delivered] == [
        (("a",), "text", False, None, None, False),
        (("a",), "[1, 2]", True, "created", None, False),
        (("a",), '{"problem": 1}', True, None, None, False),
        (("日本/東京", "b", "c"), "Bücher", False, "from a header", 5000, True),
        (("#",), "", False, None, None, False),
    ]
    assert all(abs(p.published_at - time.time()) < 60 for p in tail.delivered)


@pytest.mark.gen_test
async def test_a_name_that_is_too_long_for_a_routing_key_arrives_whole(tails: Tails) -> None:
    tail = await tails.open()
    topics = ("東" * 256, "京" * 200)
    await tail.broker.append([Publication(topics, b"1")])
    assert tail.delivered[0].topics == topics


BAD_TABLE = b"\x01\xff" + b"I\x00\x00\x00\x01"  # a name that is not UTF-8


@pytest.mark.gen_test
async def test_what_is_no_event_is_passed_over(stream: Engine, tails: Tails, expect_log: ExpectLog) -> None:
    expect_log("broker.skipped")
    url = f"{stream.url}&max_event_bytes=1000"
    tail = await tails.open(broker=open_broker(url))
    nothing = raw_amqp.NOTHING
    bad = [
        (b"", nothing, b"no topic"),
        (b"a*", nothing, b"a pattern"),
        (b"a\nid: 1", nothing, b"a line end"),
        (b"a", nothing, b"\xff\xfe"),
        (b"a", nothing, b"x" * 1001),
        (b"a", raw_amqp.message_type(b"a\ndata: 1"), b"an injection"),
        (b"a", raw_amqp.headers(b"\x05retryS\x00\x00\x00\x01x"), b"a retry that is no number"),
        (b"a", raw_amqp.headers(b"\x07privateS\x00\x00\x00\x02no"), b"private that is no boolean"),
        (b"a", raw_amqp.headers(b'\x06topicsS\x00\x00\x00\x05["b"]'), b"topics without the routing key"),
        # For these the library gives up its connection.
        (b"\xff\xfe", nothing, b"a routing key that is not UTF-8"),
        (b"a", raw_amqp.timestamp(2**64 - 1), b"a time far away"),
        (b"a", raw_amqp.message_type(b"\xff"), b"a type that is not UTF-8"),
        (b"a", raw_amqp.headers(BAD_TABLE), b"a header's name that is not UTF-8"),
    ]
    async with RawPublisher(urlsplit(stream.url).port or 0) as publisher:
        for n, (routing_key, properties, body) in enumerate(bad):
            await publisher.publish(name_of(stream), routing_key, properties, body)
            await publisher.publish(name_of(stream), b"a", nothing, b"good %d" % n)
    await tail.until(lambda: len(tail.delivered) == len(bad))
    expected = [f"good {n}" for n in range(len(bad))]
    assert data_of(tail) == expected
    assert tail.broker.is_up
    found = [p.data.decode() for p in await tail.broker.read(0, 100)]
    while len(found) < len(bad):
        after = tail.delivered[len(found) - 1].offset
        page = await tail.broker.read(after, 100)
        assert page
        found += [p.data.decode() for p in page]
    assert found == expected
    await tail.broker.append([event("ours")])
    # And for who comes later.
    tail = await tails.open(broker=open_broker(url))
    assert [p.data.decode() for p in tail.opened.recent] == [*expected, "ours"]


@pytest.mark.gen_test
async def test_what_the_library_cannot_take_apart_is_said_once(
    stream: Engine, tails: Tails, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    expect_log("broker.skipped")
    tail = await tails.open()
    async with RawPublisher(urlsplit(stream.url).port or 0) as publisher:
        for _ in range(3):
            await publisher.publish(name_of(stream), b"\xff", raw_amqp.NOTHING, b"x")
    assert not await tail.broker.reach(10**6)
    await tail.broker.append([event("good")])
    skipped = [record for record in caplog.records if record.getMessage() == "broker.skipped"]
    assert len(skipped) == 1
    assert "can't decode byte 0xff" in vars(skipped[0])["reason"]
    assert [record.name for record in caplog.records if record.levelno >= logging.WARNING] == ["qgstream"]


# The same key again.


@pytest.mark.gen_test
async def test_a_key_is_appended_once_by_all_servers_together(tails: Tails) -> None:
    one, two = await tails.open(), await tails.open()
    brokers = (one.broker, two.broker)
    told = await asyncio.gather(*(broker.append([event(str(n), key="k")]) for n in range(5) for broker in brokers))
    assert len({tuple(offsets) for offsets in told}) == 1
    await one.broker.append([event("end")])
    await two.until(lambda: data_of(two)[-1:] == ["end"])
    assert one.offsets == two.offsets
    assert len(one.delivered) == 2
    # One that was not there when it happened.
    three = await tails.open()
    assert [p.offset for p in three.opened.recent] == one.offsets
    assert list(await three.broker.append([event("again", key="k")])) == list(told[0])
    assert [p.offset for p in await three.broker.read(0, 100)] == one.offsets


@pytest.mark.gen_test
async def test_other_publishers_may_repeat_themselves_too(stream: Engine, tails: Tails) -> None:
    tail = await tails.open()
    now = time.time()

    def keyed(data: str, key: str, at: float | None) -> tuple[str, aio_pika.Message]:
        return "a", aio_pika.Message(data.encode(), headers={"idempotency_key": key}, timestamp=at)

    await publish(
        stream, keyed("1", "k", now - 900), keyed("2", "k", now - 800), keyed("no", "k", now - 700),
        keyed("3", "k", now - 301), keyed("no", "k", now - 2), keyed("4", "other", None), keyed("5", "other", None),
        keyed("end", "end", now),
    )  # fmt: skip
    await tail.until(lambda: data_of(tail)[-1:] == ["end"])
    # Each counts from the one before; what has no time may be any time ago, and is no repetition.
    assert data_of(tail) == ["1", "3", "4", "5", "end"]
    offsets = tail.offsets
    assert [p.offset for p in await tail.broker.read(0, 100)] == offsets
    later = await tails.open()
    assert [p.offset for p in await later.broker.read(offsets[0], 100)] == offsets[1:]
    assert [p.offset for p in await later.broker.read(offsets[1], 100)] == offsets[2:]


@pytest.mark.gen_test
async def test_keys_of_other_publishers_are_their_own(stream: Engine, tails: Tails) -> None:
    one, two = await tails.open(), await tails.open()
    brokers = (one.broker, two.broker)
    ours = parse_json(
        b'{"topic": "a", "data": "ours", "idempotency_key": "k"}', 100, namespace=namespace("application")
    )
    now = int(time.time())

    def keyed(data: str, key: str | None = "k", user: str | None = None) -> tuple[str, aio_pika.Message]:
        return "a", aio_pika.Message(data.encode(), headers={"idempotency_key": key}, timestamp=now, user_id=user)

    # By the text, by the scoped key that anybody can read in the stream, and by one that says who it is.
    scoped_key = ours.idempotency_key
    await publish(stream, keyed("theirs"), keyed("copied", scoped_key), keyed("guest's", user="guest"))
    await publish(stream, keyed("no"), keyed("no", scoped_key), keyed("no", user="guest"))
    for tail in (one, two):
        await tail.until(lambda tail=tail: len(tail.delivered) == 3)  # type: ignore[misc]
    (first,) = await brokers[0].append([ours])
    await two.until(lambda: data_of(two)[-1:] == ["ours"])
    ours.offset = 0
    assert list(await brokers[1].append([ours])) == [first]
    await publish(stream, keyed("no"), keyed("no", scoped_key), keyed("no", user="guest"), keyed("end", "end"))
    for tail in (one, two):
        await tail.until(lambda tail=tail: data_of(tail)[-1:] == ["end"])  # type: ignore[misc]
        assert data_of(tail) == ["theirs", "copied", "guest's", "ours", "end"]
    later = await tails.open()
    assert [p.data for p in later.opened.recent] == [p.data for p in one.delivered]


@pytest.mark.gen_test
@pytest.mark.parametrize("ahead", [-7200, 7200])
async def test_the_time_of_a_foreign_publisher_decides_nothing_for_others(
    stream: Engine, tails: Tails, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    monkeypatch.setattr(rabbitmq, "PAGE_EVENTS", 4)
    tail = await tails.open(HistorySettings(max_age_seconds=3600))
    (keyed,) = await tail.broker.append([event("mine", key="k")])
    for n in range(8):
        await tail.broker.append([event(str(n))])
    await publish(stream, ("a", aio_pika.Message(b"wrong clock", timestamp=int(time.time()) + ahead)))
    await tail.until(lambda: data_of(tail)[-1] == "wrong clock")
    assert tail.delivered[-1].published_at <= time.time()
    await tails.close()
    # Neither the keys nor the window end at that message.
    tail = await tails.open(HistorySettings(max_age_seconds=3600))
    assert len(tail.opened.recent) == 10
    assert list(await tail.broker.append([event("mine", key="k")])) == [keyed]


# What becomes of RabbitMQ.


@pytest.mark.gen_test
async def test_what_is_published_while_it_hangs_comes_once_and_in_order(
    stream: Engine, tails: Tails, rabbitmq_machine: RabbitmqServer, expect_log: ExpectLog
) -> None:
    expect_log("broker.down")
    both = [await tails.open(broker=stream.broker(timeout_seconds=2)) for _ in range(2)]
    acknowledged: list[str] = []
    is_done = False

    async def publish(tail: Tail, name: str) -> None:
        for n in count():
            batch = [event(f"{name}.{n}.{m}") for m in range(1 + 2 * (n % 3 == 0))]
            try:
                await tail.broker.append(batch)
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                acknowledged.extend(publication.data.decode() for publication in batch)
            if is_done:
                return

    publishers = [asyncio.create_task(publish(tail, f"{n}")) for n, tail in enumerate(both * 2)]

    await until(lambda: len(acknowledged) > 50)
    rabbitmq_machine.hang()
    await until(lambda: not any(tail.broker.is_up for tail in both))
    rabbitmq_machine.go_on()
    await until(lambda: all(tail.broker.is_up for tail in both))
    before = len(acknowledged)
    await until(lambda: len(acknowledged) > before + 50)
    is_done = True
    await asyncio.gather(*publishers)
    (end,) = await both[0].broker.append([event("end")])
    for tail in both:
        await tail.until(lambda tail=tail: tail.offsets[-1] == end)  # type: ignore[misc]
        assert tail.lost_at == []
    assert data_of(both[0]) == data_of(both[1])
    assert both[0].offsets == both[1].offsets == sorted(set(both[0].offsets))
    delivered = Counter(data_of(both[0]))
    assert max(delivered.values()) == 1, "an event came twice"
    assert set(acknowledged) <= delivered.keys(), "an acknowledged event is gone"
    assert len(acknowledged) > 100
    found: list[str] = []
    after = 0
    while page := await both[1].broker.read(after, 500):
        found += [publication.data.decode() for publication in page]
        after = page[-1].offset
    assert found == data_of(both[0])


@pytest.mark.gen_test
async def test_an_alarm_refuses_events_and_ends_no_stream(
    stream: Engine, tails: Tails, rabbitmq_machine: RabbitmqServer, expect_log: ExpectLog
) -> None:
    expect_log("broker.down")
    tail = await tails.open()
    await tail.broker.append([event("1")])
    await asyncio.to_thread(rabbitmq_machine.control, "set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        for _ in range(2):
            with pytest.raises(Unavailable, match="short of memory or disk"):
                await tail.broker.append([event("refused")])
        assert not tail.broker.is_up
        assert [p.data for p in await tail.broker.read(0, 1000)][:1] == [b"1"]
    finally:
        await asyncio.to_thread(rabbitmq_machine.control, "set_vm_memory_high_watermark", "absolute", "1GB")
    await until(lambda: tail.broker.is_up)
    await tail.broker.append([event("2")])
    # What was refused may have been on its way: nobody was told that it is there.
    assert data_of(tail) in (["1", "2"], ["1", "refused", "2"])


# What becomes of a stream.


@pytest.mark.gen_test
async def test_servers_that_make_a_stream_at_once_agree_on_its_epoch(tails: Tails) -> None:
    opened = await asyncio.gather(*(tails.open() for _ in range(4)))
    assert len({tail.opened.position.epoch for tail in opened}) == 1
    await opened[0].broker.append([event("1")])
    for tail in opened:
        await tail.until(lambda tail=tail: data_of(tail) == ["1"])  # type: ignore[misc]
        assert tail.lost_at == []


@pytest.mark.gen_test
@pytest.mark.parametrize("ended", [1, 2])
async def test_a_connection_that_ends_while_the_stream_is_declared(
    tails: Tails, monkeypatch: pytest.MonkeyPatch, ended: int
) -> None:
    """As RabbitMQ's INTERNAL_ERROR ends it, when several servers declare one stream."""
    see_to_the_stream = rabbitmq.RabbitmqBroker._see_to_the_stream
    links: list[Link] = []

    async def cut(self: rabbitmq.RabbitmqBroker, link: Link) -> None:
        links.append(link)
        if len(links) <= ended:
            await link.close()
        await see_to_the_stream(self, link)

    monkeypatch.setattr(rabbitmq.RabbitmqBroker, "_see_to_the_stream", cut)
    tail = await tails.open()
    await tail.broker.append([event("1")])
    assert len(set(links)) == ended + 1


@pytest.mark.gen_test
@pytest.mark.parametrize("refused", [1, 2, 1000])
async def test_a_stream_whose_replica_is_not_there_yet(
    tails: Tails, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """As RabbitMQ has it for a moment, when another server has just declared the stream; or for ever in a cluster."""
    begin, begun = Reader.begin, 0

    async def refuse(self: Reader, stream: str, start: int | str) -> None:
        nonlocal begun
        begun += 1
        if begun <= refused:
            await self.channel.close()
            raise ChannelPreconditionFailed("does not have a replica on the local node")
        await begin(self, stream, start)

    monkeypatch.setattr(Reader, "begin", refuse)
    if refused < 10:
        tail = await tails.open()
        await tail.broker.append([event("1")])
        assert data_of(tail) == ["1"]
    else:
        with pytest.raises(Unavailable, match="does not have a replica on the local node"):
            await tails.open()


@pytest.mark.gen_test
async def test_a_pulse_in_the_middle_of_an_acknowledgement_loses_no_message(
    tails: Tails, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tail asks for a sign of life when it has waited for some time. On a busy machine that may be at any moment."""
    acknowledge, slow = Channel.basic_ack, 5

    async def hesitate(self: Channel, *args: Any, **options: Any) -> None:
        nonlocal slow
        if slow:
            slow -= 1
            await asyncio.Event().wait()
        await acknowledge(self, *args, **options)

    tail = await tails.open()
    cast(RabbitmqBroker, tail.broker).pulse_seconds = 0.05
    await tail.broker.append([event("0")])  # from here on the tail waits so long
    monkeypatch.setattr(Channel, "basic_ack", hesitate)
    await tail.broker.append([event("1")])
    await tail.broker.append([event("2")])
    assert data_of(tail) == ["0", "1", "2"]
    assert not slow


@pytest.mark.gen_test
async def test_a_stream_that_is_deleted_is_another_one(stream: Engine, tails: Tails) -> None:
    one, two = await tails.open(), await tails.open()
    await one.broker.append([event("1"), event("2")])
    await two.until(lambda: len(two.delivered) == 2)
    async with channel_to(stream.url) as channel:
        await channel.queue_delete(name_of(stream))
    for tail in (one, two):
        await tail.until(lambda tail=tail: bool(tail.lost_at))  # type: ignore[misc]
    ((position, reason),) = one.lost_at
    assert reason == "epoch_changed"
    assert position.epoch != one.opened.position.epoch
    assert [at.epoch for at, _ in two.lost_at] == [position.epoch]
    await until(lambda: one.broker.is_up)
    (offset,) = await one.broker.append([event("3")])
    await two.until(lambda: data_of(two)[-1:] == ["3"])
    assert data_of(one) == data_of(two) == ["1", "2", "3"]
    three = await tails.open()
    assert three.opened.position.epoch == position.epoch
    assert [p.offset for p in three.opened.recent] == [offset]


@pytest.mark.gen_test
async def test_its_epoch_outlives_its_beginning(stream: Engine, tails: Tails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq, "MARK_EVENTS", 20)
    assert stream.shorter_url is not None
    one = await tails.open(broker=open_broker(stream.shorter_url))
    two = await tails.open()
    for _ in range(12):
        await one.broker.append([event("x" * 1000) for _ in range(60)])
    await tails.close()
    three = await tails.open()
    assert three.opened.position.epoch == one.opened.position.epoch == two.opened.position.epoch
    assert three.opened.forgotten > 0
    assert 0 < len(three.opened.recent) < 720
    marks = [
        entry.slip.seen
        for entry in await cast(RabbitmqBroker, three.broker)._stretch(
            three.opened.forgotten, three.opened.position.offset
        )
        if entry.slip is not None and entry.slip.kind == "is"
    ]
    # Two servers, and about as many marks as one alone would write.
    assert 0 < len(marks) < 40


@pytest.mark.gen_test
async def test_ids_from_the_future_write_nothing(stream: Engine, tmp_path: Path, tails: Tails) -> None:
    """Also not through a server, for clients without credentials. The history stays where it is."""
    reader = await tails.open()
    broker = cast(RabbitmqBroker, reader.broker)
    server = await asyncio.to_thread(ServerProcess, tmp_path, broker__url=stream.url)
    with server:
        (offset,) = await broker.append([event("first")])

        def ask(number: int) -> bytes:
            future = f"{reader.opened.position.epoch}-{offset + 1000 + number}"
            with closing(RawClient(server.port)) as client:
                return client.get("/events", f"Last-Event-ID: {future}").until(b'"unknown_id"')

        # The server has seen all: what it wrote when it began to follow the stream does not count.
        with closing(RawClient(server.port)) as client:
            ours = f"{reader.opened.position.epoch}-{offset}"
            await asyncio.to_thread(client.get("/events", f"Last-Event-ID: {ours}").until, b'"replay": "complete"')
        before = await broker._end()
        for number in range(100):
            assert await asyncio.to_thread(ask, number)
        # Between the two there is the mark that found out the first.
        assert await broker._end() == before + 1


@pytest.mark.gen_test
async def test_an_id_that_another_server_gave_out_a_moment_ago_is_known(tails: Tails) -> None:
    """The engine is asked for its end, whatever the last chunk of the stream is, and nothing is written for that."""
    one, two = await tails.open(), await tails.open()
    broker = cast(RabbitmqBroker, two.broker)
    for number in (1, 2, 5, 300, 1, 700, 1):  # also more than is sent ahead
        offsets = await one.broker.append([event("x" * 500) for _ in range(number)])
        assert offsets[-1] <= await broker._newest() < offsets[-1] + 10  # a mark may follow
        assert all(await asyncio.gather(*(broker.reach(offset) for offset in offsets)))
        assert data_of(two) == data_of(one)
        assert not await broker.reach(offsets[-1] + 10_000)  # nearer there may be a mark


async def write(stream: Engine, *slips: Slip) -> None:
    """What servers say to each other, said by none of those under test."""
    async with channel_to(stream.url) as channel:
        for slip in slips:
            message = aio_pika.Message(b"", headers=slip.headers(), user_id="guest")
            await channel.default_exchange.publish(message, name_of(stream))


@pytest.mark.gen_test
async def test_a_mark_of_an_earlier_log_is_not_believed(stream: Engine, tails: Tails) -> None:
    tail = await tails.open()
    await write(
        stream,
        Slip("is", "1", seen=10**6, epoch="another"),
        Slip("set", "2", epoch="another", instead_of="yetanother"),
        Slip("set", "3", epoch="another"),
    )
    await tail.broker.append([event("1")])
    assert tail.lost_at == []
    later = await tails.open()
    assert later.opened.position.epoch == tail.opened.position.epoch


@pytest.fixture
def stranger(stream: Engine, rabbitmq_machine: RabbitmqServer) -> str:
    """The URL of a user of RabbitMQ that may publish to the exchange, and do nothing else."""
    user, exchange = f"stranger-{name_of(stream)}", name_of(stream)
    rabbitmq_machine.add_user(user, configure="", write=f"^{exchange}$", read="")
    return f"amqp://{user}:password@127.0.0.1:{rabbitmq_machine.port}"


@pytest.mark.gen_test
async def test_a_publisher_cannot_speak_for_a_server(
    stream: Engine, stranger: str, tails: Tails, expect_log: ExpectLog
) -> None:
    expect_log("broker.skipped")
    one, two = await tails.open(), await tails.open()
    epoch = one.opened.position.epoch
    (first,) = await one.broker.append([event("first", key="known")])
    forged = [
        Slip("set", "1", epoch="forged", instead_of=epoch),
        Slip("is", "2", seen=first, epoch="forged"),
        Slip("end", "3"),
        # As if it had seen nothing, so that the key of an earlier event would be repeated; and of a time to come.
        Slip("event", "4", seen=0, at=time.time() + 7200),
    ]
    async with channel_to(stranger) as channel:
        exchange = await channel.get_exchange(name_of(stream), ensure=False)
        for slip in forged:
            headers = slip.headers() | {"idempotency_key": "known"}
            message = aio_pika.Message(b"of a stranger", headers=headers, timestamp=time.time())
            await exchange.publish(message, "a")
        await exchange.publish(aio_pika.Message(b"keyed", headers={"idempotency_key": "next"}, timestamp=1), "a")
    # RabbitMQ refuses another user's name, and what goes past the exchange, as the marks of servers do.
    for headers, user, past in ((forged[0].headers(), "guest", False), ({}, None, True)):
        async with channel_to(stranger) as channel:
            place = channel.default_exchange if past else await channel.get_exchange(name_of(stream), ensure=False)
            with pytest.raises((ChannelPreconditionFailed, ChannelAccessRefused)):
                await place.publish(aio_pika.Message(b"", headers=headers, user_id=user), name_of(stream))
    # Neither was a key of a server used up, nor one that is known forgotten.
    (offset,) = await one.broker.append([event("last", key="next")])
    assert list(await two.broker.append([event("again", key="known")])) == [first]
    await two.until(lambda: data_of(two)[-1:] == ["last"])
    for tail in (one, two):
        assert data_of(tail) == ["first", "of a stranger", "keyed", "last"]
        assert all(publication.published_at <= time.time() for publication in tail.delivered)
        assert tail.lost_at == []
    later = await tails.open()
    assert later.opened.position.epoch == epoch
    assert later.opened.recent[-1].offset == offset


@pytest.mark.gen_test
async def test_servers_with_different_users_name_each_other(
    stream: Engine, tails: Tails, rabbitmq_machine: RabbitmqServer
) -> None:
    user = f"other-{name_of(stream)}"
    rabbitmq_machine.add_user(user, configure=".*", write=".*", read=".*")
    others = stream.url.replace("amqp://", f"amqp://{user}:password@")
    try:
        one = await tails.open(broker=open_broker(f"{stream.url}&users=somebody,%20{user}"))
        two = await tails.open(broker=open_broker(f"{others}&users=guest"))
        told = await asyncio.gather(
            *(tail.broker.append([event(str(n), key="k")]) for n, tail in enumerate((one, two)))
        )
        assert len({tuple(offsets) for offsets in told}) == 1
        assert one.opened.position.epoch == two.opened.position.epoch
        await two.until(lambda: len(two.delivered) == 1)
        assert one.offsets == two.offsets
    finally:
        await tails.close()


@pytest.mark.gen_test
async def test_a_server_that_may_not_leave_a_witness_says_so(
    stream: Engine, tails: Tails, rabbitmq_machine: RabbitmqServer, expect_log: ExpectLog
) -> None:
    expect_log("broker.unsafe")
    user, name = f"server-{name_of(stream)}", name_of(stream)
    rabbitmq_machine.add_user(user, configure=f"^{name}$", write=f"^({name}|amq.default)$", read=f"^{name}$")
    url = stream.url.replace("amqp://", f"amqp://{user}:password@")
    try:
        tail = await tails.open(broker=open_broker(url))
        await tail.broker.append([event("1")])
        await tails.close()
        # What it signed is good all the same.
        later = await tails.open(broker=open_broker(url))
        assert tail.opened.position.epoch in later.opened.earlier
        assert later.opened.earlier[tail.opened.position.epoch] >= tail.offsets[-1]
    finally:
        await tails.close()


@pytest.mark.gen_test
async def test_only_what_the_last_server_wrote_last_is_a_signature(stream: Engine, tails: Tails) -> None:
    tail = await tails.open()
    epoch, _ = tail.opened.position
    (offset,) = await tail.broker.append([event("1")])
    await tails.close()

    async def ended() -> int | None:
        broker = cast(RabbitmqBroker, stream.broker())
        await broker.connect()
        standing = await broker.standing()
        await broker.disconnect()
        assert standing.epoch == epoch
        return standing.ended

    signed = await ended()
    assert signed is not None
    assert signed > offset
    # What other publishers send changes nothing of that.
    await publish(stream, ("a", aio_pika.Message(b"2")))
    assert await ended() == signed
    await write(stream, Slip("is", "1", seen=signed, epoch=epoch))
    assert await ended() is None
    await write(stream, Slip("bye", "2", seen=signed, epoch=epoch))
    again = await ended()
    assert again is not None
    assert again > signed
    # A server that has published since has not stopped, or not as it should.
    message = aio_pika.Message(b"3", headers=Slip("event", "3", seen=again).headers(), user_id="guest")
    await publish(stream, ("a", message))
    assert await ended() is None
    # One that goes on says so, also when nothing is published.
    await tails.open()
    await (await tails.open()).broker.close()
    async with asyncio.timeout(60):
        while await ended() is not None:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.05)


@pytest.mark.gen_test
async def test_a_signature_is_taken_back_by_hand(stream: Engine, tails: Tails) -> None:
    """As docs/brokers.md says, after an older copy was put back."""
    await tails.open()
    await tails.close()
    broker = cast(RabbitmqBroker, (await tails.open()).broker)
    epoch = broker.epoch
    await tails.close()
    text = (Path(__file__).parents[2] / "docs/brokers.md").read_text()
    (document,) = re.findall(r"properties='(.*?)'", text)
    properties = json.loads(document)
    async with channel_to(stream.url) as channel:
        message = aio_pika.Message(b"", headers=properties["headers"], user_id=properties["user_id"])
        await channel.default_exchange.publish(message, name_of(stream))
    tail = await tails.open()
    standing = await cast(RabbitmqBroker, tail.broker).standing()
    assert (standing.epoch, standing.ended, list(tail.opened.recent)) == (epoch, None, [])


@pytest.mark.gen_test
async def test_a_new_epoch_is_not_taken_back_by_who_has_not_seen_it(stream: Engine, tails: Tails) -> None:
    one, two = await tails.open(), await tails.open()
    epoch, newest = one.opened.position
    await write(
        stream,
        Slip("set", "1", epoch="new", instead_of=epoch),
        Slip("set", "2", epoch="late", instead_of=epoch),
        Slip("is", "3", seen=newest, epoch=epoch),
    )
    for tail in (one, two):
        await tail.until(lambda tail=tail: bool(tail.lost_at))  # type: ignore[misc]
    assert {(at.epoch, reason) for tail in (one, two) for at, reason in tail.lost_at} == {("new", "epoch_changed")}
    await until(lambda: one.broker.is_up and two.broker.is_up)
    await one.broker.append([event("1")])
    await two.until(lambda: data_of(two) == ["1"])
    assert (await tails.open()).opened.position.epoch == "new"


@pytest.mark.gen_test
async def test_a_log_that_went_back_in_time_gets_another_epoch(
    stream: Engine, tails: Tails, expect_log: ExpectLog
) -> None:
    expect_log("broker.down")
    tail = await tails.open()
    await tail.broker.append([event("1")])
    broker = cast(RabbitmqBroker, tail.broker)
    await until(lambda: broker._print is not None and broker._print[0] == broker.newest)
    assert await broker.has(broker.newest)
    # As after a power cut, in which RabbitMQ lost what it had not written down: others are in its place.
    assert broker._print is not None
    broker._print = broker._print[0], 0
    assert broker._tail is not None
    await broker._tail.close()
    await tail.until(lambda: bool(tail.lost_at))
    ((position, reason),) = tail.lost_at
    assert (position.epoch != tail.opened.position.epoch, reason) == (True, "epoch_changed")
    assert (await tails.open()).opened.position.epoch == position.epoch


@pytest.mark.gen_test
async def test_an_exchange_that_is_deleted_is_made_again(stream: Engine, tails: Tails) -> None:
    tail = await tails.open()
    async with channel_to(stream.url) as channel:
        for batch in ([event("1")], [event("1"), event("2")]):
            await channel.exchange_delete(name_of(stream))
            with pytest.raises(Unavailable, match="no exchange 'tests-"):
                await tail.broker.append(batch)
            await tail.broker.append(batch)
    assert data_of(tail) == ["1", "1", "2"]


@pytest.mark.parametrize(
    ("reason", "told"),
    [(ChannelNotFoundEntity("no exchange 'a'"), ChannelNotFoundEntity), (ConnectionError("lost"), ConnectionError)],
)
@pytest.mark.gen_test
async def test_why_a_channel_was_closed_may_come_a_moment_later(reason: Exception, told: type[Exception]) -> None:
    """Nobody can make aiormq be in the middle of it: this is what it says then."""
    closing = asyncio.get_running_loop().create_future()

    async def question() -> None:
        asyncio.get_running_loop().call_later(0.01, closing.set_exception, reason)
        raise ChannelInvalidStateError("Channel closed by RPC timeout")

    with pytest.raises(told):
        await rabbitmq_outbox._answered_on(cast(Channel, SimpleNamespace(closing=closing)), question())


@pytest.mark.gen_test
async def test_a_queue_that_is_no_stream_is_refused(stream: Engine, tails: Tails) -> None:
    async with channel_to(stream.url) as channel:
        queue = await channel.declare_queue(name_of(stream), durable=True)
        await channel.default_exchange.publish(aio_pika.Message(b"x"), name_of(stream))
        with pytest.raises(Unavailable, match="rabbit_classic_queue"):
            await tails.open()
        message = await queue.get()
        assert message.body == b"x"
        await message.ack()
        await queue.delete()
        exchange = await channel.declare_exchange("direct-" + name_of(stream), "direct", durable=True)
        url = stream.url.replace("exchange=", "exchange=direct-")
        with pytest.raises(Unavailable, match="exists and is not a topic exchange"):
            await tails.open(broker=open_broker(url))
        await exchange.delete()


@pytest.mark.gen_test
async def test_credentials_are_in_no_error_and_no_log(
    rabbitmq_machine: RabbitmqServer, tails: Tails, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for url in (
        f"amqp://guest:hunter%212@127.0.0.1:{rabbitmq_machine.port}",
        "amqp://guest:hunter%212@127.0.0.1:1",
        f"amqp://guest:guest@127.0.0.1:{rabbitmq_machine.port}/nowhere",
    ):
        with pytest.raises(Unavailable) as raised:
            await tails.open(broker=open_broker(url))
        said = str(raised.value) + "".join(str(vars(record)) for record in caplog.records if record.name == "qgstream")
        assert "hunter" not in said
        assert "127.0.0.1" in str(raised.value)


@pytest.mark.gen_test
async def test_it_speaks_tls_with_those_it_knows(
    stream: Engine, tails: Tails, rabbitmq_machine: RabbitmqServer, expect_log: ExpectLog
) -> None:
    expect_log("returning true from eof_received", logger="asyncio", required=False)  # asyncio's word on any end of TLS
    query = urlsplit(stream.url).query
    url = f"amqps://guest:guest@localhost:{rabbitmq_machine.tls_port}/%2F?{query}"
    tail = await tails.open(broker=open_broker(f"{url}&cafile={rabbitmq_machine.certificate}"))
    await tail.broker.append([event("1")])
    assert data_of(tail) == ["1"]
    with pytest.raises(Unavailable, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
        await tails.open(broker=open_broker(url))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("amqp://", "got the host '', expected amqp://host"),
        ("amqp://h?streem=a", "got the option 'streem', expected one of cafile, certfile, keyfile, stream, exchange"),
        ("amqp://h?max_bytes=0", "max_bytes: got '0'"),
        ("amqp://h?stream=", "stream: got ''"),
        ("amqp://h?exchange=" + "%E6%9D%B1" * 100, "exchange: got 300 bytes, expected at most 255"),
        ("amqp://h?cafile=/x", "got certificates for amqp://, expected amqps://"),
        ("amqps://user:secret@h?cafile=/nonexistent", "the certificates cannot be used"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        open_broker(url)
    assert f"broker.url: {said}" in str(raised.value)
    assert "secret" not in str(raised.value)
