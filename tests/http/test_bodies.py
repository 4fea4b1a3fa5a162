"""Bodies of publishes in memory: bounded together, and freed as soon as nobody needs them."""

from __future__ import annotations

import asyncio
import gc
import gzip
import weakref
from collections.abc import Iterator, Sequence

import pytest
from tornado.iostream import IOStream

from qgstream.brokers.memory import MemoryBroker
from qgstream.events.publication import Publication
from qgstream.http.publish import PublishHandler
from tests.http.asking import KEY, Client, error_of, until

KIB = 1024
MIB = 1024 * KIB


def event(size: int) -> bytes:
    empty = b'{"topic": "a", "data": ""}'
    return empty[:-2] + b"x" * (size - len(empty)) + empty[-2:]


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[PublishHandler]]]:
    """Every handler of a publish, while the cyclic collector does not run."""
    made: list[weakref.ref[PublishHandler]] = []
    prepare = PublishHandler.prepare

    def remembered(self: PublishHandler) -> None:
        made.append(weakref.ref(self))
        prepare(self)

    monkeypatch.setattr(PublishHandler, "prepare", remembered)
    gc.collect()
    gc.disable()
    yield made
    gc.enable()


def alive(handlers: list[weakref.ref[PublishHandler]]) -> int:
    return sum(handler() is not None for handler in handlers)


async def upload(client: Client, body: bytes, *, length: int | None = None, headers: str = "") -> IOStream:
    """A publish with a part of its body."""
    iostream = await client.connect()
    await iostream.write(
        f"POST /events HTTP/1.1\r\nHost: tests\r\nAuthorization: Bearer {KEY}\r\n{headers}"
        f"Content-Type: application/json\r\nContent-Length: {length or len(body)}\r\n\r\n".encode()
        + body
    )
    return iostream


@pytest.mark.gen_test
@pytest.mark.parametrize("coded", [False, True])
async def test_an_upload_that_is_reset_is_freed_at_once(
    client: Client, handlers: list[weakref.ref[PublishHandler]], coded: bool
) -> None:
    bodies = client.service.bodies
    part = gzip.compress(event(2 * MIB))[:-20] if coded else event(2 * MIB)
    headers = "Content-Encoding: gzip\r\n" if coded else ""
    for _ in range(3):
        uploads = [await upload(client, part, length=4 * MIB, headers=headers) for _ in range(5)]
        await until(lambda: bodies.held_bytes > 5 * MIB)
        for iostream in uploads:
            iostream.close()
        await until(lambda: bodies.held_bytes == 0)
        await until(lambda: not alive(handlers))
    assert len(handlers) == 15


@pytest.mark.gen_test
async def test_a_body_is_counted_until_its_publish_is_over(
    client: Client, handlers: list[weakref.ref[PublishHandler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nobody waits for the answer any more."""
    may_go_on, append = asyncio.Event(), MemoryBroker.append

    async def slow(self: MemoryBroker, publications: Sequence[Publication]) -> Sequence[int]:
        await may_go_on.wait()
        return await append(self, publications)

    monkeypatch.setattr(MemoryBroker, "append", slow)
    body = event(100 * KIB)
    left, waits = [await upload(client, body) for _ in range(2)]
    await until(lambda: client.service.bodies.held_bytes == 2 * len(body))
    await until(lambda: all(handler().is_posting for handler in handlers))  # type: ignore[union-attr]
    left.close()
    await until(lambda: client.service.publishing == 1)
    assert client.service.bodies.held_bytes == 2 * len(body)
    may_go_on.set()
    assert (await waits.read_until(b"\r\n")).startswith(b"HTTP/1.1 200")
    waits.close()
    await until(lambda: client.service.bodies.held_bytes == 0)
    await until(lambda: not alive(handlers))


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("body", "status"),
    [(event(4 * KIB), 200), (event(4 * KIB)[:-2] + b"\\ud800", 400), (event(600 * KIB), 413), (b"[" * 9000, 400)],
    ids=range(4),
)
@pytest.mark.parametrize("media_type", ["application/json", "application/x-ndjson"])
async def test_nothing_is_left_of_an_answer(
    client: Client, handlers: list[weakref.ref[PublishHandler]], body: bytes, status: int, media_type: str
) -> None:
    if media_type != "application/json":
        body = event(1000) + b"\n" + body
    assert (await client.post(body, media_type=media_type)).code == status
    assert client.service.bodies.held_bytes == 0
    await until(lambda: not alive(handlers))


# The bound.

BOUND = {"limits": {"max_inflight_body_bytes": 64 * KIB}}


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [BOUND])
@pytest.mark.parametrize(
    "headers", [{}, {"Content-Encoding": "gzip"}, {"Expect": "100-continue"}], ids=["plain", "gzip", "expect"]
)
async def test_what_does_not_fit_comes_back_later(
    client: Client, handlers: list[weakref.ref[PublishHandler]], headers: dict[str, str]
) -> None:
    small, large = event(100), event(20 * KIB)
    coded = gzip.compress if "Content-Encoding" in headers else bytes
    slow = await upload(client, event(60 * KIB)[:-1], length=60 * KIB)
    await until(lambda: client.service.bodies.held_bytes == 60 * KIB - 1)
    authorization = {"Authorization": f"Bearer {KEY}"}
    answer = await client.post(coded(large), headers=authorization | headers)
    assert (answer.code, answer.headers["Retry-After"]) == (503, "1")
    error = error_of(answer)
    assert error["code"] == "inflight_bodies"
    assert f"hold {60 * KIB - 1} bytes, the limit with this one is {64 * KIB}" in error["message"]
    seen = client.hub.metrics.registry.get_sample_value
    assert seen("qgstream_inflight_body_bytes") == 60 * KIB - 1
    assert seen("qgstream_inflight_bodies_refused_total") == 1
    assert (await client.post(small)).code == 200  # there is room for this
    assert client.service.bodies.held_bytes == 60 * KIB - 1
    await slow.write(b"}")
    assert (await slow.read_until(b"\r\n")).startswith(b"HTTP/1.1 200")
    slow.close()
    assert (await client.post(coded(large), headers=authorization | headers)).code == 200
    await until(lambda: not alive(handlers))
    assert client.published == 3


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [BOUND])
async def test_what_is_only_announced_takes_no_room(client: Client) -> None:
    idle = [await upload(client, b"{", length=60 * KIB) for _ in range(20)]
    await until(lambda: client.service.bodies.held_bytes == 20)
    assert (await client.post(event(40 * KIB))).code == 200
    # Who is over the bound is refused when that has come.
    large = await upload(client, event(62 * KIB)[:-1], length=62 * KIB)
    await until(lambda: client.service.bodies.held_bytes > 60 * KIB)
    await idle[0].write(b" " * 4 * KIB)
    await until(lambda: client.service.bodies.held_bytes == 62 * KIB - 1 + 19)
    await idle[0].write(b" " * (56 * KIB - 1))
    assert (await idle[0].read_until(b"\r\n")).startswith(b"HTTP/1.1 503")
    for iostream in (large, *idle):
        iostream.close()
    await until(lambda: client.service.bodies.held_bytes == 0)


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"max_inflight_body_bytes": KIB}}])
async def test_a_body_larger_than_the_bound_is_taken_alone(client: Client) -> None:
    assert (await client.post(event(100 * KIB))).code == 200
