"""What streams and publishers see when the engine on the other side of the network hangs, dies and comes back."""

from __future__ import annotations

import asyncio
import json

import pytest

from qgstream.backoff import Backoff
from qgstream.brokers.base import Broker
from qgstream.brokers.remote import Remote
from qgstream.service.heartbeat import HeartbeatSettings
from qgstream.wire.sse import Event
from tests.brokers.engines import Engine
from tests.brokers.machines import Machine
from tests.brokers.serving import Served, open_stream, take
from tests.conftest import ExpectLog
from tests.http.asking import Client, Stream, error_of

# How long a broker waits before it takes its engine for away: on a busy machine an answer may take seconds.
PATIENCE_SECONDS = 5.0


def patient(engine: Engine) -> Broker:
    """A broker that comes back soon after its engine."""
    broker = engine.broker(timeout_seconds=PATIENCE_SECONDS)
    assert isinstance(broker, Remote)
    broker._backoff = Backoff(limit_seconds=0.3)
    return broker


async def publish(client: Client, data: str) -> str:
    """The id of an event that is acknowledged."""
    return str((await client.publish("a", data))["id"])


async def take_until(stream: Stream, id: str) -> list[Event]:
    """The next published events, up to the one with this id."""
    found = await take(stream, 1)
    while found[-1].id != id:
        found += await take(stream, 1)
    return found


READY = (200, {"status": "ready"})
DEGRADED = (200, {"status": "degraded", "reason": "broker_down"})


async def until_ready(client: Client, expected: tuple[int, dict[str, str]]) -> None:
    async def ready() -> tuple[int, dict[str, str]]:
        answer = await client.ask("GET", "/ready")
        return answer.code, json.loads(answer.body)

    while await ready() != expected:  # noqa: ASYNC110  # it tells nobody
        await asyncio.sleep(0.02)


async def heartbeat(stream: Stream) -> None:
    while '"event": "heartbeat"' not in (await stream.next()).data:
        pass


async def is_away(client: Client, quiet: Stream) -> None:
    """What holds while the engine is: publishers, balancers and metrics are told, streams stay."""
    answer = await client.post({"topic": "a", "data": "perhaps"})
    assert (answer.code, error_of(answer)["code"]) == (503, "broker_down")
    assert int(answer.headers["Retry-After"]) >= 1
    await until_ready(client, DEGRADED)
    assert (await client.ask("GET", "/health")).code == 200
    assert b"qgstream_broker_up 0.0" in (await client.ask("GET", "/metrics")).body
    await heartbeat(quiet)
    new, replay, _ = await open_stream(client, "a")
    assert replay == "none"
    new.close()


@pytest.mark.gen_test
async def test_an_engine_that_hangs_is_told_and_waited_for(
    engine: Engine, remote: Machine, expect_log: ExpectLog
) -> None:
    expect_log("broker.down")
    async with Served(patient(engine)) as client:
        client.service.wheel.settings = HeartbeatSettings(interval_seconds=0.1)
        (quiet, _, _), (stream, _, _) = await open_stream(client, "quiet"), await open_stream(client, "a")
        ids = [await publish(client, "before")]
        remote.hang()
        await is_away(client, quiet)
        remote.go_on()
        await until_ready(client, READY)
        ids.append(await publish(client, "after"))
        events = await take_until(stream, ids[-1])
        # What was answered 503 may be in the log all the same, and then it is there once.
        assert [event.data for event in events] in (["before", "after"], ["before", "perhaps", "after"])
        resumed, replay, _ = await open_stream(client, "a", id=ids[0])
        assert replay == "complete"
        again = await take_until(resumed, ids[-1])
        # Each stream has a reconnection time of its own.
        assert [(event.id, event.data) for event in again] == [(event.id, event.data) for event in events[1:]]


@pytest.mark.gen_test
async def test_what_others_publish_while_it_is_away_follows_in_order(
    engine: Engine, remote: Machine, expect_log: ExpectLog
) -> None:
    expect_log("broker.down")
    async with Served(patient(engine)) as client:
        client.service.wheel.settings = HeartbeatSettings(interval_seconds=0.1)
        quiet, _, _ = await open_stream(client, "quiet")
        streams = [(await open_stream(client, *topics))[0] for topics in ((), ("a",), ("a", "b"))]
        ids = [await publish(client, str(n)) for n in range(3)]
        for _ in range(2):
            await asyncio.to_thread(remote.kill)
            await is_away(client, quiet)
            await asyncio.to_thread(remote.start)
            async with Served(patient(engine)) as other:
                ids += [await publish(other, str(n)) for n in range(len(ids), len(ids) + 20)]
            await until_ready(client, READY)
            ids.append(await publish(client, str(len(ids))))
        for stream in streams:
            events = await take(stream, len(ids))
            assert [event.data for event in events] == [str(n) for n in range(len(ids))]
            assert [event.id for event in events] == ids
