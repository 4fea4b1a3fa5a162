"""The log that ends with its process."""

from __future__ import annotations

import pytest

from qgstream.brokers.memory import MemoryBroker
from qgstream.limits import LimitSettings
from qgstream.window import HistorySettings, TopicHistory
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
