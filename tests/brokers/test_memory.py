"""The log that ends with its process."""

from __future__ import annotations

import asyncio

import pytest

from qgstream.brokers.memory import APPENDED_AT_ONCE, MemoryBroker
from qgstream.errors import Unavailable
from qgstream.events.history import HistorySettings, TopicHistory
from qgstream.events.publication import Publication
from qgstream.limits import LimitSettings
from tests.brokers.conftest import Tail
from tests.brokers.serving import Served, open_stream


@pytest.mark.gen_test
async def test_each_life_has_another_epoch() -> None:
    epochs = set()
    for _ in range(3):
        broker = MemoryBroker()
        epochs.add((await broker.open(Tail(broker), HistorySettings())).position.epoch)
        await broker.close()
    assert len(epochs) == 3


async def begun(broker: MemoryBroker) -> None:
    """A long batch has been begun."""
    while not broker._turn.locked():  # noqa: ASYNC110  # it tells nobody
        await asyncio.sleep(0)


def keyed(count: int, name: str) -> list[Publication]:
    return [Publication(("a",), name.encode(), idempotency_key=f"{name}{number}") for number in range(count)]


@pytest.mark.gen_test
async def test_a_long_batch_is_appended_in_parts_and_others_wait_for_it() -> None:
    broker = MemoryBroker()
    tail = Tail(broker)
    await broker.open(tail, HistorySettings())
    count = 10 * APPENDED_AT_ONCE
    turns = 0

    async def others() -> None:
        nonlocal turns
        while not tail.delivered:
            turns += 1
            await asyncio.sleep(0)

    long = asyncio.ensure_future(broker.append(keyed(count, "long")))
    waiting = asyncio.ensure_future(others())
    await asyncio.sleep(0)
    short = asyncio.ensure_future(broker.append(keyed(2, "short")))
    again = asyncio.ensure_future(broker.append(keyed(count + 1, "long")))
    assert list(await long) == list(range(1, count + 1))
    await waiting
    assert turns >= 10
    assert list(await short) == [count + 1, count + 2]
    assert list(await again) == [*range(1, count + 1), count + 3]
    assert tail.offsets == list(range(1, count + 4))
    await broker.close()


@pytest.mark.gen_test
async def test_a_long_batch_is_appended_whole_when_its_publisher_leaves() -> None:
    broker = MemoryBroker()
    tail = Tail(broker)
    await broker.open(tail, HistorySettings())
    count = 3 * APPENDED_AT_ONCE
    leaving = asyncio.ensure_future(broker.append(keyed(count, "a")))
    await begun(broker)
    leaving.cancel()
    assert list(await broker.append(keyed(1, "b"))) == [count + 1]
    assert tail.offsets == list(range(1, count + 2))


@pytest.mark.gen_test
async def test_a_broker_that_closes_meanwhile_appends_nothing_of_a_long_batch() -> None:
    broker = MemoryBroker()
    tail = Tail(broker)
    await broker.open(tail, HistorySettings())
    appending = asyncio.ensure_future(broker.append(keyed(3 * APPENDED_AT_ONCE, "a")))
    await begun(broker)
    await broker.close()
    with pytest.raises(Unavailable):
        await appending
    assert tail.delivered == []


@pytest.mark.gen_test
async def test_what_was_not_stored_is_missed_by_who_asks_for_it_after_a_reload() -> None:
    history = HistorySettings(topics=(TopicHistory(pattern="noise", store=False),))
    async with Served(MemoryBroker(), history=history) as client:
        first = await client.hub.publish("noise", "1")
        newest = await client.hub.publish("noise", "2")
        assert (await open_stream(client, "noise", id=first.id))[1] == "complete", "as documented: it is no gap"
        client.hub.reload(limits=LimitSettings(), history=HistorySettings())
        assert (await open_stream(client, "noise", id=first.id))[1] == "reset"
        assert (await open_stream(client, "noise", id=newest.id))[1] == "complete"
