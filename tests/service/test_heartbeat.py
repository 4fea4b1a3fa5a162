"""The wheel under a loop that is late: what it measures, and whom it does not forget. The clock is the test's own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from qgstream.delivery.connection import Connection
from qgstream.hub import Hub
from qgstream.service.heartbeat import TICK_SECONDS, HeartbeatSettings, Wheel
from qgstream.service.service import Service
from tests.clock_loop import ClockLoop


@pytest.fixture
def loop() -> Iterator[ClockLoop]:
    loop = ClockLoop()
    yield loop
    loop.close()


@pytest.fixture
def hub(loop: ClockLoop) -> Iterator[Hub]:
    hub = Hub()
    loop.run_until_complete(hub.start())
    yield hub
    loop.run_until_complete(hub.stop())


def turned(loop: ClockLoop, wheel: Wheel, seconds: float) -> None:
    """Let the wheel turn for so long."""

    async def turn() -> None:
        wheel.start()
        # Not at the moment of a tick, where it would be a matter of taste which of them comes first.
        await asyncio.sleep(seconds + TICK_SECONDS / 10)
        wheel.stop()

    loop.run_until_complete(turn())


def lag(hub: Hub) -> Callable[[str], float]:
    """Samples, their sum, and how many were at most so many seconds."""

    def value(name: str, **labels: str) -> float:
        found = hub.metrics.registry.get_sample_value(f"qgstream_loop_lag_seconds_{name}", labels)
        assert found is not None
        return found

    return lambda name: value("bucket", le=name) if name[0].isdigit() else value(name)


def test_a_loop_that_is_on_time(loop: ClockLoop, hub: Hub) -> None:
    turned(loop, Wheel(hub, HeartbeatSettings()), 1.0)
    assert lag(hub)("count") == 20
    assert lag(hub)("sum") == pytest.approx(0)


def test_a_loop_that_is_late_each_time(loop: ClockLoop, hub: Hub) -> None:
    """The lag of a tick is counted from the moment at which it was due, not from the last one, which was late too."""
    for number in range(1, 21):
        loop.hold(number * TICK_SECONDS - 0.001, 0.031)
    turned(loop, Wheel(hub, HeartbeatSettings()), 1.0)
    assert lag(hub)("count") == 20
    assert lag(hub)("sum") == pytest.approx(20 * 0.030)


def test_a_stall_counts_as_long_as_it_lasts(loop: ClockLoop, hub: Hub) -> None:
    """Each 50 ms of it is a moment at which somebody waited: the longest for all of it, the last one for little."""
    loop.hold(3 * TICK_SECONDS - 0.001, 1.021)
    turned(loop, Wheel(hub, HeartbeatSettings()), 2.0)
    assert lag(hub)("count") == 40
    assert lag(hub)("sum") == pytest.approx(sum(1.02 - number * TICK_SECONDS for number in range(21)))
    # More than a quarter of a second: those due in the first 0.75 s of the stall.
    assert 40 - lag(hub)("0.25") == 16


def test_a_process_that_was_stopped_for_a_day_is_not_busy_with_counting(loop: ClockLoop, hub: Hub) -> None:
    loop.hold(0.01, 86_400)
    turned(loop, Wheel(hub, HeartbeatSettings()), 1.0)
    assert 1200 < lag(hub)("count") < 1300


class Somebody:
    slot = -1


@pytest.mark.parametrize(("stall", "turns"), [(0.0, 1), (0.52, 1), (1.99, 2), (7.3, 2)])
def test_no_stream_waits_an_interval_longer(
    loop: ClockLoop, hub: Hub, monkeypatch: pytest.MonkeyPatch, stall: float, turns: int
) -> None:
    """After a stall the streams whose turn it was get their heartbeat, and none gets two for it."""
    wheel = Wheel(hub, HeartbeatSettings(interval_seconds=1))
    streams = [cast(Connection, Somebody()) for _ in range(20)]
    for number, stream in enumerate(streams):
        wheel._put(stream, number)
    beaten: list[Connection] = []

    def beat(connections: list[Connection]) -> Iterator[None]:
        beaten.extend(connections)
        yield

    monkeypatch.setattr(wheel, "_beat", beat)
    if stall:
        loop.hold(0.01, stall)
    turned(loop, wheel, max(1.0, stall + 0.04))
    counts = [beaten.count(stream) for stream in streams]
    assert max(counts) <= turns
    assert min(counts) == 1
    assert len(beaten) >= len(streams)


@pytest.mark.gen_test
async def test_a_loop_that_is_really_held() -> None:
    hub = Hub()
    async with Service(hub):
        before = lag(hub)("count")
        time.sleep(0.6)  # noqa: ASYNC251  # the loop is held
        while lag(hub)("count") < before + 12:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.01)
        assert lag(hub)("count") - lag(hub)("0.25") >= 6
        assert lag(hub)("sum") >= 0.6 * 12 / 2 - 0.6
