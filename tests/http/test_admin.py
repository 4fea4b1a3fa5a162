"""/admin: only with a key, what it tells, and what it changes."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import Callable, Collection, Generator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.httpclient import HTTPResponse
from tornado.routing import PathMatches
from tornado.web import Application

from qgstream.auth.authenticator import AuthSettings
from qgstream.delivery.feed import Feed
from qgstream.delivery.router import Router
from qgstream.delivery.subscriber import Subscriber
from qgstream.events.draft import draft
from qgstream.events.publication import Publication
from qgstream.events.subscription import Subscription
from qgstream.events.topic_rates import NOW_STEP_SECONDS, STEP_SECONDS, TopicRates
from qgstream.http.admin.limits import CHANGED_UNTIL
from qgstream.http.app import admin_app, public_app
from qgstream.limits import LimitSettings
from qgstream.service import connection_query, status
from qgstream.service.admin_streams import MAX_ADMIN_STREAMS
from qgstream.service.service import Service
from tests.http.asking import Client, Stream, document, error_of

ADMIN = {"Authorization": "Bearer admin-key"}
PATHS = (
    "overview", "history", "events", "limits", "connections", "connections/1", "bans", "bans/1", "maintenance", "shed",
    "evictions", "evictions/1", "topics", "publishers", "talkers", "config", "drain", "openapi.json",
)  # fmt: skip
NO_KEYS: dict[str, Any] = {"auth": {"admin_keys": {}}}


async def get(client: Client, path: str) -> dict[str, Any]:
    answer = await client.ask("GET", f"/admin/{path}", headers=ADMIN)
    assert answer.code == 200, answer.body
    return document(answer)


async def refused(client: Client, path: str, *, method: str = "GET", body: object = None) -> dict[str, Any]:
    answer = await send(client, method, path, body)
    assert answer.code == 400, answer.body
    return error_of(answer)


async def send(client: Client, method: str, path: str, body: object = None) -> HTTPResponse:
    if body is None:
        return await client.ask(method, f"/admin/{path}", headers=ADMIN)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.ask(
        method, f"/admin/{path}", headers=ADMIN | {"Content-Type": "application/json"}, body=data
    )  # fmt: skip


async def patch(client: Client, **changes: object) -> HTTPResponse:
    return await send(client, "PATCH", "limits", changes)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it is so; the test's own timeout is the bound."""
    while not condition():  # noqa: ASYNC110  # what is waited for has no event
        await asyncio.sleep(0.001)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[dict[str, Any]]]:
    """The log's lines with this event."""
    caplog.set_level("INFO", "qgstream")
    return lambda event: [vars(record) for record in caplog.records if record.getMessage() == event]


# Who gets in.


@pytest.mark.gen_test
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PATCH", "DELETE"])
async def test_nothing_without_an_admin_key(client: Client, path: str, method: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "token=admin-key"}):
        answer = await client.ask(method, f"/admin/{path}", headers=headers, body=b"")
        assert answer.code == 401
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
    answer = await client.ask(method, f"/admin/{path}", headers={"Authorization": "Bearer test-key"}, body=b"")
    assert answer.code == 403  # a publish key
    answer = await client.ask(method, f"/admin/{path}?access_token=admin-key", body=b"")
    assert answer.code == 401  # URLs are kept where keys have no place


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [NO_KEYS])
@pytest.mark.parametrize("path", PATHS)
async def test_without_admin_keys_it_says_to_configure_them(client: Client, path: str) -> None:
    for headers in ({}, ADMIN):
        answer = await client.ask("GET", f"/admin/{path}", headers=headers)
        error = error_of(answer)
        assert (answer.code, error["code"]) == (403, "no_admin_keys")
        assert "auth.admin_keys" in error["message"]


@pytest.mark.gen_test
async def test_a_preflight_needs_no_key(client: Client) -> None:
    answer = await client.ask("OPTIONS", "/admin/limits", headers={"Origin": "https://ops.example"})
    assert (answer.code, answer.headers["Allow"]) == (204, "GET, HEAD, PATCH, OPTIONS")
    assert "PATCH" in answer.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]


@pytest.mark.gen_test
async def test_an_admin_key_is_no_publish_key(client: Client) -> None:
    answer = await client.post({"topic": "a", "data": 1}, headers=ADMIN)
    assert answer.code == 403


@pytest.mark.gen_test
async def test_the_page_needs_no_key_and_may_load_nothing(client: Client) -> None:
    for path in ("/admin", "/admin/"):
        answer = await client.ask("GET", path)
        assert (answer.code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "connect-src 'self';" in policy
        assert b"http" not in answer.body.replace(b"http://www.w3.org/2000/svg", b"")


@pytest.mark.gen_test
@pytest.mark.parametrize("path", [*PATHS, ""])
async def test_unknown_parameters_are_errors(client: Client, path: str) -> None:
    if path:
        method = "POST" if path in ("drain", "shed") else "GET"
        error = await refused(client, f"{path}?topc=a", method=method)
        assert (error["code"], error["field"]) == ("invalid_field", "topc")


# With admin.port, the operator's side is there and nowhere else.


def served(app: Application) -> set[str]:
    rules = app.default_router.rules[0].target.rules
    return {rule.matcher.regex.pattern for rule in rules if isinstance(rule.matcher, PathMatches)}


def test_the_operators_side_is_on_one_port_only(service: Service) -> None:
    admin, public = served(admin_app(service)), served(public_app(service, with_operator_routes=False))
    assert {"/metrics$", "/ready$", "/admin/?$", "/admin/limits$"} <= admin
    assert admin & public == {"/health$"}
    assert served(public_app(service)) >= admin


# Limits.


@pytest.mark.gen_test
async def test_limits_change_at_once_and_say_who_did_it(client: Client, lines: Callable[..., Any]) -> None:
    before = await get(client, "limits")
    assert before["limits"] == LimitSettings().model_dump()
    assert (before["changed"], before["changed_until"]) == ([], CHANGED_UNTIL)
    answer = document(await patch(client, max_connections=1, retry_seconds=3))
    assert answer["limits"] == before["limits"] | {"max_connections": 1}
    assert answer["changed"] == ["max_connections"]  # the other was that already
    first = await client.stream()
    assert (await client.ask("GET", "/events")).code == 503
    assert document(await patch(client, max_connections=2.0))["limits"]["max_connections"] == 2
    second = await client.stream()
    (line, _) = lines("admin.limits_changed")
    assert (line["admin_key"], line["remote_ip"]) == ("boss", "127.0.0.1")
    assert line["changes"] == {"max_connections": {"old": 10_000, "new": 1}}
    first.close()
    second.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"max_conections": 1}, "max_conections", "unknown limit; did you mean max_connections?"),
        ({"zebra": 1}, "zebra", "unknown limit"),
        ({"max_connections": "5"}, "max_connections", "got '5', expected a valid integer"),
        ({"max_connections": True}, "max_connections", "got True, expected a valid integer"),
        ({"max_connections": 1.5}, "max_connections", "got 1.5, expected a valid integer"),
        ({"max_connections": None}, "max_connections", "got None, expected a valid integer"),
        ({"max_connections": 10**400}, "max_connections", "less than or equal to 1000000000"),
        ({"retry_seconds": 0}, "retry_seconds", "got 0, expected greater than 0"),
        ({"connect_rate_per_ip": 1e300}, "connect_rate_per_ip", "less than or equal to 1000000000"),
        ({"overload_response": "never"}, "overload_response", "'auto' or 'error'"),
        ({"max_connections": 7, "retry_seconds": -1}, "retry_seconds", "got -1, expected greater than 0"),
    ],
)
async def test_a_wrong_limit_changes_nothing(client: Client, changes: Any, field: str, message: str) -> None:
    error = await refused(client, "limits", method="PATCH", body=changes)
    assert (error["code"], error["field"]) == ("invalid_field", field)
    assert message in error["message"]
    assert client.service.limits == LimitSettings()
    assert not client.service.tuned


@pytest.mark.gen_test
@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"a"', b"NaN", b'{"retry_seconds": NaN}', b"[" * 20_000, b"\xff"])
async def test_what_is_no_json_object_is_an_error(client: Client, body: bytes) -> None:
    for path, method in (("limits", "PATCH"), ("drain", "POST")):
        if body or method == "PATCH":
            assert (await refused(client, path, method=method, body=body))["code"] == "invalid_json"
    answer = await client.ask("PATCH", "/admin/limits", headers=ADMIN, body=b'{"max_connections": 1}')
    assert answer.code == 415


@pytest.mark.gen_test
async def test_more_connections_than_descriptors_are_refused_with_the_arithmetic(client: Client) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert hard != resource.RLIM_INFINITY
    answer = await patch(client, max_connections=hard)
    error = error_of(answer)
    assert (answer.code, error["code"], error["field"]) == (409, "conflict", "max_connections")
    assert f"the hard limit is {hard}; expected at most " in error["message"]
    assert client.service.limits.max_connections == 10_000


@pytest.mark.gen_test
async def test_an_operator_cannot_lock_themselves_out(client: Client) -> None:
    streams = [await client.stream() for _ in range(3)]
    error = error_of(answer := await patch(client, max_sockets=3))
    assert (answer.code, error["field"]) == (409, "max_sockets")
    assert (await patch(client, max_connections=0, max_sockets=0)).code == 200
    assert (await patch(client, max_connections=10_000)).code == 200
    for stream in streams:
        stream.close()


@pytest.mark.gen_test
async def test_a_rate_near_zero_is_still_answered(client: Client) -> None:
    await patch(client, connect_rate_per_ip=5e-324, connect_burst_per_ip=1, publish_rate_per_key=5e-324)
    stream = await client.stream()
    answer = await client.ask("GET", "/events")
    assert answer.code == 429
    assert 86_400 <= int(answer.headers["Retry-After"]) <= 2 * 86_400
    stream.close()


# Connections.


async def listed(client: Client, query: str = "") -> list[int]:
    return [one["id"] for one in (await get(client, f"connections?{query}"))["connections"]]


@pytest.mark.gen_test
async def test_a_connection_as_an_operator_sees_it(client: Client) -> None:
    published = await client.publish("a/1", "before")
    streams = [
        await client.stream("a/*", "b", event="x", headers={"User-Agent": "tests/1"}),
        await client.stream(),
    ]
    (first, second) = (await get(client, "connections"))["connections"]
    assert first["age_seconds"] >= second["age_seconds"] >= 0
    del first["age_seconds"]
    assert first == {
        "id": 1, "ip": "127.0.0.1", "key": None, "sub": None, "topics": ["a/*", "b"], "events_filter": ["x"],
        "transport": "sse", "state": "live", "events": 0, "bytes": 0, "backlog_bytes": 0,
        "position": published["id"], "user_agent": "tests/1",
    }  # fmt: skip
    assert (second["topics"], second["events_filter"], second["user_agent"]) == (["*"], [], "")
    published = await client.publish("a/1", "after")
    await streams[1].data()
    seen = await get(client, "connections/2")
    assert (seen["events"], seen["position"]) == (1, published["id"])
    assert seen["bytes"] > len("after")
    for stream in streams:
        stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"send_buffer_bytes": 4096}}])
async def test_a_slow_one_comes_first_with_its_position(client: Client) -> None:
    quick, slow = await client.stream("a"), await client.stream("*")
    receipts = []
    while not (found := (await get(client, "connections?min_backlog_bytes=1"))["connections"]):
        receipts.append((await client.publish("a", "x" * 100_000))["id"])
        await quick.data()
    assert [one["id"] for one in found] == [2]
    assert found[0]["state"] == "parked"
    assert found[0]["position"] in [f"{receipts[0].partition('-')[0]}-0", *receipts[:-1]]
    assert await listed(client, "sort=backlog") == [2, 1]
    # What it says is where the stream really was: everything after its position is still to come.
    behind = int(receipts[-1].partition("-")[2]) - int(found[0]["position"].partition("-")[2])
    assert found[0]["events"] == len(receipts) - behind + 1  # the last of them in part
    for _ in receipts:
        await slow.data()
    assert (await get(client, "connections/2"))["position"] == receipts[-1]
    assert await listed(client, "min_backlog_bytes=1") == []
    quick.close()
    slow.close()


@pytest.mark.gen_test
async def test_pages_are_stable_under_churn(client: Client) -> None:
    streams = {number: await client.stream() for number in range(1, 11)}
    for sort, order in (("oldest", range(1, 11)), ("newest", range(10, 0, -1)), ("backlog", range(1, 11))):
        page = await get(client, f"connections?limit=3&sort={sort}")
        assert page["matching"] == 10
        seen = [one["id"] for one in page["connections"]]
        while page["cursor"]:
            page = await get(client, f"connections?limit=3&cursor={page['cursor']}")
            seen += [one["id"] for one in page["connections"]]
        assert seen == list(order)
    page = await get(client, "connections?limit=4")
    for gone in (1, 2, 4, 6):  # before the cursor, the cursor's own, and after it
        streams.pop(gone).close()
    await until(lambda: len(client.hub.registry) == 6)
    late = await client.stream()
    assert await listed(client, f"cursor={page['cursor']}") == [5, 7, 8, 9, 10, 11]
    for stream in (*streams.values(), late):
        stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("topic=a/1", [1, 2, 4]),
        ("topic=a/2", [2, 4]),
        ("topic=a/*", [1, 2, 4]),
        ("topic=b", [3, 4]),
        ("topic=c*", [4]),
        ("topic=*", [1, 2, 3, 4]),
        ("topic=a/*&exact=true", [2]),
        ("topic=a/1&exact=true", [1]),
        ("topic=*&exact=true", [4]),
        ("topic=a/2&exact=true", []),
        ("ip=127.0.0.1", [1, 2, 3, 4]),
        ("ip=127.0.0.0/8", [1, 2, 3, 4]),
        ("ip=127.0.0.2", []),
        ("ip=::1", []),
        ("min_age_seconds=0", [1, 2, 3, 4]),
        ("min_age_seconds=1e3", []),
        ("min_backlog_bytes=1", []),
        ("topic=b&ip=127.0.0.1&min_age_seconds=0.0", [3, 4]),
    ],
)
async def test_filters(client: Client, query: str, found: list[int]) -> None:
    streams = [await client.stream("a/1"), await client.stream("a/*"), await client.stream("b"), await client.stream()]
    assert await listed(client, query) == found
    answer = await send(client, "DELETE", f"connections?{query}")
    if query == "min_age_seconds=0":
        assert error_of(answer)["code"] == "filter_required"  # it is everything
    else:
        assert document(answer) == {"kicked": len(found)}
    for number, stream in enumerate(streams, 1):
        if number in found and query != "min_age_seconds=0":
            assert json.loads(await stream.data())["reason"] == "kicked"
        stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("topic=", "topic"), ("topic=a*b", "topic"), ("topic=a&topic=b", "topic"), ("topic=%ff", "topic"),
        ("exact=1", "exact"), ("ip=nowhere", "ip"), ("ip=10.0.0.0/99", "ip"), ("min_age_seconds=-1", "min_age_seconds"),
        ("min_age_seconds=nan", "min_age_seconds"), ("min_age_seconds=1e999", "min_age_seconds"),
        ("min_backlog_bytes=1.5", "min_backlog_bytes"), ("min_backlog_bytes=%C2%B2", "min_backlog_bytes"),
        ("sort=age", "sort"), ("limit=0", "limit"), ("limit=1001", "limit"), ("cursor=1", "cursor"),
        ("cursor=oldest-1", "cursor"), ("all=true", "all"),
    ],
)  # fmt: skip
async def test_a_wrong_filter_is_named(client: Client, query: str, field: str) -> None:
    assert (await refused(client, f"connections?{query}"))["field"] == field


@pytest.mark.gen_test
async def test_a_method_is_allowed_where_it_is_answered(client: Client) -> None:
    """Every admin handler has a HEAD, which is answered only where there is a GET. Each error has a code."""
    paths = (
        "bans", "bans/9", "bans/x", "connections", "connections/9", "maintenance", "shed", "evictions", "evictions/9",
        "evictions/x", "talkers", "publishers", "limits", "config", "reload", "drain",
    )  # fmt: skip
    for path in paths:
        wrong = await send(client, "PUT", path, body={})
        expected = (404, "not_found") if path.endswith("/x") else (405, "method_not_allowed")
        assert (wrong.code, error_of(wrong)["code"]) == expected, path
        allowed = wrong.headers.get("Allow", "").split(", ")
        for method in ("GET", "HEAD"):
            code = (await send(client, method, path)).code
            assert (code == 404) if path.endswith("/x") else (code != 405) == (method in allowed), path


@pytest.mark.gen_test
async def test_kicking_all_must_be_meant(client: Client, lines: Callable[..., Any]) -> None:
    streams = [await client.stream() for _ in range(5)]
    for query in ("", "?exact=true", "?all=false", "?min_backlog_bytes=0"):
        error = await refused(client, f"connections{query}", method="DELETE")
        assert error["code"] == "filter_required"
    assert (await refused(client, "connections?all=true&limit=1", method="DELETE"))["field"] == "limit"
    assert len(client.hub.registry) == 5
    assert document(await send(client, "DELETE", "connections?all=true")) == {"kicked": 5}
    for stream in streams:
        assert json.loads(await stream.data())["reason"] == "kicked"
        stream.close()
    (line,) = lines("admin.kicked")
    assert (line["admin_key"], line["streams"], line["filter"]) == ("boss", 5, "all=true")


@pytest.mark.gen_test
async def test_kicking_one(client: Client, lines: Callable[..., Any]) -> None:
    one, other = await client.stream(), await client.stream()
    assert document(await send(client, "DELETE", "connections/1")) == {"kicked": 1}
    event = await one.next()
    assert json.loads(event.data)["reason"] == "kicked"
    assert event.retry_ms is not None
    assert event.retry_ms >= 1000 * client.service.limits.overload_retry_seconds  # not at once again
    await until(lambda: client.hub.registry.get(1) is None)
    for method in ("GET", "DELETE"):
        for id in ("1", "99", "0"):
            assert (await send(client, method, f"connections/{id}")).code == 404
    assert await listed(client) == [2]
    (line,) = lines("admin.kicked")
    assert (line["admin_key"], line["connection"], line["kicked_ip"]) == ("boss", 1, "127.0.0.1")
    one.close()
    other.close()


@pytest.mark.gen_test
async def test_others_are_answered_while_many_are_kicked(client: Client) -> None:
    streams = [await client.stream() for _ in range(100)]
    client.hub.slices.slice_seconds = client.hub.slices.busy_slice_seconds = 0.0  # stops wherever it could
    kicking = asyncio.ensure_future(send(client, "DELETE", "connections?all=true"))
    while len(client.hub.registry) == 100:  # noqa: ASYNC110  # one turn of the loop at a time
        await asyncio.sleep(0)
    assert (await client.ask("GET", "/health")).code == 200
    assert not kicking.done()
    assert document(await kicking) == {"kicked": 100}
    for stream in streams:
        stream.close()


@pytest.mark.gen_test
async def test_one_that_is_leaving_is_closing_and_not_kicked_again(client: Client) -> None:
    stream = await client.stream()
    connection = client.hub.registry.get(1)
    assert connection is not None
    connection.end("drain", b"")  # its socket is closed on the next turn of the loop
    assert document(await send(client, "DELETE", "connections?all=true")) == {"kicked": 0}
    stream.close()


# Topics, configuration, description.


@pytest.mark.gen_test
async def test_topics_by_rate_and_by_streams(client: Client) -> None:
    assert await get(client, "topics") == {
        "published": [], "published_topics": 0, "subscribed": [], "subscribed_patterns": 0,
    }  # fmt: skip
    streams = [await client.stream("a/*"), await client.stream("a/*", "b"), await client.stream()]
    for topic, events in (("a/1", 3), ("b", 5), ("c", 1)):
        for _ in range(events):
            await client.publish(topic, "x")
    topics = await get(client, "topics")
    assert [(one["topic"], one["subscribers"]) for one in topics["published"]] == [("b", 2), ("a/1", 3), ("c", 1)]
    rates = [one["events_per_second"] for one in topics["published"]]
    assert rates[0] / rates[2] == pytest.approx(5, rel=0.01)
    asked = [(one["pattern"], one["subscribers"]) for one in topics["subscribed"]]
    assert asked[0] == ("a/*", 2)
    assert sorted(asked[1:]) == [("*", 1), ("b", 1)]
    assert (topics["published_topics"], topics["subscribed_patterns"]) == (3, 3)
    few = await get(client, "topics?limit=1")
    assert (len(few["published"]), len(few["subscribed"]), few["published_topics"]) == (1, 1, 3)
    for stream in streams:
        stream.close()


@pytest.mark.gen_test
async def test_a_flood_comes_before_what_was_more_over_the_minute(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    for name, step_seconds in (("rates", STEP_SECONDS), ("rates_now", NOW_STEP_SECONDS)):
        rates = TopicRates(now - 30, step_seconds=step_seconds)
        for tick in range(300):
            for _ in range(5):
                rates.count(("steady",), now - 30 + tick / 10)
        for _ in range(400):
            rates.count(("flood",), now)
        monkeypatch.setattr(client.hub, name, rates)
    stopped = SimpleNamespace(monotonic=lambda: now, time=time.time, process_time=time.process_time)
    monkeypatch.setattr(status, "time", stopped)
    found = (await get(client, "topics"))["published"]
    assert [one["topic"] for one in found] == ["flood", "steady"]
    assert found[0]["events_per_second"] < found[1]["events_per_second"] <= 51
    assert found[0]["events_per_second_now"] >= 400 / 2.5
    assert [one["topic"] for one in (await get(client, "overview"))["top_topics"]] == ["flood", "steady"]


@pytest.mark.gen_test
async def test_what_only_a_process_has_is_not_there_when_embedded(client: Client) -> None:
    assert (await send(client, "GET", "config")).code == 404
    assert (await send(client, "POST", "drain")).code == 404


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"second": 1}, "second"), ({"seconds": "1"}, "seconds"), ({"seconds": True}, "seconds"),
        ({"seconds": -1}, "seconds"), ({"seconds": 3601}, "seconds"), ({"now": 1}, "now"),
    ],
)  # fmt: skip
async def test_a_wrong_drain_does_not_begin(client: Client, body: object, field: str) -> None:
    client.service.leave = lambda _seconds, _now: pytest.fail("it began")
    assert (await refused(client, "drain", method="POST", body=body))["field"] == field


# Those who watch.


async def watch(client: Client, version: str = "1.1") -> tuple[Stream, dict[str, Any]]:
    stream = Stream(await client.connect())
    request = f"GET /admin/events HTTP/{version}\r\nHost: tests\r\nAuthorization: Bearer admin-key\r\n\r\n"
    await stream.iostream.write(request.encode())
    stream.head = await stream.iostream.read_until(b"\r\n\r\n")
    assert b" 200 " in stream.head.partition(b"\r\n")[0], stream.head
    return stream, await stream.message() if version == "1.1" else {}


@pytest.mark.gen_test
async def test_a_viewer_sees_what_happens_and_is_not_part_of_it(client: Client) -> None:
    stream = await client.stream()
    viewer, snapshot = await watch(client)
    assert b"text/event-stream" in viewer.head
    assert (snapshot["event"], snapshot["status"]) == ("snapshot", "ready")
    assert (snapshot["live"]["connections"], snapshot["totals"]["opened"]) == (1, 1)
    await client.publish("a", "x")
    assert (await stream.next()).data == "x"
    other = await viewer.message()
    assert other["uptime_seconds"] > snapshot["uptime_seconds"]
    assert (other["totals"]["published"], other["totals"]["delivered"]) == (1, 1)
    assert [(one["topic"], one["subscribers"]) for one in other["top_topics"]] == [("a", 1)]
    assert await listed(client) == [1]
    assert other["totals"]["lag"][-1][0] is None
    assert (await get(client, "overview")).keys() == other.keys()
    viewer.close()
    await until(lambda: len(client.service.viewers) == 0)
    assert not client.service.viewers._timer.is_running()  # nobody watches, so nothing is done
    stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"max_connections": 0}}])
async def test_a_viewer_gets_in_when_nobody_else_does(client: Client) -> None:
    viewer, snapshot = await watch(client)
    assert snapshot["status"] == "full"
    client.hub.draining = True
    assert (await viewer.message())["status"] == "draining"
    viewer.close()


@pytest.mark.gen_test
async def test_viewers_are_bounded(client: Client) -> None:
    viewers = [(await watch(client))[0] for _ in range(MAX_ADMIN_STREAMS)]
    answer = await send(client, "GET", "events")
    assert (answer.code, error_of(answer)["code"]) == (503, "too_many_viewers")
    assert "Retry-After" in answer.headers
    viewers.pop().close()
    await until(lambda: len(client.service.viewers) < MAX_ADMIN_STREAMS)
    viewers.append((await watch(client))[0])
    for viewer in viewers:
        viewer.close()


@pytest.mark.gen_test
async def test_new_keys_end_the_streams_of_the_old(client: Client) -> None:
    viewer, _ = await watch(client)
    client.service.reload_auth(AuthSettings.model_validate({"admin_keys": {"boss": "another-key"}}))
    while (closing := await viewer.message())["event"] == "snapshot":
        pass
    assert (closing["event"], closing["reason"]) == ("closing", "access_changed")
    assert (await send(client, "GET", "events")).code == 401


@pytest.mark.gen_test
@pytest.mark.parametrize("keys", [{"boss": "admin-key"}, {"chief": "admin-key", "boss": "another-key"}])
async def test_a_reload_leaves_those_that_have_a_key_alone(client: Client, keys: dict[str, str]) -> None:
    viewer, _ = await watch(client)
    client.service.reload_auth(AuthSettings.model_validate({"admin_keys": keys, "private_topics": ["a"]}))
    for _ in range(2):
        assert (await viewer.message())["event"] == "snapshot"
    viewer.close()


@pytest.mark.gen_test
async def test_a_key_that_only_publishes_now_watches_no_more(client: Client) -> None:
    viewer, _ = await watch(client)
    client.service.reload_auth(AuthSettings.model_validate({"publish_keys": {"boss": "admin-key"}}))
    while (closing := await viewer.message())["event"] == "snapshot":
        pass
    assert closing["reason"] == "access_changed"


@pytest.mark.gen_test
async def test_a_viewer_by_http_1_0_gets_no_chunks(client: Client) -> None:
    viewer, _ = await watch(client, version="1.0")
    assert (await viewer.iostream.read_until(b"\n\n")).startswith(b"retry: 1000\ndata: {")
    assert (await viewer.iostream.read_until(b"\n\n")).startswith(b"data: {")
    viewer.close()


@pytest.mark.gen_test
async def test_the_head_of_the_stream_alone(client: Client) -> None:
    answer = await send(client, "HEAD", "events")
    assert (answer.code, answer.body) == (200, b"")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert len(client.service.viewers) == 0


@pytest.mark.gen_test
async def test_a_viewer_that_does_not_read_is_dropped(client: Client) -> None:
    await patch(client, max_backlog_bytes=4096, backlog_grace_seconds=0, send_buffer_bytes=4096)
    await watch(client)
    viewers = client.service.viewers
    while len(viewers):
        viewers._tick()
        await asyncio.sleep(0)
    assert (await get(client, "overview"))["totals"]["closed"]["slow_consumer"] == 0


# What an answer costs others.


def longest_look(job: Generator[None, None, object], count: Callable[[], int]) -> int:
    """How much of something is done at most between two looks at the clock."""
    counts = [count(), *(count() for _ in job), count()]
    return max(after - before for before, after in pairwise(counts))


@pytest.mark.gen_test
async def test_streams_that_are_behind_are_described_one_at_a_time(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where such a stream is must be looked for in the log."""
    asked, wants = [0], Subscription.wants

    def counted(self: Subscription, publication: Publication) -> bool:
        asked[0] += 1
        return wants(self, publication)

    streams = [await client.stream("a") for _ in range(40)]
    await client.hub.publish_all([draft("b", n, max_event_bytes=100) for n in range(5000)])
    monkeypatch.setattr(connection_query, "_waiting", lambda _: 1)
    monkeypatch.setattr(Subscription, "wants", counted)
    job = connection_query.list_page(client.hub, connection_query.Filter(), sort="oldest", limit=100)
    assert longest_look(job, lambda: asked[0]) == connection_query._MAX_LOOK_BACK
    assert asked[0] == 40 * connection_query._MAX_LOOK_BACK
    for stream in streams:
        stream.close()


@pytest.mark.gen_test
async def test_topics_that_many_feeds_ask_for_are_counted_in_slices(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up, meeting = [0], Router.meeting

    def counted(self: Router, topic: str) -> Collection[Feed[Subscriber]]:
        looked_up[0] += 1
        return meeting(self, topic)

    streams = [await client.stream("t*", f"of {n}") for n in range(40)]
    await client.hub.publish_all([draft(f"t{n}", n, max_event_bytes=100) for n in range(500)])
    monkeypatch.setattr(Router, "meeting", counted)
    assert longest_look(status.topics(client.hub, 1000), lambda: looked_up[0]) == 2
    assert looked_up[0] == 500
    for stream in streams:
        stream.close()
