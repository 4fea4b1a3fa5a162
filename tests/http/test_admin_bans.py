"""/admin/bans: streams of the banned end, new ones and publishes are refused, and it ends again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
from tornado.httpclient import HTTPRequest, HTTPResponse
from tornado.websocket import websocket_connect

from qgstream.net.addresses import parse_networks
from qgstream.service.bans import MAX_BANS
from qgstream.service.service import Service
from tests.http.asking import BEARER, Client, Stream, document, error_of, until
from tests.signing import SECRET

ADMIN = {"Authorization": "Bearer admin-key"}
SETTINGS: dict[str, Any] = {"auth": {"jwt": {"algorithms": ["HS256"], "secret": SECRET}}}
EVENT_SOURCE = {"Accept": "text/event-stream"}


def bearer(subject: str | None = "ann", **claims: object) -> dict[str, str]:
    body = {"exp": time.time() + 7200, "qgstream": {"publish": ["*"], "subscribe": ["*"]}} | claims
    return {"Authorization": f"Bearer {jwt.encode(body | ({'sub': subject} if subject else {}), SECRET)}"}


@pytest.fixture
def settings() -> dict[str, Any]:
    return SETTINGS


@pytest.fixture
def service(service: Service) -> Service:
    """Behind a proxy, so that a test has as many addresses as it needs."""
    service.trusted_proxies = parse_networks(["127.0.0.1"])
    return service


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[dict[str, Any]]]:
    caplog.set_level("INFO", "qgstream")
    return lambda event: [vars(record) for record in caplog.records if record.getMessage() == event]


def from_(address: str, headers: dict[str, str] | None = None) -> dict[str, str]:
    return {"X-Forwarded-For": address, **(headers or {})}


async def send(client: Client, method: str, path: str, body: object = None) -> HTTPResponse:
    headers = ADMIN if body is None else ADMIN | {"Content-Type": "application/json"}
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.ask(method, f"/admin/{path}", headers=headers, body=data)


async def ban(client: Client, **fields: object) -> dict[str, Any]:
    answer = await send(client, "POST", "bans", fields)
    assert answer.code == 201, answer.body
    return document(answer)


def metric(client: Client, name: str, **labels: str) -> float:
    value = client.hub.metrics.registry.get_sample_value(name, labels)
    assert value is not None
    return value


async def closing(stream: Stream) -> tuple[str, int]:
    while True:
        event = await stream.next()
        message = json.loads(event.data)
        if message["event"] == "closing":
            assert event.retry_ms is not None
            return message["reason"], event.retry_ms


# Who is meant: the headers of the banned, and of somebody else.
CASES: list[tuple[str, str, dict[str, str], dict[str, str]]] = [
    ("address", "203.0.113.7", from_("203.0.113.7"), from_("203.0.113.8")),
    ("address", "2001:DB8::7", from_("[2001:db8::7]:443"), from_("2001:db8::8")),
    ("network", "203.0.113.0/24", from_("203.0.113.7"), from_("203.0.114.7")),
    ("network", "2001:db8:1::/48", from_("2001:db8:1::7"), from_("2001:db8:2::7")),
    ("key", "tests", BEARER, bearer()),
    ("user", "ann", bearer("ann"), bearer("bob")),
    ("token", "t-1", bearer("ann", jti="t-1"), bearer("ann", jti="t-2")),
]


@pytest.mark.gen_test
@pytest.mark.parametrize(("kind", "value", "banned", "other"), CASES)
async def test_the_banned_go_at_once_and_stay_away(
    client: Client, kind: str, value: str, banned: dict[str, str], other: dict[str, str]
) -> None:
    gone, stays = await client.stream("a", headers=banned), await client.stream("a", headers=other)
    answer = await ban(client, **{kind: value}, reason="it floods")
    assert (answer["kicked"], answer["kind"], answer["by"]) == (1, kind, "boss")
    reason, retry_ms = await closing(gone)
    assert reason == "kicked"
    assert 300_000 <= retry_ms <= 600_000
    for method, headers in (("GET", banned), ("HEAD", banned)):
        refused = await client.ask(method, "/events?topic=a", headers=headers)
        assert refused.code == 403
        assert int(refused.headers["Retry-After"]) > 0
        if method == "GET":
            error = error_of(refused)
            assert error["code"] == "banned"
            assert f"until {answer['expires_at']}" in error["message"]
    refused = await client.ask("GET", "/events", headers=banned | EVENT_SOURCE)
    assert refused.code == 200
    assert refused.body.startswith(b"retry: ")
    assert b'"event": "rejected"' in refused.body
    assert b'"reason": "banned"' in refused.body
    credentials = banned if "Authorization" in banned else banned | BEARER
    refused = await client.post({"topic": "a", "data": 1}, headers=credentials)
    assert (refused.code, error_of(refused)["code"]) == (403, "banned")
    assert 3500 < int(refused.headers["Retry-After"]) <= 3600
    assert client.published == 0
    assert metric(client, "qgstream_connections_rejected_total", reason="banned") == 2
    assert metric(client, "qgstream_bans", kind=kind) == 1
    credentials = other if "Authorization" in other else other | BEARER
    assert (await client.post({"topic": "a", "data": 1}, headers=credentials)).code == 200
    assert await stays.data() == "1"
    (await client.stream("a", headers=other)).close()

    assert (await send(client, "DELETE", f"bans/{answer['id']}")).code == 200
    assert metric(client, "qgstream_bans", kind=kind) == 0
    again = await client.stream("a", headers=banned)
    again.close()
    stays.close()


@pytest.mark.gen_test
async def test_a_token_without_an_id_is_banned_by_itself(client: Client) -> None:
    one, other = bearer("ann", n=1), bearer("ann", n=2)
    stream = await client.stream(headers=one)
    answer = await ban(client, token=one["Authorization"].removeprefix("Bearer "))
    assert answer["kicked"] == 1
    assert len(answer["value"]) == 64
    assert (await client.ask("GET", "/events", headers=one)).code == 403
    (await client.stream(headers=other)).close()
    stream.close()


@pytest.mark.gen_test
async def test_a_user_without_grants_is_known_too(client: Client) -> None:
    """Such a stream hears what everybody hears, but it is not anonymous."""
    headers = bearer("ann", qgstream={"publish": [], "subscribe": []})
    streams = [await client.stream(headers=headers), await client.stream(headers=headers | {"Origin": "https://a.b"})]
    assert (await ban(client, user="ann"))["kicked"] == 2
    for stream in streams:
        assert (await closing(stream))[0] == "kicked"


@pytest.mark.gen_test
async def test_a_websocket_is_a_stream(client: Client) -> None:
    url = f"ws://127.0.0.1:{urlsplit(client.base_url).port}/ws"
    connection = await websocket_connect(HTTPRequest(url, headers=from_("203.0.113.7")))
    assert (await ban(client, address="203.0.113.7"))["kicked"] == 1
    messages = []
    while (message := await connection.read_message()) is not None:
        messages.append(json.loads(message))
    assert "kicked" in str(messages[-1])
    connection.close()
    handshake = from_("203.0.113.7") | {
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    answer = await client.ask("GET", "/ws", headers=handshake)
    assert (answer.code, error_of(answer)["code"]) == (403, "banned")


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [SETTINGS | {"limits": {"overload_response": "error"}}])
async def test_an_error_for_everybody_is_an_error_here_too(client: Client) -> None:
    await ban(client, address="203.0.113.7")
    answer = await client.ask("GET", "/events", headers=from_("203.0.113.7", EVENT_SOURCE))
    assert (answer.code, error_of(answer)["code"]) == (403, "banned")


@pytest.mark.gen_test
async def test_nobody_becomes_somebody_else_by_a_header(client: Client) -> None:
    client.service.trusted_proxies = ()
    await ban(client, address="203.0.113.7")
    (await client.stream(headers=from_("203.0.113.7"))).close()
    await ban(client, address="127.0.0.1")
    assert (await client.ask("GET", "/events", headers=from_("203.0.113.9"))).code == 403


@pytest.mark.gen_test
@pytest.mark.parametrize("headers", [{"Authorization": "Bearer wrong"}, {"Authorization": "Basic wrong"}])
async def test_the_credentials_of_a_banned_address_are_not_looked_at(client: Client, headers: dict[str, str]) -> None:
    await ban(client, address="203.0.113.7")
    headers = from_("203.0.113.7", headers)
    for method in ("GET", "HEAD"):
        assert (await client.ask(method, "/events", headers=headers)).code == 403
    assert (await client.post({"topic": "a", "data": 1}, headers=headers)).code == 403


@pytest.mark.gen_test
async def test_the_body_of_a_banned_publisher_is_not_waited_for(client: Client) -> None:
    await ban(client, key="tests")
    iostream = await client.connect()
    await iostream.write(
        b"POST /events HTTP/1.1\r\nHost: tests\r\nAuthorization: Bearer test-key\r\nContent-Type: application/json\r\n"
        b"Content-Length: 25\r\nExpect: 100-continue\r\n\r\n"
    )
    assert (await iostream.read_until(b"\r\n")).startswith(b"HTTP/1.1 403 ")
    iostream.close()


@pytest.mark.gen_test
async def test_a_publish_that_is_under_way_is_refused(client: Client) -> None:
    iostream = await client.connect()
    await iostream.write(
        b"POST /events HTTP/1.1\r\nHost: tests\r\nAuthorization: Bearer test-key\r\nContent-Type: application/json\r\n"
        b"Content-Length: 25\r\n\r\n"
    )
    await until(lambda: client.service.publishing == 1)
    await ban(client, key="tests")
    await iostream.write(b'{"topic": "a", "data": 1}')
    assert (await iostream.read_until(b"\r\n")).startswith(b"HTTP/1.1 403 ")
    assert client.published == 0
    iostream.close()


@pytest.mark.gen_test
async def test_an_operator_cannot_lock_themselves_out(client: Client) -> None:
    await ban(client, network="127.0.0.0/8")
    await ban(client, network="::/1")
    await ban(client, network="::1")
    for path in ("/admin/bans", "/admin/overview", "/metrics", "/ready", "/health"):
        assert (await client.ask("GET", path, headers=ADMIN)).code == 200
    assert (await client.ask("GET", "/events")).code == 403


@pytest.mark.gen_test
async def test_a_ban_ends_by_itself(client: Client) -> None:
    bans, earlier = client.service.bans, time.monotonic() - 61
    short, _ = bans.add("address", "203.0.113.7", seconds=60, now=earlier, unix_now=time.time() - 61)
    ever = await ban(client, address="203.0.113.8", expires_in_seconds="never")
    assert ever["expires_at"] is None
    assert (await client.ask("GET", "/events", headers=from_("203.0.113.8"))).code == 403
    (await client.stream(headers=from_("203.0.113.7"))).close()
    listed = document(await send(client, "GET", "bans"))
    assert [one["id"] for one in listed["bans"]] == [ever["id"]]
    for method in ("GET", "DELETE"):
        assert (await send(client, method, f"bans/{short.id}")).code == 404


@pytest.mark.gen_test
async def test_they_are_listed_changed_and_lifted_and_the_log_says_by_whom(
    client: Client, lines: Callable[..., Any]
) -> None:
    first = await ban(client, network="203.0.113.0/24", reason="scraper")
    kicked = first.pop("kicked")
    assert kicked == 0
    listed = document(await send(client, "GET", "bans"))
    assert listed == {"bans": [first], "max_bans": MAX_BANS}
    assert document(await send(client, "GET", f"bans/{first['id']}")) == first
    answer = await send(client, "POST", "bans", {"network": "203.0.113.0/24", "expires_in_seconds": "never"})
    assert (answer.code, document(answer)["id"], document(answer)["expires_at"]) == (200, first["id"], None)
    assert document(await send(client, "DELETE", f"bans/{first['id']}"))["value"] == "203.0.113.0/24"
    assert document(await send(client, "GET", "bans"))["bans"] == []
    for method in ("GET", "DELETE"):
        assert (await send(client, method, f"bans/{first['id']}")).code == 404
    banned, changed = lines("admin.banned")
    (lifted,) = lines("admin.unbanned")
    assert (banned["admin_key"], banned["kind"], banned["value"]) == ("boss", "network", "203.0.113.0/24")
    assert (banned["ban"], banned["reason"], banned["remote_ip"]) == (first["id"], "scraper", "127.0.0.1")
    assert changed["expires_at"] is None
    assert lifted["ban"] == first["id"]


@pytest.mark.gen_test
async def test_a_secret_is_in_no_answer_and_no_line(client: Client, lines: Callable[..., Any]) -> None:
    token = bearer("ann", jti="t-1")["Authorization"].removeprefix("Bearer ")
    answer = await ban(client, token=token)
    assert answer["value"] == "t-1"
    refused = await send(client, "POST", "bans", {"key": "test-key"})
    assert error_of(refused)["field"] == "key"
    for text in (str(lines("admin.banned")), json.dumps(answer), refused.body.decode()):
        assert token not in text
        assert "test-key" not in text


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "address"),
        ({"reason": "x"}, "address"),
        ({"address": "10.0.0.1", "user": "ann"}, "user"),
        ({"adress": "10.0.0.1"}, "adress"),
        ({"address": "10.0.0.1", "expires_in": 5}, "expires_in"),
        ({"address": None}, "address"),
        ({"address": 5}, "address"),
        ({"address": "10.0.0.0/8"}, "address"),
        ({"network": "10.0.0.1/8"}, "network"),
        ({"network": "0.0.0.0/0"}, "network"),
        ({"network": "::/0"}, "network"),
        ({"network": "10.0.0.0/-1"}, "network"),
        ({"key": ["tests"]}, "key"),
        ({"user": ""}, "user"),
        ({"user": "a\u0000"}, "user"),
        ({"token": "x" * 20_000}, "token"),
        ({"user": "ann", "reason": "x" * 201}, "reason"),
        ({"user": "ann", "reason": 7}, "reason"),
        ({"user": "ann", "reason": 0}, "reason"),
        ({"user": "ann", "reason": []}, "reason"),
        ({"user": "ann", "reason": "a\nb"}, "reason"),
        ({"user": "ann", "expires_in_seconds": 0}, "expires_in_seconds"),
        ({"user": "ann", "expires_in_seconds": -1}, "expires_in_seconds"),
        ({"user": "ann", "expires_in_seconds": 1e300}, "expires_in_seconds"),
        ({"user": "ann", "expires_in_seconds": 10**400}, "expires_in_seconds"),
        ({"user": "ann", "expires_in_seconds": "3600"}, "expires_in_seconds"),
        ({"user": "ann", "expires_in_seconds": "forever"}, "expires_in_seconds"),
        ({"user": "ann", "expires_in_seconds": True}, "expires_in_seconds"),
        ({"user": "ann", "expires_in_seconds": [5]}, "expires_in_seconds"),
    ],
)
async def test_what_cannot_be_banned_bans_nobody(client: Client, body: object, field: str) -> None:
    answer = await send(client, "POST", "bans", body)
    error = error_of(answer)
    assert (answer.code, error["code"], error["field"]) == (400, "invalid_field", field)
    assert len(client.service.bans) == 0


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"user": NaN}', b'{"user": "a", "expires_in_seconds": NaN}', b"\xff"]
)
async def test_what_is_no_object_is_an_error(client: Client, body: bytes) -> None:
    answer = await send(client, "POST", "bans", body)
    assert (answer.code, error_of(answer)["code"]) == (400, "invalid_json")


@pytest.mark.gen_test
async def test_a_name_that_no_key_has_bans_nobody(client: Client) -> None:
    for name, hint in (("test", "; did you mean tests?"), ("nobody", "auth.publish_keys"), ("boss", "")):
        answer = await send(client, "POST", "bans", {"key": name})
        error = error_of(answer)
        assert (answer.code, error["code"], error["field"]) == (409, "conflict", "key")
        assert error["message"].endswith(hint)
    assert len(client.service.bans) == 0


@pytest.mark.gen_test
async def test_one_too_many_is_a_conflict(client: Client) -> None:
    for number in range(MAX_BANS):
        client.service.bans.add("user", f"u{number}", seconds=None, now=0, unix_now=0)
    answer = await send(client, "POST", "bans", {"user": "ann"})
    assert (answer.code, error_of(answer)["code"]) == (409, "conflict")


@pytest.mark.gen_test
async def test_others_are_answered_while_many_are_ended(client: Client) -> None:
    streams = [await client.stream() for _ in range(100)]
    job = client.service.access.end_banned(lambda *_: None, lambda _: 0)
    assert sum(1 for _ in job) == 1  # looks at the clock also when nobody is banned
    client.service.bans.add("address", "127.0.0.1", seconds=None, now=0, unix_now=0)
    job = client.service.access.end_banned(client.service.ban_of, lambda _: 1000)
    assert sum(1 for _ in job) == 25
    for stream in streams:
        assert (await closing(stream))[0] == "kicked"


@pytest.mark.gen_test
async def test_without_bans_a_handshake_looks_nowhere(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgstream.service.bans.Bans.find", None)
    (await client.stream("a", headers=BEARER)).close()
    await client.publish("a", 1)
