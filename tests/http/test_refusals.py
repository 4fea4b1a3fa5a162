"""Every publish is counted once by what came of it, and every refusal leaves its trace: in the log, and in /admin."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest
from tornado.iostream import StreamClosedError

from qgstream.errors import Unavailable
from qgstream.events.publication import Publication
from qgstream.http import base
from qgstream.http.publish import PublishHandler
from qgstream.hub import Hub, Receipt
from qgstream.logs import RESERVED_ATTRS
from qgstream.reasons import PUBLISH_RESULTS
from qgstream.service.service import Service
from tests.http.asking import BEARER, KEY, Client, document, until
from tests.signing import SECRET, payload, sign

NDJSON = "application/x-ndjson"
ADMIN = {"Authorization": "Bearer admin-key"}
JWT = {"jwt": {"algorithms": ["HS256"], "secret": SECRET}}
WRONG = {"Authorization": "Bearer wrong"}
UPGRADE = {
    "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}  # fmt: skip


def results(client: Client) -> dict[str, int]:
    """Publishes by result, without those that are 0."""
    counts = client.hub.metrics.totals.publishes
    assert tuple(counts) == PUBLISH_RESULTS
    return {result: count for result, count in counts.items() if count}


def lines(caplog: pytest.LogCaptureFixture, *events: str) -> list[dict[str, Any]]:
    """The lines with these events."""
    return [
        {k: v for k, v in vars(record).items() if k not in RESERVED_ATTRS}
        for record in caplog.records
        if record.getMessage() in events
    ]


async def get(client: Client, what: str) -> dict[str, Any]:
    answer = await client.ask("GET", f"/admin/{what}", headers=ADMIN)
    assert answer.code == 200, answer.body
    return document(answer)


async def publisher(client: Client, name: str | None) -> dict[str, Any]:
    (found,) = [one for one in (await get(client, "publishers"))["publishers"] if one["name"] == name]
    return dict(found)


async def talker(client: Client, kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in (await get(client, "talkers"))[kind] if one["name"] == name]
    return dict(found)


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qgstream")


# By result.


def token(**claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {sign(payload(exp=4_000_000_000, **claims))}"}


@pytest.mark.gen_test
async def test_a_publish_is_accepted_or_repeated(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    await client.publish("a", "x", idempotency_key="1")
    assert results(client) == {"accepted": 1}
    await client.publish("a", "x", idempotency_key="1")
    assert results(client) == {"accepted": 1, "repeated": 1}
    batch = b"\n".join(json.dumps({"topic": "a", "data": "x", "idempotency_key": key}).encode() for key in "123")
    assert (await client.post(batch, media_type=NDJSON)).code == 200  # two of three are new
    assert (await client.post(batch, media_type=NDJSON)).code == 200
    assert results(client) == {"accepted": 2, "repeated": 2}
    row = await publisher(client, "tests")
    assert (row["kind"], row["publishes"], row["events"], row["publishes_refused"]) == ("key", 4, 3, 0)
    assert lines(caplog, "publish.refused") == []


SETTINGS: dict[str, Any] = {
    "auth": JWT | {"publish_keys": {"tests": KEY}},
    "limits": {
        "max_event_bytes": 100,
        "max_body_bytes": 1024,
        "publish_rate_per_key": 0.001,
        "publish_burst_per_key": 1,
    },
}


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [SETTINGS])
@pytest.mark.parametrize(
    ("body", "headers", "result", "status", "code"),
    [
        (b"{", BEARER, "bad_request", 400, "invalid_json"),
        (b"", BEARER, "bad_request", 400, "empty_body"),
        (b'{"topic": "", "data": 1}', BEARER, "bad_request", 400, "invalid_field"),
        (b"x", BEARER | {"Content-Type": "text/plain"}, "bad_request", 415, "unsupported_media_type"),
        (b"x", BEARER | {"Content-Encoding": "br"}, "bad_request", 415, "unsupported_content_coding"),
        (b"x", BEARER | {"Content-Encoding": "gzip"}, "bad_request", 400, "invalid_content_coding"),
        (b'{"topic": "a", "data": 1}', {}, "unauthorized", 401, "unauthorized"),
        (b'{"topic": "a", "data": 1}', WRONG, "unauthorized", 401, "unknown_key"),
        (b'{"topic": "a", "data": 1}', {"Authorization": "Bearer a.b.c"}, "unauthorized", 401, "token_malformed"),
        (b'{"topic": "a", "data": 1}', ADMIN, "forbidden", 403, "forbidden"),
        (b"x" * 2000, BEARER, "too_large", 413, "too_large"),
        (b"x" * 100_000, BEARER, "too_large", 413, "too_large"),
        (json.dumps({"topic": "a", "data": "x" * 200}).encode(), BEARER, "too_large", 413, "too_large"),
    ],
)
async def test_a_refused_publish_is_counted_once(
    client: Client, caplog: pytest.LogCaptureFixture, body: bytes, headers: dict[str, str], result: str, status: int,
    code: str,
) -> None:  # fmt: skip
    media_type = None if "Content-Type" in headers else "application/json"
    answer = await client.post(body, headers=headers | {"User-Agent": "tests/1"}, media_type=media_type)
    assert answer.code == status
    assert results(client) == {result: 1}
    (line,) = lines(caplog, "publish.refused")
    assert (line["reason"], line["status"], line["remote_ip"], line["user_agent"]) == (
        result, status, "127.0.0.1", "tests/1",
    )  # fmt: skip
    assert line["code"] == code
    assert "wrong" not in json.dumps(line)  # nothing of the credentials
    assert line.get("key") == {BEARER["Authorization"]: "tests", ADMIN["Authorization"]: "admin:boss"}.get(
        headers.get("Authorization", "")
    )
    for kind, name in (("address", "127.0.0.1"), ("agent", "tests/1")):
        row = await talker(client, kind, name)
        assert (row["publishes"], row["publishes_refused"], row["last_refusal"]) == (0, 1, result)


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [SETTINGS])
async def test_one_that_is_too_fast_is_named(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    await client.publish("a", 1)
    for _ in range(20):
        assert (await client.post({"topic": "a", "data": 1})).code == 429
    assert results(client) == {"accepted": 1, "rate_limited": 20}
    (line,) = lines(caplog, "publish.refused")
    assert (line["reason"], line["key"], line["code"]) == ("rate_limited", "tests", "publish_rate_per_key")
    row = await publisher(client, "tests")
    assert (row["publishes"], row["publishes_refused"], row["last_refusal"]) == (1, 20, "rate_limited")
    assert row["requests_per_second"] > 0
    client.service.refusals.flush(everything=True)
    assert [one.get("more") for one in lines(caplog, "publish.refused")] == [None, 19]


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [SETTINGS])
async def test_a_token_is_named_by_its_subject_and_issuer(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    headers = token(sub="alice", iss="https://issuer", qgstream={"publish": ["mine"]})
    assert (await client.post({"topic": "mine", "data": 1}, headers=headers)).code == 200
    assert (await client.post({"topic": "theirs", "data": 1}, headers=headers)).code == 403
    (line,) = lines(caplog, "publish.refused")
    assert (line["reason"], line["sub"]) == ("forbidden", "alice")
    row = await publisher(client, "alice")
    assert (row["kind"], row["issuer"], row["publishes"], row["publishes_refused"]) == ("user", "https://issuer", 1, 1)
    assert (await talker(client, "user", "alice"))["publishes"] == 1


@pytest.mark.gen_test
async def test_what_the_server_cannot_take_now(
    client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_publications: list[Publication]) -> Receipt:
        raise Unavailable("the broker is away", retry_after_seconds=1)

    monkeypatch.setattr(client.hub, "publish_all", away)
    assert (await client.post({"topic": "a", "data": 1})).code == 503
    client.service.takes_events = False
    assert (await client.post({"topic": "a", "data": 1})).code == 503
    client.service.bodies.held_bytes = 2**40
    assert (await client.post({"topic": "a", "data": 1})).code == 503
    assert results(client) == {"unavailable": 1, "draining": 1, "overloaded": 1}
    assert [line["reason"] for line in lines(caplog, "publish.refused")] == ["unavailable", "draining", "overloaded"]


@pytest.mark.gen_test
async def test_a_fault_of_the_servers(
    client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[..., None]
) -> None:
    async def fail(_publications: list[Publication]) -> Receipt:
        raise ZeroDivisionError

    monkeypatch.setattr(client.hub, "publish_all", fail)
    expect_log("request.failed")
    assert (await client.post({"topic": "a", "data": 1})).code == 500
    assert results(client) == {"failed": 1}
    assert [line["reason"] for line in lines(caplog, "publish.refused")] == ["failed"]


HEAD = "POST /events HTTP/1.1\r\nHost: tests\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("key", "rest", "result"),
    [
        (KEY, "Content-Length: 100\r\n\r\n{", "incomplete"),
        (KEY, "Transfer-Encoding: chunked\r\n\r\n5\r\n{", "incomplete"),
        (KEY, "Transfer-Encoding: chunked\r\n\r\nno length\r\n", "incomplete"),
        ("wrong", "Content-Length: 100\r\n\r\n{", "unauthorized"),
    ],
)
async def test_one_that_breaks_off_is_counted(client: Client, key: str, rest: str, result: str) -> None:
    stream = await client.connect()
    await stream.write((HEAD % key + rest).encode())
    await until(lambda: client.service.publishing == 1 or bool(results(client)))
    stream.close()
    await until(lambda: bool(results(client)))
    assert results(client) == {result: 1}
    assert client.service.publishing == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [SETTINGS])
async def test_a_chunked_body_over_every_bound_is_too_large(client: Client) -> None:
    stream = await client.connect()
    head = HEAD % KEY + "Transfer-Encoding: chunked\r\n\r\n"
    await stream.write(head.encode())
    try:
        for _ in range(100):
            await stream.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
        await stream.read_until_close()
    except StreamClosedError:
        pass
    await until(lambda: bool(results(client)))
    assert results(client) == {"too_large": 1}
    stream.close()


@pytest.mark.gen_test
async def test_one_that_leaves_while_its_event_is_published_is_accepted(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_all, gone = client.hub.publish_all, asyncio.Event()

    async def slowly(publications: list[Publication]) -> Receipt:
        await gone.wait()
        return await publish_all(publications)

    monkeypatch.setattr(client.hub, "publish_all", slowly)
    stream = await client.connect()
    body = '{"topic": "a", "data": 1}'
    await stream.write(f"{HEAD % KEY}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    await until(lambda: client.service.publishing == 1)
    stream.close()
    await until(lambda: client.service.publishing == 0)
    assert results(client) == {}
    gone.set()
    await until(lambda: bool(results(client)))
    assert results(client) == {"accepted": 1}


# Everything else that is refused.


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": JWT | {"private_topics": ["p/*"]}, "cors": {"allow_origins": []}}])
@pytest.mark.parametrize(
    ("target", "headers", "reason", "status"),
    [
        ("/events?topic=p/1", {}, "unauthorized", 401),
        ("/events", WRONG, "unauthorized", 401),
        ("/events?topic=p/1", ADMIN, "forbidden", 403),
        ("/events?topic=", {}, "bad_request", 400),
        ("/ws", {}, "bad_request", 426),
        ("/ws", {"Origin": "https://evil.example"}, "forbidden", 403),
        ("/ws", WRONG, "unauthorized", 401),
        ("/ws?topic=p/1", {}, "unauthorized", 401),
    ],
)
async def test_a_refused_stream_leaves_a_trace(
    client: Client, caplog: pytest.LogCaptureFixture, target: str, headers: dict[str, str], reason: str, status: int
) -> None:
    if target.startswith("/ws") and status != 426:
        headers = headers | UPGRADE
    for _ in range(3):
        assert (await client.ask("GET", target, headers=headers)).code == status
    (line,) = lines(caplog, "events.rejected")
    assert (line["reason"], line["remote_ip"]) == (reason, "127.0.0.1")
    row = await talker(client, "address", "127.0.0.1")
    assert (row["streams"], row["streams_refused"], row["last_refusal"]) == (0, 3, reason)
    client.service.refusals.flush(everything=True)
    assert lines(caplog, "events.rejected")[1]["more"] == 2


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "settings",
    [{"limits": {"max_connections": 0}}, {"limits": {"connect_rate_per_ip": 1e-9, "connect_burst_per_ip": 1}}],
)
@pytest.mark.parametrize("accept", ["text/event-stream", "*/*"])
async def test_one_too_many_is_counted_and_logged_once(
    client: Client, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], accept: str
) -> None:
    if "connect_rate_per_ip" in settings["limits"]:
        (await client.stream()).close()
    for _ in range(3):
        await client.ask("GET", "/events", headers={"Accept": accept})
    (reason,) = [reason for reason, count in client.hub.metrics.totals.rejected.items() if count]
    assert client.hub.metrics.totals.rejected[reason] == 3
    assert [line["reason"] for line in lines(caplog, "events.rejected")] == [reason]
    assert (await talker(client, "address", "127.0.0.1"))["streams_refused"] == 3


GUESSING = {"limits": {"auth_failure_rate_per_ip": 1e-9, "auth_failure_burst_per_ip": 1}}


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("settings", "banned", "reason"),
    [
        ({}, {"address": "127.0.0.1"}, "banned"),
        ({}, {"key": "tests"}, "banned"),
        (GUESSING, {}, "auth_failure_rate_per_ip"),
    ],
)
@pytest.mark.parametrize("accept", ["text/event-stream", "*/*", "websocket"])
async def test_one_that_is_kept_away_is_counted_and_logged_once(
    client: Client, caplog: pytest.LogCaptureFixture, banned: dict[str, str], reason: str, accept: str
) -> None:
    if banned:
        headers = ADMIN | {"Content-Type": "application/json"}
        assert (await client.ask("POST", "/admin/bans", headers=headers, body=json.dumps(banned).encode())).code == 201
    else:
        for _ in range(2):
            await client.ask("HEAD", "/events", headers=WRONG)
    caplog.clear()
    target, extra = ("/ws", UPGRADE) if accept == "websocket" else ("/events", {"Accept": accept})
    for _ in range(3):
        await client.ask("GET", target, headers=BEARER | extra | {"User-Agent": "tests/2"})
    assert client.hub.metrics.totals.rejected[reason] == 3
    (line,) = lines(caplog, "events.rejected")
    assert (line["reason"], line["user_agent"]) == (reason, "tests/2")
    assert line.get("key") == ("tests" if "key" in banned else None)
    assert (await talker(client, "agent", "tests/2"))["streams_refused"] == 3


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("headers", "reason", "status"),
    [({}, "unauthorized", 401), (WRONG, "unauthorized", 401), (BEARER, "forbidden", 403)],
)
async def test_who_guesses_keys_of_admins_leaves_a_trace(
    client: Client, caplog: pytest.LogCaptureFixture, headers: dict[str, str], reason: str, status: int
) -> None:
    for path in ("/admin/limits", "/admin/connections", "/admin/talkers"):
        assert (await client.ask("GET", path, headers=headers)).code == status
    (line,) = lines(caplog, "admin.refused")
    assert (line["reason"], line["remote_ip"], line.get("key")) == (
        reason,
        "127.0.0.1",
        "tests" if headers is BEARER else None,
    )
    assert (await talker(client, "address", "127.0.0.1"))["others_refused"] == 3


@pytest.mark.gen_test
async def test_a_typing_error_of_an_operator_is_no_refusal(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    assert (await client.ask("GET", "/admin/talkers?limit=0", headers=ADMIN)).code == 400
    assert (await client.ask("GET", "/nowhere")).code == 404
    assert not lines(caplog, "admin.refused", "request.refused")


@pytest.mark.gen_test
async def test_a_wrong_host_leaves_a_trace(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    client.service.allowed_hosts = ("events.example.com",)
    for path in ("/events", "/health"):
        assert (await client.ask("GET", path, headers={"Host": "evil.example"})).code == 421
    (line,) = lines(caplog, "request.refused")
    assert (line["reason"], line["code"]) == ("unknown_host", "unknown_host")
    assert "evil.example" in line["error"]


@pytest.mark.gen_test
async def test_a_full_house_tells_whom_it_closed(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    client.service.rejected("max_sockets", "192.0.2.9")  # as a server does, which has read nothing
    (line,) = lines(caplog, "events.rejected")
    assert (line["reason"], line["remote_ip"], line["user_agent"]) == ("max_sockets", "192.0.2.9", None)
    assert (await talker(client, "address", "192.0.2.9"))["streams_refused"] == 1


# Who it is.


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": JWT}])
async def test_a_stream_has_the_subject_of_its_token(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    hostile = "\u202e\u2028" + "s" * 254  # control characters and more than 256 are refused with the token
    shown = (r"\u202e\u2028" + "s" * 200)[:200]
    streams = [
        await client.stream(headers=token(sub="alice")),
        await client.stream(headers=token(sub=hostile, qgstream={"subscribe": ["*"]})),
        await client.stream(headers=BEARER),
        await client.stream(),
    ]
    named = [(line.get("sub"), line.get("key")) for line in lines(caplog, "events.connected")]
    assert named == [("alice", None), (shown, None), (None, "tests"), (None, None)]
    connections = (await get(client, "connections"))["connections"]
    assert [(one["sub"], one["key"]) for one in connections] == named
    for query, ids in [
        ("sub=alice", [1]), ("sub=ali", []), (urlencode({"sub": shown}), [2]), (urlencode({"sub": hostile}), [2]),
        ("key=tests", [3]), ("sub=tests", []), ("key=alice", []), ("sub=", []), ("key=tests&sub=alice", []),
        ("sub=alice&ip=127.0.0.1", [1]), ("sub=alice&min_age_seconds=1e3", []),
    ]:  # fmt: skip
        assert [one["id"] for one in (await get(client, f"connections?{query}"))["connections"]] == ids, query
    assert (await talker(client, "user", shown))["streams"] == 1
    assert (await talker(client, "key", "tests"))["streams"] == 1
    assert (await talker(client, "address", "127.0.0.1"))["streams"] == 4
    for query, number in (("sub=", None), ("sub=alice", 0), ("key=tests", 2)):
        answer = await client.ask("DELETE", f"/admin/connections?{query}", headers=ADMIN)
        assert document(answer) == {"kicked": int(number is not None)}
        if number is not None:
            assert json.loads(await streams[number].data())["reason"] == "kicked"
    assert [one["id"] for one in (await get(client, "connections"))["connections"]] == [2, 4]
    for stream in streams:
        stream.close()


@pytest.mark.gen_test
async def test_a_hostile_agent_is_cut_and_escaped_everywhere(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    agent = "evil\x9b31m\xad" + "a" * 500
    shown = (r"evil\x9b31m\xad" + "a" * 200)[:200]
    iostream = await client.connect()
    request = f"GET /events HTTP/1.1\r\nHost: tests\r\nUser-Agent: {agent}\r\n\r\n"
    await iostream.write(request.encode("latin-1"))
    await until(lambda: len(client.hub.registry) == 1)
    assert [line["user_agent"] for line in lines(caplog, "events.connected")] == [shown]
    assert (await get(client, "connections"))["connections"][0]["user_agent"] == shown
    assert (await talker(client, "agent", shown))["streams"] == 1
    iostream.close()


@pytest.mark.gen_test
async def test_a_program_and_its_sources_are_publishers_too(client: Client) -> None:
    await client.hub.publish("a", "xyz")
    row = await publisher(client, "hub.publish")
    assert (row["kind"], row["events"], row["bytes"]) == ("application", 1, 3)
    assert results(client) == {}  # requests alone are counted there


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": {"publish_keys": ["first-secret", "second-secret"]}}])
async def test_a_key_without_a_name_has_one_that_tells_nothing(client: Client) -> None:
    headers = {"Authorization": "Bearer second-secret"}
    assert (await client.post({"topic": "a", "data": 1}, headers=headers)).code == 200
    found = await get(client, "publishers")
    assert [one["name"] for one in found["publishers"]] == ["key-2"]
    assert "secret" not in json.dumps(found)


@pytest.mark.gen_test
@pytest.mark.parametrize("path", ["publishers", "talkers"])
@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "by=address"])
async def test_a_wrong_parameter_is_refused(client: Client, path: str, query: str) -> None:
    assert (await client.ask("GET", f"/admin/{path}?{query}", headers=ADMIN)).code == 400


# Once, in time, and small.


@pytest.mark.gen_test
async def test_one_whose_answer_fails_is_accepted_all_the_same(
    client: Client, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[..., None]
) -> None:
    answer = PublishHandler.answer

    def fail_once(handler: PublishHandler, document: dict[str, object]) -> None:
        if "id" in document:
            raise ZeroDivisionError
        answer(handler, document)

    monkeypatch.setattr(PublishHandler, "answer", fail_once)
    expect_log("request.failed")
    assert (await client.post({"topic": "a", "data": 1})).code == 500
    assert results(client) == {"accepted": 1}


@pytest.mark.gen_test
async def test_the_second_line_comes_by_itself(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qgstream.service.service._FLUSH_SECONDS", 0.01)
    async with Service(Hub()) as service:
        service.refusals._seconds = 0.02
        for _ in range(3):
            service.rejected("max_sockets", "192.0.2.9")
        await until(lambda: len(lines(caplog, "events.rejected")) >= 2)
    assert sum(line.get("more", 1) for line in lines(caplog, "events.rejected")) == 3


@pytest.mark.gen_test
async def test_no_long_agent_is_kept(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []

    def keep(agent: str) -> str:
        kept.append(agent)
        return agent

    monkeypatch.setattr(base, "_quoted_agent", keep)
    stream = await client.stream(headers={"User-Agent": "a" * 50_000})
    stream.close()
    assert set(map(len, kept)) == {base.MAX_AGENT_CHARACTERS}
