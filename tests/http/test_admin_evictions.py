"""Maintenance, draining one topic, and shedding a part of the streams: over a while, cancelable, in slices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tornado.httpclient import HTTPResponse

from qgstream.hub import Hub
from qgstream.service.evictions import MAX_EVICTIONS
from qgstream.service.service import Service
from tests.http.asking import Client, Stream, document, error_of, until

ADMIN = {"Authorization": "Bearer admin-key"}
EVENT_SOURCE = {"Accept": "text/event-stream"}


async def send(client: Client, method: str, path: str, body: object = None) -> HTTPResponse:
    headers = ADMIN if body is None else ADMIN | {"Content-Type": "application/json"}
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.ask(method, f"/admin/{path}", headers=headers, body=data)


async def accepted(client: Client, path: str, **fields: object) -> dict[str, Any]:
    answer = await send(client, "POST", path, fields)
    assert answer.code == 202, answer.body
    return document(answer)


async def closing(stream: Stream) -> int:
    """The `retry` of its last message, which must be that of a drain."""
    while True:
        event = await stream.next()
        message = json.loads(event.data)
        if message["event"] == "closing":
            assert message["reason"] == "drain"
            assert event.retry_ms is not None
            return event.retry_ms


def is_leaving(client: Client) -> list[int]:
    return [one.id for one in client.hub.registry if one.reason is not None]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[dict[str, Any]]]:
    caplog.set_level("INFO", "qgstream")
    return lambda event: [vars(record) for record in caplog.records if record.getMessage() == event]


# Maintenance.


@pytest.mark.gen_test
async def test_maintenance_turns_everybody_away_and_takes_them_again(client: Client, lines: Callable[..., Any]) -> None:
    streams = [await client.stream() for _ in range(20)]
    answer = await accepted(client, "maintenance", seconds=0)
    assert (answer["maintenance"], answer["status"], answer["publishes"]) == (True, "maintenance", True)
    assert answer["since"] is not None
    for stream in streams:
        assert 3000 <= await closing(stream) <= 6000
    await until(lambda: not len(client.hub.registry))
    ready = await client.ask("GET", "/ready")
    assert (ready.code, document(ready)) == (503, {"status": "maintenance"})
    refused = await client.ask("GET", "/events")
    assert (refused.code, error_of(refused)["code"]) == (503, "maintenance")
    refused = await client.ask("GET", "/events", headers=EVENT_SOURCE)
    assert (refused.code, b'"reason": "maintenance"' in refused.body) == (200, True)
    assert client.hub.metrics.totals.rejected["maintenance"] == 2
    assert client.hub.metrics.registry.get_sample_value("qgstream_maintenance") == 1
    published = await client.publish("a", "meanwhile")

    answer = document(await send(client, "DELETE", "maintenance"))
    assert (answer["maintenance"], answer["status"], answer["since"]) == (False, "ready", None)
    assert (await client.ask("GET", "/ready")).code == 200
    assert client.hub.metrics.registry.get_sample_value("qgstream_maintenance") == 0
    epoch = published["id"].partition("-")[0]
    stream = await client.stream(last_event_id=f"{epoch}-0")
    assert await stream.data() == "meanwhile"  # nothing was lost
    stream.close()
    assert (await send(client, "DELETE", "maintenance")).code == 404
    assert [line["admin_key"] for line in lines("admin.maintenance_started")] == ["boss"]
    assert [line["admin_key"] for line in lines("admin.maintenance_ended")] == ["boss"]


@pytest.mark.gen_test
async def test_maintenance_may_refuse_events_too(client: Client) -> None:
    await accepted(client, "maintenance", publishes=False)
    answer = await client.post({"topic": "a", "data": 1})
    assert (answer.code, error_of(answer)["code"]) == (503, "maintenance")
    assert int(answer.headers["Retry-After"]) >= 10
    assert (await accepted(client, "maintenance"))["publishes"] is True  # asked again, the other way
    await client.publish("a", 1)
    await accepted(client, "maintenance", publishes=False)
    await send(client, "DELETE", "maintenance")
    await client.publish("a", 1)


@pytest.mark.gen_test
async def test_a_publish_that_is_under_way_is_refused_too(client: Client) -> None:
    iostream = await client.connect()
    await iostream.write(
        b"POST /events HTTP/1.1\r\nHost: tests\r\nAuthorization: Bearer test-key\r\nContent-Type: application/json\r\n"
        b"Content-Length: 25\r\n\r\n"
    )
    await until(lambda: client.service.publishing == 1)
    await accepted(client, "maintenance", publishes=False)
    await iostream.write(b'{"topic": "a", "data": 1}')
    assert (await iostream.read_until(b"\r\n")).startswith(b"HTTP/1.1 503 ")
    assert client.published == 0
    iostream.close()


@pytest.mark.gen_test
async def test_the_body_of_a_publish_is_not_waited_for(client: Client) -> None:
    await accepted(client, "maintenance", publishes=False)
    iostream = await client.connect()
    await iostream.write(
        b"POST /events HTTP/1.1\r\nHost: tests\r\nAuthorization: Bearer test-key\r\nContent-Type: application/json\r\n"
        b"Content-Length: 25\r\nExpect: 100-continue\r\n\r\n"
    )
    assert (await iostream.read_until(b"\r\n")).startswith(b"HTTP/1.1 503 ")
    iostream.close()


@pytest.mark.gen_test
async def test_the_end_of_maintenance_keeps_those_that_are_still_there(client: Client) -> None:
    streams = [await client.stream() for _ in range(20)]
    await accepted(client, "maintenance", seconds=3600)
    await until(lambda: len(is_leaving(client)) + 20 - len(client.hub.registry) == 1)  # the first goes at once
    document(await send(client, "DELETE", "maintenance"))
    assert len(client.service.evictions) == 0
    await client.publish("a", "x")
    assert len(client.hub.registry) >= 19
    for stream in streams:
        stream.close()


@pytest.mark.gen_test
async def test_a_server_that_leaves_has_no_maintenance(client: Client) -> None:
    client.hub.draining = True
    answer = await send(client, "POST", "maintenance", {})
    assert (answer.code, error_of(answer)["code"]) == (409, "conflict")
    assert not client.hub.maintenance
    client.hub.maintenance = True
    assert document(await client.ask("GET", "/ready"))["status"] == "draining"


# One topic.


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("topic", "exact", "gone"),
    [("a/1", False, [1, 2, 4]), ("a/*", False, [1, 2, 4]), ("a/*", True, [2]), ("b", False, [3, 4]), ("b", True, [3])],
)
@pytest.mark.parametrize("by", ["query", "body"])
async def test_the_listeners_of_a_topic_end(client: Client, topic: str, exact: bool, gone: list[int], by: str) -> None:
    streams = [await client.stream("a/1"), await client.stream("a/*"), await client.stream("b"), await client.stream()]
    if by == "body":
        answer = await accepted(client, "drain", topic=topic, exact=exact, seconds=0)
    else:
        answer = await accepted(client, f"drain?topic={topic}&exact={json.dumps(exact)}", seconds=0)
    assert (answer["topic"], answer["cause"], answer["connections"]) == (topic, "topic", len(gone))
    for number, stream in enumerate(streams, 1):
        if number in gone:
            await closing(stream)
    await until(lambda: len(client.service.evictions) == 0)
    assert not client.hub.draining
    assert document(await client.ask("GET", "/ready"))["status"] == "ready"
    await client.publish(["a/1", "b"], "later")
    for number, stream in enumerate(streams, 1):
        if number not in gone:
            assert await stream.data() == "later"
        stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("drain", {"topic": ""}, "topic"),
        ("drain", {"topic": None}, "topic"),
        ("drain", {"topic": 7}, "topic"),
        ("drain", {"topic": "a*b"}, "topic"),
        ("drain", {"topic": "a\u0000"}, "topic"),
        ("drain", {"topic": "x" * 300}, "topic"),
        ("drain", {"topics": "a"}, "topics"),
        ("drain", {"topic": "a", "now": True}, "now"),
        ("drain", {"topic": "a", "exact": 1}, "exact"),
        ("drain", {"topic": "a", "seconds": -1}, "seconds"),
        ("drain", {"topic": "a", "seconds": 1e9}, "seconds"),
        ("drain", {"topic": "a", "seconds": "5"}, "seconds"),
        ("drain", {"exact": True}, "exact"),
        ("drain?topic=", {}, "topic"),
        ("drain?topic=a*b", {}, "topic"),
        ("drain?topic=a", {"topic": "b"}, "topic"),
        ("drain?topic=a&topic=b", {}, "topic"),
        ("drain?topc=a", {}, "topc"),
        ("drain?exact=true", {}, "exact"),
        ("shed", {}, "percent"),
        ("shed", {"percent": None}, "percent"),
        ("shed", {"percent": 0}, "percent"),
        ("shed", {"percent": -5}, "percent"),
        ("shed", {"percent": 100.5}, "percent"),
        ("shed", {"percent": 10**400}, "percent"),
        ("shed", {"percent": "20"}, "percent"),
        ("shed", {"percent": True}, "percent"),
        ("shed", {"percent": 5, "seconds": -1}, "seconds"),
        ("shed", {"percent": 5, "seconds": 3601}, "seconds"),
        ("shed", {"percent": 5, "second": 1}, "second"),
        ("shed?percent=5", {}, "percent"),
        ("maintenance", {"seconds": -1}, "seconds"),
        ("maintenance", {"seconds": 1e300}, "seconds"),
        ("maintenance", {"publishes": 1}, "publishes"),
        ("maintenance", {"publishes": None}, "publishes"),
        ("maintenance", {"publish": False}, "publish"),
    ],
)
async def test_what_is_wrong_ends_no_stream(client: Client, path: str, body: object, field: str) -> None:
    stream = await client.stream("a")
    answer = await send(client, "POST", path, body)
    error = error_of(answer)
    assert (answer.code, error["code"], error["field"]) == (400, "invalid_field", field)
    assert len(client.service.evictions) == 0
    assert not client.hub.maintenance
    assert not client.hub.draining
    stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("path", ["shed", "maintenance", "drain"])
@pytest.mark.parametrize("body", [b"[]", b"{", b'{"seconds": NaN}', b'{"percent": Infinity}', b"\xff", b"[" * 20_000])
async def test_what_is_no_object_is_an_error(client: Client, path: str, body: bytes) -> None:
    answer = await send(client, "POST", path, body)
    assert (answer.code, error_of(answer)["code"]) == (400, "invalid_json")


# A part of all.


@pytest.mark.gen_test
@pytest.mark.parametrize(("percent", "gone"), [(20, 10), (100, 50), (0.1, 1), (25, 12), (99, 50)])
async def test_so_many_are_shed(client: Client, percent: float, gone: int, lines: Callable[..., Any]) -> None:
    streams = [await client.stream() for _ in range(50)]
    answer = await accepted(client, "shed", percent=percent, seconds=0)
    assert (answer["cause"], answer["connections"], answer["seconds"]) == ("shed", gone, 0)
    await until(lambda: len(client.service.evictions) == 0)
    await until(lambda: len(client.hub.registry) == 50 - gone)
    left = {one.id for one in client.hub.registry}
    for number, stream in enumerate(streams, 1):
        if number not in left:
            assert 3000 <= await closing(stream) <= 6000  # to another process, soon
        stream.close()
    (line,) = lines("admin.shed")
    assert (line["admin_key"], line["percent"], line["connections"]) == ("boss", percent, gone)
    (started,), (finished,) = lines("eviction.started"), lines("eviction.finished")
    assert (started["connections"], finished["stayed"]) == (gone, 0)


@pytest.mark.gen_test
async def test_they_end_in_random_order_at_an_even_pace(client: Client) -> None:
    streams = [await client.stream() for _ in range(40)]
    evictions = client.service.evictions
    eviction = evictions.begin([one.id for one in client.hub.registry], 1000.0, "shed", count=20)
    evictions._timer.stop()
    counts = []
    for _ in range(4):
        eviction.began -= 250
        evictions._tick()
        await until(lambda: not eviction.is_walking)
        counts.append(eviction.waiting)
    assert counts == pytest.approx([15, 10, 5, 0], abs=1)
    gone = sorted(set(range(1, 41)) - {one.id for one in client.hub.registry if one.reason is None})
    assert len(gone) == 20
    assert gone not in (list(range(1, 21)), list(range(21, 41)))
    evictions._tick()
    assert len(evictions) == 0
    for stream in streams:
        stream.close()


@pytest.mark.gen_test
async def test_without_streams_there_is_nothing_to_shed(client: Client) -> None:
    assert (await accepted(client, "shed", percent=50))["connections"] == 0
    await until(lambda: len(client.service.evictions) == 0)


@pytest.mark.gen_test
async def test_it_can_be_cancelled(client: Client, lines: Callable[..., Any]) -> None:
    streams = [await client.stream() for _ in range(10)]
    eviction = await accepted(client, "shed", percent=100, seconds=3600)
    (listed,) = document(await send(client, "GET", "evictions"))["evictions"]
    assert (listed["id"], listed["connections"]) == (eviction["id"], 10)
    await until(lambda: client.service.evictions.get(eviction["id"]).waiting == 9)  # type: ignore[union-attr]
    assert document(await send(client, "GET", f"evictions/{eviction['id']}"))["waiting"] == 9
    answer = await send(client, "DELETE", f"evictions/{eviction['id']}")
    assert document(answer) == {"id": eviction["id"], "stayed": 9}
    for method in ("GET", "DELETE"):
        assert (await send(client, method, f"evictions/{eviction['id']}")).code == 404
    assert document(await send(client, "GET", "evictions")) == {"evictions": []}
    assert not client.service.evictions._timer.is_running()
    assert [line["stayed"] for line in lines("admin.eviction_cancelled")] == [9]
    for stream in streams:
        stream.close()


@pytest.mark.gen_test
async def test_one_that_is_cancelled_between_two_slices_ends_no_more(client: Client) -> None:
    streams = [await client.stream() for _ in range(40)]
    evictions = client.service.evictions
    eviction = evictions.begin([one.id for one in client.hub.registry], 0, "shed")
    walk = evictions._walk(eviction, 40)
    next(walk)
    assert evictions.cancel(eviction) == 36
    assert list(walk) == []
    assert eviction.waiting == 36
    for stream in streams:
        stream.close()


@pytest.mark.gen_test
async def test_none_is_left_when_the_service_stops() -> None:
    async with Service(Hub()) as service:
        service.evictions.begin([1, 2], 3600, "shed")
        assert service.evictions._timer.is_running()
    assert not service.evictions._timer.is_running()
    assert len(service.evictions) == 0


@pytest.mark.gen_test
async def test_their_number_is_bounded(client: Client) -> None:
    # The first goes with the first tick, so that each eviction needs a few to be under way at the end of this.
    streams = [await client.stream("a") for _ in range(3)]
    await accepted(client, "shed", percent=100, seconds=3600)
    answer = await send(client, "POST", "shed", {"percent": 1})
    assert (answer.code, error_of(answer)["code"]) == (409, "conflict")
    for _ in range(MAX_EVICTIONS - 1):
        client.service.evictions.begin([10**9, 10**9 + 1], 3600, "topic")
        await asyncio.sleep(0)
    assert (await send(client, "POST", "drain", {"topic": "a"})).code == 409
    await accepted(client, "maintenance", seconds=3600)  # takes the place of all of them
    (only,) = document(await send(client, "GET", "evictions"))["evictions"]
    assert only["cause"] == "maintenance"
    refused = await send(client, "DELETE", f"evictions/{only['id']}")
    assert "DELETE /admin/maintenance" in error_of(refused)["message"]
    for stream in streams:
        stream.close()


@pytest.mark.gen_test
async def test_many_that_end_at_once_end_in_slices(client: Client) -> None:
    streams = [await client.stream() for _ in range(100)]
    evictions = client.service.evictions
    eviction = evictions.begin([one.id for one in client.hub.registry], 0, "shed")
    evictions._tick()
    assert eviction.waiting == 100  # it is left to the slices
    assert len(client.hub.slices) >= 1
    await until(lambda: not len(client.hub.registry))
    eviction = evictions.begin(list(range(10**6, 10**6 + 100)), 0, "topic")
    assert sum(1 for _ in evictions._walk(eviction, 100)) == 25
    for stream in streams:
        stream.close()
