"""What is NATS's own: messages of other clients, streams of other people, and a server that comes back as another."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import nats
import pytest
from nats.aio.client import Client as Nats
from tornado.ioloop import IOLoop

from qgstream.brokers.base import Broker, Forgotten, open_broker
from qgstream.brokers.nats.inbox import Place
from qgstream.errors import ConfigError, TooLarge, Unavailable
from qgstream.events.history import HistorySettings
from qgstream.events.namespaces import namespace, scoped
from qgstream.events.publication import Publication
from tests.brokers.conftest import Tail, Tails
from tests.brokers.engines import Engine
from tests.brokers.machines import NATS, Machine
from tests.brokers.serving import Served, open_stream, take
from tests.conftest import ExpectLog
from tests.hostile.certificates import make_certificate
from tests.http.asking import error_of, until


@pytest.fixture
def name() -> str:
    return f"tests-{uuid4().hex}"


@pytest.fixture
def place(nats_machine: Machine, name: str) -> Engine:
    """A log of the test's own."""
    return Engine(f"nats://127.0.0.1:{nats_machine.port}/{name}?prefix={name}", machine=nats_machine)


@pytest.fixture
def tails(io_loop: IOLoop, place: Engine) -> Iterator[Tails]:
    tails = Tails(place)
    yield tails
    io_loop.run_sync(tails.close)


@pytest.fixture
def own_machine(tmp_path: Path, require_program: Callable[[str], Path]) -> Iterator[Callable[..., Machine]]:
    """A server for this test alone, with more on its command line."""
    require_program("nats-server")
    machines: list[Machine] = []

    def start(*more: str) -> Machine:
        machine = Machine((*NATS, *more), tmp_path)
        machines.append(machine)
        machine.start()
        return machine

    yield start
    for machine in machines:
        machine.kill()


@asynccontextmanager
async def plain(machine: Machine, **options: Any) -> AsyncIterator[Nats]:
    """Any program that speaks NATS, and knows nothing of us."""
    client = await nats.connect(f"nats://127.0.0.1:{machine.port}", **options)
    try:
        yield client
    finally:
        await client.close()


async def opened(url: str) -> Tail:
    broker = open_broker(url)
    tail = Tail(broker)
    tail.opened = await broker.open(tail, HistorySettings())
    return tail


def cut(tail: Tail) -> None:
    """End its connection, as a network would."""
    broker: Any = tail.broker
    broker._client._transport.close()


def pulsing(broker: Any) -> Broker:
    """One that looks at its stream several times a second, also when nothing comes."""
    broker.pulse_seconds = 0.25
    made: Broker = broker
    return made


def event(data: str = "x", topic: str = "orders", **more: Any) -> Publication:
    return Publication((topic,), data.encode(), is_json=False, **more)


# Messages of others.


@pytest.mark.gen_test
async def test_a_plain_publish_appears_on_events(place: Engine, nats_machine: Machine, name: str) -> None:
    async with Served(place.broker()) as client, plain(nats_machine) as other:
        stream, _, at = await open_stream(client, "orders.eu")
        everything, *_ = await open_stream(client)
        await other.publish(f"{name}.orders.eu", b'{"order": 7}')
        await other.publish(f"{name}.orders.eu", b"8", headers={"Event": "created", "Retry": "500"})
        await other.publish(f"{name}.invoices", b"not for the first")
        found = await take(stream, 2)
        assert [event.data for event in found] == ['{"order": 7}', "8"]
        assert (found[1].event, found[1].retry_ms) == ("created", 500)
        assert len(await take(everything, 3)) == 3
        # And who was away gets it afterwards.
        stream, replay, _ = await open_stream(client, "orders.eu", id=at)
        assert (replay, [event.data for event in await take(stream, 2)]) == ("complete", ['{"order": 7}', "8"])


@pytest.mark.gen_test
async def test_what_is_published_here_is_a_message_for_others(place: Engine, nats_machine: Machine, name: str) -> None:
    async with Served(place.broker()) as client, plain(nats_machine) as other:
        subscription = await other.subscribe(f"{name}.orders.>")
        await other.flush()
        await client.publish(["orders.eu 1", "all"], [1], event="created", idempotency_key="k")
        message = await subscription.next_msg(timeout=60)
        assert (message.subject, message.data) == (f"{name}.orders.eu%201", b"[1]")
        assert message.headers is not None
        expected = {"Content-Type": "application/json", "Event": "created", "Topics": '["orders.eu 1", "all"]'}
        assert message.headers.items() >= expected.items()
        assert message.headers["Nats-Msg-Id"] == scoped(namespace("publish_key", "tests"), "k")


@pytest.mark.gen_test
async def test_the_ids_of_others_take_no_key_of_ours(place: Engine, nats_machine: Machine, name: str) -> None:
    async with Served(place.broker()) as client, plain(nats_machine) as other:
        stream, *_ = await open_stream(client, "a")
        for data in ("theirs", "swallowed"):
            await other.jetstream().publish(f"{name}.a", data.encode(), headers={"Nats-Msg-Id": "order-7"})
        first = await client.publish("a", "ours", idempotency_key="order-7")
        assert (await client.publish("a", "again", idempotency_key="order-7"))["id"] == first["id"]
        await other.jetstream().publish(f"{name}.a", b"swallowed", headers={"Nats-Msg-Id": "order-7"})
        await client.publish("a", "end")
        assert [event.data for event in await take(stream, 3)] == ["theirs", "ours", "end"]


@pytest.mark.gen_test
async def test_what_is_no_event_is_passed_over_and_said(
    place: Engine, nats_machine: Machine, name: str, expect_log: ExpectLog
) -> None:
    expect_log("broker.skipped")
    async with Served(place.broker()) as client, plain(nats_machine) as other:
        stream, _, at = await open_stream(client)
        for data in (b"\xff\xfe", b"\x00\xff" * 1000):
            await other.publish(f"{name}.orders", data)
        await other.publish(f"{name}.orders", b"{", headers={"Content-Type": "application/json"})
        await other.publish(f"{name}.orders", b"good")
        assert [event.data for event in await take(stream, 1)] == ["good"]
        stream, replay, _ = await open_stream(client, id=at)
        assert (replay, [event.data for event in await take(stream, 1)]) == ("complete", ["good"])
        assert [p.data for p in await client.hub.broker.read(0, 100)] == [b"good"]
        # Also when a log ends with it.
        await other.publish(f"{name}.orders", b"\xff")
        await client.publish("orders", "last")
        assert [event.data for event in await take(stream, 1)] == ["last"]


@pytest.mark.gen_test
async def test_what_was_deleted_by_hand_is_no_gap(
    tails: Tails, nats_machine: Machine, name: str, expect_log: ExpectLog
) -> None:
    expect_log("broker.down")
    tail = await tails.open()
    offsets = await tail.broker.append([event(str(n)) for n in range(10)])
    async with plain(nats_machine) as other:
        for offset in (offsets[3], offsets[4], offsets[9]):
            await other.jetstream().delete_msg(name, offset)
    cut(tail)
    await until(lambda: not tail.broker.is_up)
    await until(lambda: tail.broker.is_up)
    await tail.broker.append([event("10")])
    assert tail.lost_at == []
    kept = [0, 1, 2, 5, 6, 7, 8, 10]
    assert [int(p.data) for p in await tail.broker.read(0, 100)] == kept
    await tails.close()
    tail = await tails.open()
    assert [int(p.data) for p in tail.opened.recent] == kept
    assert tail.opened.forgotten == 0


def test_a_time_from_the_future_is_bounded(place: Engine) -> None:
    broker: Any = place.broker()
    message: Any = SimpleNamespace(subject=f"{broker.stream}.orders", headers=None, data=b"1")
    for seconds, expected in ((9e9, time.time()), (1e9, 1e9)):
        publication = broker._publication(message, Place(1, 1, int(seconds * 1e9), 0))
        assert abs(publication.published_at - expected) < 60


# Streams.


@pytest.mark.gen_test
async def test_of_many_who_come_first_all_use_one_stream(tails: Tails) -> None:
    many = await asyncio.gather(*(tails.open() for _ in range(8)))
    assert len({tail.opened.position for tail in many}) == 1
    await many[0].broker.append([event()])
    for tail in many:
        await tail.until(lambda tail=tail: tail.offsets == [1])  # type: ignore[misc]


@pytest.mark.gen_test
async def test_the_stream_has_the_bounds_of_the_settings(tails: Tails, nats_machine: Machine, name: str) -> None:
    async with plain(nats_machine) as other:
        manager = other.jsm()

        async def bounds() -> tuple[object, ...]:
            config = (await manager.stream_info(name)).config
            return config.max_msgs, config.max_bytes, config.max_age, config.duplicate_window

        tail = await tails.open(HistorySettings(max_events=500, max_bytes=2**21, max_age_seconds=900))
        assert await bounds() == (500, 2**21, 900, 300)
        tail.broker.keep(HistorySettings(max_events=0, max_bytes=0, max_age_seconds=1))
        while (await bounds())[0] == 500:  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.01)
        # JetStream takes 0 for no limit, and no age below that of the idempotency keys.
        assert await bounds() == (1, 2**20, 300, 300)
        more = open_broker(f"{tails.engine.url}&max_events=7&max_bytes=9000000&max_age_seconds=86400")
        await tails.open(broker=more)
        assert await bounds() == (7, 9_000_000, 86_400, 300)


@pytest.mark.gen_test
async def test_a_stream_of_others_keeps_its_bounds(tails: Tails, nats_machine: Machine, name: str) -> None:
    async with plain(nats_machine) as other:
        await other.jsm().add_stream(name=name, subjects=["other", f"{name}.>"], max_msgs=77, description="theirs")
        tail = await tails.open(HistorySettings(max_events=500))
        tail.broker.keep(HistorySettings(max_events=400))
        await tail.broker.append([event()])
        assert (await other.jsm().stream_info(name)).config.max_msgs == 77


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"subjects": ["{name}.orders"]}, "has the subjects ['{name}.orders'], expected {name}.> among them"),
        ({"retention": "workqueue"}, "has the retention 'workqueue', expected 'limits'"),
        ({"max_msgs_per_subject": 1}, "keeps max_msgs_per_subject = 1"),
    ],
)
async def test_a_stream_that_would_lose_events_is_not_used(
    tails: Tails, nats_machine: Machine, name: str, config: dict[str, Any], said: str
) -> None:
    config = {"subjects": [f"{name}.>"]} | config
    config["subjects"] = [subject.format(name=name) for subject in config["subjects"]]
    async with plain(nats_machine) as other:
        await other.jsm().add_stream(name=name, **config)
    with pytest.raises(Unavailable) as refused:
        await tails.open()
    assert said.format(name=name) in str(refused.value)


@pytest.mark.gen_test
async def test_a_stream_of_another_name_has_the_subjects(tails: Tails, nats_machine: Machine, name: str) -> None:
    async with plain(nats_machine) as other:
        await other.jsm().add_stream(name=f"other-{name}", subjects=[f"{name}.>"])
    with pytest.raises(Unavailable, match="subjects overlap with an existing stream"):
        await tails.open()


@pytest.mark.gen_test
async def test_a_stream_that_is_full_takes_nothing_until_there_is_room(
    place: Engine, nats_machine: Machine, name: str, expect_log: ExpectLog
) -> None:
    expect_log("broker.down")
    async with plain(nats_machine) as other:
        await other.jsm().add_stream(name=name, subjects=[f"{name}.>"], max_msgs=3, discard="new")
        async with Served(place.broker()) as client:
            stream, *_ = await open_stream(client)
            for n in range(3):
                await client.publish("orders", str(n))
            answer = await client.post({"topic": "orders", "data": "3"})
            assert (answer.code, error_of(answer)["code"]) == (503, "broker_down")
            assert "maximum messages exceeded" in error_of(answer)["message"]
            ready = json.loads((await client.ask("GET", "/ready")).body)
            assert ready == {"status": "degraded", "reason": "broker_down"}
            broker: Any = client.hub.broker
            with pytest.raises(OSError, match="is full: max_msgs = 3"):
                await broker.probe()
            await other.jsm().purge_stream(name, keep=1)
            await until(lambda: client.hub.broker.is_up)
            await client.publish("orders", "4")
            assert [event.data for event in await take(stream, 4)] == ["0", "1", "2", "4"]


@pytest.mark.gen_test
async def test_a_batch_is_stored_one_by_one_and_none_of_it_when_one_is_too_large(
    tails: Tails, nats_machine: Machine
) -> None:
    tail = await tails.open()
    with pytest.raises(TooLarge) as refused:
        await tail.broker.append([event("1"), event("x" * 2**20), event("2")])
    assert (refused.value.status, refused.value.limit_bytes) == (413, 2**20)
    await tail.broker.append([event("3")])
    assert [p.data for p in tail.delivered] == [b"3"]


# Other logs in the same place.


@pytest.mark.gen_test
async def test_a_stream_that_was_made_again_is_another_log(
    tails: Tails, nats_machine: Machine, name: str, expect_log: ExpectLog
) -> None:
    expect_log("broker.down", required=False)  # a publish may meet the moment between
    tail = await tails.open(broker=pulsing(tails.engine.broker()))
    epoch = tail.opened.position.epoch
    await tail.broker.append([event(str(n)) for n in range(5)])
    async with plain(nats_machine) as other:
        await other.jsm().delete_stream(name)
        await other.jsm().add_stream(name=name, subjects=[f"{name}.>"])
    # The new log is shorter: an answer to this with an old number must be no acknowledgement.
    broker: Any = tail.broker
    usual, broker.timeout_seconds = broker.timeout_seconds, 1.0
    with pytest.raises(Unavailable):
        await broker.append([event("nowhere")])
    broker.timeout_seconds = usual
    await tail.until(lambda: bool(tail.lost_at))
    (position, reason), *more = tail.lost_at
    assert (reason, more) == ("epoch_changed", [])
    assert position.epoch != epoch
    await until(lambda: tail.broker.is_up)
    (offset,) = await tail.broker.append([event("after")])
    assert offset > position.offset
    assert [p.data for p in tail.delivered] == [b"0", b"1", b"2", b"3", b"4", b"after"]
    assert tail.lost_at == [(position, "epoch_changed")]


@pytest.mark.gen_test
@pytest.mark.parametrize("description", [None, "theirs"], ids=["our stream", "a stream of others"])
async def test_a_stream_that_lost_its_newest_events_is_another_log(
    own_machine: Callable[..., Machine], tmp_path: Path, expect_log: ExpectLog, description: str | None
) -> None:
    expect_log("broker.down")
    machine = own_machine()
    url = f"nats://127.0.0.1:{machine.port}"
    if description is not None:
        async with plain(machine) as client:
            await client.jsm().add_stream(name="qgstream", subjects=["qgstream.>"])
    tail, idle = await opened(url), await opened(url)
    epoch = tail.opened.position.epoch
    try:
        for n in range(3):
            await tail.broker.append([event(str(n), idempotency_key=f"k{n}")])
        await idle.broker.close()
        idle = await opened(url)  # nothing comes by, before the log goes back
        machine.stop()
        shutil.copytree(tmp_path / "jetstream", tmp_path / "copy")
        await until(lambda: not tail.broker.is_up)
        machine.start()
        await until(lambda: tail.broker.is_up and idle.broker.is_up)
        # A restart is nothing: keys are remembered, offsets go on.
        assert list(await tail.broker.append([event("2", idempotency_key="k2"), event("3")])) == [3, 4]
        await idle.until(lambda: len(idle.delivered) == 1)
        late = await opened(url)
        machine.kill()
        shutil.rmtree(tmp_path / "jetstream")
        (tmp_path / "copy").rename(tmp_path / "jetstream")
        await until(lambda: not any(each.broker.is_up for each in (tail, idle, late)))
        # Somebody who was never there before fills the hole, before anybody looks.
        may_look = asyncio.Event()
        hold_back(may_look, tail, idle, late)
        machine.start()
        async with plain(machine) as client:
            for n in range(3):
                await client.jetstream().publish("qgstream.orders", str(n).encode())
        may_look.set()
        for each in (tail, idle, late):
            await each.until(lambda each=each: bool(each.lost_at))  # type: ignore[misc]
            ((position, reason),) = each.lost_at
            assert (position.offset, reason) == (6, "epoch_changed")
        (renewed,) = {each.lost_at[0][0].epoch for each in (tail, idle, late)}
        assert renewed != epoch
        await until(lambda: all(each.broker.is_up for each in (tail, idle, late)))
        assert list(await tail.broker.append([event("again")])) == [7]
        await late.until(lambda: bool(late.delivered))
        assert [p.data for p in tail.delivered] == [b"0", b"1", b"2", b"3", b"again"]
        assert [p.data for p in late.delivered] == [b"again"]
        newcomer = await opened(url)
        await newcomer.broker.close()
        assert newcomer.opened.position == (renewed, 7)
    finally:
        for each in (tail, idle, late):
            await each.broker.close()


@pytest.mark.gen_test
async def test_a_description_that_is_written_anew_changes_nothing(
    tails: Tails, nats_machine: Machine, name: str
) -> None:
    tail = await tails.open(broker=pulsing(tails.engine.broker()))
    epoch = tail.opened.position.epoch
    async with plain(nats_machine) as other:
        config = (await other.jsm().stream_info(name)).config
        for description in ("mine", None):
            while (await other.jsm().stream_info(name)).config.description == config.description:
                await other.jsm().update_stream(config.evolve(description=description))
            while "(epoch" not in ((await other.jsm().stream_info(name)).config.description or ""):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            await tail.broker.append([event()])
    assert tail.lost_at == []
    assert (await tails.open()).opened.position == (epoch, 2)


@pytest.mark.gen_test
async def test_a_signature_is_taken_back_by_hand(own_machine: Callable[..., Machine]) -> None:
    machine = own_machine()
    url = f"nats://127.0.0.1:{machine.port}"
    tail = await opened(url)
    await tail.broker.append([event("1")])
    await tail.broker.close()
    text = (Path(__file__).parents[2] / "docs/brokers.md").read_text()
    (description,) = re.findall(r'`nats stream edit qgstream --description="(.*?)"`', text)
    async with plain(machine) as client:
        config = (await client.jsm().stream_info("qgstream")).config
        assert config.description is not None
        assert " until 1@" in config.description
        await client.jsm().update_stream(config.evolve(description=description))
    machine.stop()
    machine.start()
    later = await opened(url)
    await later.broker.close()
    assert (later.opened.position.epoch != tail.opened.position.epoch, later.opened.earlier) == (True, {})


def hold_back(until_: asyncio.Event, *tails: Tail) -> None:
    """Let none of them connect before the event."""

    def held(connect: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        async def later() -> None:
            await until_.wait()
            await connect()

        return later

    for tail in tails:
        broker: Any = tail.broker
        broker.connect = held(broker.connect)


@pytest.mark.gen_test
async def test_what_was_trimmed_while_it_was_away_is_told(
    tails: Tails, nats_machine: Machine, name: str, expect_log: ExpectLog
) -> None:
    expect_log("broker.down")
    tail = await tails.open(HistorySettings(max_events=10))
    broker: Any = tail.broker
    await broker.append([event(str(n)) for n in range(3)])
    may_connect = asyncio.Event()
    hold_back(may_connect, tail)
    async with plain(nats_machine) as other:
        cut(tail)
        await until(lambda: not broker.is_up)
        for n in range(3, 60):
            await other.publish(f"{name}.orders", str(n).encode())
        await other.flush()
    may_connect.set()
    await tail.until(lambda: len(tail.delivered) == 13)
    ((position, reason),) = tail.lost_at
    assert (position.epoch, reason) == (tail.opened.position.epoch, "too_old")
    assert [int(p.data) for p in tail.delivered] == [0, 1, 2, *range(50, 60)]
    with pytest.raises(Forgotten) as forgotten:
        await broker.read(5, 10)
    assert forgotten.value.after == position.offset == tail.delivered[3].offset - 1


# Credentials, certificates, and what is wrong with a URL.


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("more", "right", "wrong"),
    [
        (("--user", "me", "--pass", "s:e/cret"), "me:s%3Ae%2Fcret", "me:fal%2Fse"),
        (("--auth", "t/oken"), "t%2Foken", "anot%2Fher"),
    ],
)
async def test_credentials_are_used_and_never_said(
    own_machine: Callable[..., Machine], more: tuple[str, ...], right: str, wrong: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("DEBUG")
    machine = own_machine(*more)
    broker = (await opened(f"nats://{right}@127.0.0.1:{machine.port}")).broker
    await broker.append([event()])
    await broker.close()
    for userinfo in (f"{wrong}@", ""):
        with pytest.raises(Unavailable) as refused:
            await opened(f"nats://{userinfo}127.0.0.1:{machine.port}")
        said = f"{refused.value} {caplog.text}"
        assert "uthorization" in str(refused.value)
        for secret in (right, wrong, "s:e/cret", "fal/se", "t/oken", "anot/her"):
            assert secret not in said


NEEDED = """
    publish = ["$JS.API.>", "$JS.FC.>", "qgstream.>"]
    subscribe = ["_INBOX.>"]
"""


def with_permissions(folder: Path, permissions: str) -> tuple[str, ...]:
    """The command line of a server that gives its only user these."""
    path = folder / "nats.conf"
    user = f"{{user: me, password: pw, permissions: {{ {permissions} }} }}"
    path.write_text(f"authorization: {{ users: [ {user} ] }}\n")
    return "--config", str(path)


@pytest.mark.gen_test
async def test_the_documented_permissions_are_enough(own_machine: Callable[..., Machine], tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/brokers.md").read_text()
    (documented,) = re.findall(r"permissions: \{\n((?:    .*\n)+)\}", text)
    assert documented.split() == NEEDED.split()
    machine = own_machine(*with_permissions(tmp_path, documented))
    url = f"nats://me:pw@127.0.0.1:{machine.port}"
    for _ in range(2):
        tail = await opened(url)
        await tail.broker.append([event("1")])
        assert len(await tail.broker.read(0, 10)) == tail.offsets[-1]
        await tail.broker.close()


@pytest.mark.gen_test
async def test_a_permission_that_is_missing_is_named(own_machine: Callable[..., Machine], tmp_path: Path) -> None:
    machine = own_machine(*with_permissions(tmp_path, NEEDED.replace("$JS.API.>", "$JS.API.STREAM.>")))
    with pytest.raises(Unavailable, match=r"(?i)permissions violation for publish to .\$JS\.API\.CONSUMER"):
        await opened(f"nats://me:pw@127.0.0.1:{machine.port}")


@pytest.mark.gen_test
async def test_it_speaks_tls_with_those_it_knows(
    own_machine: Callable[..., Machine], tmp_path: Path, expect_log: ExpectLog
) -> None:
    expect_log("returning true from eof_received", logger="asyncio", required=False)  # asyncio's word on any end of TLS
    certificate, key = make_certificate(tmp_path)
    machine = own_machine("--tls", "--tlscert", str(certificate), "--tlskey", str(key))
    for scheme in ("nats+tls", "tls"):
        broker = (await opened(f"{scheme}://localhost:{machine.port}?cafile={certificate}")).broker
        await broker.append([event()])
        await broker.close()
    with pytest.raises(Unavailable, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
        await opened(f"nats+tls://localhost:{machine.port}")
    with pytest.raises(Unavailable):
        await opened(f"nats://localhost:{machine.port}")


@pytest.mark.gen_test
async def test_it_shows_a_certificate_where_one_is_asked_for(
    own_machine: Callable[..., Machine], tmp_path: Path, expect_log: ExpectLog
) -> None:
    expect_log("returning true from eof_received", logger="asyncio", required=False)
    certificate, key = make_certificate(tmp_path)
    machine = own_machine(
        "--tlsverify", "--tlscert", str(certificate), "--tlskey", str(key), "--tlscacert", str(certificate)
    )
    url = f"nats+tls://localhost:{machine.port}?cafile={certificate}"
    await (await opened(f"{url}&certfile={certificate}&keyfile={key}")).broker.close()
    with pytest.raises(Unavailable):
        await opened(url)


@pytest.mark.gen_test
async def test_a_server_without_jetstream_is_told_from_one_that_is_away(
    tmp_path: Path, require_program: Callable[[str], Path]
) -> None:
    require_program("nats-server")
    machine = Machine(NATS[:5], tmp_path)
    machine.start()
    try:
        with pytest.raises(Unavailable, match="JetStream is not enabled there"):
            await opened(f"nats://127.0.0.1:{machine.port}")
    finally:
        machine.kill()
    with pytest.raises(Unavailable, match=r"nats at nats://127.0.0.1:.*Connect call failed"):
        await opened(f"nats://127.0.0.1:{machine.port},127.0.0.1:{machine.port}")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nats://", "got the host ''"),
        ("nats://host/a.b", "got the stream 'a.b', expected a name of letters"),
        ("nats://host?prefix=a..b", "prefix: got 'a..b'"),
        ("nats://host?max_events=-1", "max_events: got '-1'"),
        ("nats://host?cafile=/none.pem", "got certificates for nats://, expected nats+tls://"),
        ("nats+tls://host?cafile=/none.pem", "the certificates cannot be used"),
        ("nats://me:hidden@host?colour=red", "got the option 'colour'"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_broker(url)
    assert said in str(refused.value)
    assert "hidden" not in str(refused.value)
