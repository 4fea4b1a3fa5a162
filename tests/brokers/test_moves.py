"""Clients that move between two processes of one log, faster than the log reaches the second one."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import count

import pytest

from qgstream.brokers.base import open_broker
from tests.brokers.delays import delayed
from tests.brokers.engines import Engine
from tests.brokers.machines import Machine
from tests.brokers.serving import Served, open_stream, take
from tests.http.asking import Client

CLIENTS = 40
MOVES = 10
# Each way: an answer is so old when it comes, and meanwhile there are several new events.
DELAY_SECONDS = 0.05
# How many events the second process may lack: on a busy machine the publishers would leave it behind for good.
BEHIND = 500


@pytest.mark.gen_test
async def test_an_id_that_another_process_gave_a_moment_ago_is_resumed(engine: Engine, remote: Machine) -> None:
    is_over, given = False, deque[int](maxlen=BEHIND)

    async def publish(near: Client, far: Client, name: str) -> None:
        for n in count():
            while not is_over and len(given) == BEHIND and far.hub.window.newest < given[0]:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.01)
            if is_over:
                return
            await near.hub.publish("a", f"{name}{n}")
            given.append(near.hub.window.newest)

    async def move(number: int, near: Client, far: Client) -> None:
        """Every stream goes on right behind the id of the one before."""
        stream, _, _ = await open_stream(near, "a")
        ids = [event.id for event in await take(stream, 1)]
        for n in range(MOVES):
            stream.close()
            stream, replay, _ = await open_stream((far, near)[n % 2], "a", id=ids[-1])
            assert replay == "complete"
            # Not in step with the others: an answer is on its way when the next client comes.
            ids += [event.id for event in await take(stream, 1 + (37 * number + 13 * n) % 100)]
        stream.close()
        everything, _, _ = await open_stream(near, "a", id=ids[0])
        assert ids[1:] == [event.id for event in await take(everything, len(ids) - 1)]
        everything.close()

    async with delayed(remote.port, DELAY_SECONDS) as port:
        far_url = engine.url.replace(f":{remote.port}", f":{port}")
        # RabbitMQ takes eight questions to say where its stream ends, so a busy machine may need its time for that.
        async with (
            Served(engine.broker(timeout_seconds=30)) as near,
            Served(open_broker(far_url, timeout_seconds=30)) as far,
        ):
            publishers = [asyncio.create_task(publish(near, far, name)) for name in "abcd"]
            try:
                await asyncio.gather(*(move(number, near, far) for number in range(CLIENTS)))
            finally:
                is_over = True
                await asyncio.gather(*publishers)
