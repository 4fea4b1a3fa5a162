"""What an engine can never take is its publisher's own error: other publishers notice nothing, `/ready` stays ready."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import nats
import pytest
from redis.asyncio import Redis
from tornado.httpclient import HTTPResponse

from qgstream.brokers.base import open_broker
from qgstream.brokers.nats import broker as nats_module
from qgstream.brokers.rabbitmq import outbox as rabbitmq_outbox
from qgstream.brokers.remote import Remote
from qgstream.errors import BadRequest, TooLarge
from qgstream.events.publication import Publication
from qgstream.events.topics import MAX_TOPIC_CHARACTERS
from qgstream.limits import MIB, LimitSettings
from tests.brokers import engines
from tests.brokers.engines import Engine
from tests.brokers.machines import Machine
from tests.brokers.rabbitmq_server import RabbitmqServer
from tests.brokers.serving import Served
from tests.http.asking import Client, document, error_of

LARGE = LimitSettings(max_event_bytes=64 * MIB, max_body_bytes=128 * MIB)


@asynccontextmanager
async def others(client: Client) -> AsyncIterator[None]:
    """Other publishers, all the time, who must notice nothing."""
    done = asyncio.Event()

    async def publish(n: int) -> None:
        while not done.is_set():
            answer = await client.post({"topic": "others", "data": n})
            assert answer.code == 200, answer.body
            assert client.hub.broker.is_up
            assert (await client.ask("GET", "/ready")).code == 200

    async with asyncio.TaskGroup() as group:
        for n in range(3):
            group.create_task(publish(n))
        try:
            yield
        finally:
            done.set()


def large(size: int) -> dict[str, object]:
    return {"topic": "t", "data": "x" * size}


def check_too_large(answer: HTTPResponse, limit: int) -> None:
    error = error_of(answer)
    assert (answer.code, error["code"]) == (413, "too_large"), error
    assert str(limit) in error["message"]


# Batches.


def batch(events: int, topics: int) -> list[Publication]:
    names = tuple(f"t{n}" for n in range(topics))
    return [Publication(names, b"1") for _ in range(events)]


@pytest.mark.gen_test
async def test_the_largest_batch_is_taken_and_one_more_is_refused(engine: Engine, remote: object) -> None:
    broker = cast(Remote, open_broker(engine.url, timeout_seconds=60))
    events = broker.max_batch_events
    topics = min(64, broker.max_batch_topics // events)
    async with Served(broker):
        for too_many, got in (
            (batch(events + 1, 1), f"{events + 1} events, expected at most {events}"),
            (batch(events, topics + 1), f"{events * (topics + 1)} topics"),
        ):
            if len(too_many[0].topics) <= 64:
                with pytest.raises(BadRequest, match=f"got a batch with {got}") as refused:
                    await broker.append(too_many)
                assert (refused.value.status, refused.value.code) == (400, "too_many_events")
        assert await broker.read(0, 1) == (), "something was sent"
        found = await broker.append(batch(events, topics))
        assert len(set(found)) == events
        assert broker.newest >= found[-1]


@pytest.mark.gen_test
async def test_a_batch_that_redis_could_not_give_back_in_time_is_refused(
    redis_machine: Machine, redis_engine: Engine
) -> None:
    """10 000 events of 64 topics were "silent for 5 s", and stored all the same."""
    line = json.dumps({"topic": [f"t{n}" for n in range(64)], "data": 1}).encode() + b"\n"
    async with Served(redis_engine.broker(), limits=LARGE) as client, others(client):
        answer = await client.post(line * 10_000, media_type="application/x-ndjson")
        assert (answer.code, error_of(answer)["code"]) == (400, "too_many_events")
        assert (
            "got a batch with 640000 topics of all its events, expected at most 100000" in error_of(answer)["message"]
        )
        answer = await client.post(line * 1000, media_type="application/x-ndjson")
        assert len(document(answer)["ids"]) == 1000


# Redis.


@pytest.fixture
def redis_engine(request: pytest.FixtureRequest) -> Engine:
    return engines.redis(request)


@pytest.mark.gen_test
async def test_a_value_that_redis_does_not_take(redis_machine: Machine, redis_engine: Engine) -> None:
    admin = Redis(port=redis_machine.port)
    before = str((await admin.config_get("proto-max-bulk-len"))["proto-max-bulk-len"])
    try:
        await admin.config_set("proto-max-bulk-len", 2 * MIB)
        async with Served(redis_engine.broker(), limits=LARGE) as client, others(client):
            check_too_large(await client.post(large(3 * MIB)), 2 * MIB)
            assert (await client.post(large(MIB))).code == 200
            broker: Any = client.hub.broker
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(broker, "_call", None)  # what is known to be too large is not sent
                with pytest.raises(TooLarge):
                    await broker.send([Publication(("t",), b"x" * 3 * MIB)])
            # A bound that was lowered behind our back is learnt from the refusal, with which Redis ends the connection.
            await admin.config_set("proto-max-bulk-len", MIB)
            check_too_large(await client.post(large(MIB + MIB // 2)), MIB)
            assert (await client.post(large(MIB // 2))).code == 200
    finally:
        await admin.config_set("proto-max-bulk-len", before)
        await admin.aclose()


# NATS.


@pytest.fixture
def nats_engine(request: pytest.FixtureRequest) -> Engine:
    return engines.nats(request)


@pytest.mark.gen_test
async def test_a_message_that_the_stream_in_nats_does_not_take(nats_machine: Machine, nats_engine: Engine) -> None:
    prefix = parse_qs(urlsplit(nats_engine.url).query)["prefix"][0]
    admin = await nats.connect(f"nats://127.0.0.1:{nats_machine.port}")
    manager = admin.jsm()
    await manager.add_stream(name=prefix, subjects=[f"{prefix}.>"], max_msg_size=5000)
    async with Served(nats_engine.broker(), limits=LARGE) as client, others(client):
        check_too_large(await client.post(large(6000)), 5000)
        check_too_large(await client.post(large(2 * MIB)), MIB)
        # Nothing of a batch is stored when one of its events is too large.
        lines = b'{"topic": "batch", "data": 1}\n' + json.dumps(large(6000)).encode()
        check_too_large(await client.post(lines, media_type="application/x-ndjson"), 5000)
        # Headers have a bound of their own.
        topics = [f"{n:02}" + "€" * (MAX_TOPIC_CHARACTERS - 2) for n in range(64)]
        check_too_large(await client.post({"topic": topics, "data": 1}), 65535)
        assert (await client.post(large(4000))).code == 200
        # A bound that was lowered behind our back is learnt from the refusal.
        await manager.update_stream(name=prefix, subjects=[f"{prefix}.>"], max_msg_size=3000)
        check_too_large(await client.post(large(4000)), 3000)
        check_too_large(await client.post(lines, media_type="application/x-ndjson"), 3000)
        await manager.update_stream(name=prefix, subjects=[f"{prefix}.>"], max_msg_size=1000)
        two = json.dumps({"topic": "t", "data": 1}).encode() + b"\n" + json.dumps(large(2000)).encode()
        answer = await client.post(two, media_type="application/x-ndjson")
        assert (answer.code, error_of(answer)["code"]) == (503, "broker_down"), "the first of them is stored"
        check_too_large(await client.post(two, media_type="application/x-ndjson"), 1000)
        page = await client.hub.broker.read(0, 10_000)
        assert not [p for p in page if p.topics == ("batch",)]
    await admin.close()


@pytest.mark.gen_test
async def test_a_large_batch_goes_to_nats_in_parts_and_in_order(
    nats_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_module, "MAX_IN_FLIGHT", 10)
    async with Served(nats_engine.broker()) as client:
        broker: Any = client.hub.broker
        post, waiting, most = broker._post, broker._answers, 0

        async def counted(*arguments: Any) -> Any:
            nonlocal most
            answer = await post(*arguments)
            most = max(most, sum(not a.done() for a in waiting.values()))
            return answer

        broker._post = counted
        receipt = await client.hub.publish_all([Publication(("t",), str(n).encode()) for n in range(95)])
        assert [int(p.data) for p in await broker.read(0, 100)] == list(range(95))
        assert list(receipt.ids) == sorted(receipt.ids, key=lambda id: int(id.rpartition("-")[2]))
        assert most < 20


# RabbitMQ.


@pytest.fixture
def rabbitmq_engine(request: pytest.FixtureRequest) -> Engine:
    return engines.rabbitmq(request)


@pytest.fixture
def rabbitmq_with(rabbitmq_machine: RabbitmqServer) -> Iterator[Callable[[str, int], Awaitable[None]]]:
    """Sets what its configuration may say, until the test is over."""
    defaults = {"max_message_size": 134217728, "frame_max": 131072}

    def put(name: str, value: int) -> None:
        rabbitmq_machine.control("eval", f"application:set_env(rabbit, {name}, {value}).")

    changed: list[str] = []

    async def change(name: str, value: int) -> None:
        changed.append(name)
        await asyncio.to_thread(put, name, value)

    yield change
    for name in changed:
        put(name, defaults[name])


@pytest.mark.gen_test
async def test_a_message_that_rabbitmq_does_not_take(
    rabbitmq_engine: Engine, rabbitmq_with: Callable[[str, int], Awaitable[None]]
) -> None:
    await rabbitmq_with("max_message_size", 2 * MIB)
    async with Served(rabbitmq_engine.broker(), limits=LARGE) as client, others(client):
        for _ in range(2):  # it is learnt from the first refusal
            check_too_large(await client.post(large(3 * MIB)), 2 * MIB)
            lines = b'{"topic": "batch", "data": 1}\n' + json.dumps(large(3 * MIB)).encode()
            check_too_large(await client.post(lines, media_type="application/x-ndjson"), 2 * MIB)
        assert (await client.post(large(MIB + MIB // 2))).code == 200
        assert not [p for p in await client.hub.broker.read(0, 10_000) if p.topics == ("batch",)]


@pytest.mark.gen_test
async def test_a_small_bound_of_rabbitmqs_is_the_publishers_affair_too(
    rabbitmq_engine: Engine, rabbitmq_with: Callable[[str, int], Awaitable[None]]
) -> None:
    await rabbitmq_with("max_message_size", 10_000)
    assert rabbitmq_outbox.LARGE_BYTES > 20_000, "it must go over the channel that all use"
    async with Served(rabbitmq_engine.broker(), limits=LARGE) as client:
        for _ in range(2):
            check_too_large(await client.post(large(20_000)), 10_000)
            assert client.hub.broker.is_up
        async with others(client):
            check_too_large(await client.post(large(20_000)), 10_000)
            assert (await client.post(large(5000))).code == 200


@pytest.mark.gen_test
async def test_a_channel_takes_only_those_with_it_that_went_over_it() -> None:
    outbox = rabbitmq_outbox.Outbox("x", "server", str)
    loop = asyncio.get_running_loop()
    plain, batched, closing = loop.create_future(), loop.create_future(), loop.create_future()
    outbox._sent = {"plain": plain, "batched": batched}
    outbox._on_plain = {"plain"}
    closing.set_exception(ConnectionError("closed"))
    outbox._refused(closing)
    assert (plain.done(), batched.done()) == (True, False)


@pytest.mark.gen_test
async def test_topics_that_fit_no_frame_of_rabbitmqs(
    rabbitmq_engine: Engine, rabbitmq_with: Callable[[str, int], Awaitable[None]]
) -> None:
    await rabbitmq_with("frame_max", 8192)
    async with Served(rabbitmq_engine.broker(), limits=LARGE) as client, others(client):
        topics = [f"{n:02}" + "x" * (MAX_TOPIC_CHARACTERS - 2) for n in range(64)]
        check_too_large(await client.post({"topic": topics, "data": 1}), 8192)
        assert (await client.post({"topic": topics[:10], "data": "x" * 100_000})).code == 200
        assert (await client.post({"topic": "x" * 256, "data": 1, "event": "€" * 256})).code == 200
