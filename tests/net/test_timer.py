"""A timer that nothing stops but `stop`."""

from __future__ import annotations

import asyncio
import time

import pytest
from tornado.ioloop import PeriodicCallback

from qgstream.net.timer import Timer
from tests.conftest import ExpectLog


async def until_called(calls: list[float], count: int) -> None:
    async with asyncio.timeout(10):
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


@pytest.mark.gen_test
async def test_calls_that_were_missed_are_not_made_up_for() -> None:
    calls: list[float] = []
    timer = Timer(lambda: calls.append(time.monotonic()), 0.02)
    timer.start()
    await until_called(calls, 1)
    time.sleep(0.3)  # noqa: ASYNC251  # the loop is held
    held = len(calls)
    await until_called(calls, held + 3)
    timer.stop()
    gaps = [after - before for before, after in zip(calls[held:], calls[held + 1 :], strict=False)]
    assert max(gaps) > 0.01  # and not all at once
