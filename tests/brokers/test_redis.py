"""Redis: what is in its stream, what anybody may put there, and what its URL may say."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError
from tornado.ioloop import IOLoop

from qgstream.backoff import Backoff
from qgstream.brokers.base import Broker, Forgotten, open_broker
from qgstream.brokers.redis import broker as redis_module
from qgstream.brokers.redis.broker import PER_MILLISECOND, RedisBroker
from qgstream.brokers.redis.scripts import STATE
from qgstream.errors import ConfigError, Unavailable
from qgstream.events.history import HistorySettings, TopicHistory
from qgstream.events.publication import Publication
from tests.brokers.conftest import Tail
from tests.brokers.machines import REDIS, Machine
from tests.brokers.serving import Served, open_stream, take
from tests.conftest import ExpectLog
from tests.hostile.certificates import make_certificate
from tests.http.asking import until


class Stream:
    """A stream of a test's own, and the brokers that were opened on it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.name = f"tests-{uuid4().hex}"
        self._open: list[Tail] = []
        self._redis: Redis | None = None

    def url(self, query: str = "") -> str:
        return f"redis://127.0.0.1:{self.machine.port}/?stream={self.name}{query}"

    async def open(self, history: HistorySettings | None = None, *, query: str = "", patience: float = 30.0) -> Tail:
        tail = Tail(pulsing(open_broker(self.url(query), timeout_seconds=patience)))
        tail.opened = await tail.broker.open(tail, history or HistorySettings())
        self._open.append(tail)
        return tail

    async def ask(self, *command: str | bytes | float) -> Any:
        """What a person would type into redis-cli."""
        if self._redis is None:
            self._redis = Redis(port=self.machine.port, protocol=2)
            self._redis.response_callbacks.clear()
        return await cast(Awaitable[Any], self._redis.execute_command(*command))  # type: ignore[no-untyped-call]

    async def add(self, *fields: str | bytes, id: str = "*") -> int:
        """XADD by hand; the offset."""
        answer: bytes = await self.ask("XADD", self.name, id, *fields)
        ms, _, number = answer.partition(b"-")
        return int(ms) * PER_MILLISECOND + int(number)

    async def close(self) -> None:
        while self._open:
            await self._open.pop().broker.close()
        if self._redis is not None:
            await self._redis.aclose()


@pytest.fixture
def stream(io_loop: IOLoop, redis_machine: Machine) -> Iterator[Stream]:
    stream = Stream(redis_machine)
    yield stream
    io_loop.run_sync(stream.close)


def event(data: str = "x", *, key: str | None = None, topics: tuple[str, ...] = ("a",)) -> Publication:
    return Publication(topics, data.encode(), is_json=False, idempotency_key=key)


# What anybody may put there.


@pytest.mark.gen_test
async def test_what_any_client_adds_appears_on_the_streams(stream: Stream) -> None:
    async with Served(open_broker(stream.url())) as client:
        events, _, _ = await open_stream(client)
        envelopes, _, _ = await open_stream(client, "Bücher", id=None)
        await stream.add("topic", "orders", "data", "plain\ntext")
        await stream.add("topic", "Bücher", "topic", "orders", "data", '{"n":\n 1.50}', "json", "1", "event", "created")
        await stream.add("colour", "blue", "data", "last", "topic", "orders", "json", "0", "retry", "250")
        first, second, third = await take(events, 3)
        assert (first.data, first.event) == ("plain\ntext", "message")
        assert (second.data, second.event) == ('{"n":  1.50}', "created")
        assert third.data == "last"
        assert (await take(envelopes, 1))[0].id == second.id
        at_ms = int(third.id.rpartition("-")[2]) // PER_MILLISECOND
        assert abs(at_ms / 1000 - time.time()) < 60


@pytest.mark.gen_test
async def test_private_is_private_from_another_client_too(stream: Stream) -> None:
    tail = await stream.open()
    for word in ("1", "true", "0", "false", ""):
        await stream.add("topic", "a", "data", "x", "private", word)
    await tail.until(lambda: len(tail.delivered) == 5)
    assert [p.private for p in tail.delivered] == [True, True, False, False, False]


BAD: list[tuple[str | bytes, ...]] = [
    ("data", "no topic"),
    ("topic", "a"),
    ("topic", "a*", "data", "x"),
    ("topic", "a", "data", b"\xff"),
    ("topic", b"\xff", "data", "x"),
    ("topic", "a", "data", "{", "json", "1"),
    ("topic", "a", "data", "x", "event", "a\nid: 1"),
    ("topic", "a", "data", "x", "event", b"\xff"),
    ("topic", "a", "data", "x", "retry", "-1"),
    ("topic", "a", "data", "x", "retry", "99999999999"),
    ("topic", "a", "data", "x", "retry", "²"),
    ("topic", "a", "data", "x", "private", "perhaps"),
    ("something", "else"),
]


@pytest.mark.gen_test
async def test_what_is_no_event_is_passed_over_and_said_once(stream: Stream, expect_log: ExpectLog) -> None:
    expect_log("broker.skipped")
    tail = await stream.open()
    assert isinstance(tail.broker, RedisBroker)
    before = await stream.add("topic", "a", "data", "before")
    for fields in BAD:
        await stream.add(*fields)
    after = await stream.add("topic", "a", "data", "after")
    await tail.until(lambda: len(tail.delivered) == 2)
    assert tail.offsets == [before, after]
    assert tail.broker.skipped == len(BAD)
    assert [p.offset for p in await tail.broker.read(0, 5)] == [before], "the page held nothing else"
    assert [p.offset for p in await tail.broker.read(before, 5)] == [after]
    other = await stream.open()
    assert [p.offset for p in other.opened.recent] == [before, after]


@pytest.mark.gen_test
async def test_ids_that_no_offset_can_say_are_passed_over(stream: Stream, expect_log: ExpectLog) -> None:
    expect_log("broker.skipped")
    tail = await stream.open()
    small = await stream.add("topic", "a", "data", "small", id="5-7")
    assert small == 5 * PER_MILLISECOND + 7
    await stream.add("topic", "a", "data", "x", id="5-1000000")
    good = await stream.add("topic", "a", "data", "good")
    await tail.until(lambda: len(tail.delivered) == 2)
    assert tail.offsets == [small, good]
    assert tail.broker.skipped == 1
    # The millisecond of such an id has no place left; the next one has.
    future = int(time.time() * 1000) + 3_600_000
    await stream.add("topic", "a", "data", "x", id=f"{future}-5000000")
    assert await stream_offset(tail) >= (future + 1) * PER_MILLISECOND


FAR = ["10000000000000-0", "9999999999999999-1", "18446744073709551615-18446744073709551615"]


@pytest.mark.gen_test
@pytest.mark.parametrize("id", FAR)
async def test_an_id_from_the_far_future_is_not_the_end_of_the_log(
    stream: Stream, expect_log: ExpectLog, id: str
) -> None:
    expect_log("broker.mended", required=False)  # a publish may be the first to meet it
    tail, other = await stream.open(), await stream.open()
    before = await stream_offset(tail)
    await stream.add("topic", "a", "data", "far", id=id)
    if id != FAR[-1]:
        await stream.add("topic", "a", "data", "behind it")
    offset = await stream_offset(tail)
    count = 3 if id == FAR[-1] else 4
    for each in (tail, other):
        await each.until(lambda each=each: len(each.delivered) == count)  # type: ignore[misc]
        assert each.offsets == sorted(set(each.offsets))
        assert each.lost_at == []
        assert [p.data for p in each.delivered] == [b"x", b"far", *[b"behind it"] * (count - 3), b"x"]
    assert (tail.offsets[0], tail.offsets[-1]) == (before, offset)
    assert offset // PER_MILLISECOND / 1000 < time.time() + 60
    assert [p.offset for p in await tail.broker.read(0, 10)] == tail.offsets
    assert tail.broker.skipped == 0
    # Nothing was trimmed, for all that Redis counts.
    later = await stream.open()
    assert (later.opened.forgotten, [p.offset for p in later.opened.recent]) == (0, tail.offsets)


@pytest.mark.gen_test
@pytest.mark.parametrize("kept", [0, 1])
async def test_an_id_from_the_far_future_is_mended_by_whoever_starts(
    stream: Stream, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    expect_log("broker.mended")
    trimmed_in(monkeypatch)
    tail = await stream.open(query=f"&max_events={kept}")
    newest = [await stream_offset(tail) for _ in range(3)][-1]
    await wait_for_length(stream, kept)
    epoch = tail.opened.position.epoch
    await tail.broker.close()
    await stream.add("topic", "a", "data", "far", id=FAR[1])
    tail = await stream.open()
    assert tail.opened.position.epoch == epoch
    assert [p.data for p in tail.opened.recent] == [*[b"x"] * kept, b"far"]
    assert tail.opened.recent[-1].offset == tail.opened.position.offset > newest
    assert await stream_offset(tail) > tail.opened.position.offset


@pytest.mark.gen_test
@pytest.mark.parametrize("kept", [0, 10])
async def test_no_offset_is_given_twice_for_an_id_from_the_far_future(
    stream: Stream, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    expect_log("broker.mended", required=False)
    trimmed_in(monkeypatch)
    tail = await stream.open(query=f"&max_events={kept}")
    ahead = await stream.add("topic", "a", "data", "ahead", id=f"{int(time.time() * 1000) + 7_200_000}-5")
    await wait_for_length(stream, min(kept, 1))
    await stream.add("topic", "a", "data", "far", id=FAR[1])
    offset = await stream_offset(tail)
    assert tail.offsets == sorted(set(tail.offsets))
    assert (tail.offsets[0], tail.offsets[-1]) == (ahead, offset)
    assert len(tail.offsets) == 3


@pytest.mark.gen_test
async def test_an_id_that_comes_between_two_looks_is_mended(stream: Stream, expect_log: ExpectLog) -> None:
    expect_log("broker.mended")
    tail = await stream.open()
    broker = cast(RedisBroker, tail.broker)
    ask = broker._call
    is_first = True

    async def late(script: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal is_first
        if script is STATE and is_first:
            is_first = False
            await stream.ask("XADD", stream.name, FAR[1], "topic", "a", "data", "far")
            return [broker.epoch.encode(), b"0-0", FAR[1].encode(), b""]
        return await ask(script, *arguments, **more)

    broker._call = late  # type: ignore[method-assign]
    bounds = await broker.bounds()
    assert bounds.newest // PER_MILLISECOND / 1000 < time.time() + 60


@pytest.mark.gen_test
async def test_an_id_from_the_future_empties_nothing_and_is_not_kept_for_ever(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed_in(monkeypatch)
    now = int(time.time() * 1000)
    async with Served(open_broker(stream.url()), history=HistorySettings(max_age_seconds=3600)) as client:
        for _ in range(10):
            await client.hub.publish("a", "x")
        await stream.add("topic", "a", "data", "ahead", id=f"{now + 7_200_000}-0")
        await client.hub.publish("a", "follows it")
        assert len(client.hub.window) == 12
        assert all(p.published_at <= time.time() for p in client.hub.window.newest_first())
        client.hub.reload(limits=client.hub.limits, history=HistorySettings(max_age_seconds=0.2))
        await wait_for_length(stream, 0)
        # And somebody who comes when it is there already.
        client.hub.reload(limits=client.hub.limits, history=HistorySettings(max_age_seconds=3600))
        await client.hub.publish("a", "once more")
    async with Served(open_broker(stream.url()), history=HistorySettings(max_age_seconds=2)) as client:
        assert [p.data for p in client.hub.window.newest_first()] == [b"once more"]
        await wait_for_length(stream, 0)


@pytest.mark.gen_test
async def test_a_clock_that_was_set_back_is_no_end(stream: Stream) -> None:
    tail = await stream.open()
    future = int(time.time() * 1000) + 3_600_000
    await stream.add("topic", "a", "data", "x", id=f"{future}-899999")
    offsets = [await stream_offset(tail) for _ in range(4)]
    assert [offset // PER_MILLISECOND - future for offset in offsets] == [0, 0, 1, 1]
    assert offsets == sorted(set(offsets))


async def stream_offset(tail: Tail) -> int:
    (offset,) = await tail.broker.append([event()])
    return offset


# What of it is kept.


def pulsing(broker: Broker) -> Broker:
    """One that looks at the log several times a second, also when nothing comes: then it trims."""
    cast(RedisBroker, broker).pulse_seconds = 0.25
    return broker


def trimmed_in(monkeypatch: pytest.MonkeyPatch, *, spared_seconds: float = 0.0) -> None:
    monkeypatch.setattr(redis_module, "TRIM_SECONDS", 0.05)
    monkeypatch.setattr(redis_module, "SPARED_SECONDS", spared_seconds)


async def wait_for(stream: Stream, condition: Callable[[Any], bool], *command: str) -> None:
    """Ask until the answer is as expected; the test's timeout is how long that may take."""
    while not condition(await stream.ask(*command)):  # noqa: ASYNC110  # Redis tells nobody
        await asyncio.sleep(0.02)


async def wait_for_length(stream: Stream, expected: int) -> None:
    await wait_for(stream, lambda length: length == expected, "XLEN", stream.name)


@pytest.mark.gen_test
async def test_bounds_hold_for_the_stream(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed_in(monkeypatch)
    tail = await stream.open(HistorySettings(max_events=10_000), query="&max_events=30")
    offsets = [*(await tail.broker.append([event() for _ in range(250)]))]
    await wait_for_length(stream, 30)
    with pytest.raises(Forgotten) as forgotten:
        await tail.broker.read(0, 10)
    assert forgotten.value.after == offsets[-31], "exactly where the rest begins"
    assert [p.offset for p in await tail.broker.read(offsets[-31], 100)] == offsets[-30:]
    other = await stream.open()
    assert [p.offset for p in other.opened.recent] == offsets[-30:]
    assert other.opened.forgotten == offsets[-31]
    tail.broker.keep(HistorySettings(max_bytes=10_000))
    assert tail.lost_at == []


@pytest.mark.gen_test
async def test_a_bound_in_bytes_is_that_of_what_redis_uses(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed_in(monkeypatch)
    tail = await stream.open(query="&max_bytes=200000")
    await tail.broker.append([event("x" * 1000) for _ in range(1000)])
    await wait_for(stream, lambda usage: usage <= 200_000, "MEMORY", "USAGE", stream.name)
    assert 50 < await stream.ask("XLEN", stream.name) < 200


@pytest.mark.gen_test
async def test_what_is_too_old_for_every_topic_goes(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed_in(monkeypatch)
    now = int(time.time() * 1000)
    longer = (TopicHistory(pattern="long*", max_age_seconds=100), TopicHistory(pattern="short*", max_age_seconds=1))
    for age in (200, 101, 90, 20):
        await stream.add("topic", "a", "data", str(age), id=f"{now - age * 1000}-0")
    await stream.open(HistorySettings(max_age_seconds=10, topics=longer))
    await wait_for_length(stream, 2)
    await stream.open(HistorySettings(max_age_seconds=10))
    await wait_for_length(stream, 0)
    # Whoever heard of all of them misses nothing.
    tail = await stream.open()
    assert tail.opened.position.offset == tail.opened.forgotten == (now - 20_000) * PER_MILLISECOND
    (new,) = await tail.broker.append([event()])
    assert [p.offset for p in await tail.broker.read(tail.opened.position.offset, 5)] == [new]


@pytest.mark.gen_test
async def test_who_follows_is_not_outrun_by_a_small_bound(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed_in(monkeypatch, spared_seconds=60)
    tail, slow = await stream.open(query="&max_events=1"), await stream.open()
    offsets: list[int] = []
    for _ in range(20):
        offsets += await tail.broker.append([event() for _ in range(100)])
        await asyncio.sleep(0.02)  # it is time to trim
    await slow.until(lambda: len(slow.delivered) == 2000)
    assert slow.offsets == offsets
    assert slow.lost_at == []


@pytest.mark.gen_test
async def test_nobody_trims_what_it_has_not_read_itself(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed_in(monkeypatch)
    monkeypatch.setattr(redis_module, "TRIM_SECONDS", 0.0)
    tail = await stream.open(query="&max_events=10")
    offsets = await tail.broker.append([event() for _ in range(3000)])  # a dozen pages, and trimmed after each
    assert tail.offsets == list(offsets)
    assert tail.lost_at == []
    await wait_for_length(stream, 10)


@pytest.mark.gen_test
@pytest.mark.parametrize("left", [0, 3])
async def test_trimming_by_others_is_told(stream: Stream, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    monkeypatch.setattr(redis_module, "TRIM_SECONDS", 1000.0)
    tail = await stream.open()
    offsets = [*(await tail.broker.append([event() for _ in range(10)]))]
    await stream.ask("XTRIM", stream.name, "MAXLEN", "=", left)
    with pytest.raises(Forgotten) as forgotten:
        await tail.broker.read(0, 10)
    # Where exactly is not known: right before the first that is there.
    assert forgotten.value.after == (offsets[-left] - 1 if left else offsets[-1])
    trimmed_in(monkeypatch)
    other = await stream.open(query="&max_events=2")
    assert [p.offset for p in other.opened.recent] == offsets[10 - left :]
    await other.broker.append([event() for _ in range(5)])
    await wait_for_length(stream, 2)
    with pytest.raises(Forgotten) as forgotten:
        await other.broker.read(0, 10)
    assert forgotten.value.after == other.offsets[2]


# Another log.


@pytest.mark.gen_test
@pytest.mark.parametrize("again", [True, False])
async def test_a_stream_that_was_deleted_is_another_log(stream: Stream, expect_log: ExpectLog, again: bool) -> None:
    expect_log("broker.lost", required=False)
    tail = await stream.open()
    before = await stream_offset(tail)
    await tail.broker.append([event(key="k")])
    await stream.ask("DEL", stream.name)
    if again:
        await stream.add("topic", "a", "data", "by another client")
    refusals: list[str] = []
    while not tail.lost_at:
        try:
            await tail.broker.append([event("lost?")])
        except Unavailable as error:
            refusals.append(str(error))
    assert all("has replaced its log" in refusal for refusal in refusals)
    assert refusals or again, "it was appended to a log that is not there"
    ((position, reason),) = tail.lost_at
    assert reason == "epoch_changed"
    assert position.epoch != tail.opened.position.epoch
    # A key of the log that is gone says nothing about this one.
    (offset,) = await tail.broker.append([event("new", key="k")])
    assert offset > max(before, position.offset)
    assert tail.delivered[-1].data == b"new"
    assert b"lost?" not in {p.data for p in tail.delivered} or again


@pytest.mark.gen_test
async def test_a_key_of_another_kind_is_refused(stream: Stream) -> None:
    await stream.ask("SET", stream.name, "mine")
    with pytest.raises(Unavailable, match="WRONGTYPE"):
        await stream.open()
    assert await stream.ask("GET", stream.name) == b"mine"


# What it says while it refuses.


@pytest.mark.gen_test
async def test_a_full_redis_is_down_until_there_is_room(stream: Stream, expect_log: ExpectLog) -> None:
    expect_log("broker.down")
    tail = await stream.open()
    try:
        await stream.ask("CONFIG", "SET", "maxmemory", "1")
        batch = [event(str(n)) for n in range(5)]
        with pytest.raises(Unavailable, match="command not allowed when used memory > 'maxmemory'"):
            await tail.broker.append(batch)
        assert not tail.broker.is_up
        assert {p.offset for p in batch} == {0}
    finally:
        await stream.ask("CONFIG", "SET", "maxmemory", "0")
    await until(lambda: tail.broker.is_up)
    await tail.broker.append([event("room")])
    assert [p.data for p in tail.delivered] == [b"room"]


@pytest.mark.gen_test
async def test_trimming_that_is_refused_is_said_once(
    stream: Stream, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_log("broker.trim_failed")
    trimmed_in(monkeypatch)
    tail = await stream.open(query="&max_events=1")
    user, password = "reader", "hunter2"
    await stream.ask("ACL", "SETUSER", user, "on", f">{password}", "~*", "+@all", "-xtrim")
    try:
        url = stream.url("&max_events=1").replace("//", f"//{user}:{password}@")
        other = Tail(pulsing(open_broker(url, timeout_seconds=30)))
        await tail.broker.close()
        await other.broker.open(other, HistorySettings())
        await other.broker.append([event(), event(), event()])
        assert isinstance(other.broker, RedisBroker)
        await until(lambda: not cast(RedisBroker, other.broker)._trims)
        await stream.ask("ACL", "SETUSER", user, "+xtrim")
        await wait_for_length(stream, 1)
        assert other.broker.is_up
        await other.broker.close()
    finally:
        await stream.ask("ACL", "DELUSER", user)


# Starting.


@pytest.mark.gen_test
async def test_wrong_credentials_are_said_without_them(stream: Stream) -> None:
    broker = open_broker(stream.url().replace("//", "//someone:hunter2@"))
    with pytest.raises(Unavailable) as refused:
        await broker.open(Tail(broker), HistorySettings())
    assert str(refused.value).startswith(f"redis at redis://127.0.0.1:{stream.machine.port}: ")
    assert "hunter2" not in str(refused.value)


DOCS = (Path(__file__).parent.parent.parent / "docs" / "brokers.md").read_text(encoding="utf-8")


@pytest.mark.gen_test
async def test_the_documented_permissions_are_enough(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed_in(monkeypatch)
    (command,) = re.findall(r"^ACL SETUSER .*$", DOCS, re.MULTILINE)
    words = command.replace("~qgstream", f"~{stream.name}").replace("{qgstream}", f"{{{stream.name}}}").split()
    await stream.ask(*words)
    try:
        url = stream.url("&max_events=1").replace("//", "//qgstream:password@")
        broker = pulsing(open_broker(url, timeout_seconds=30))
        tail = Tail(broker)
        tail.opened = await broker.open(tail, HistorySettings())
        offsets = await broker.append([event(key="k"), event()])
        assert [p.offset for p in await broker.read(0, 10)] == list(offsets)
        await wait_for_length(stream, 1)
        assert isinstance(broker, RedisBroker)
        assert await broker.has(offsets[-1])
        await broker.renew(broker.epoch)
        await broker.probe()
        await broker.close()
    finally:
        await stream.ask("ACL", "DELUSER", "qgstream")


@pytest.mark.gen_test
async def test_the_documented_command_publishes(
    stream: Stream, require_program: Callable[[str], Path], tmp_path: Path
) -> None:
    require_program("redis-cli")
    (command,) = re.findall(r"^redis-cli (XADD .*)$", DOCS, re.MULTILINE)
    words = shlex.split(command.replace("qgstream", stream.name))
    async with Served(open_broker(stream.url())) as client:
        events, _, _ = await open_stream(client, "orders")
        done = await asyncio.create_subprocess_exec(
            "redis-cli", "-p", str(stream.machine.port), *words, stdout=asyncio.subprocess.DEVNULL
        )
        assert await done.wait() == 0
        (published,) = await take(events, 1)
        assert (published.data, published.event) == ('{"order": 7}', "created")


# Other ways to it.


def machine_of(folder: Path, *more: str) -> Machine:
    folder.mkdir()
    machine = Machine([*REDIS, *more], folder)
    machine.start()
    return machine


@pytest.mark.parametrize("mutual", [False, True], ids=["the server's", "both"])
def test_it_speaks_tls_with_those_it_knows(
    tmp_path: Path, io_loop: IOLoop, monkeypatch: pytest.MonkeyPatch, *, mutual: bool
) -> None:
    certificate, key = make_certificate(tmp_path)
    folder, other_folder = tmp_path / "redis", tmp_path / "other"
    folder.mkdir()
    other_folder.mkdir()
    other, other_key = make_certificate(other_folder)
    plain = [word if word != "--port" else "--tls-port" for word in REDIS]
    words = ["--port", "0", "--tls-cert-file", certificate, "--tls-key-file", key]
    words += ["--tls-ca-cert-file", other] if mutual else ["--tls-auth-clients", "no"]
    ours = f"&certfile={other}&keyfile={other_key}" if mutual else ""
    machine = Machine([*plain, *map(str, words)], folder)
    machine.start()

    async def publish(url: str) -> None:
        broker = open_broker(url)
        tail = Tail(broker)
        await broker.open(tail, HistorySettings())
        await broker.append([event()])
        assert len(tail.delivered) == 1
        await broker.close()

    try:
        io_loop.run_sync(lambda: publish(f"rediss://localhost:{machine.port}/?cafile={certificate}{ours}"))
        if mutual:
            with pytest.raises(Unavailable):
                io_loop.run_sync(lambda: publish(f"rediss://localhost:{machine.port}/?cafile={certificate}"))
        with pytest.raises(Unavailable, match="certificate verify failed"):
            io_loop.run_sync(lambda: publish(f"rediss://localhost:{machine.port}"))
        # `cafile` is instead of the system's authorities, not besides them.
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(Unavailable, match="certificate verify failed"):
            io_loop.run_sync(lambda: publish(f"rediss://localhost:{machine.port}/?cafile={other}"))
        with pytest.raises(Unavailable):
            io_loop.run_sync(lambda: publish(f"redis://localhost:{machine.port}"))
    finally:
        machine.kill()


@pytest.mark.gen_test
async def test_it_follows_the_master_that_the_sentinels_name(tmp_path: Path, expect_log: ExpectLog) -> None:
    expect_log("broker.down")
    first = machine_of(tmp_path / "first", "--repl-diskless-sync-delay", "0")
    second = machine_of(tmp_path / "second", "--replicaof", "127.0.0.1", str(first.port))
    sentinel_folder = tmp_path / "sentinel"
    sentinel_folder.mkdir()
    conf = sentinel_folder / "sentinel.conf"
    conf.touch()
    sentinel = Machine(["redis-server", str(conf), "--sentinel"], sentinel_folder)
    conf.write_text(
        f"bind 127.0.0.1\nport {sentinel.port}\nsentinel monitor main 127.0.0.1 {first.port} 1\n"
        "sentinel down-after-milliseconds main 3000\nsentinel failover-timeout main 9000\n"
    )
    stream, sentinels = Stream(second), Stream(sentinel)
    tail = Tail(open_broker(f"redis+sentinel://127.0.0.1:{sentinel.port},127.0.0.1:1/main/0?stream={stream.name}"))
    try:
        # The Sentinel asks who the replicas are when it begins, and then every ten seconds.
        await wait_for(stream, lambda said: b"master_link_status:up" in said, "INFO", "replication")
        sentinel.start()
        await tail.broker.open(tail, HistorySettings())
        before = await tail.broker.append([event("1"), event("2")])
        await wait_for_length(stream, 2)  # it has reached the replica
        await wait_for(sentinels, lambda replicas: len(replicas) == 1, "SENTINEL", "REPLICAS", "main")
        assert isinstance(tail.broker, RedisBroker)
        tail.broker._backoff = Backoff(limit_seconds=0.2)
        first.kill()
        await until(lambda: not tail.broker.is_up)
        await until(lambda: tail.broker.is_up)
        after = await tail.broker.append([event("3")])
        assert tail.offsets == [*before, *after]
        assert tail.lost_at == []
        assert [p.data for p in await tail.broker.read(0, 10)] == [b"1", b"2", b"3"]
    finally:
        await tail.broker.close()
        await stream.close()
        await sentinels.close()
        for machine in (sentinel, second, first):
            machine.kill()


def test_a_redis_that_forgets_is_warned_of(
    tmp_path: Path, io_loop: IOLoop, expect_log: ExpectLog, redis_machine: Machine
) -> None:
    expect_log("broker.unsafe")
    machine = Machine([*REDIS[:-3], "no"], tmp_path)
    machine.start()
    stream = Stream(machine)
    try:
        io_loop.run_sync(stream.open)
        io_loop.run_sync(stream.close)
    finally:
        machine.kill()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://", "got the host '', expected redis://host or redis://host:port"),
        ("redis://u:secret@:5", "got the host ':5', expected redis://host"),
        ("redis://h:port", "got the host 'h:port'"),
        ("redis://one,two", "got 2 hosts, expected one (redis://)"),
        ("redis://h/events", "got the database 'events', expected a number"),
        ("redis://h/0?steam=x", "got the option 'steam', expected one of cafile, certfile, keyfile, stream, "),
        ("redis://h?max_events=many", "max_events: got 'many', expected a valid integer"),
        ("redis://h?stream=", "stream: got '', expected at least 1 character"),
        ("redis://h?cafile=x.pem", "got certificates for redis://, expected rediss://"),
        ("redis+sentinel://h/main?certfile=x.pem", "got certificates for redis+sentinel://, expected rediss://"),
        ("rediss://h?cafile=/nowhere.pem", "the certificates cannot be used: "),
        ("redis+sentinel://h", "got no service, expected redis+sentinel://host/service"),
        ("redis+sentinel://h/main/x", "got the database 'x', expected a number"),
        ("redis+cluster://h", "got the scheme 'redis+cluster', expected one of memory, sqlite, "),
    ],
)
def test_a_url_that_cannot_be_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_broker(url)
    (problem,) = refused.value.problems
    assert problem.startswith(f"broker.url: {said}"), problem
    assert "secret" not in problem


@pytest.mark.gen_test
async def test_everything_of_the_url_is_used(stream: Stream) -> None:
    await stream.ask("ACL", "SETUSER", "us@er", "on", ">p:w", "~*", "&*", "+@all")
    try:
        broker = open_broker(f"redis://us%40er:p%3Aw@127.0.0.1:{stream.machine.port}/3?stream={stream.name}%20%C3%BC")
        tail = Tail(broker)
        tail.opened = await broker.open(tail, HistorySettings())
        await broker.append([event(key="k")])
        await broker.close()
        await stream.ask("SELECT", "3")
        names = {json.dumps(name.decode()) for name in await stream.ask("KEYS", f"*{stream.name}*")}
        assert len(names) == 2, names
        await stream.ask("SELECT", "0")
    finally:
        await stream.ask("ACL", "DELUSER", "us@er")


BROKERS_PAGE = Path(__file__).parents[2] / "docs/brokers.md"


@pytest.mark.gen_test
async def test_a_publisher_cannot_change_what_proves_that_the_log_is_whole(stream: Stream) -> None:
    tail = await stream.open()
    (documented,) = re.findall(r"`ACL SETUSER publisher (on >password ~qgstream \+xadd)`", BROKERS_PAGE.read_text())
    user = f"publisher-{stream.name}"
    await stream.ask("ACL", "SETUSER", user, *documented.replace("~qgstream", f"~{stream.name}").split())
    publisher = Redis(port=stream.machine.port, username=user, password="password", protocol=2)
    try:
        await publisher.xadd(stream.name, {"topic": "a", "data": "1"})
        await tail.until(lambda: len(tail.delivered) == 1)
        for command in (
            ("XGROUP", "DESTROY", stream.name, f"qgstream:{tail.opened.position.epoch}"),
            ("XGROUP", "CREATE", stream.name, "qgstream.end", "$"),
            ("SET", f"{{{stream.name}}}:{tail.opened.position.epoch}:key", "1-1"),
            ("DEL", stream.name),
        ):
            with pytest.raises(NoPermissionError):
                await cast(Awaitable[Any], publisher.execute_command(*command))  # type: ignore[no-untyped-call]
    finally:
        await publisher.aclose()
        await stream.ask("ACL", "DELUSER", user)


@pytest.mark.gen_test
async def test_a_signature_is_taken_back_by_hand(stream: Stream) -> None:
    broker = cast(RedisBroker, (await stream.open()).broker)
    await broker.sign_off()
    assert (await broker.standing()).ended is not None
    (command,) = re.findall(r"`redis-cli (XGROUP DESTROY .*?)`", BROKERS_PAGE.read_text())
    await stream.ask(*command.replace("DESTROY qgstream", f"DESTROY {stream.name}").split())
    assert (await broker.standing()).ended is None


@pytest.mark.gen_test
async def test_a_log_of_an_earlier_version_gets_a_new_epoch_once(stream: Stream) -> None:
    await stream.add("topic", "a", "data", "1")
    await stream.ask("XGROUP", "CREATE", stream.name, "qgstream:old", "0-0", "ENTRIESREAD", "0")
    tail, other = await stream.open(), await stream.open()
    assert tail.opened.position == other.opened.position
    assert tail.opened.position.epoch != "old"
    assert ([p.data for p in tail.opened.recent], tail.opened.earlier) == ([b"1"], {})
