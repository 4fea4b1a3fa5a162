"""Runs long jobs in short slices, so that fan-out, heartbeats and drains leave time for new connections and /health."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Iterator
from time import perf_counter
from typing import TypeVar, cast

from qgstream.logs import log

# Measured by benchmarks/slice_length.py. A slice is long while the loop has no other work. A slice is short as soon as
# there is other work (a publish, a handshake, /health), so that the response comes soon. Events that are published
# during a job go out with its sends. So more publishes make fuller batches and cheaper deliveries.
SLICE_SECONDS = 0.005
BUSY_SLICE_SECONDS = 0.001
# Ten empty turns take about 0.05 ms.
BUSY_AFTER_SECONDS = 0.0002
# The number of turns of the loop between two slices. A request takes about eight turns (accept, headers, body, handler,
# ...), so a whole request fits between two slices. With a slice before each turn, a publish waited 40 ms during a
# fan-out to 10 000 streams.
TURNS_BETWEEN = 10

T = TypeVar("T")


class Slices:
    """Runs jobs in turn, each until its slice is used up. After each slice, the loop gets to its other work.

    A job is an iterator that yields at each place where it can be interrupted (after a few dozen sends). A job starts
    in the next turn of the loop. If a job raises, the error is logged and the job is dropped; the other jobs continue.

    There are two queues, which get slices alternately: one for jobs that a request waits for, and one for all others.
    Thousands of replays and rounds may be in progress, and each uses up its slice. In one queue with them, a job of ten
    slices, such as a page of `/admin/connections`, took ten rounds of this queue: 12 s with 800 streams.
    """

    def __init__(self, slice_seconds: float = SLICE_SECONDS, busy_slice_seconds: float = BUSY_SLICE_SECONDS) -> None:
        self.slice_seconds = slice_seconds
        self.busy_slice_seconds = busy_slice_seconds
        self._jobs: deque[Iterator[None]] = deque()
        self._awaited: deque[Iterator[None]] = deque()
        self._queues = (self._jobs, self._awaited)
        self._scheduled = False

    def add(self, job: Iterator[None], *, is_awaited: bool = False) -> None:
        """Run `job` from the next turn of the loop on. `is_awaited`: a request waits for the end of the job."""
        (self._awaited if is_awaited else self._jobs).append(job)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run, self.slice_seconds)

    def begin(self, job: Iterator[None], looks_at_once: int, *, is_awaited: bool = False) -> None:
        """Run `job` now until it has yielded `looks_at_once` times, and the rest of it in slices."""
        for _ in range(looks_at_once):
            if next(job, job) is job:
                return
        self.add(job, is_awaited=is_awaited)

    async def result(self, job: Generator[None, None, T], *, looks_at_once: int = 0) -> T:
        """Run `job` like `begin`. Return its result, or raise its error."""
        for _ in range(looks_at_once):
            try:
                next(job)
            except StopIteration as end:
                return cast(T, end.value)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            self.add(_settle(job, future), is_awaited=True)
            return await future
        finally:
            # An error holds this frame. Without `del` they make a cycle, which also holds the data of the job.
            del future, job

    def __len__(self) -> int:
        return len(self._jobs) + len(self._awaited)

    def _run(self, seconds: float) -> None:
        deadline = perf_counter() + seconds
        first, second = self._queues = self._queues[::-1]
        while jobs := first or second:
            job = jobs.popleft()
            try:
                for _ in job:
                    if perf_counter() >= deadline:
                        jobs.append(job)
                        self._pause(TURNS_BETWEEN, perf_counter())
                        return
            except Exception:
                log.exception("slices.job_failed")
            # There may be many jobs that are too short to yield, such as a round over a feed with one stream.
            if (first or second) and perf_counter() >= deadline:
                self._pause(TURNS_BETWEEN, perf_counter())
                return
        self._scheduled = False

    def _pause(self, turns: int, since: float) -> None:
        call_soon = asyncio.get_running_loop().call_soon
        if turns:
            call_soon(self._pause, turns - 1, since)
            return
        busy = perf_counter() - since > BUSY_AFTER_SECONDS
        call_soon(self._run, self.busy_slice_seconds if busy else self.slice_seconds)


def _settle(job: Generator[None, None, T], future: asyncio.Future[T]) -> Iterator[None]:
    try:
        value = yield from job
    except Exception as error:  # noqa: BLE001  # the caller of `result` gets the error
        if not future.done():
            future.set_exception(error)
    else:
        if not future.done():
            future.set_result(value)
    finally:
        del future, job
