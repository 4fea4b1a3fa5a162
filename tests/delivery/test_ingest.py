"""What the broker brings is taken in slices, in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import pytest

from qgstream.delivery.ingest import LOOKS_AT_ONCE, TOPICS_PER_LOOK, Ingest
from qgstream.delivery.slices import Slices
from qgstream.events.draft import MAX_EVENTS_PER_BATCH
from qgstream.events.history import HistorySettings, TopicHistory
from qgstream.events.publication import Position, Publication
from qgstream.events.subscription import Subscription
from qgstream.hub import Hub
from qgstream.limits import LimitSettings


class Steps(Slices):
    """Runs a look when it is told to."""

    def add(self, job: Iterator[None], *, is_awaited: bool = False) -> None:
        self._jobs.append(job)

    def step(self) -> None:
        job = self._jobs.popleft()
        if next(job, job) is not job:
            self._jobs.append(job)


def events(count: int, topics: int = 1) -> list[Publication]:
    return [Publication(tuple(f"t{n}" for n in range(topics)), b"%d" % number) for number in range(count)]


class Scene:
    def __init__(self) -> None:
        self.slices = Steps()
        self.taken: list[Publication] = []
        self.parts: list[int] = []
        self.failures = 0
        self.ingest = Ingest(self.slices, self.take, self.failed)

    def take(self, publications: Sequence[Publication]) -> None:
        if any(publication.data == b"bad" for publication in publications):
            raise RuntimeError("bad")
        self.taken += publications
        self.parts.append(sum(len(publication.topics) for publication in publications))

    def failed(self) -> None:
        self.failures += 1


@pytest.mark.parametrize("topics", [1, 7, 64])
def test_no_part_is_longer_than_a_look(topics: int) -> None:
    scene, batch = Scene(), events(2000, topics)
    scene.ingest.add(batch)
    assert len(scene.parts) == LOOKS_AT_ONCE
    while scene.slices:
        before = len(scene.parts)
        scene.slices.step()
        assert len(scene.parts) <= before + 1
    assert scene.taken == batch
    assert max(scene.parts) < TOPICS_PER_LOOK + topics
    assert not scene.ingest._queue


def test_a_short_batch_is_taken_at_once() -> None:
    scene, batch = Scene(), events(LOOKS_AT_ONCE * TOPICS_PER_LOOK)
    scene.ingest.add(batch)
    assert scene.taken == batch
    assert not scene.ingest._queue
    assert not scene.slices


@pytest.mark.gen_test
async def test_what_comes_meanwhile_queues() -> None:
    scene, long, short = Scene(), events(1000), events(3)
    scene.ingest.add(long)
    called: list[int] = []
    scene.ingest.call(lambda: called.append(len(scene.taken)))
    scene.ingest.add(short)
    waiting = asyncio.ensure_future(scene.ingest.done())
    given_up = asyncio.ensure_future(scene.ingest.done())
    await asyncio.sleep(0)
    given_up.cancel()
    assert not called
    while scene.slices:
        assert not waiting.done()
        scene.slices.step()
    await waiting
    assert called == [1000]
    assert scene.taken == long + short
    await scene.ingest.done()
    scene.ingest.call(lambda: called.append(-1))
    assert called[-1] == -1


def test_a_fault_is_told_and_what_follows_is_taken(expect_log: Callable[[str], None]) -> None:
    expect_log("arrivals.failed")
    scene, good = Scene(), events(2)
    scene.ingest.add([Publication(("a",), b"bad")])
    scene.ingest.add(good)
    assert (scene.failures, scene.taken) == (1, good)
    assert not scene.ingest._queue


# In the hub.


async def started(**history: int) -> tuple[Hub, Steps]:
    slices = Steps()
    hub = Hub(slices=slices, history=HistorySettings.model_validate(history), limits=LimitSettings())
    await hub.start()
    return hub, slices


@pytest.mark.gen_test
async def test_the_largest_batch_is_appended_in_parts_and_answered_when_it_is_there() -> None:
    hub, slices = await started()
    largest = asyncio.ensure_future(hub.publish_all(events(MAX_EVENTS_PER_BATCH, topics=64)))
    await asyncio.sleep(0)
    behind = asyncio.ensure_future(hub.publish("a", "behind"))
    while not largest.done():
        before = hub.window.newest
        if slices:
            slices.step()
        assert hub.window.newest - before <= 1
        await asyncio.sleep(0)
        assert hub.live_position in (hub.window.position, None)
    assert hub.window.newest >= MAX_EVENTS_PER_BATCH
    while not behind.done():
        if slices:
            slices.step()
        await asyncio.sleep(0)
    epoch = hub.window.epoch
    assert (await largest).ids == tuple(f"{epoch}-{n}" for n in range(1, MAX_EVENTS_PER_BATCH + 1))
    assert (await behind).id == f"{epoch}-{MAX_EVENTS_PER_BATCH + 1}"
    await hub.stop()


@pytest.mark.gen_test
async def test_a_log_that_is_lost_meanwhile_is_lost_behind_what_came(expect_log: Callable[[str], None]) -> None:
    expect_log("broker.lost")
    hub, slices = await started()
    old, batch = hub.window, events(1000)
    for offset, publication in enumerate(batch, 1):
        publication.offset = offset
    hub.deliver(batch)
    hub.lost(Position("another", 0), "epoch_changed")
    assert hub.window is old
    while slices:
        slices.step()
    assert (old.newest, hub.window.epoch) == (1000, "another")
    await hub.stop()


@pytest.mark.gen_test
async def test_many_small_publishes_behind_a_long_one_are_taken_one_by_one() -> None:
    scene = Scene()
    scene.ingest.add(events(LOOKS_AT_ONCE * TOPICS_PER_LOOK + 1))
    for _ in range(100):
        scene.ingest.add(events(TOPICS_PER_LOOK - 1))
    while scene.slices:
        before = len(scene.taken)
        scene.slices.step()
        assert len(scene.taken) - before <= TOPICS_PER_LOOK
    assert not scene.ingest._queue


# What a long history makes long.


def old_events(hub: Hub, count: int) -> None:
    """Have a history of events that have become too old."""
    for offset in range(1, count + 1):
        hub.window.append(Publication(("a",), b"1", offset=offset), -1e9)


@pytest.mark.gen_test
async def test_nobody_waits_until_thousands_of_events_are_forgotten() -> None:
    hub = Hub(slices=Steps())
    slices = cast(Steps, hub.slices)
    await hub.start()
    # An append forgets a few: here they become too old afterwards.
    hub.window._settings = HistorySettings(max_age_seconds=1e12)
    hub.window._classes[-1].max_age_seconds = 1e12
    old_events(hub, 3000)
    hub.window._classes[-1].max_age_seconds = 60
    hub.open(Subscription(), None)
    hub.is_outside_window(Subscription(), "x-1")
    assert len(hub.window) > 2800
    hub.deliver([Publication(("a",), b"1", offset=3001)])
    assert 1 < len(hub.window) < 2800
    assert len(slices) == 1
    hub.forget()
    while slices:
        before = len(hub.window)
        slices.step()
        assert before - len(hub.window) <= 64
    assert len(hub.window) == 1
    await hub.stop()


@pytest.mark.gen_test
async def test_a_reload_sorts_the_history_in_slices() -> None:
    hub = Hub(slices=Steps())
    slices = cast(Steps, hub.slices)
    await hub.start()
    for offset in range(1, 9001):
        hub.window.append(Publication(("a",), b"1", offset=offset), time.monotonic())
    settings = HistorySettings(max_events=10, topics=(TopicHistory(pattern="b", max_age_seconds=5),))
    hub.reload(limits=LimitSettings(), history=settings)
    assert (len(hub.window), hub.window.settings, len(slices)) == (9000, HistorySettings(), 1)
    steps = 0
    while slices:
        slices.step()
        steps += 1
    assert steps > 100
    assert (len(hub.window), hub.window.settings) == (10, settings)
    await hub.stop()
