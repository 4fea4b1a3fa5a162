"""A log that comes back older while no process is left to notice, and what proves that it has not."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

import pytest
from tornado.ioloop import IOLoop

from qgstream.brokers import vouching
from qgstream.brokers.base import Broker, open_broker
from qgstream.brokers.rabbitmq.broker import RabbitmqBroker
from qgstream.brokers.remote import Remote
from qgstream.brokers.vouching import MAX_EARLIER, earlier_of
from qgstream.events.history import HistorySettings
from qgstream.events.publication import Position
from tests.brokers.conftest import Tails
from tests.brokers.engines import PATIENCE_SECONDS, Engine
from tests.brokers.fake import FakeLog, FakeRemote
from tests.brokers.machines import NATS, REDIS, REDIS_HELLO, Machine
from tests.brokers.rabbitmq_server import RabbitmqServer
from tests.brokers.serving import Served, open_stream, take
from tests.conftest import ExpectLog
from tests.http.asking import Client, until


@pytest.fixture
def tails(io_loop: IOLoop) -> Iterator[Tails]:
    """Brokers that are closed whatever happens."""
    tails = Tails(Engine("memory://"))
    yield tails
    io_loop.run_sync(tails.close)


async def die(broker: Broker) -> None:
    """End as `kill -9` ends a process: the connection is gone, and nothing is said."""
    assert isinstance(broker, Remote)
    pending = {*broker._tasks}
    while pending:  # again and again, as in `Remote.close`
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.2)
    await broker._let_go()
    broker._is_open = False


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody who might come back is waited for."""
    monkeypatch.setattr(vouching, "WAIT_SECONDS", 0.3)
    monkeypatch.setattr(vouching, "LOOK_SECONDS", 0.05)


# What is decided, on an engine of which everything is known.


@pytest.mark.gen_test
async def test_while_the_engine_runs_a_log_is_what_it_was(tails: Tails) -> None:
    log = FakeLog()
    await log.put("1", "2")
    for is_killed in (True, False):
        tail = await tails.open(broker=FakeRemote(log))
        assert tail.opened.position == Position("one", 2)
        await (die(tail.broker) if is_killed else tail.broker.close())
    assert "renew" not in log.calls


@pytest.mark.gen_test
async def test_ids_of_a_log_that_was_signed_are_good_up_to_there(tails: Tails) -> None:
    log = FakeLog()
    await log.put("1", "2", "3")
    await (await tails.open(broker=FakeRemote(log))).broker.close()
    assert log.ended == 3
    log.restart()
    await log.put("4")  # what another publishes, before anybody looks
    async with Served(FakeRemote(log)) as client:
        assert str(client.hub.window.position) == "one~-4"
        assert not log.ended, "the signature stands"
        stream, replay, at = await open_stream(client, id="one-2")
        assert (replay, at) == ("complete", "one~-2")
        assert [event.id for event in await take(stream, 2)] == ["one~-3", "one~-4"]
        stream, replay, _ = await open_stream(client, id="one-3")
        assert (replay, (await take(stream, 1))[0].data) == ("complete", "4")
        # Given by a process whose events are gone: others have their offsets now.
        for id in ("one-4", "one-9"):
            stream, replay, _ = await open_stream(client, id=id)
            assert replay == "reset"
            assert (await stream.message())["reason"] == "epoch_changed"
    log.restart()
    async with Served(FakeRemote(log)) as client:
        assert (await open_stream(client, id="one-3"))[1] == "complete"
        assert (await open_stream(client, id="one-4"))[1] == "reset"
        assert (await open_stream(client, id="one~-4"))[1] == "complete"


@pytest.mark.gen_test
async def test_ids_of_before_the_window_are_looked_up_under_their_earlier_epoch(tails: Tails) -> None:
    log = FakeLog()
    await log.put(*map(str, range(1, 31)))
    await (await tails.open(broker=FakeRemote(log))).broker.close()
    log.restart()
    async with Served(FakeRemote(log), history=HistorySettings(max_events=5)) as client:
        stream, replay, at = await open_stream(client, id="one-3")
        assert (replay, at) == ("complete", "one~-3")
        assert [event.data for event in await take(stream, 27)] == [str(n) for n in range(4, 31)]


@pytest.mark.usefixtures("_soon")
@pytest.mark.gen_test
async def test_a_log_that_nobody_can_vouch_for_has_a_new_epoch(tails: Tails, expect_log: ExpectLog) -> None:
    expect_log("broker.unvouched")
    log = FakeLog()
    await log.put("1", "2", "3")
    await die((await tails.open(broker=FakeRemote(log))).broker)
    log.restart()
    tail = await tails.open(broker=FakeRemote(log))
    assert (tail.opened.position, tail.opened.earlier) == (("one~", 3), {})
    assert log.is_witnessed
    await tail.broker.close()
    assert (await tails.open(broker=FakeRemote(log))).opened.position == ("one~", 3)


@pytest.mark.gen_test
async def test_a_process_that_starts_waits_for_those_that_know(tails: Tails, expect_log: ExpectLog) -> None:
    expect_log("broker.down")
    log = FakeLog()
    await log.put("1")
    survivor = await tails.open(broker=FakeRemote(log))
    await log.set_away(True)
    await until(lambda: not survivor.broker.is_up)
    assert isinstance(survivor.broker, FakeRemote)
    connect, may_connect = survivor.broker.connect, asyncio.Event()

    async def held() -> None:
        await may_connect.wait()
        await connect()

    survivor.broker.connect = held  # type: ignore[method-assign]
    log.restart()
    await log.set_away(False)
    log.calls.clear()
    starting = asyncio.create_task(tails.open(broker=FakeRemote(log)))
    await until(lambda: log.calls.count("standing") > 1)
    may_connect.set()
    started = await starting
    assert started.opened.position == survivor.opened.position
    assert survivor.lost_at == []


@pytest.mark.gen_test
async def test_who_is_cut_off_from_the_engine_signs_nothing(tails: Tails, expect_log: ExpectLog) -> None:
    expect_log("broker.down")
    log = FakeLog()
    tail = await tails.open(broker=FakeRemote(log))
    await log.set_away(True)
    await until(lambda: not tail.broker.is_up)
    await tail.broker.close()
    assert "sign_off" not in log.calls


def test_a_few_earlier_epochs_are_remembered() -> None:
    earlier: dict[str, int] = {}
    for n in range(10):
        earlier = earlier_of(f"e{n}", n, earlier)
    assert earlier == {f"e{n}": n for n in range(9, 9 - MAX_EARLIER, -1)}
    assert earlier_of("e", None, earlier) == {}


# Real engines, and copies of what they keep.


class Own(NamedTuple):
    """A server for one test alone. Everything that it keeps is in `data`."""

    machine: Machine
    url: str
    data: Path

    def broker(self) -> Broker:
        return open_broker(self.url, timeout_seconds=PATIENCE_SECONDS)

    async def restart(self, *, with_copy: Path | None = None) -> None:
        """Stop it, put a copy in place of its data if there is one, and start it. (A RabbitMQ that is killed within
        seconds after its first start has no streams any more.)"""
        await asyncio.to_thread(self.machine.stop)
        if with_copy is not None:
            shutil.rmtree(self.data)
            shutil.copytree(with_copy, self.data)
        await asyncio.to_thread(self.machine.start)

    async def copy(self, to: Path) -> Path:
        """Copy its data, while it does not run."""
        await asyncio.to_thread(self.machine.stop)
        shutil.copytree(self.data, to)
        await asyncio.to_thread(self.machine.start)
        return to


@pytest.fixture(params=["nats", "redis", "rabbitmq"])
def own(request: pytest.FixtureRequest, tmp_path: Path, require_program: Callable[[str], Path]) -> Iterator[Own]:
    folder = tmp_path / "server"
    folder.mkdir()
    if request.param == "nats":
        require_program("nats-server")
        machine = Machine(NATS, folder)
        made = Own(machine, f"nats://127.0.0.1:{machine.port}", folder / "jetstream")
    elif request.param == "redis":
        require_program("redis-server")
        machine = Machine(REDIS, folder, hello=REDIS_HELLO)
        made = Own(machine, f"redis://127.0.0.1:{machine.port}", folder / "appendonlydir")
    else:
        machine = RabbitmqServer(require_program("rabbitmq-server"), folder)
        made = Own(machine, f"amqp://127.0.0.1:{machine.port}", folder / "data")
    try:
        made.machine.start()
        yield made
    finally:
        if isinstance(made.machine, RabbitmqServer):
            made.machine.end()
        made.machine.kill()


async def publish(client: Client, first: int, last: int) -> list[str]:
    """The ids of acknowledged events."""
    return [(await client.hub.publish("a", str(n))).id for n in range(first, last)]


async def told(client: Client, id: str) -> tuple[str, str]:
    """What a client with this id is told: its replay, and the reason if that is a reset."""
    stream, replay, _ = await open_stream(client, "a", id=id)
    reason = str((await stream.message())["reason"]) if replay == "reset" else ""
    stream.close()
    return replay, reason


RESET = ("reset", "epoch_changed")


@pytest.mark.usefixtures("_soon")
@pytest.mark.gen_test
async def test_a_log_that_came_back_older_is_no_complete_replay(
    own: Own, tmp_path: Path, expect_log: ExpectLog
) -> None:
    expect_log("broker.down", required=False)
    expect_log("broker.unvouched")
    async with Served(own.broker()) as client:
        before = await publish(client, 0, 30)
        copy = await own.copy(tmp_path / "copy")
        await until(lambda: client.hub.broker.is_up)
        after = await publish(client, 30, 80)
    await own.restart(with_copy=copy)
    async with Served(own.broker()) as client:
        new = await publish(client, 0, 80)
        # Neither for an id of what is gone, which others have grown past, nor for one from before: fifty are missing.
        for id in (after[20], after[-1], before[10], before[-1]):
            assert await told(client, id) == RESET
        assert await told(client, new[-1]) == ("complete", "")


@pytest.mark.gen_test
async def test_what_was_given_after_a_signature_that_came_back_is_unknown(own: Own, tmp_path: Path) -> None:
    async with Served(own.broker()) as client:
        before = await publish(client, 0, 30)
        keyed = await client.hub.publish("keyed", "1", idempotency_key="k")
    copy = await own.copy(tmp_path / "copy")
    async with Served(own.broker()) as client:
        # All was stopped as it should be: nobody is told of that.
        assert await told(client, before[10]) == ("complete", "")
        stream, _, _ = await open_stream(client, "a", id=before[10])
        assert [int(event.data) for event in await take(stream, 19)] == list(range(11, 30))
        again = await client.hub.publish("keyed", "2", idempotency_key="k")
        assert again.id.rpartition("-")[2] == keyed.id.rpartition("-")[2]
        later = await publish(client, 30, 80)
    for _ in range(2):
        await own.restart(with_copy=copy)
        async with Served(own.broker()) as client:
            new = await publish(client, 0, 80)
            for id in later[::10]:
                assert await told(client, id) == RESET
            later = new


@pytest.mark.gen_test
async def test_a_process_that_ends_in_whatever_way_costs_no_client_its_place(own: Own, tails: Tails) -> None:
    async with Served(own.broker()) as client:
        ids = await publish(client, 0, 30)
    killed = await tails.open(broker=own.broker())
    await die(killed.broker)
    async with Served(own.broker()) as one, Served(own.broker()) as two:
        for client in (one, two):
            assert await told(client, ids[10]) == ("complete", "")
        ids += await publish(two, 30, 40)
        async with Served(own.broker()) as three:
            assert await told(three, ids[35]) == ("complete", "")
    async with Served(own.broker()) as client:
        stream, replay, _ = await open_stream(client, "a", id=ids[5])
        assert replay == "complete"
        assert [event.id for event in await take(stream, 34)] == ids[6:]


@pytest.mark.usefixtures("_soon")
@pytest.mark.gen_test
async def test_a_process_that_stops_beside_others_signs_for_nobody(own: Own, expect_log: ExpectLog) -> None:
    expect_log("broker.unvouched")
    async with Served(own.broker()) as one:
        async with Served(own.broker()) as two:
            ids = await publish(two, 0, 5)
        broker = cast(Remote, one.hub.broker)
        assert not (await broker.standing()).ended
        ids += await publish(one, 5, 10)
        await die(one.hub.broker)
        await own.restart()
        async with Served(own.broker()) as client:
            assert await told(client, ids[2]) == RESET


@pytest.mark.usefixtures("_soon")
@pytest.mark.gen_test
async def test_a_signature_under_a_process_that_goes_on_is_taken_back(own: Own, expect_log: ExpectLog) -> None:
    """Another process signed in the moment in which this one began."""
    expect_log("broker.unvouched")
    async with Served(own.broker()) as client:
        broker = cast(Remote, client.hub.broker)
        await broker.sign_off()
        ids = await publish(client, 0, 5)
        if isinstance(broker, RabbitmqBroker):
            # Its own event is what says so: one that comes behind a signature.
            await publish(client, 5, 6)
        else:
            while (await broker.standing()).ended is not None:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.05)
        await die(broker)
        await own.restart()
        async with Served(own.broker()) as later:
            assert await told(later, ids[2]) == RESET


@pytest.mark.gen_test
async def test_an_engine_that_starts_again_under_its_processes_is_what_it_was(own: Own, expect_log: ExpectLog) -> None:
    expect_log("broker.down")
    async with Served(own.broker()) as one:
        ids = await publish(one, 0, 10)
        for n in range(10, 13):
            await own.restart()
            async with Served(own.broker()) as two:  # perhaps before the other has come back
                assert await told(two, ids[2]) == ("complete", "")
            await until(lambda: one.hub.broker.is_up)
            ids += await publish(one, n, n + 1)
        assert await told(one, ids[2]) == ("complete", "")
