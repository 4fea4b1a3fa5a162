"""A WebSocket where sockets are full and clients are slow: pongs, goodbyes, and a client that says too much."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Self

import pytest

from qgstream import hub as hub_module
from qgstream.delivery import websocket
from qgstream.delivery.connection import Connection
from qgstream.events.subscription import Subscription
from qgstream.hub import CLOSING_SECONDS, Hub
from qgstream.limits import LimitSettings
from qgstream.wire import websocket_frames
from qgstream.wire.framing import Framing
from tests.fakes import Clock, FakeStream, ManualSlices, connect, counter, turns
from tests.wire.test_websocket_frames import said

SUBSCRIPTION = Subscription(framing=Framing.WEBSOCKET)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(hub_module, "time", clock)
    monkeypatch.setattr(websocket, "time", clock)
    return clock


def frames(received: bytes | bytearray) -> Iterator[tuple[int, Any]]:
    """What the client got: the opcode and the payload of each whole frame, messages parsed."""
    data = bytes(received)
    while len(data) >= 2:
        size, start = data[1], 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        if len(data) < start + size:
            break
        payload = data[start : start + size]
        yield data[0] & 15, json.loads(payload) if data[0] == 0x81 else payload
        data = data[start + size :]


def published(received: bytes | bytearray) -> list[object]:
    """The frames, without `connected`; of events the data."""
    return [
        message["data"] if opcode == 1 else (opcode, message)
        for opcode, message in frames(received) if opcode != 1 or "topic" in message
    ]  # fmt: skip


def codes(got: list[Any]) -> list[int]:
    """All that was got are closes, with these codes."""
    assert [opcode for opcode, _ in got] == [8] * len(got)
    return [int.from_bytes(payload[:2], "big") for _, payload in got]


class Scene:
    """A hub whose rounds run when told to, and one stream."""

    def __init__(self, **options: Any) -> None:
        self.slices = ManualSlices()
        self.hub = Hub(slices=self.slices, limits=LimitSettings())
        self.options = options

    async def __aenter__(self) -> Self:
        await self.hub.start()
        self.connection, self.stream = self.connect(**self.options)
        await turns()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.hub.stop()
        await turns()

    def connect(self, **options: Any) -> tuple[Connection, FakeStream]:
        return connect(self.hub, SUBSCRIPTION, **options)

    async def publish(self, data: object) -> str:
        receipt = await self.hub.publish("t", data)
        self.slices.run()
        return receipt.id

    async def hear(self, data: bytes) -> None:
        self.stream.hear(data)
        await turns()

    async def give_room(self, room: int) -> None:
        self.stream.give_room(room)
        await turns()
        self.slices.run()

    def is_open(self) -> bool:
        return self.connection.is_open

    @property
    def got(self) -> list[object]:
        return published(self.stream.socket.received)


def run(coroutine: Any) -> None:
    asyncio.run(coroutine)


def test_a_ping_is_answered_between_two_events() -> None:
    async def scene() -> None:
        async with Scene() as s:
            await s.publish("one")
            await s.hear(said(9, b"7"))
            await s.publish("two")
            assert s.got == ["one", (10, b"7"), "two"]

    run(scene())


def test_a_ping_that_comes_in_pieces_is_answered_when_it_is_whole() -> None:
    async def scene() -> None:
        async with Scene() as s:
            for byte in said(9, b"7"):
                assert s.got == []
                await s.hear(bytes([byte]))
            assert s.got == [(10, b"7")]

    run(scene())


@pytest.mark.parametrize("room", [0, 3])
def test_a_pong_for_which_there_is_no_room_goes_out_whole_and_before_what_follows(room: int) -> None:
    async def scene() -> None:
        async with Scene() as s:
            s.stream.socket.room = room
            await s.hear(said(9, b"seven"))
            await s.publish("x")
            assert s.got == []
            await s.give_room(1000)
            assert s.got == [(10, b"seven"), "x"]

    run(scene())


def test_only_the_newest_ping_of_a_slow_reader_is_answered_and_before_what_waits_for_it() -> None:
    async def scene() -> None:
        async with Scene() as s:
            s.stream.socket.room = 20
            await s.publish("half of this is taken")
            await s.publish("this waits")
            await s.hear(said(9, b"1"))
            await s.hear(said(9, b"2"))
            assert s.got == []
            await s.give_room(10_000)
            assert s.got == ["half of this is taken", (10, b"2"), "this waits"]

    run(scene())


def test_a_ping_during_a_replay_is_answered_when_it_is_over() -> None:
    async def scene() -> None:
        async with Scene() as s:
            id = await s.publish("one")
            await s.publish("two")
            s.connection, s.stream = s.connect(last_event_id=id)
            await turns()
            await s.hear(said(9, b"7"))
            assert s.got == []
            s.slices.run()
            await s.publish("three")
            assert s.got == ["two", (10, b"7"), "three"]

    run(scene())


def test_the_client_closes_and_is_answered_behind_what_was_on_its_way() -> None:
    async def scene() -> None:
        async with Scene() as s:
            s.stream.socket.room = 20
            await s.publish("half of this is taken")
            await s.hear(said(8, b"\x0f\xa0done"))
            assert s.is_open()
            await s.give_room(10_000)
            assert s.got == ["half of this is taken", (8, b"\x0f\xa0")]
            assert not s.is_open()
            assert (s.connection.reason, s.connection.close_code) == ("client", 4000)
            assert counter(s.hub.metrics, "qgstream_connections_closed_total", reason="client") == 1

    run(scene())


def test_who_closes_and_takes_no_answer_is_not_waited_for(clock: Clock) -> None:
    async def scene() -> None:
        async with Scene() as s:
            s.stream.socket.room = 0
            await s.hear(said(8, b"\x03\xe8"))
            s.hub.sweep()
            s.slices.run()
            assert s.is_open()
            clock.now += CLOSING_SECONDS
            s.hub.sweep()
            s.slices.run()
            assert not s.is_open()
            assert len(s.hub.registry) == 0

    run(scene())


def test_a_goodbye_waits_for_its_answer_and_nothing_else_is_said() -> None:
    async def scene() -> None:
        async with Scene() as s:
            s.hub.end(s.connection, "kicked")
            await turns()
            assert s.got == [(8, b"\x03\xf0kicked")]
            await s.hear(said(9, b"7"))
            await s.publish("too late")
            assert s.is_open()
            await s.hear(said(8, b"\x03\xf0"))
            assert not s.is_open()
            assert s.got == [(8, b"\x03\xf0kicked")]
            assert (s.connection.reason, s.connection.close_code) == ("kicked", 1008)

    run(scene())


def test_who_does_not_answer_a_goodbye_is_not_waited_for(clock: Clock) -> None:
    async def scene() -> None:
        async with Scene() as s:
            s.hub.end(s.connection, "drain")
            await turns()
            clock.now += CLOSING_SECONDS
            s.hub.sweep()
            s.slices.run()
            assert not s.is_open()
            assert s.connection.reason == "drain"

    run(scene())


def test_who_is_refused_is_told_why_and_not_heard_any_more() -> None:
    async def scene() -> None:
        async with Scene() as s:
            await s.hear(b"\x89\x00")
            assert codes(s.got) == [1002]
            assert s.stream.socket.is_shut
            await s.hear(said(8, b"\x03\xe8"))
            assert s.is_open()  # until its FIN
            s.stream.peer_closes()
            await turns()
            assert not s.is_open()
            assert (s.connection.reason, s.connection.close_code) == ("client", 1002)

    run(scene())


def test_who_says_too_much_is_refused_and_then_cut(clock: Clock) -> None:
    async def scene() -> None:
        async with Scene() as s:
            many = said(10, b"x" * 100) * 38  # 4028 bytes
            for _ in range(17):
                await s.hear(many)
            assert codes(s.got) == [1008]
            assert s.is_open()
            await s.hear(many)
            assert not s.is_open()
            assert s.connection.close_code == 1008

    run(scene())


def test_who_pings_for_ever_may_do_so(clock: Clock) -> None:
    async def scene() -> None:
        async with Scene() as s:
            for _ in range(300):
                clock.now += 1
                await s.hear(said(9, b"x" * 125) * 7)
            assert s.is_open()
            assert len(s.got) == 300  # the newest of each read

    run(scene())


def test_a_codes_close_is_in_the_table_of_its_reason() -> None:
    assert Framing.WEBSOCKET.end("slow_consumer") == websocket_frames.close(1013, "slow_consumer")
