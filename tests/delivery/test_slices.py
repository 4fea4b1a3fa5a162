"""Long walks share the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from qgstream.delivery.slices import TURNS_BETWEEN, Slices


def walk(steps: int, seen: list[str], name: str = "") -> Iterator[None]:
    for step in range(steps):
        seen.append(f"{name}{step}")
        yield


async def until_idle(slices: Slices) -> None:
    for _ in range(10_000):
        if not slices._scheduled:
            return
        await asyncio.sleep(0)
    raise AssertionError("the jobs do not end")


@pytest.mark.gen_test
async def test_a_job_starts_on_the_next_turn_and_not_before() -> None:
    slices, seen = Slices(), list[str]()
    slices.add(walk(3, seen))
    assert seen == []
    await asyncio.sleep(0)
    assert seen == ["0", "1", "2"]
    assert len(slices) == 0


@pytest.mark.gen_test
async def test_without_a_slice_to_spare_jobs_take_turns() -> None:
    slices, seen = Slices(slice_seconds=0, busy_slice_seconds=0), list[str]()
    slices.add(walk(2, seen, "a"))
    slices.add(walk(2, seen, "b"))
    await until_idle(slices)
    assert seen == ["a0", "b0", "a1", "b1"]


@pytest.mark.gen_test
async def test_jobs_too_short_to_yield_take_turns_too() -> None:
    """A round over a feed of one stream does not yield, and there may be thousands of them."""
    slices, seen = Slices(slice_seconds=0, busy_slice_seconds=0), list[str]()

    def short(name: str) -> Iterator[None]:
        seen.append(name)
        yield from ()

    for name in "abc":
        slices.add(short(name))
    turns_of = []
    while slices._scheduled:
        before = len(seen)
        await asyncio.sleep(0)
        turns_of.append(len(seen) - before)
    assert seen == ["a", "b", "c"]
    assert max(turns_of) == 1


def with_steps_between(steps: int, seen: list[str], name: str) -> Iterator[None]:
    """It may be interrupted after every third of its steps, and does the last of them behind that."""
    for step in range(steps):
        if step and step % 3 == 0:
            yield
        seen.append(f"{name}{step}")


@pytest.mark.gen_test
async def test_a_job_is_interrupted_only_where_it_yields_and_done_to_its_end() -> None:
    slices, seen = Slices(slice_seconds=0, busy_slice_seconds=0), list[str]()
    slices.add(with_steps_between(7, seen, "a"))
    slices.add(with_steps_between(4, seen, "b"))
    await until_idle(slices)
    assert seen == ["a0", "a1", "a2", "b0", "b1", "b2", "a3", "a4", "a5", "b3", "a6"]


@pytest.mark.gen_test
@pytest.mark.parametrize("looks", [0, 1, 2, 3])
async def test_a_job_with_steps_between_is_begun_and_finished(looks: int) -> None:
    slices, seen = Slices(), list[str]()
    slices.begin(with_steps_between(7, seen, "a"), looks)
    # What lies between two looks is done whole; the third look finds its end.
    assert len(seen) == min(3 * looks, 7)
    assert len(slices) == (looks < 3)
    await until_idle(slices)
    assert seen == [f"a{step}" for step in range(7)]


@pytest.mark.gen_test
@pytest.mark.parametrize("looks", [0, 1, 5])
async def test_a_job_that_never_yields_has_its_result(looks: int) -> None:
    def job() -> Generator[None, None, str]:
        yield from ()
        return "done"

    def faulty() -> Generator[None, None, str]:
        yield from ()
        raise LookupError

    slices = Slices(slice_seconds=0, busy_slice_seconds=0)
    assert await slices.result(job(), looks_at_once=looks) == "done"
    with pytest.raises(LookupError):
        await slices.result(faulty(), looks_at_once=looks)
    assert len(slices) == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("looks", [0, 2, 9])
async def test_what_a_request_waits_for_is_begun_at_once(looks: int) -> None:
    slices, seen = Slices(), list[str]()

    def job() -> Generator[None, None, int]:
        yield from walk(5, seen)
        return len(seen)

    waiting = asyncio.ensure_future(slices.result(job(), looks_at_once=looks))
    await asyncio.sleep(0)
    assert len(seen) == min(looks, 5)
    assert await waiting == 5


@pytest.mark.gen_test
async def test_a_short_job_is_done_where_it_is_begun() -> None:
    slices, seen = Slices(), list[str]()
    slices.begin(walk(3, seen, "a"), 4)
    assert seen == ["a0", "a1", "a2"]
    assert len(slices) == 0
    slices.begin(walk(3, seen, "b"), 2)
    assert seen[3:] == ["b0", "b1"]
    await until_idle(slices)
    assert seen[3:] == ["b0", "b1", "b2"]


@pytest.mark.gen_test
async def test_everything_else_gets_several_turns_between_two_slices() -> None:
    """A request takes about eight turns; each behind a slice of its own made a publish wait 40 ms."""
    slices, seen = Slices(slice_seconds=0, busy_slice_seconds=0), list[str]()
    slices.add(walk(3, seen))
    turns_between = []
    done = 0
    while slices._scheduled:
        turns = 0
        while len(seen) == done and slices._scheduled:
            await asyncio.sleep(0)
            turns += 1
        turns_between.append(turns)
        done = len(seen)
    assert min(turns_between[1:3]) >= TURNS_BETWEEN


@pytest.mark.gen_test
async def test_a_job_that_fails_is_told_and_stops_nobody(expect_log: Callable[[str], None]) -> None:
    def faulty() -> Iterator[None]:
        yield
        raise ZeroDivisionError

    expect_log("slices.job_failed")
    slices, seen = Slices(), list[str]()
    slices.add(faulty())
    slices.add(walk(2, seen))
    await until_idle(slices)
    assert seen == ["0", "1"]


@pytest.mark.gen_test
async def test_slices_are_short_while_something_else_wants_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    slices = Slices(slice_seconds=5, busy_slice_seconds=1)
    monkeypatch.setattr(slices, "_run", given.append)
    clock = iter([100.0, 100.0001, 200.0, 200.1])
    monkeypatch.setattr("qgstream.delivery.slices.perf_counter", lambda: next(clock))
    for _ in range(2):
        slices._pause(0, next(clock))
    await asyncio.sleep(0)
    assert given == [5, 1]


def endless() -> Iterator[None]:
    while True:
        yield


def answering(looks: int) -> Generator[None, None, str]:
    for _ in range(looks):
        yield
    return "done"


async def slices_until_done(slices: Slices, waiting: asyncio.Future[Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many slices are run until then."""
    count, run = [0], slices._run

    def one_more(seconds: float) -> None:
        count[0] += 1
        run(seconds)

    monkeypatch.setattr(slices, "_run", one_more)
    while not waiting.done() and count[0] < 10_000:  # noqa: ASYNC110  # its slices are counted
        await asyncio.sleep(0)
    slices._jobs.clear()
    slices._awaited.clear()
    await until_idle(slices)
    return count[0]


@pytest.mark.gen_test
@pytest.mark.parametrize("others", [1, 1000])
async def test_what_a_request_waits_for_has_every_other_slice(others: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many jobs there are that use up theirs."""
    slices = Slices(slice_seconds=0, busy_slice_seconds=0)
    for _ in range(others):
        slices.add(endless())
    waiting = asyncio.ensure_future(slices.result(answering(20)))
    assert await slices_until_done(slices, waiting, monkeypatch) <= 2 * 20 + 3
    assert await waiting == "done"


@pytest.mark.gen_test
async def test_requests_leave_the_others_every_other_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    slices, walked = Slices(slice_seconds=0, busy_slice_seconds=0), asyncio.Event()

    def walk() -> Iterator[None]:
        for _ in range(20):
            yield
        walked.set()

    requests = [asyncio.ensure_future(slices.result(answering(10**6))) for _ in range(100)]
    await asyncio.sleep(0)
    slices.add(walk())
    waiting = asyncio.ensure_future(walked.wait())
    assert await slices_until_done(slices, waiting, monkeypatch) <= 2 * 20 + 3
    for request in requests:
        request.cancel()


@pytest.mark.gen_test
async def test_short_jobs_have_whole_slices_beside_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of single streams do not wait one by one for a long batch."""
    clock = iter(range(10**9))
    monkeypatch.setattr("qgstream.delivery.slices.perf_counter", lambda: next(clock))
    slices, done, all_done = Slices(slice_seconds=20, busy_slice_seconds=20), list[int](), asyncio.Event()

    def short() -> Iterator[None]:
        done.append(1)
        if len(done) == 1000:
            all_done.set()
        yield from ()

    request = asyncio.ensure_future(slices.result(answering(10**6)))
    await asyncio.sleep(0)
    for _ in range(1000):
        slices.add(short())
    waiting = asyncio.ensure_future(all_done.wait())
    assert await slices_until_done(slices, waiting, monkeypatch) <= 2 * 1000 / 18
    request.cancel()
