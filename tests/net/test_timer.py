"""A timer that nothing stops but `stop`."""

from __future__ import annotations

import asyncio
import time

import pytest
from tornado.ioloop import PeriodicCallback

from qgstream.net.timer import Timer
from tests.clock_loop import ClockLoop
from tests.conftest import ExpectLog


async def until_called(calls: list[float], count: int) -> None:
    async with asyncio.timeout(60):
        while len(calls) < count:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.005)


def test_it_is_a_periodic_callback_of_tornado() -> None:
    assert issubclass(Timer, PeriodicCallback)


@pytest.mark.gen_test
async def test_a_wall_clock_that_is_stepped_is_nothing_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    timer = Timer(lambda: calls.append(time.monotonic()), 0.01)
    timer.start()
    await until_called(calls, 2)
    true = time.time
    for hours in (-24, 24, -24 * 365):
        monkeypatch.setattr(time, "time", lambda hours=hours: true() + hours * 3600)
        await until_called(calls, len(calls) + 3)
    timer.stop()


@pytest.mark.gen_test
async def test_what_it_calls_may_stop_it_and_may_fail(expect_log: ExpectLog, caplog: pytest.LogCaptureFixture) -> None:
    expect_log("timer.failed")
    calls: list[float] = []

    def call() -> None:
        calls.append(time.monotonic())
        if len(calls) == 3:
            timer.stop()
        raise ValueError("and once more")

    timer = Timer(call, 0.01)
    timer.start()
    await until_called(calls, 3)
    await asyncio.sleep(0.05)
    assert len(calls) == 3
    assert [record.getMessage() for record in caplog.records] == ["timer.failed"], "each time, or never"
    timer.stop()  # again is nothing


@pytest.mark.parametrize(
    ("at", "held", "expected"),
    [
        (100.0, 0.0, [1, 2, 3, 4, 5, 6, 7]),
        (2.5, 0.4, [1, 2, 3, 4, 5, 6, 7]),  # nothing was due meanwhile
        (2.9, 0.4, [1, 2, 3.3, 4, 5, 6, 7]),  # one comes late, and the next is on time again
        (2.5, 2.7, [1, 2, 5.2, 6, 7]),  # one stands for three
        (2.5, 3.4, [1, 2, 5.9, 6, 7]),
    ],
)
def test_calls_that_were_missed_are_not_made_up_for(at: float, held: float, expected: list[float]) -> None:
    loop = ClockLoop()
    began = loop.time()
    calls: list[float] = []

    async def run() -> None:
        timer = Timer(lambda: calls.append(loop.time() - began), 1.0)
        timer.start()
        loop.hold(at, held)
        await asyncio.sleep(7.5 - 0.001)
        timer.stop()

    loop.run_until_complete(run())
    loop.close()
    assert calls == pytest.approx(expected)
