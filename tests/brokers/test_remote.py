"""What engines on a network have in common, at moments that a real one cannot be held in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest
from tornado.ioloop import IOLoop

from qgstream.backoff import Backoff
from qgstream.brokers.base import Forgotten
from qgstream.brokers.remote import Bounds, LogPage, Placed, Remote
from qgstream.errors import Unavailable
from qgstream.events.history import HistorySettings, TopicHistory
from qgstream.events.publication import Position, Publication
from tests.brokers.conftest import Tail
from tests.brokers.fake import FakeLog, FakeRemote, Full
from tests.conftest import ExpectLog
from tests.http.asking import until


class Fakes:
    """Brokers on one log."""

    def __init__(self) -> None:
        self.log = FakeLog()
        self._open: list[Tail] = []

    async def open(
        self, history: HistorySettings | None = None, *, patience: float = 30.0, make: type[FakeRemote] = FakeRemote
    ) -> Tail:
        tail = Tail(make(self.log, timeout_seconds=patience))
        tail.opened = await tail.broker.open(tail, history or HistorySettings())
        self._open.append(tail)
        return tail

    async def close(self) -> None:
        for tail in self._open:
            await tail.broker.close()


@pytest.fixture
def fakes(io_loop: IOLoop) -> Iterator[Fakes]:
    fakes = Fakes()
    yield fakes
    io_loop.run_sync(fakes.close)


@contextmanager
def patience(tail: Tail, seconds: float) -> Iterator[None]:
    """Until the end of the block its broker waits no longer than this. Elsewhere a busy machine may take its time."""
    broker = cast(FakeRemote, tail.broker)
    usual, broker.timeout_seconds = broker.timeout_seconds, seconds
    try:
        yield
    finally:
        broker.timeout_seconds = usual


def event(data: str = "x") -> Publication:
    return Publication(("a",), data.encode())


# What an event of these tests weighs, such as number 571.
SIZE_BYTES = Publication(("a",), b"571").size_bytes


def data_of(publications: Sequence[Publication]) -> list[str]:
    return [publication.data.decode() for publication in publications]


# Opening.


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("history", "first", "forgotten"),
    [
        ({}, 0, 0),
        ({"max_events": 30}, 570, 570),
        ({"max_bytes": 30 * SIZE_BYTES + 100}, 570, 570),
        ({"max_events": 0}, 600, 600),
    ],
)
async def test_a_window_is_filled_from_the_end(
    fakes: Fakes, history: dict[str, int], first: int, forgotten: int
) -> None:
    await fakes.log.put(*("x" for _ in range(600)))
    tail = await fakes.open(HistorySettings.model_validate(history))
    assert [p.offset for p in tail.opened.recent] == list(range(first + 1, 601))
    assert (tail.opened.position, tail.opened.forgotten) == (Position("one", 600), forgotten)


@pytest.mark.gen_test
async def test_what_is_too_old_for_the_window_is_not_read(fakes: Fakes) -> None:
    await fakes.log.put(*("x" for _ in range(600)))
    for entry in fakes.log.entries[:500]:
        entry.published_at = 1.0
    fakes.log.trim(20)
    longer = TopicHistory(pattern="long", max_age_seconds=1e9)
    for topics, first in (((), 501), ((longer,), 501)):
        tail = await fakes.open(HistorySettings(topics=topics))
        assert (tail.opened.recent[0].offset, tail.opened.forgotten) == (first, first - 1)
    tail = await fakes.open(HistorySettings(topics=(TopicHistory(pattern="long", max_age_seconds=3e9),)))
    assert (tail.opened.recent[0].offset, tail.opened.forgotten) == (21, 20)


@pytest.mark.gen_test
@pytest.mark.parametrize("at", [1.0, 9e9, -1e300])
async def test_the_date_of_one_entry_says_nothing_of_the_others(fakes: Fakes, at: float) -> None:
    await fakes.log.put(*("x" for _ in range(600)))
    for offset in (300, 301, 550):
        fakes.log.entries[offset - 1].published_at = at
    tail = await fakes.open()
    assert (len(tail.opened.recent), tail.opened.forgotten) == (600, 0)
    for entry in fakes.log.entries[:3]:
        entry.published_at = at
    tail = await fakes.open()
    assert tail.opened.forgotten == (0 if at > 1e9 else 3)


@pytest.mark.gen_test
async def test_an_engine_that_is_away_at_the_start_is_an_error_without_credentials(fakes: Fakes) -> None:
    fakes.log.is_away = True
    with pytest.raises(Unavailable) as raised:
        await fakes.open()
    assert str(raised.value) == "fake at fake://here: no way to fake://here"
    assert (raised.value.status, raised.value.code) == (503, "broker_down")
    assert fakes.log.calls == ["connect", "disconnect"]
    fakes.log.is_away, fakes.log.is_silent = False, True
    with pytest.raises(Unavailable, match=r"was silent for 0\.05 s"):
        await fakes.open(patience=0.05)


# The engine is away.


@pytest.mark.gen_test
async def test_what_was_appended_meanwhile_is_delivered_once_in_order(fakes: Fakes, expect_log: ExpectLog) -> None:
    expect_log("broker.down")
    tail = await fakes.open()
    await tail.broker.append([event("1"), event("2")])
    for n in range(3, 6):
        await fakes.log.set_away(True)
        await until(lambda: not tail.broker.is_up)
        for question in (tail.broker.append([event()]), tail.broker.read(0, 10), tail.broker.reach(10**6)):
            with pytest.raises(Unavailable, match=r"^fake at fake://here: no way to fake://here$"):
                await question
        await fakes.log.put(str(n))
        await fakes.log.set_away(False)
        await until(lambda: tail.broker.is_up)
    await tail.broker.append([event("6")])
    assert data_of(tail.delivered) == ["1", "2", "3", "4", "5", "6"]
    assert tail.offsets == [1, 2, 3, 4, 5, 6]
    assert tail.lost_at == []


@pytest.mark.gen_test
async def test_an_engine_that_hangs_is_down_within_the_timeout(fakes: Fakes, expect_log: ExpectLog) -> None:
    expect_log("broker.down")
    tail = await fakes.open()
    fakes.log.is_silent = True
    with patience(tail, 0.2):
        with pytest.raises(Unavailable, match=r"was silent for 0\.2 s"):
            await tail.broker.append([event()])
        await until(lambda: not tail.broker.is_up)
        with pytest.raises(Unavailable, match=r"was silent for 0\.2 s"):
            await tail.broker.append([event()])
    fakes.log.is_silent = False
    await until(lambda: tail.broker.is_up)
    await tail.broker.append([event("now")])
    assert data_of(tail.delivered) == ["now"]


@pytest.mark.gen_test
async def test_an_engine_that_ends_the_tail_without_a_word_is_followed_again(
    fakes: Fakes, expect_log: ExpectLog
) -> None:
    expect_log("broker.down")

    class Short(FakeRemote):
        async def follow(self, after: int) -> AsyncGenerator[LogPage, None]:
            async for page in super().follow(after):
                yield page
                if page.publications:
                    return

    tail = await fakes.open(make=Short)
    for n in range(3):
        await fakes.log.put(str(n))
        await tail.until(lambda n=n: len(tail.delivered) > n)  # type: ignore[misc]
    assert data_of(tail.delivered) == ["0", "1", "2"]


@pytest.mark.gen_test
async def test_what_was_trimmed_meanwhile_is_told(fakes: Fakes, expect_log: ExpectLog) -> None:
    expect_log("broker.down")
    tail = await fakes.open()
    await fakes.log.put("1")
    await tail.until(lambda: len(tail.delivered) == 1)
    await fakes.log.set_away(True)
    await until(lambda: not tail.broker.is_up)
    await fakes.log.put("2", "3", "4")
    fakes.log.trim(2)
    await fakes.log.set_away(False)
    await tail.until(lambda: len(tail.delivered) == 3)
    assert tail.lost_at == [(Position("one", 2), "too_old")]
    assert tail.offsets == [1, 3, 4]


@pytest.mark.gen_test
async def test_what_is_trimmed_before_the_tail_came_by_is_told(fakes: Fakes) -> None:
    tail = await fakes.open()
    assert isinstance(tail.broker, FakeRemote)
    tail.broker.hold = asyncio.Event()
    await fakes.log.put(*map(str, range(1, 31)))
    fakes.log.trim(25)
    tail.broker.hold.set()
    await tail.until(lambda: bool(tail.offsets) and tail.offsets[-1] == 30)
    assert tail.lost_at == [(Position("one", 25), "too_old")]
    assert tail.offsets[-5:] == [26, 27, 28, 29, 30]


@pytest.mark.gen_test
@pytest.mark.parametrize("is_away", [True, False])
async def test_another_log_is_told_and_its_publishers_try_again(
    fakes: Fakes, expect_log: ExpectLog, is_away: bool
) -> None:
    expect_log("broker.down", required=is_away)
    tail = await fakes.open()
    await tail.broker.append([event("1"), event("2")])
    if is_away:
        await fakes.log.set_away(True)
        await until(lambda: not tail.broker.is_up)
    fakes.log.epoch = "two"
    fakes.log.go_back(0)
    await fakes.log.put("before anybody looked")
    await fakes.log.set_away(False)
    await tail.until(lambda: bool(tail.lost_at))
    assert tail.lost_at == [(Position("two", 1), "epoch_changed")]
    await until(lambda: tail.broker.is_up)
    assert list(await tail.broker.append([event("new")])) == [2]
    assert data_of(tail.delivered) == ["1", "2", "new"]


@pytest.mark.gen_test
@pytest.mark.parametrize("others", [0, 1, 2])
async def test_a_log_that_lost_its_end_gets_another_epoch(fakes: Fakes, expect_log: ExpectLog, others: int) -> None:
    expect_log("broker.down")
    tail, other = await fakes.open(), await fakes.open()
    await tail.broker.append([event("1"), event("2"), event("3")])
    await fakes.log.set_away(True)
    await until(lambda: not tail.broker.is_up and not other.broker.is_up)
    fakes.log.go_back(1)
    await fakes.log.put(*("other" for _ in range(others)), step=5)
    await fakes.log.set_away(False)
    await until(lambda: tail.broker.is_up and other.broker.is_up)
    for each in (tail, other):
        assert each.lost_at == [(Position("one~", 1 + 5 * others), "epoch_changed")]
    await tail.broker.append([event("new")])
    await other.until(lambda: len(other.delivered) == 4)
    assert data_of(tail.delivered) == data_of(other.delivered) == ["1", "2", "3", "new"]


# Publishing.


@pytest.mark.gen_test
async def test_a_publish_is_answered_when_its_own_message_came_back(fakes: Fakes) -> None:
    tail = await fakes.open()
    assert isinstance(tail.broker, FakeRemote)
    tail.broker.hold = asyncio.Event()
    appends = [asyncio.create_task(tail.broker.append([event(str(n)), event()])) for n in range(3)]
    await until(lambda: fakes.log.newest == 6)
    assert not any(append.done() for append in appends)
    tail.broker.hold.set()
    assert [list(await append) for append in appends] == [[1, 2], [3, 4], [5, 6]]
    assert tail.offsets == [1, 2, 3, 4, 5, 6]


@pytest.mark.gen_test
async def test_a_publish_that_did_not_come_back_is_not_acknowledged(fakes: Fakes, expect_log: ExpectLog) -> None:
    expect_log("broker.down", required=False)
    tail = await fakes.open()
    assert isinstance(tail.broker, FakeRemote)
    tail.broker.hold = asyncio.Event()
    one = event()
    with patience(tail, 0.2), pytest.raises(Unavailable, match=r"was silent for 0\.2 s"):
        await tail.broker.append([one])
    assert one.offset == 0
    tail.broker.hold.set()
    await tail.until(lambda: len(tail.delivered) == 1)


@pytest.mark.gen_test
async def test_a_publish_into_a_log_that_is_replaced_is_not_acknowledged(fakes: Fakes) -> None:
    tail = await fakes.open()
    assert isinstance(tail.broker, FakeRemote)
    tail.broker.hold = asyncio.Event()
    append = asyncio.create_task(tail.broker.append([event()]))
    await until(lambda: fakes.log.newest == 1)
    tail.broker._lose(Position("two", 7), "epoch_changed")
    with pytest.raises(Unavailable, match="has replaced its log"):
        await append

    class Late(FakeRemote):
        async def send(self, publications: Sequence[Publication]) -> Sequence[Placed]:
            placed = await super().send(publications)
            self.epoch = "two"
            return placed

    tail = await fakes.open(make=Late)
    with pytest.raises(Unavailable, match="has replaced its log"):
        await tail.broker.append([event()])


@pytest.mark.gen_test
async def test_an_engine_that_refuses_events_is_asked_until_it_takes_them(fakes: Fakes, expect_log: ExpectLog) -> None:
    expect_log("broker.down")
    tail = await fakes.open()
    fakes.log.is_full = True
    for _ in range(2):
        with pytest.raises(Unavailable, match="fake://here is full"):
            await tail.broker.append([event()])
        assert not tail.broker.is_up
    await fakes.log.put("of another")
    await tail.until(lambda: len(tail.delivered) == 1)
    await until(lambda: "probe" in fakes.log.calls)
    fakes.log.is_full = False
    await until(lambda: tail.broker.is_up)
    await tail.broker.append([event()])


@pytest.mark.gen_test
async def test_one_refused_event_says_nothing_of_the_engine(fakes: Fakes) -> None:
    class Picky(FakeRemote):
        async def send(self, publications: Sequence[Publication]) -> Sequence[Placed]:
            if publications[0].data == b"odd":
                raise Full("fake://me:hunter2@here does not like it")
            return await super().send(publications)

    tail = await fakes.open(make=Picky)
    for _ in range(2):
        with pytest.raises(Unavailable, match="fake://here does not like it"):
            await tail.broker.append([event("odd")])
        assert tail.broker.is_up
        await tail.broker.append([event()])


# Reading.


@pytest.mark.gen_test
async def test_a_page_of_nothing_but_what_is_skipped_is_not_the_end(fakes: Fakes, expect_log: ExpectLog) -> None:
    expect_log("broker.skipped")
    tail = await fakes.open()
    await fakes.log.put("1", *("bad" for _ in range(35)), "2", "bad")
    await fakes.log.put("3")
    await tail.until(lambda: len(tail.delivered) == 3)
    assert data_of(await tail.broker.read(0, 100)) == ["1"]
    assert data_of(await tail.broker.read(1, 100)) == ["2", "3"]
    assert list(await tail.broker.read(39, 100)) == []
    assert isinstance(tail.broker, Remote)
    assert tail.broker.skipped == 36
    fakes.log.trim(30)
    with pytest.raises(Forgotten):
        await tail.broker.read(0, 100)


@pytest.mark.gen_test
async def test_nothing_is_read_that_was_not_delivered(fakes: Fakes) -> None:
    tail = await fakes.open()
    assert isinstance(tail.broker, FakeRemote)
    await tail.broker.append([event("1")])
    tail.broker.hold = asyncio.Event()
    await fakes.log.put("2")
    assert data_of(await tail.broker.read(0, 100)) == ["1"]
    assert list(await tail.broker.read(1, 100)) == []
    tail.broker.hold.set()
    await tail.until(lambda: len(tail.delivered) == 2)
    assert data_of(await tail.broker.read(0, 100)) == ["1", "2"]
    fakes.log.epoch = "two"
    with pytest.raises(Unavailable, match="has replaced its log"):
        await tail.broker.read(0, 100)


@pytest.mark.gen_test
async def test_an_offset_that_others_have_is_reached_and_one_that_nobody_has_is_not_waited_for(fakes: Fakes) -> None:
    tail = await fakes.open()
    assert isinstance(tail.broker, FakeRemote)
    await fakes.log.put("1", "2")
    assert not any(await asyncio.gather(*(tail.broker.reach(3) for _ in range(50))))
    assert fakes.log.calls.count("bounds") == 2, "everybody asked"
    tail.broker.hold = asyncio.Event()
    await fakes.log.put("3", "4")
    reaching = asyncio.create_task(tail.broker.reach(4))
    await until(lambda: fakes.log.calls.count("bounds") == 3)
    assert not reaching.done()
    tail.broker.hold.set()
    assert await reaching
    assert tail.offsets == [1, 2, 3, 4]
    assert await tail.broker.reach(4)


class SlowToAnswer(FakeRemote):
    """Its answers about the bounds take as long as a test wants: they are on their way until `may_arrive`."""

    may_arrive: asyncio.Event | None = None

    async def bounds(self) -> Bounds:
        bounds = await super().bounds()
        if self.may_arrive is not None:
            await self.may_arrive.wait()
        return bounds


async def slow(fakes: Fakes, expected: int) -> tuple[Tail, SlowToAnswer, asyncio.Task[bool]]:
    """A broker that asked for the bounds when the log was empty, and has not got the answer yet."""
    tail = await fakes.open(make=SlowToAnswer)
    broker = tail.broker
    assert isinstance(broker, SlowToAnswer)
    broker.may_arrive = asyncio.Event()
    early = asyncio.create_task(broker.reach(expected))
    await until(lambda: fakes.log.calls.count("bounds") == 2)
    return tail, broker, early


@pytest.mark.gen_test
async def test_an_answer_that_is_older_than_the_question_denies_nothing(fakes: Fakes) -> None:
    tail, broker, early = await slow(fakes, 9)
    assert broker.may_arrive is not None
    broker.hold = asyncio.Event()
    await fakes.log.put("1", "2")  # another process delivers them, and its clients come here
    later = [asyncio.create_task(broker.reach(2)) for _ in range(20)]
    await asyncio.sleep(0)
    broker.may_arrive.set()
    await until(lambda: fakes.log.calls.count("bounds") == 3)
    broker.hold.set()
    assert await asyncio.gather(early, *later) == [False, *[True] * 20]
    assert tail.offsets == [1, 2]
    assert fakes.log.calls.count("bounds") == 3, "those who waited did not share one question"


@pytest.mark.gen_test
async def test_an_older_answer_that_has_the_offset_is_enough(fakes: Fakes) -> None:
    await fakes.log.put("1")
    tail = await fakes.open(make=SlowToAnswer)
    broker = tail.broker
    assert isinstance(broker, SlowToAnswer)
    broker.may_arrive, broker.hold = asyncio.Event(), asyncio.Event()
    await fakes.log.put("2", "3")
    early = asyncio.create_task(broker.reach(2))
    await until(lambda: fakes.log.calls.count("bounds") == 2)
    later = asyncio.create_task(broker.reach(3))
    await asyncio.sleep(0)
    broker.may_arrive.set()
    broker.hold.set()
    assert all(await asyncio.gather(early, later))
    assert fakes.log.calls.count("bounds") == 2


@pytest.mark.gen_test
async def test_an_older_question_that_fails_is_asked_once_more(fakes: Fakes) -> None:
    class Failing(SlowToAnswer):
        async def bounds(self) -> Bounds:
            bounds = await super().bounds()
            if bounds.newest == 0 and self._is_open:
                raise ConnectionError("lost")
            return bounds

    tail = await fakes.open(make=Failing)
    broker = tail.broker
    assert isinstance(broker, Failing)
    broker.may_arrive, broker.hold = asyncio.Event(), asyncio.Event()
    early = asyncio.create_task(broker.reach(1))
    await until(lambda: fakes.log.calls.count("bounds") == 2)
    await fakes.log.put("1")
    later = asyncio.create_task(broker.reach(1))
    await asyncio.sleep(0)
    broker.may_arrive.set()
    broker.hold.set()
    with pytest.raises(Unavailable, match="lost"):
        await early
    assert await later


@pytest.mark.gen_test
async def test_who_has_an_id_that_there_is_not_goes_on_behind_what_there_is(fakes: Fakes) -> None:
    """And not behind what this process has got of it: the rest would come as live events, perhaps a second time."""
    tail = await fakes.open()
    broker = tail.broker
    assert isinstance(broker, FakeRemote)
    broker.hold = asyncio.Event()
    await fakes.log.put("1", "2")
    reaching = asyncio.create_task(broker.reach(99))
    await until(lambda: fakes.log.calls.count("bounds") == 2)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not reaching.done()
    broker.hold.set()
    assert not await reaching
    assert tail.offsets == [1, 2]


@pytest.mark.gen_test
async def test_a_question_under_way_is_refused_when_the_broker_is_closed(fakes: Fakes) -> None:
    """A cancelled question is not a cancelled request: that would be logged as a fault of the handler."""
    tail = await fakes.open(make=SlowToAnswer)
    broker = tail.broker
    assert isinstance(broker, SlowToAnswer)
    broker.may_arrive = asyncio.Event()
    waiting = [asyncio.create_task(broker.reach(99)) for _ in range(2)]
    await until(lambda: fakes.log.calls.count("bounds") == 2)
    await broker.close()
    for task in waiting:
        with pytest.raises(Unavailable, match="is not open"):
            await task


# Mistakes.


@pytest.mark.gen_test
@pytest.mark.parametrize("where", ["follow", "bounds", "connect", "disconnect", "deliver"])
async def test_a_mistake_in_the_tail_is_said_once_and_the_tail_goes_on(
    fakes: Fakes, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    expect_log("broker.down")
    expect_log("broker.failed")
    tail = await fakes.open()
    broker: Any = tail.broker
    broker._after_mistake = Backoff(first_seconds=0.001, limit_seconds=0.002)
    failures = 0

    def mistaken(*_: object) -> Any:
        nonlocal failures
        failures += 1
        raise LookupError("hunter2 is nowhere")

    of = tail if where == "deliver" else broker
    setattr(of, where, mistaken)
    if where in ("bounds", "connect", "disconnect"):
        await fakes.log.set_away(True)
        await until(lambda: "disconnect" in fakes.log.calls or failures > 0)
        await fakes.log.set_away(False)
    while failures < 3:
        await fakes.log.put("lost on the sink" if where == "deliver" else "x")
        if where == "disconnect":
            break
        await asyncio.sleep(0)
    delattr(of, where)
    await until(lambda: tail.broker.is_up)
    (offset,) = await tail.broker.append([event("next")])
    assert (tail.offsets[-1], data_of(tail.delivered)[-1]) == (offset, "next")
    (said,) = [record for record in caplog.records if record.getMessage() == "broker.failed"]
    assert said.exc_info
    assert "[secret] is nowhere" in vars(said)["reason"]


@pytest.mark.gen_test
async def test_mistakes_between_good_pages_slow_the_tail_down(fakes: Fakes, expect_log: ExpectLog) -> None:
    expect_log("broker.down")
    expect_log("broker.failed")
    waited: list[float] = []

    class Noted(Backoff):
        def seconds(self) -> float:
            waited.append(super().seconds())
            return 0.001

    class Poisoned(FakeRemote):
        async def follow(self, after: int) -> AsyncGenerator[LogPage, None]:
            async for page in super().follow(after):
                yield page
                raise LookupError

    tail = await fakes.open(make=Poisoned)
    assert isinstance(tail.broker, Remote)
    tail.broker._after_mistake = Noted()
    await until(lambda: len(waited) > 8)
    assert max(waited) > 2


@pytest.mark.gen_test
async def test_a_mistake_in_a_task_beside_the_tail_ends_nothing(
    fakes: Fakes, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    expect_log("broker.down")
    expect_log("broker.failed")
    tail = await fakes.open()
    broker: Any = tail.broker

    async def mistaken() -> None:
        raise LookupError

    broker._start(mistaken())
    await until(lambda: "broker.failed" in caplog.messages)
    assert broker.is_up
    probe, broker.probe = broker.probe, mistaken
    fakes.log.is_full = True
    with pytest.raises(Unavailable):
        await broker.append([event()])
    failed: list[BaseException] = []
    broker._mistake = failed.append
    await until(lambda: bool(failed))
    fakes.log.is_full, broker.probe = False, probe
    await until(lambda: broker.is_up)
    await broker.append([event()])


@pytest.mark.gen_test
async def test_a_broker_closes_while_its_engine_is_silent(fakes: Fakes, expect_log: ExpectLog) -> None:
    tail = await fakes.open()
    fakes.log.is_silent = True
    cast(FakeRemote, tail.broker).timeout_seconds = 0.1
    append = asyncio.create_task(tail.broker.append([event()]))
    await asyncio.sleep(0)
    expect_log("broker.down", required=False)
    await tail.broker.close()
    with pytest.raises(Unavailable):
        await append
    with pytest.raises(Unavailable, match="is not open"):
        await tail.broker.append([event()])
    await tail.broker.close()
