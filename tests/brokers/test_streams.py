"""Streams on each engine: who comes back gets everything once, or is told that it cannot be had."""

from __future__ import annotations

import asyncio
import json

import pytest

from qgstream.brokers.base import open_broker
from qgstream.events.history import HistorySettings, TopicHistory
from tests.brokers.engines import Engine
from tests.brokers.serving import Served, open_stream, take
from tests.http.asking import Client, until

# Some of the log fits into it; the rest is the broker's.
SMALL = HistorySettings(max_events=100)


async def publish(client: Client, first: int, count: int, topic: str = "a") -> list[str]:
    """Events with the data "first", "first + 1", ...; their ids."""
    return [(await client.hub.publish(topic, str(n))).id for n in range(first, first + count)]


@pytest.mark.gen_test
async def test_who_comes_back_gets_what_follows_its_id(engine: Engine) -> None:
    async with Served(engine.broker()) as client:
        ids = await publish(client, 0, 50)
        stream, replay, at = await open_stream(client, "a", id=ids[9])
        assert (replay, at) == ("complete", ids[9])
        ids += await publish(client, 50, 5)
        events = await take(stream, 45)
        assert [event.data for event in events] == [str(n) for n in range(10, 55)]
        assert [event.id for event in events] == ids[10:]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("id", "reason"),
    [
        ("nonsense", "unknown_id"),
        ("another-5", "epoch_changed"),
        ("{epoch}-9999999999999999999", "unknown_id"),
        ("{epoch}-99999999999999999999", "unknown_id"),
    ],
)
async def test_an_id_that_says_nothing_here_is_answered_reset(engine: Engine, id: str, reason: str) -> None:
    async with Served(engine.broker()) as client:
        ids = await publish(client, 0, 3)
        stream, replay, at = await open_stream(client, "a", id=id.format(epoch=ids[0].rpartition("-")[0]))
        assert (replay, at) == ("reset", "")
        told = await stream.next()
        assert (json.loads(told.data)["reason"], told.id) == (reason, ids[-1])
        await publish(client, 3, 1)
        assert [event.data for event in await take(stream, 1)] == ["3"]


@pytest.mark.gen_test
async def test_joining_beside_publishers_has_no_hole_and_no_repeat(engine: Engine) -> None:
    async with Served(engine.broker()) as client:
        ids = await publish(client, 0, 300)
        done = asyncio.Event()

        async def keep_publishing() -> None:
            while not done.is_set():
                ids.extend(await publish(client, len(ids), 1))
                await asyncio.sleep(0)  # memory never waits by itself

        publisher = asyncio.create_task(keep_publishing())
        for id in (ids[0], ids[150], ids[299], "earliest"):
            first = 0 if id == "earliest" else ids.index(id) + 1
            stream, replay, _ = await open_stream(client, "a", id=id)
            events = await take(stream, len(ids) + 50 - first)
            await until(lambda events=events, first=first: len(ids) >= first + len(events))  # type: ignore[misc]
            assert [event.data for event in events] == [str(n) for n in range(first, first + len(events))]
            assert [event.id for event in events] == ids[first : first + len(events)]
            assert replay == "complete"
            stream.close()
        done.set()
        await publisher


@pytest.mark.gen_test
async def test_a_restart_replays_from_the_first_moment(durable: Engine) -> None:
    async with Served(durable.broker()) as client:
        ids = await publish(client, 0, 40)
    async with Served(durable.broker()) as client:
        stream, replay, _ = await open_stream(client, "a", id=ids[4])
        assert replay == "complete"
        ids += await publish(client, 40, 3)
        events = await take(stream, 38)
        assert [event.id for event in events] == ids[5:]
        assert [event.data for event in events] == [str(n) for n in range(5, 43)]


# Further back than the window.


@pytest.fixture
def longer(durable: Engine) -> str:
    if durable.longer_url is None:
        pytest.fail("a durable engine of the contract has a URL with a longer log")
    return durable.longer_url


@pytest.mark.gen_test
async def test_what_the_window_has_forgotten_comes_from_the_broker(longer: str) -> None:
    async with Served(open_broker(longer), history=SMALL) as client:
        ids = await publish(client, 0, 1000)
        assert len(client.hub.window) == 100
        for id in (ids[0], ids[450], ids[898], ids[899], "earliest"):
            first = 0 if id == "earliest" else ids.index(id) + 1
            stream, replay, _ = await open_stream(client, "a", id=id)
            assert replay == "complete", id
            more = asyncio.create_task(publish(client, len(ids), 60))
            events = await take(stream, 1000 - first)
            assert [event.id for event in events] == ids[first : first + len(events)]
            ids += await more
            stream.close()


@pytest.mark.gen_test
async def test_many_who_ask_for_the_same_pages_share_them(longer: str, durable: Engine) -> None:
    broker = open_broker(longer)
    reads: list[int] = []
    read = broker.read

    async def count(after: int, *more: object) -> object:
        reads.append(after)
        return await read(after, *more)  # type: ignore[arg-type]

    broker.read = count  # type: ignore[method-assign, assignment]
    async with Served(broker, history=SMALL) as client:
        ids = await publish(client, 0, 1000)
        streams = await asyncio.gather(*(open_stream(client, "a", id=ids[n]) for n in range(20)))
        for n, (stream, replay, _) in enumerate(streams):
            assert replay == "complete"
            assert [event.id for event in await take(stream, 999 - n)] == ids[n + 1 :]
    # Where offsets have gaps, pages cannot start at the same multiples for everybody, until they have met.
    assert len(reads) == len(set(reads)) <= (25 if durable.has_gaps else 5), reads


@pytest.mark.gen_test
async def test_what_is_not_stored_is_not_replayed_from_the_broker_either(longer: str) -> None:
    history = HistorySettings(max_events=20, topics=(TopicHistory(pattern="noise", store=False),))
    async with Served(open_broker(longer), history=history) as client:
        ids = await publish(client, 0, 1)
        for n in range(1, 400):
            await publish(client, n, 1, "noise" if n % 2 else "a")
        stream, replay, _ = await open_stream(client, id=ids[0])
        assert replay == "complete"
        assert [event.data for event in await take(stream, 199)] == [str(n) for n in range(2, 400, 2)]
