"""What becomes of what sources yield, and of sources that fail, end, hurry or do not want to leave."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Self

import pytest

from qgstream import ConfigError, Draft, Hub, LimitSettings, Service, SourceFailed, run_source
from qgstream.backoff import Backoff
from qgstream.errors import TooLarge
from qgstream.events.namespaces import namespace, scoped
from qgstream.events.publication import Publication
from qgstream.sources.base import Function, Restart, Source, Unpublishable
from qgstream.sources.runner import MAX_PART, RESTART_FIRST_SECONDS, RESTART_LIMIT_SECONDS, Intake, Intakes
from tests.brokers.test_outages import Fickle
from tests.conftest import ExpectLog
from tests.fakes import counter
from tests.http.asking import until


class House:
    """A started hub whose log can be looked at, and one source that is begun again soon."""

    def __init__(
        self, events: Function, *, restart: Restart = "on-failure", limits: LimitSettings | None = None
    ) -> None:
        self.broker = Fickle()
        self.hub = Hub(broker=self.broker, limits=limits)
        self._service = Service(self.hub)
        self.intake = Intake(
            self.hub, Source("s", events, restart), backoff=Backoff(first_seconds=0.001, limit_seconds=0.01)
        )

    async def __aenter__(self) -> Self:
        await self._service.start()
        self.intake.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.intake.leave()
        await until(lambda: not self.intake.is_running)
        await self._service.stop()

    @property
    def data(self) -> list[str]:
        """What was published, in its order."""
        return [publication.data.decode() for publication in self.broker.log]

    def count(self, what: str) -> float:
        return counter(self.hub.metrics, f"qgstream_source_{what}", source="s")

    async def over(self) -> None:
        await until(lambda: not self.intake.is_running)


# What may be yielded.


@pytest.mark.gen_test
async def test_drafts_dicts_and_lists_of_them_are_published_in_order() -> None:
    async def source() -> AsyncIterator[Any]:
        yield Draft("a", {"n": 1}, event="e", retry_ms=10, private=True, idempotency_key="k")
        yield {"topic": ["b", "c"], "data": "text"}
        yield [Draft("a", 3), {"topic": "a", "data": 4, "event": None}]
        yield []

    async with House(source) as house:
        await house.over()
        assert [(p.topics, p.data, p.event) for p in house.broker.log] == [
            (("a",), b'{"n":1}', "e"), (("b", "c"), b"text", None), (("a",), b"3", None), (("a",), b"4", None),
        ]  # fmt: skip
        first = house.broker.log[0]
        assert (first.retry_ms, first.private) == (10, True)
        assert first.idempotency_key == scoped(namespace("source", "s"), "k")
        assert [house.count(what) for what in ("events_total", "refused_total", "failures_total")] == [4, 0, 0]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (5, "got int, expected a dict with topic and data, a Draft, or a list of them"),
        ({"topic": "a"}, "data: not set, expected a value"),
        ({"data": 1}, "topic: not set, expected a value"),
        ({"topic": "a", "data": 1, "evnt": "x"}, "evnt: unknown field; did you mean event?"),
        (Draft("a\n", 1), "topic: got U+000A"),
        (Draft("a", object()), "data: got object, expected a value that JSON can represent"),
        (Draft("a", "x" * 5000), "data: got 5000 bytes, expected at most 4096"),
        ({"topic": "a", "data": 1, "private": "yes"}, "private: got str, expected true or false"),
        (Draft("a", 1, retry_ms=1.5), "retry: got 1.5"),  # type: ignore[arg-type]  # as a program might
        (Unpublishable("no event can be made of it"), "no event can be made of it"),
    ],
)
async def test_what_cannot_be_published_is_said_and_counted_and_the_rest_is_published(
    wrong: object, said: str, caplog: pytest.LogCaptureFixture, expect_log: ExpectLog
) -> None:
    expect_log("source.refused")

    async def source() -> AsyncIterator[Any]:
        yield [{"topic": "a", "data": "before"}, wrong, {"topic": "a", "data": "after"}]
        for _ in range(20):
            yield wrong
        yield {"topic": "a", "data": "last"}

    async with House(source, limits=LimitSettings(max_event_bytes=4096)) as house:
        await house.over()
        assert house.data == ["before", "after", "last"]
        assert [house.count(what) for what in ("events_total", "refused_total", "failures_total")] == [3, 21, 0]
        (((kind, name), row),) = house.hub.talkers.publishers.most(9, time.monotonic())
        assert (kind, name.name, row.publishes, row.events) == ("source", "s", 2, 3)
        assert (row.bytes, row.publishes_refused) == (len("beforeafterlast"), 21)
    lines = [record for record in caplog.records if record.message == "source.refused"]
    assert len(lines) == 1, "a line for each would be a storm"
    assert (lines[0].__dict__["source"], lines[0].__dict__["count"]) == ("s", 1)
    assert lines[0].__dict__["reason"].startswith(said)


@pytest.mark.gen_test
async def test_a_source_that_never_waits_lets_others_run() -> None:
    async def source() -> AsyncIterator[Any]:
        while True:
            yield []

    async with House(source):
        for _ in range(3):  # never reached if it held the loop
            await asyncio.sleep(0)


@pytest.mark.gen_test
async def test_a_long_list_goes_into_the_log_in_parts_and_whole() -> None:
    async def source() -> AsyncIterator[Any]:
        yield [Draft("a", number) for number in range(3 * MAX_PART + 1)]

    async with House(source) as house:
        await house.over()
        assert house.data == [str(number) for number in range(3 * MAX_PART + 1)]


@pytest.mark.gen_test
async def test_it_is_asked_for_more_when_what_it_yielded_is_in_the_log() -> None:
    asked: list[int] = []

    async def source() -> AsyncIterator[Any]:
        for number in range(100):
            asked.append(number)
            yield Draft("a", number)

    house = House(source)
    house.broker.is_away = True
    async with house:
        await until(lambda: house.broker.refused >= 3)
        assert (asked, house.data) == ([0], [])
        house.broker.is_away = False
        await house.over()
    # The outage lost nothing and repeated nothing.
    assert house.data == [str(number) for number in range(100)]


@pytest.mark.gen_test
async def test_what_the_broker_can_never_take_is_passed_over_alone(expect_log: ExpectLog) -> None:
    expect_log("source.refused")

    async def source() -> AsyncIterator[Any]:
        yield [Draft("a", "1"), {"topic": "a*", "data": 0}, Draft("a", "too large"), Draft("a", "2")]
        yield Draft("a", "too large")
        yield Draft("a", "3")

    house = House(source)
    append = house.broker.append

    async def picky(publications: Sequence[Publication]) -> Sequence[int]:
        if any(publication.data == b"too large" for publication in publications):
            raise TooLarge("data", 9, 8)
        return await append(publications)

    house.broker.append = picky  # type: ignore[method-assign]
    async with house:
        await house.over()
    assert house.data == ["1", "2", "3"]
    assert (house.count("events_total"), house.count("refused_total"), house.count("failures_total")) == (3, 3, 0)


# Failing and ending.


@pytest.mark.gen_test
async def test_a_failure_is_one_line_with_its_traceback_and_another_beginning(
    caplog: pytest.LogCaptureFixture, expect_log: ExpectLog
) -> None:
    expect_log("source.failed")
    runs: list[int] = []

    async def source() -> AsyncIterator[Any]:
        runs.append(len(runs))
        yield Draft("a", len(runs))
        if len(runs) < 3:
            raise LookupError("the feed is gone")

    async with House(source) as house:
        await house.over()
        assert house.data == ["1", "2", "3"]
        assert (house.count("failures_total"), house.count("running")) == (2, 0)
    lines = [record for record in caplog.records if record.message == "source.failed"]
    assert [line.levelno for line in lines] == [logging.ERROR] * 2
    assert lines[0].exc_info is not None
    assert str(lines[0].exc_info[1]) == "the feed is gone"
    assert 0 < lines[0].__dict__["restart_seconds"] <= 0.01


@pytest.mark.gen_test
async def test_a_failure_in_words_needs_no_traceback(caplog: pytest.LogCaptureFixture, expect_log: ExpectLog) -> None:
    expect_log("source.failed")
    runs: list[int] = []

    async def source() -> AsyncIterator[Any]:
        runs.append(1)
        if len(runs) == 1:
            raise SourceFailed("the feed has moved")
        yield []

    async with House(source) as house:
        await house.over()
    (line,) = [record for record in caplog.records if record.message == "source.failed"]
    assert (line.exc_info, line.__dict__["reason"]) == (None, "the feed has moved")


@pytest.mark.gen_test
async def test_a_task_of_its_own_that_was_cancelled_is_a_failure_and_not_its_end(expect_log: ExpectLog) -> None:
    expect_log("source.failed")
    runs: list[int] = []

    async def source() -> AsyncIterator[Any]:
        runs.append(1)
        if len(runs) == 1:
            task = asyncio.ensure_future(asyncio.sleep(60))
            task.cancel()
            await task
        yield Draft("a", "well")

    async with House(source) as house:
        await house.over()
        assert (house.data, house.count("failures_total")) == (["well"], 1)


@pytest.mark.gen_test
async def test_an_end_is_one_unless_it_is_to_run_always() -> None:
    runs: list[int] = []

    async def source() -> AsyncIterator[Any]:
        runs.append(1)
        yield Draft("a", len(runs))

    async with House(source) as house:
        await house.over()
        assert house.data == ["1"]
    async with House(source, restart="always") as house:
        await until(lambda: len(house.data) >= 3)
        assert house.intake.is_running
        assert house.count("failures_total") == 0


@pytest.mark.gen_test
async def test_a_source_that_recovered_is_begun_again_soon_as_at_first(
    monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    expect_log("source.failed")

    async def source() -> AsyncIterator[Any]:
        yield []
        raise SourceFailed("again")

    house = House(source)
    house.intake = Intake(
        house.hub, Source("s", source), backoff=Backoff(first_seconds=0.001, limit_seconds=1e6)
    )  # fmt: skip

    def delays() -> list[float]:
        return [record.__dict__["restart_seconds"] for record in caplog.records if record.message == "source.failed"]

    async with house:
        await until(lambda: len(delays()) >= 6)
        assert delays()[-1] > 0.01
        monkeypatch.setattr("qgstream.sources.runner.STEADY_SECONDS", 0.0)
        before = len(delays())
        await until(lambda: len(delays()) >= before + 2)
        assert max(delays()[before:]) <= 0.001
    assert 0 < RESTART_FIRST_SECONDS < RESTART_LIMIT_SECONDS


# Leaving.


@pytest.mark.gen_test
async def test_it_may_clean_up_when_it_is_told_to_leave() -> None:
    cleaned: list[str] = []

    async def source() -> AsyncIterator[Any]:
        try:
            yield Draft("a", 1)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append("up")

    async with House(source) as house:
        await until(lambda: house.data == ["1"])
    assert cleaned == ["up"]


@pytest.mark.gen_test
async def test_what_is_on_its_way_into_the_log_gets_there() -> None:
    cleaned: list[str] = []

    async def source() -> AsyncIterator[Any]:
        try:
            yield [Draft("a", "the last one")]
            yield Draft("a", "never asked for")
        finally:
            cleaned.append("up")

    house = House(source)
    house.broker.is_away = True
    async with house:
        await until(lambda: house.broker.refused >= 1)
        house.intake.leave()
        house.broker.is_away = False
        await house.over()
        assert (house.data, cleaned) == (["the last one"], ["up"])


@pytest.mark.gen_test
async def test_one_that_does_not_leave_is_ended_and_said(expect_log: ExpectLog) -> None:
    expect_log("source.stuck")
    stuck = asyncio.Event()

    async def source() -> AsyncIterator[Any]:
        try:
            yield Draft("a", 1)
            await asyncio.Event().wait()
        finally:
            stuck.set()
            await asyncio.Event().wait()

    async with House(source) as house:
        await until(lambda: house.data == ["1"])
        house.intake.leave()
        await stuck.wait()
        assert house.intake.is_running
        house.intake.stop()
        await house.over()


@pytest.mark.gen_test
async def test_one_that_swallows_its_cancellation_leaves_with_what_it_yields_next() -> None:
    async def source() -> AsyncIterator[Any]:
        for number in range(1000):
            yield Draft("a", number)
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    async with House(source) as house:
        await until(lambda: house.data == ["0"])
        house.intake.leave()
        await house.over()
        assert house.data == ["0", "1"]


@pytest.mark.gen_test
async def test_one_that_waits_for_its_next_beginning_leaves(expect_log: ExpectLog) -> None:
    expect_log("source.failed")

    async def source() -> AsyncIterator[Any]:
        yield []
        raise SourceFailed("for long")

    house = House(source)
    house.intake = Intake(house.hub, Source("s", source))
    async with house:
        await until(lambda: house.count("failures_total") == 1)


@pytest.mark.gen_test
async def test_several_at_once() -> None:
    async def source(topic: str) -> AsyncIterator[Any]:
        yield Draft(topic, 1)
        await asyncio.Event().wait()

    broker = Fickle()
    hub = Hub(broker=broker)
    intakes = Intakes(hub, [Source(name, partial(source, name)) for name in ("one", "two")])
    async with Service(hub):
        assert not intakes.running
        intakes.start()
        await until(lambda: len(broker.log) == 2)
        for name in ("one", "two"):
            assert counter(hub.metrics, "qgstream_source_events_total", source=name) == 1
            assert counter(hub.metrics, "qgstream_source_running", source=name) == 1
        intakes.leave()
        await until(lambda: not intakes.running)
        intakes.stop()  # there is nobody to end


# In a program of one's own.


@pytest.mark.gen_test
async def test_a_program_runs_a_source_until_it_is_over() -> None:
    async def numbers(count: int) -> AsyncIterator[Draft]:
        for number in range(count):
            yield Draft("numbers", number)

    broker = Fickle()
    hub = Hub(broker=broker)
    async with Service(hub):
        await run_source(hub, partial(numbers, 3))
        await run_source(hub, partial(numbers, 1), name="one")
    assert [publication.data for publication in broker.log] == [b"0", b"1", b"2", b"0"]
    assert counter(hub.metrics, "qgstream_source_events_total", source="numbers") == 3
    assert counter(hub.metrics, "qgstream_source_events_total", source="one") == 1


@pytest.mark.gen_test
async def test_a_program_ends_a_source_by_cancelling_it() -> None:
    ended: list[str] = []

    async def source() -> AsyncIterator[Draft]:
        try:
            yield Draft("a", 1)
            await asyncio.Event().wait()
        finally:
            ended.append("well")

    broker = Fickle()
    async with Service(Hub(broker=broker)) as service:
        task = asyncio.ensure_future(run_source(service.hub, source))
        await until(lambda: bool(broker.log))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert ended == ["well"]


async def _coroutine() -> None:
    pass


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: _coroutine, "_coroutine: got a coroutine function, expected an async generator function"),
        (lambda: 5, "source: got int, expected"),
        (lambda: print, "print: got builtin_function_or_method, expected"),
    ],
)
async def test_what_is_no_source_is_refused_at_once(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        await run_source(Hub(), make())
