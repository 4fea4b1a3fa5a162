"""GET /ws: the handshake and who is refused it, the same streams in other frames, and every ending with its code."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from tornado.iostream import IOStream
from websockets.asyncio.client import ClientConnection, connect
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.http.asking import KEY, Client, until
from tests.http.test_credentials import COOKIES, MAY_KNOW, token

HANDSHAKE: dict[str, str | None] = {
    "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


@contextlib.asynccontextmanager
async def opened(
    client: Client, query: str = "", *, origin: Any = None, headers: dict[str, str] | None = None, **options: Any
) -> AsyncIterator[ClientConnection]:
    """A WebSocket by the library that most Python programs use."""
    before = len(client.hub.registry)
    url = f"ws://127.0.0.1:{urlsplit(client.base_url).port}/ws{query}"
    async with connect(
        url, origin=origin, additional_headers=headers, proxy=None, open_timeout=60, **options
    ) as socket:  # fmt: skip
        yield socket
    await until(lambda: len(client.hub.registry) <= before)


async def message(socket: ClientConnection) -> dict[str, Any]:
    """The next message that is no heartbeat."""
    while '"event": "heartbeat"' in (text := await socket.recv()):
        pass
    assert isinstance(text, str)  # a text frame
    parsed: dict[str, Any] = json.loads(text)
    return parsed


async def ended(socket: ClientConnection) -> tuple[int | None, str | None]:
    """The code and reason with which the server closed."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            await socket.recv()
    return socket.close_code, socket.close_reason


async def refused(client: Client, query: str = "", **options: Any) -> tuple[int, dict[str, Any], Headers]:
    """The status, error and headers with which a handshake was refused."""
    with pytest.raises(InvalidStatus) as caught:
        async with opened(client, query, **options):
            pass
    answer = caught.value.response
    assert answer.headers["Content-Type"].startswith("application/json")
    return answer.status_code, json.loads(answer.body or b"")["error"], answer.headers


def count(client: Client, name: str, **labels: str) -> float | None:
    return client.hub.metrics.registry.get_sample_value(f"qgstream_{name}", labels)


# The same streams.


@pytest.mark.gen_test
async def test_the_messages_of_a_stream_are_json_objects(client: Client) -> None:
    async with opened(client, "?topic=orders&topic=prices/*&event=created&event=message") as socket:
        connected = await message(socket)
        assert connected.keys() == {"id", "retry", "data"}
        assert 3000 <= connected["retry"] <= 3600
        assert connected["data"].keys() == {"event", "timestamp", "replay", "topics"}
        assert (connected["data"]["event"], connected["data"]["replay"]) == ("connected", "none")
        assert connected["data"]["topics"] == ["orders", "prices/*"]
        first = await client.publish("orders", {"order": 7, "n": 1.50}, event="created")
        await client.publish("orders", "not asked for", event="deleted")
        await client.publish("chat", "not asked for")
        second = await client.publish(["prices/x", "other"], 'a "line"\r\nand one more', retry=5)
        assert first["subscribers"] == second["subscribers"] == 1
        assert await message(socket) == {
            "id": first["id"], "topic": "orders", "event": "created", "data": {"order": 7, "n": 1.5},
        }  # fmt: skip
        assert await message(socket) == {
            "id": second["id"], "topic": ["prices/x", "other"], "event": None, "retry": 5,
            "data": 'a "line"\r\nand one more',
        }  # fmt: skip
    assert count(client, "connections_closed_total", reason="client") == 1


@pytest.mark.gen_test
async def test_it_is_told_what_it_was_understood_to_ask(client: Client) -> None:
    async with opened(client, "?topic=b&topic=a&topics=c&envelope=1") as socket:
        said = (await message(socket))["data"]
        assert (said["topics"], said["ignored"]) == (["a", "b"], ["topics"])


@pytest.mark.gen_test
@pytest.mark.parametrize("query", ["", "?envelope=1", "?envelope=0"])
async def test_all_that_ask_for_the_same_share_one_encoding(client: Client, query: str) -> None:
    async with opened(client, query) as one, opened(client) as other:
        await message(one)
        await message(other)
        assert len(client.hub.router) == 1
        await client.publish("a", {"n": 1})
        assert await message(one) == await message(other)


@pytest.mark.gen_test
async def test_an_id_of_one_transport_resumes_on_the_other(client: Client) -> None:
    stream = await client.stream("a")
    first = await client.publish("a", 1)
    assert (await stream.next()).id == first["id"]
    stream.close()
    second = await client.publish("a", 2)
    async with opened(client, f"?topic=a&last_event_id={first['id']}") as socket:
        assert (await message(socket))["data"]["replay"] == "complete"
        assert (await message(socket))["id"] == second["id"]
    third = await client.publish("a", 3)
    stream = await client.stream("a", headers={"Last-Event-ID": second["id"]})
    assert (await stream.next()).id == third["id"]
    stream.close()
    async with opened(client, "?topic=a", headers={"Last-Event-ID": second["id"]}) as socket:
        assert (await message(socket))["data"]["replay"] == "complete"
        assert (await message(socket))["data"] == 3
    assert count(client, "replay_total", result="complete") == 3


@pytest.mark.gen_test
@pytest.mark.parametrize("id", ["nonsense", "aaaaaaaaaa-7", "%FF", "a+b"])
async def test_who_cannot_resume_is_told_so(client: Client, id: str) -> None:
    async with opened(client, f"?last_event_id={id}") as socket:
        connected, reset = await message(socket), await message(socket)
        assert connected.keys() == {"retry", "data"}  # cut off now, it must be told again
        assert connected["data"]["replay"] == "reset"
        assert reset.keys() == {"id", "data"}
        assert (reset["data"]["event"], reset["id"]) == ("reset", str(client.hub.window.position))


@pytest.mark.gen_test
async def test_the_latest_value_and_all_of_history(client: Client) -> None:
    for number in range(3):
        await client.publish("a", number)
    async with opened(client, "?topic=a&replay=latest") as socket:
        assert "id" not in await message(socket)
        assert (await message(socket))["data"] == 2
    async with opened(client, "?topic=a&last_event_id=earliest") as socket:
        await message(socket)
        assert [(await message(socket))["data"] for _ in range(3)] == [0, 1, 2]


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", ["data", "comment"])
async def test_a_heartbeat_moves_a_client_that_has_everything(client: Client, kind: Any) -> None:
    wheel = client.service.wheel
    wheel.settings = wheel.settings.model_copy(update={"interval_seconds": 0.05, "format": kind})
    async with opened(client, "?topic=quiet") as socket:
        await socket.recv()
        other = await client.publish("other", 1)
        while (parsed := json.loads(await socket.recv())).get("id") != other["id"]:
            assert parsed["data"]["event"] == "heartbeat"


@pytest.mark.gen_test
async def test_large_events_and_a_slow_reader(client: Client) -> None:
    data = "x" * 200_000
    async with opened(client, max_queue=1, max_size=None) as socket:
        await message(socket)
        for number in range(5):
            await client.publish("a", f"{number}{data}")
        for number in range(5):
            assert (await message(socket))["data"] == f"{number}{data}"


@pytest.mark.gen_test
async def test_an_operator_sees_the_transport(client: Client) -> None:
    stream = await client.stream("a")
    async with opened(client, "?topic=a") as socket:
        await message(socket)
        answer = await client.ask("GET", "/admin/connections", headers={"Authorization": "Bearer admin-key"})
        assert [found["transport"] for found in json.loads(answer.body)["connections"]] == ["sse", "websocket"]
        assert count(client, "connections_opened_total") == 2
        for transport in ("sse", "websocket"):
            assert count(client, "connections_opened_by_transport_total", transport=transport) == 1
        stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [COOKIES])
@pytest.mark.parametrize(("grants", "topics", "private", "known"), MAY_KNOW)
async def test_private_topics_are_not_named_to_who_may_not_know_them(
    client: Client, grants: list[str] | None, topics: list[str], private: bool, known: str | list[str]
) -> None:
    query = "?topic=" + "&topic=".join(topics) + ("" if grants is None else f"&access_token={token(subscribe=grants)}")
    async with opened(client, query) as socket:
        await message(socket)
        await client.publish(["pub", "inbox.ann", "inbox.bob"], "x", private=private)
        assert (await message(socket))["topic"] == known


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [COOKIES])
async def test_grants_that_do_not_meet_the_topics_make_no_feed_of_their_own(client: Client) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for number in range(5):
            query = f"?topic=pub&access_token={token(subscribe=[f'inbox.{number}'])}"
            await stack.enter_async_context(opened(client, query))
        assert len(client.hub.router) == 1


# Endings.


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("reason", "code"), [("kicked", 1008), ("access_changed", 1008), ("max_age", 1001), ("slow_consumer", 1013)]
)
async def test_a_goodbye_says_why_in_both_ways(client: Client, reason: Any, code: int) -> None:
    async with opened(client) as socket:
        await message(socket)
        (connection,) = client.hub.registry
        client.hub.end(connection, reason)
        closing = await message(socket)
        assert closing.keys() == {"retry", "data"}
        assert (closing["data"]["event"], closing["data"]["reason"]) == ("closing", reason)
        assert closing["retry"] >= 3000
        assert await ended(socket) == (code, reason)
    assert count(client, "connections_closed_total", reason=reason) == 1


@pytest.mark.gen_test
async def test_a_drain_waits_for_nobody_that_answers(client: Client) -> None:
    async with opened(client) as socket:
        await message(socket)
        draining = asyncio.ensure_future(client.service.drain(0))
        assert await ended(socket) == (1001, "drain")
        await draining
        status, error, _ = await refused(client)
        assert (status, error["code"]) == (503, "draining")


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": {"jwt": COOKIES["auth"]["jwt"] | {"leeway_seconds": 0}}}])
async def test_a_stream_ends_with_its_token(client: Client) -> None:
    async with opened(client, f"?access_token={token(4)}") as socket:
        await message(socket)
        assert await ended(socket) == (1008, "token_expired")


@pytest.mark.gen_test
async def test_a_client_that_talks_is_told_that_nobody_listens(client: Client) -> None:
    async with opened(client) as socket:
        await message(socket)
        await socket.send("hello?")
        code, reason = await ended(socket)
        assert code == 1003
        assert "accepts no messages" in (reason or "")
    assert count(client, "connections_closed_total", reason="client") == 1


@pytest.mark.gen_test
async def test_pings_are_answered(client: Client) -> None:
    async with opened(client) as socket:
        await message(socket)
        for _ in range(3):
            await (await socket.ping())


# The handshake.


async def ask(client: Client, **headers: str | None) -> tuple[int, dict[str, Any] | None, Any]:
    """A handshake with these headers instead of the right ones (None: without it)."""
    changed = HANDSHAKE | {name.replace("_", "-"): value for name, value in headers.items()}
    chosen = {name: value for name, value in changed.items() if value is not None}
    answer = await client.ask("GET", "/ws", headers=chosen)
    return answer.code, json.loads(answer.body)["error"] if answer.body else None, answer.headers


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("headers", "status", "named"),
    [
        ({"Upgrade": None}, 426, "Upgrade: got ''"),
        ({"Upgrade": "h2c"}, 426, "Upgrade: got 'h2c'"),
        ({"Connection": "keep-alive"}, 426, "Connection: got 'keep-alive'"),
        ({"Sec-WebSocket-Version": None}, 426, "Sec-WebSocket-Version: got ''"),
        ({"Sec-WebSocket-Version": "8"}, 426, "Sec-WebSocket-Version: got '8'"),
        ({"Sec-WebSocket-Key": None}, 400, "Sec-WebSocket-Key: got ''"),
        ({"Sec-WebSocket-Key": "c2hvcnQ="}, 400, "Sec-WebSocket-Key: got"),
        ({"Sec-WebSocket-Key": "not base64 at all"}, 400, "Sec-WebSocket-Key: got"),
        ({"Origin": "https://evil.example"}, 403, "Origin: got 'https://evil.example'"),
    ],
)
@pytest.mark.parametrize("settings", [{"cors": {"allow_origins": ["https://app.example.com"]}}])
async def test_a_wrong_handshake_is_told_what_is_wrong(
    client: Client, headers: dict[str, str | None], status: int, named: str
) -> None:
    got, error, answered = await ask(client, **headers)
    assert got == status
    assert error is not None
    assert error["message"].startswith(named)
    if status == 426:
        assert error["code"] == "upgrade_required"
        assert (answered["Upgrade"], answered["Sec-WebSocket-Version"]) == ("websocket", "13")
    assert len(client.hub.registry) == 0


@pytest.mark.gen_test
async def test_other_methods_and_other_versions_of_http(client: Client) -> None:
    assert (await client.ask("HEAD", "/ws")).code == 426
    assert (
        await client.ask("HEAD", "/ws", headers={name: str(value) for name, value in HANDSHAKE.items()})
    ).code == 426
    assert (await client.ask("OPTIONS", "/ws")).code == 204
    answer = await client.ask("POST", "/ws", body=b"{}")
    assert (answer.code, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    iostream = await client.connect()
    lines = [f"{name}: {value}" for name, value in HANDSHAKE.items()]
    await iostream.write(("GET /ws HTTP/1.0\r\nHost: x\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode())
    assert (await iostream.read_until(b"\r\n")).startswith(b"HTTP/1.1 426 ")
    iostream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["qgstream.v1"], "qgstream.v1"), (["x", "qgstream.v1"], "qgstream.v1"), (["x"], None), (None, None)],
)
async def test_the_subprotocol(client: Client, offered: Any, chosen: str | None) -> None:
    async with opened(client, subprotocols=offered) as socket:
        assert socket.subprotocol == chosen
        assert socket.response is not None
        assert "Sec-WebSocket-Extensions" not in socket.response.headers  # offered, and 100 KiB a stream


ORIGINS = {"allow_origins": ["https://app.example.com", "https://*.example.org"]}


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"cors": ORIGINS}, {"cors": {}}, {"cors": {"allow_origins": ["*"]}}])
@pytest.mark.parametrize(
    ("origin", "listed"),
    [
        (None, True),
        ("own", True),
        ("https://app.example.com", False),
        ("https://a.example.org", False),
        ("https://example.org", None),
        ("http://app.example.com", None),
        ("https://app.example.com.evil.example", None),
        ("null", None),
        ("", None),
    ],
)
async def test_a_page_must_be_of_an_origin_that_may(
    client: Client, settings: dict[str, Any], origin: str | None, listed: bool | None
) -> None:
    if origin == "own":
        origin = f"http://127.0.0.1:{urlsplit(client.base_url).port}"
    origins = settings["cors"].get("allow_origins", ())
    may = listed or "*" in origins or (listed is False and bool(origins))
    if may:
        async with opened(client, origin=origin) as socket:
            assert (await message(socket))["data"]["event"] == "connected"
    else:
        status, error, _ = await refused(client, origin=origin)
        assert (status, error["code"]) == (403, "forbidden")


@pytest.mark.gen_test
async def test_a_browser_that_hides_the_origin_is_refused(client: Client) -> None:
    client.service.cors = client.service.cors.model_copy(update={"allow_origins": ()})
    assert (await ask(client, Sec_Fetch_Site="cross-site"))[0] == 403


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [COOKIES, {**COOKIES, "cors": {"allow_origins": ["*"]}}])
async def test_a_foreign_page_has_no_cookie_unless_cors_gives_it_one(client: Client, settings: dict[str, Any]) -> None:
    """The browser sends it along with whatever page opens the WebSocket, and that page reads everything."""
    cookie = {"Cookie": f"session={token(subscribe=['inbox.*'])}"}
    own = f"http://127.0.0.1:{urlsplit(client.base_url).port}"
    async with opened(client, "?topic=inbox.ann", origin=own, headers=cookie) as socket:
        await message(socket)
    if settings["cors"].get("allow_credentials"):
        async with opened(client, "?topic=inbox.ann", origin="https://app.example.com", headers=cookie) as socket:
            await message(socket)
        status, _, _ = await refused(client, "?topic=inbox.ann", origin="https://evil.example", headers=cookie)
        assert status == 403
    else:
        status, _, _ = await refused(client, "?topic=inbox.ann", origin="https://evil.example", headers=cookie)
        assert status == 401
        async with opened(client, "?topic=public", origin="https://evil.example", headers=cookie) as socket:
            await message(socket)


@pytest.mark.gen_test
@pytest.mark.parametrize("query", ["?access_token=wrong", "?access_token=wrong&access_token="])
async def test_bad_credentials(client: Client, query: str) -> None:
    status, error, headers = await refused(client, query)
    assert (status, error["code"]) == (401, "unknown_key")
    assert headers["WWW-Authenticate"].startswith("Bearer")
    assert count(client, "connections_rejected_total", reason="unauthorized") == 1
    async with opened(client, headers={"Authorization": f"Bearer {KEY}"}) as socket:
        await message(socket)


@pytest.mark.gen_test
@pytest.mark.parametrize("query", ["?topic=a*b", "?event=%0A", "?envelope=2", "?replay=all", "?topic=%FF"])
async def test_a_wrong_parameter_is_named(client: Client, query: str) -> None:
    status, error, _ = await refused(client, query)
    assert (status, error["code"], error["field"]) == (400, "invalid_field", query[1:].partition("=")[0])


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("settings", "reason", "expected"),
    [
        ({"limits": {"max_connections": 1}}, "max_connections", 503),
        ({"limits": {"max_connections_per_ip": 1}}, "max_connections_per_ip", 429),
        ({"limits": {"connect_rate_per_ip": 0.01, "connect_burst_per_ip": 1}}, "connect_rate_per_ip", 429),
    ],
)
async def test_one_too_many_is_told_when_to_come_back(client: Client, reason: str, expected: int) -> None:
    async with opened(client) as socket:
        await message(socket)
        # Also to who would take an event stream: there is none in a handshake.
        status, error, headers = await refused(client, headers={"Accept": "text/event-stream"})
        assert (status, error["code"]) == (expected, reason)
        assert 10 <= int(headers["Retry-After"]) <= 201
        assert headers["Connection"] == "close"
        assert len(client.hub.registry) == 1
    assert count(client, "connections_rejected_total", reason=reason) == 1


# What comes with the handshake, or right behind it.


async def raw(client: Client, behind: bytes = b"", query: str = "") -> IOStream:
    iostream = await client.connect()
    lines = [f"GET /ws{query} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in HANDSHAKE.items())]
    await iostream.write(("\r\n".join(lines) + "\r\n\r\n").encode() + behind)
    return iostream


@pytest.mark.gen_test
async def test_a_frame_that_comes_with_the_handshake_is_heard(client: Client) -> None:
    iostream = await raw(client, b"\x89\x81\0\0\0\x007")
    assert b" 101 " in await iostream.read_until(b"\r\n\r\n")
    await iostream.read_until(b"\x8a\x017")
    await iostream.write(b"\x88\x80\0\0\0\0")
    await iostream.read_until_close()
    assert count(client, "connections_closed_total", reason="client") == 1


@pytest.mark.gen_test
async def test_who_has_gone_by_the_end_of_the_handshake_takes_no_slot(client: Client) -> None:
    for _ in range(20):
        (await raw(client)).close()
    stream = await client.stream("a")
    await until(lambda: len(client.hub.registry) == 1)
    stream.close()
    await until(lambda: len(client.hub.registry) == 0)
    closed = count(client, "connections_closed_total", reason="client")
    assert count(client, "connections_opened_total") == closed
