"""An AMQP publisher that sends what no library would: any bytes as routing key, and as properties."""

from __future__ import annotations

import asyncio
from struct import pack, unpack
from typing import Self

# Properties: which of them are there, and those.
NOTHING = pack(">H", 0)


def timestamp(value: int) -> bytes:
    return pack(">HQ", 1 << 6, value)


def message_type(value: bytes) -> bytes:
    return pack(">HB", 1 << 5, len(value)) + value


def headers(table: bytes) -> bytes:
    return pack(">HI", 1 << 13, len(table)) + table


class RawPublisher:
    """`async with RawPublisher(port) as publisher`: one channel, with confirms."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(b"AMQP\x00\x00\x09\x01")
        await self._answer()
        login = b"\x00guest\x00guest"
        self._method(0, 10, 11, pack(">I", 0) + b"\x05PLAIN" + pack(">I", len(login)) + login + b"\x05en_US")
        await self._answer()  # Tune
        self._method(0, 10, 31, pack(">HIH", 2047, 131072, 0))
        self._method(0, 10, 40, b"\x01/\x00\x00")
        await self._answer()
        self._method(1, 20, 10, b"\x00")
        await self._answer()
        self._method(1, 85, 10, b"\x00")  # Confirm.Select
        await self._answer()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def publish(self, exchange: str, routing_key: bytes, properties: bytes, body: bytes) -> None:
        """Returns when RabbitMQ has confirmed it."""
        names = b"".join(pack(">B", len(name)) + name for name in (exchange.encode(), routing_key))
        self._method(1, 60, 40, pack(">H", 0) + names + b"\x00")
        self._frame(2, 1, pack(">HHQ", 60, 0, len(body)) + properties)
        self._frame(3, 1, body)
        answer = await self._answer()
        assert answer[:4] == pack(">HH", 60, 80), answer  # Basic.Ack

    def _method(self, channel: int, klass: int, method: int, arguments: bytes) -> None:
        self._frame(1, channel, pack(">HH", klass, method) + arguments)

    def _frame(self, kind: int, channel: int, payload: bytes) -> None:
        self._writer.write(pack(">BHI", kind, channel, len(payload)) + payload + b"\xce")

    async def _answer(self) -> bytes:
        head = await self._reader.readexactly(7)
        (size,) = unpack(">I", head[3:])
        return (await self._reader.readexactly(size + 1))[:-1]
