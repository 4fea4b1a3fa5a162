"""A process that is behind does not read on: what others append waits in the engine, and not in memory."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

from qgstream.brokers.remote import Remote
from qgstream.errors import Unavailable
from qgstream.events.history import HistorySettings
from qgstream.events.publication import Publication
from qgstream.events.subscription import Subscription
from qgstream.limits import LimitSettings
from tests.brokers.conftest import Tail, Tails
from tests.brokers.engines import PATIENCE_SECONDS, Engine
from tests.brokers.machines import Machine
from tests.brokers.serving import Served
from tests.http.asking import until

DATA_BYTES = 10_000
# What a NATS server sends before it waits for an answer: 1.3 MB of these 50 were seen.
AHEAD_BYTES = 10_000_000


def events(count: int, *, private: bool = False) -> list[Publication]:
    return [Publication(("a",), b"x" * DATA_BYTES, is_json=False, private=private) for _ in range(count)]


class Behind(Tail):
    """A sink without room, until it has some."""

    has_room: asyncio.Event | None = None

    async def room(self) -> None:
        if self.has_room is not None:
            await self.has_room.wait()


async def fill(tail: Tail, batches: int, *, private: bool = False) -> int:
    """Append so many batches of 1000 through another process; the offset of the last event."""
    newest = 0
    for _ in range(batches):
        newest = (await tail.broker.append(events(1000, private=private)))[-1]
    return newest


@pytest.mark.gen_test
async def test_a_tail_without_room_waits_and_then_delivers_everything(
    engine: Engine, tails: Tails, remote: Machine
) -> None:
    other = await tails.open(broker=engine.broker())
    broker = cast(Remote, engine.broker())
    tail = Behind(broker)
    tails._open.append(tail)
    tail.has_room = asyncio.Event()
    await tail.broker.open(tail, HistorySettings())
    newest = await fill(other, 5)
    await tail.until(lambda: bool(tail.delivered))
    came = len(tail.delivered)
    assert came <= 256
    for inbox in getattr(tail.broker, "_inboxes", ()):  # NATS sends on until it is asked to wait, and has its answer
        assert sum(len(message.data) for message in inbox._came) < AHEAD_BYTES
    # A publish of its own is not held for ever.
    broker.timeout_seconds = 1.0
    with pytest.raises(Unavailable, match="sends events faster than this server can process them"):
        await broker.append(events(1))
    broker.timeout_seconds = PATIENCE_SECONDS
    assert len(tail.delivered) == came
    assert tail.broker.is_up
    tail.has_room.set()
    await tail.until(lambda: bool(tail.offsets) and tail.offsets[-1] > newest, seconds=60)
    assert tail.offsets == sorted(set(tail.offsets))
    assert len(tail.offsets) == 5001
    assert not tail.lost_at
    await tail.broker.append(events(1))


@pytest.mark.gen_test
async def test_what_others_append_is_bounded_in_a_process_that_is_slow(
    engine: Engine, tails: Tails, remote: Machine
) -> None:
    limit = 256 * 1024
    async with Served(engine.broker(), limits=LimitSettings(max_total_backlog_bytes=limit)) as client:
        hub = client.hub
        for number in range(1500):  # each of them is asked about each private event, so one event is a job in slices
            hub.router.feed(Subscription(patterns=frozenset({"a", f"t{number}"}), grants=frozenset({"a"})))
        most, is_over = 0, False

        def slow_down() -> Iterator[None]:
            while not is_over:
                time.sleep(0.02)
                yield

        hub.slices.add(slow_down())  # or a fast machine keeps up with the engine

        def is_done() -> bool:
            nonlocal most
            most = max(most, hub._dispatch.queued_bytes)
            return len(hub.window) == 2000 and hub._dispatch.is_idle

        other = await tails.open(broker=engine.broker())
        writing = asyncio.ensure_future(fill(other, 2, private=True))
        await until(is_done)
        is_over = True
        await writing
        assert limit < most < limit + 257 * 2 * DATA_BYTES


# What makes an event ready for the engine, one by one: a function of the broker's module. For RabbitMQ a whole batch is
# made ready in one turn.
MADE_BY = {"nats": "to_headers", "redis": "_fields", "amqp": None}


@pytest.mark.gen_test
async def test_a_long_batch_is_made_ready_in_parts(
    engine: Engine, tails: Tails, remote: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by = MADE_BY[urlsplit(engine.url).scheme]
    if made_by is None:
        return
    tail = await tails.open()
    module = sys.modules[type(tail.broker).__module__]
    make, at_once, most = getattr(module, made_by), 0, 0

    def counted(publication: Publication) -> Any:
        nonlocal at_once
        at_once += 1
        return make(publication)

    async def look() -> None:
        nonlocal at_once, most
        while True:
            at_once, most = 0, max(most, at_once)
            await asyncio.sleep(0)

    monkeypatch.setattr(module, made_by, counted)
    looking = asyncio.ensure_future(look())
    await tail.broker.append(events(1000))
    looking.cancel()
    assert 0 < most <= 65
