"""POST /events: what is published arrives; what is refused names its field and publishes nothing."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tornado.httpclient import HTTPResponse

from qgstream import Draft, run_source
from qgstream.auth.authenticator import Principal
from qgstream.events.publication import Publication
from qgstream.http.publish import PublishHandler
from tests.http.asking import BEARER, KEY, Client, document, error_of, until
from tests.signing import SECRET, payload, sign

NDJSON = "application/x-ndjson"


def ndjson(*events: object) -> bytes:
    return b"\n".join(event if isinstance(event, bytes) else json.dumps(event).encode() for event in events)


# What is published arrives.


@pytest.mark.gen_test
async def test_one_event(client: Client) -> None:
    stream = await client.stream("orders")
    other = await client.stream("other")
    answer = await client.post({"topic": "orders", "data": {"order": 7}, "event": "created"})
    assert answer.code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    receipt = document(answer)
    assert list(receipt) == ["id", "subscribers"]
    assert receipt["subscribers"] == 1
    event = await stream.next()
    assert (event.id, event.event, event.data) == (receipt["id"], "created", '{"order":7}'.replace(":", ": "))
    await client.publish("other", "next")
    assert await other.data() == "next"  # and not the order
    stream.close()
    other.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("written", "arrives"),
    [
        (b'"text"', "text"),
        (b'""', ""),
        (b'"  spaces "', "  spaces "),
        (b'"a\\r\\nb\\rc\\nd"', "a\nb\nc\nd"),  # three kinds of line end; a stream has one
        (b'"\\u2028\\u0085\\u000b"', "\u2028\x85\x0b"),  # no line ends of the stream's
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        ('"é"'.encode(), "é"),
        (b"12345678901234567890.10", "12345678901234567890.10"),  # no digit is lost
        (b"1e400", "1e400"),
        (b"null", "null"),
        (b"true", "true"),
        (b"[1,\r\n 2]", "[1,   2]"),  # still one line
        (b'{"b":1,"a":{"b":[]}}', '{"b":1,"a":{"b":[]}}'),
    ],
)
async def test_data_is_any_json_and_stays_as_written(client: Client, written: bytes, arrives: str) -> None:
    stream = await client.stream("a")
    answer = await client.post(b'{"topic": "a", "data": %b}' % written)
    assert answer.code == 200, answer.body
    assert (await stream.next()).data == arrives
    stream.close()


@pytest.mark.gen_test
async def test_a_list_of_topics_is_delivered_once_to_each_subscriber(client: Client) -> None:
    one, both, neither = await client.stream("a"), await client.stream("a", "b"), await client.stream("c")
    receipt = await client.publish(["a", "b", "a"], "x")
    assert receipt["subscribers"] == 2
    await client.publish(["b", "c", "a"], "end")
    for stream in (one, both):
        assert [await stream.data(), await stream.data()] == ["x", "end"]
    assert await neither.data() == "end"
    for stream in (one, both, neither):
        stream.close()


@pytest.mark.gen_test
async def test_a_batch_arrives_in_order_and_together(client: Client) -> None:
    stream = await client.stream("a", "b")
    events = [{"topic": "ab"[number % 2], "data": number} for number in range(100)]
    answer = await client.post(ndjson(*events) + b"\r\n\n\n", media_type=NDJSON)
    assert answer.code == 200
    receipt = document(answer)
    assert list(receipt) == ["ids", "subscribers"]
    assert receipt["subscribers"] == 1
    received = [await stream.next() for _ in events]
    assert [event.id for event in received] == receipt["ids"]
    assert [event.data for event in received] == [str(number) for number in range(100)]
    assert client.published == 100
    stream.close()


@pytest.mark.gen_test
async def test_retry_reaches_the_wire(client: Client) -> None:
    stream = await client.stream("a")
    await client.publish("a", "x", retry=1500)
    assert (await stream.next()).retry_ms == 1500
    stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": {"private_topics": ["inbox.*"]}}])
async def test_private_events_go_only_to_those_with_a_grant(client: Client) -> None:
    anybody, granted = await client.stream(), await client.stream(headers=BEARER)
    assert (await client.publish("a", "secret", private=True))["subscribers"] == 1
    assert (await client.publish("inbox.ann", "also secret"))["subscribers"] == 1
    assert (await client.publish("a", "public"))["subscribers"] == 2
    assert [await granted.data() for _ in range(3)] == ["secret", "also secret", "public"]
    assert await anybody.data() == "public"
    anybody.close()
    granted.close()


@pytest.mark.gen_test
async def test_the_same_idempotency_key_publishes_once(client: Client) -> None:
    stream = await client.stream("a")
    first = await client.publish("a", "one", idempotency_key="k1")
    again = await client.publish("a", "one", idempotency_key="k1")
    other = await client.publish("a", "two", idempotency_key="k2")
    assert again["id"] == first["id"] != other["id"]
    assert [await stream.data(), await stream.data()] == ["one", "two"]
    assert client.published == 2  # what was not appended is not counted
    batch = [{"topic": "a", "data": "x", "idempotency_key": key} for key in ("k2", "k3", "k3")]
    receipt = document(await client.post(ndjson(*batch), media_type=NDJSON))
    assert receipt["ids"][0] == other["id"]
    assert receipt["ids"][1] == receipt["ids"][2]
    assert await stream.data() == "x"
    await client.publish("a", "end")
    assert await stream.data() == "end"
    stream.close()


JWT = {"algorithms": ["HS256"], "secret": SECRET}


def bearer(credentials: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credentials}"}


def token(subject: str | None = "a", issuer: str = "https://one", **claims: object) -> dict[str, str]:
    grants = {"publish": ["*"], "subscribe": []}
    return bearer(sign(payload(exp=time.time() + 600, sub=subject, iss=issuer, qgstream=grants, **claims)))


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": {"publish_keys": {"a": KEY, "b": "key-b"}, "jwt": JWT}}])
@pytest.mark.parametrize("media_type", ["application/json", NDJSON])
async def test_an_idempotency_key_is_that_of_its_publisher_alone(client: Client, media_type: str) -> None:
    """Else whoever guesses a key silences the event of another, and is told the id of what it may not see."""
    publishers = [
        bearer(KEY), bearer("key-b"), token(), token(issuer="https://two"), token("b"), token(None, jti="1"),
        token(None, jti="2"),
    ]  # fmt: skip
    stream = await client.stream("a")
    ids: list[str] = []
    for number, publisher in enumerate(publishers):
        for attempt in ("first", "again"):
            event = {"topic": "a" if number else "secret", "data": f"{number} {attempt}", "idempotency_key": "order-7"}
            answer = await client.post(event | {"private": not number}, headers=publisher, media_type=media_type)
            said = document(answer)
            ids += said["ids"] if media_type == NDJSON else [said["id"]]
    assert ids[::2] == ids[1::2], "each repeats its own"
    assert len(set(ids)) == len(publishers)
    program = [await client.hub.publish("a", data, idempotency_key="order-7") for data in ("program", "again")]
    assert program[0].id == program[1].id
    assert program[0].id not in ids

    async def source() -> AsyncIterator[Draft]:
        yield Draft("a", "source", idempotency_key="order-7")
        yield Draft("a", "again", idempotency_key="order-7")

    for name in ("one", "two", "one"):
        await run_source(client.hub, source, name=name)
    await client.hub.publish("a", "end")
    expected = [*(f"{number} first" for number in range(1, len(publishers))), "program", "source", "source", "end"]
    assert [await stream.data() for _ in expected] == expected
    stream.close()


@pytest.mark.gen_test
async def test_the_first_event_of_a_key_counts_whatever_the_next_one_says(client: Client) -> None:
    first = await client.publish("a", "one", idempotency_key="k")
    stream = await client.stream()
    assert await client.publish("b", {"n": 2}, event="other", idempotency_key="k") == first
    await client.publish("a", "end")
    assert await stream.data() == "end"
    stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "media_type", ["application/json", "Application/JSON", "application/json; charset=utf-8", " application/json ;"]
)
async def test_a_media_type_may_have_parameters(client: Client, media_type: str) -> None:
    assert (await client.post({"topic": "a", "data": 1}, media_type=media_type)).code == 200


@pytest.mark.gen_test
async def test_a_chunked_body(client: Client) -> None:
    iostream = await client.connect()
    await iostream.write(
        b"POST /events HTTP/1.1\r\nHost: tests\r\nAuthorization: bEaReR test-key\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    for byte in b'{"topic": "a", "data": 1}':
        await iostream.write(b"1\r\n%c\r\n" % byte)
    await iostream.write(b"0\r\n\r\n")
    assert (await iostream.read_until(b"}")).startswith(b"HTTP/1.1 200 ")
    iostream.close()


# What is refused publishes nothing.


async def refused(client: Client, answer: HTTPResponse, status: int, **expected: str | None) -> dict[str, Any]:
    """The error of an answer to something that must not have been published."""
    assert answer.code == status, answer.body
    error = error_of(answer)
    assert {name: error.get(name) for name in expected} == expected
    assert client.published == 0
    assert len(client.hub.window) == 0
    return error


STRING_FIELDS = ["topic", "event", "idempotency_key"]
BAD_CHARACTERS = ["\r", "\n", "\r\ndata: x", "\0", "\x1b", "\x7f", "\x85", "\x9f", "\ud800", "\udfff"]


@pytest.mark.gen_test
@pytest.mark.parametrize("field", STRING_FIELDS)
@pytest.mark.parametrize("bad", BAD_CHARACTERS)
async def test_no_field_can_inject_a_line(client: Client, field: str, bad: str) -> None:
    stream = await client.stream()
    for text in (bad, f"a{bad}b", f"a{bad}"):
        answer = await client.post({"topic": "a", "data": 1} | {field: text})
        await refused(client, answer, 400, code="invalid_field", field=field)
    # The next thing on the wire is what comes after, so nothing of it went out.
    await client.publish("a", "end")
    assert await stream.data() == "end"
    stream.close()


INVALID: list[tuple[str, object]] = [
    ("topic", 7), ("topic", None), ("topic", {}), ("topic", True), ("topic", ""), ("topic", []), ("topic", [""]),
    ("topic", [7]), ("topic", [["a"]]), ("topic", ["a", "b\n"]), ("topic", "a*"), ("topic", "*"), ("topic", "t" * 257),
    ("topic", [f"t{number}" for number in range(65)]),
    ("event", 7), ("event", ""), ("event", []), ("event", "e" * 257),
    ("retry", -1), ("retry", 1.5), ("retry", "1"), ("retry", True), ("retry", 86_400_001), ("retry", 10**30),
    ("private", 1), ("private", "true"), ("private", None),
    ("idempotency_key", 7), ("idempotency_key", ""), ("idempotency_key", "k" * 257),
    ("data", "\ud800"), ("data", {"deep": ["\udfff"]}),
    ("id", "my-own"), ("Topic", "a"), ("", 1),
]  # fmt: skip


@pytest.mark.gen_test
@pytest.mark.parametrize(("field", "value"), INVALID)
@pytest.mark.parametrize("batch", [False, True])
async def test_a_wrong_field_is_named(client: Client, field: str, value: object, batch: bool) -> None:
    event = {"topic": "a", "data": 1} | {field: value}
    good = {"topic": "a", "data": 1}
    if batch:
        answer = await client.post(ndjson(good, event, good), media_type=NDJSON)
    else:
        answer = await client.post(event)
    error = await refused(client, answer, 400)
    assert error.get("field", "") == field
    if batch:
        assert "2" in error["message"]


@pytest.mark.gen_test
@pytest.mark.parametrize("missing", ["topic", "data"])
async def test_a_missing_field_is_named(client: Client, missing: str) -> None:
    event = {"topic": "a", "data": 1}
    del event[missing]
    await refused(client, await client.post(event), 400, field=missing, code="invalid_field")


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty_body"),
        (b" \r\n ", "empty_body"),
        (b"{", "invalid_json"),
        (b"nonsense", "invalid_json"),
        (b"{'topic': 'a', 'data': 1}", "invalid_json"),
        (b'{"topic": "a", "data": 1}}', "invalid_json"),
        (b'{"topic": "a", "data": 1} nonsense', "invalid_json"),
        (b'{"topic": "a", "data": NaN}', "invalid_json"),
        (b'{"topic": "a", "data": 01}', "invalid_json"),
        (b'{"topic": "a", "data": tru}', "invalid_json"),
        (b'{"topic": "a", "data": [1,]}', "invalid_json"),
        (b'{"topic": "a", "data": "a\nb"}', "invalid_json"),
        (b'{"topic": "a", "data": ["a\nb"]}', "invalid_json"),
        (b'{"topic": "a", "data": ["\\x"]}', "invalid_json"),
        (b'{"topic": "a", "data": ["\\u12"]}', "invalid_json"),
        (b'{"topic": "a", "data": }', "invalid_json"),
        (b'{"topic": "a", "data": "\xff"}', "invalid_encoding"),
        ('{"topic": "a", "data": 1}'.encode("utf-16"), "invalid_encoding"),
        (b'\xef\xbb\xbf\xef\xbb\xbf{"topic": "a", "data": 1}', "invalid_json"),
        (b'{"topic": "a", "data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b"[" * 100_000, None),
        (b"null", None),
        (b"[]", None),
        (b'[{"topic": "a", "data": 1}]', None),
        (b'"a"', None),
        (b"7", None),
        (b"{}", None),
    ],
    ids=range(27),
)
@pytest.mark.parametrize("media_type", ["application/json", NDJSON])
async def test_what_is_no_event(client: Client, body: bytes, code: str | None, media_type: str) -> None:
    answer = await client.post(body, media_type=media_type)
    error = await refused(client, answer, 400)
    if code is not None:
        assert error["code"] == code


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "media_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "json", "*/*", "é"]
)
async def test_another_media_type(client: Client, media_type: str | None) -> None:
    answer = await client.post({"topic": "a", "data": 1}, media_type=media_type)
    error = await refused(client, answer, 415, code="unsupported_media_type")
    assert "application/json" in error["message"]


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"max_body_bytes": 2000}}])
async def test_the_bound_is_on_what_is_decoded_and_on_what_is_sent(client: Client) -> None:
    def event(size: int) -> bytes:
        empty = b'{"topic": "a", "data": ""}'
        return empty[:-2] + b"x" * (size - len(empty)) + empty[-2:]

    coded = BEARER | {"Content-Encoding": "gzip"}
    answer = await client.post(gzip.compress(event(2001)), headers=coded)
    error = await refused(client, answer, 413, code="too_large")
    assert error["message"] == "decoded body: got 2001 bytes, expected at most 2000"
    longer_than_before = gzip.compress(event(1990), compresslevel=0)
    assert len(longer_than_before) > 2000
    answer = await client.post(longer_than_before, headers=coded)
    error = await refused(client, answer, 413, code="too_large")
    assert error["message"].startswith("body: got 20")
    assert (await client.post(gzip.compress(event(2000)), headers=coded)).code == 200


@pytest.mark.gen_test
async def test_a_batch_that_would_hold_the_loop(client: Client) -> None:
    line = b'{"topic":"a","data":1}'
    error = await refused(client, await client.post(b"\n".join([line] * 10_001), media_type=NDJSON), 400)
    assert error == {
        "code": "too_many_events",
        "message": "got more than 10000 events, expected at most 10000 in a batch",
    }
    assert (await client.post(b"\n".join([line] * 10_000), media_type=NDJSON)).code == 200
    assert client.published == 10_000


def test_the_grants_of_a_long_batch_are_checked_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    checked, check = [0], Principal.require_publish

    def counted(self: Principal, topics: tuple[str, ...]) -> None:
        checked[0] += 1
        check(self, topics)

    monkeypatch.setattr(Principal, "require_publish", counted)
    principal = Principal("tests", "token", publish=tuple(f"{n}*" for n in range(100)))
    publications = [Publication(tuple(f"{n}" for n in range(20)), b"") for _ in range(1000)]
    job = PublishHandler._check_grants(cast(Any, SimpleNamespace(principal=principal)), publications)
    assert [checked[0] for _ in job] == list(range(1, 1001))


@pytest.mark.gen_test
async def test_what_is_under_way_is_counted_until_it_is_over(client: Client) -> None:
    """A server that leaves waits for these."""
    head = "POST /events HTTP/1.1\r\nHost: tests\r\nContent-Type: application/json\r\nContent-Length: 25\r\n"
    begun = [await client.connect() for _ in range(3)]
    for iostream, key in zip(begun, (KEY, "wrong", KEY), strict=True):
        await iostream.write(f"{head}Authorization: Bearer {key}\r\n\r\n{{".encode())
    await until(lambda: client.service.publishing == 3)
    begun[2].close()
    for iostream in begun[:2]:
        await iostream.write(b'"topic": "a", "data": 1}')
        await iostream.read_until(b"}")
    await until(lambda: client.service.publishing == 0)
    assert client.published == 1
    for iostream in begun:
        iostream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"max_event_bytes": 100}}])
async def test_an_event_over_its_bound(client: Client) -> None:
    good = {"topic": "a", "data": "x" * 100}
    bad = {"topic": "a", "data": "x" * 101}
    error = await refused(client, await client.post(bad), 413, code="too_large")
    assert error["message"] == "data: got 101 bytes, expected at most 100"
    error = await refused(client, await client.post(ndjson(good, good, bad), media_type=NDJSON), 413, code="too_large")
    assert "3" in error["message"]
    assert (await client.post(good)).code == 200
    # The bound is on what is sent: two bytes of UTF-8 each.
    assert (await client.post({"topic": "a", "data": "é" * 51})).code == 413


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"max_body_bytes": 2000}}])
@pytest.mark.parametrize("size", [2001, 7_999, 8_000, 8_001, 1_000_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_its_bound_is_answered_even_to_who_sends_it_all(
    client: Client, size: int, chunked: bool
) -> None:
    iostream = await client.connect()
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    await iostream.write(
        f"POST /events HTTP/1.1\r\nHost: tests\r\nAuthorization: {BEARER['Authorization']}\r\n"
        f"Content-Type: application/json\r\n{framing}\r\n\r\n".encode()
    )
    if size <= 8000:  # what is read and forgotten; beyond it the socket is closed
        await iostream.write(b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size) if chunked else b"x" * size)
    elif chunked:
        await iostream.write(b"%x\r\n" % size)
    head = await iostream.read_until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert client.published == 0
    iostream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json"}, 401),
        ({"Content-Type": "application/json", "Authorization": "Bearer wrong"}, 401),
        (BEARER | {"Content-Type": "text/csv"}, 415),
    ],
)
async def test_who_sends_much_in_vain_is_answered_and_may_go_on(
    client: Client, headers: dict[str, str], status: int
) -> None:
    """An answer before the body closes the socket on a client that is sending: it sees a reset and no answer."""
    iostream = await client.connect()
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    body = b"x" * 3_000_000
    for _ in range(2):
        await iostream.write(
            f"POST /events HTTP/1.1\r\nHost: tests\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body
        )
        assert (await iostream.read_until(b"\r\n\r\n")).startswith(f"HTTP/1.1 {status} ".encode())
        await iostream.read_until(b"}}\n")
    iostream.close()


@pytest.mark.gen_test
async def test_who_asks_first_is_told_before_sending(client: Client) -> None:
    head = b"POST /events HTTP/1.1\r\nHost: tests\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    iostream = await client.connect()
    await iostream.write(head + b"Content-Length: 25\r\n\r\n")
    answer = await iostream.read_until_close()
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nConnection: close\r\n" in answer
    iostream = await client.connect()
    await iostream.write(head + b"Authorization: Bearer test-key\r\nContent-Length: 25\r\n\r\n")
    assert (await iostream.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    await iostream.write(b'{"topic": "a", "data": 1}')
    assert (await iostream.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    iostream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("length", "status"),
    [("9" * 19, 413), ("9" * 5000, 413), ("-1", 400), ("1e3", 400), ("5, 6", 400), ("\xb2", 400), ("0x10", 400)],
)
async def test_an_odd_content_length(client: Client, length: str, status: int) -> None:
    iostream = await client.connect()
    await iostream.write(
        f"POST /events HTTP/1.1\r\nHost: tests\r\nAuthorization: Bearer test-key\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n".encode("latin-1")
    )
    assert (await iostream.read_until_close()).startswith(f"HTTP/1.1 {status} ".encode())
    assert client.published == 0


# How fast.


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"publish_rate_per_key": 0.002, "publish_burst_per_key": 3}}])
async def test_a_key_that_publishes_too_fast(client: Client) -> None:
    event = {"topic": "a", "data": 1}
    for _ in range(3):
        assert (await client.post(event)).code == 200
    answer = await client.post(event)
    assert answer.code == 429
    assert error_of(answer)["code"] == "publish_rate_per_key"
    assert 100 < int(answer.headers["Retry-After"]) <= 500
    assert client.published == 3
    # A batch is charged whole, and refused whole.
    answer = await client.post(ndjson(event, event, event), media_type=NDJSON)
    assert (answer.code, client.published) == (429, 3)
    assert 1100 < int(answer.headers["Retry-After"]) <= 1500


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "settings",
    [
        {
            "limits": {"publish_rate_per_key": 0.001, "publish_burst_per_key": 1},
            "auth": {"publish_keys": {"one": "test-key", "two": "second-key"}},
        }
    ],
)
async def test_keys_do_not_pay_for_each_other_and_mistakes_are_free(client: Client) -> None:
    event = {"topic": "a", "data": 1}
    for _ in range(3):
        assert (await client.post({"topic": ""})).code == 400
    assert (await client.post(event)).code == 200
    assert (await client.post(event)).code == 429
    assert (await client.post(event, headers={"Authorization": "Bearer second-key"})).code == 200


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "settings",
    [{
        "limits": {"publish_rate_per_key": 0.001, "publish_burst_per_key": 1},
        "auth": {"publish_keys": {"a": KEY, "token": "second"}, "jwt": JWT},
    }],
)  # fmt: skip
async def test_no_publisher_uses_up_the_rate_of_another(client: Client) -> None:
    publishers = [
        bearer(KEY), bearer("second"), token(), token(issuer="https://two"), token(None, jti="1"), token(None, jti="2"),
    ]  # fmt: skip
    for code in (200, 429):
        answers = [await client.post({"topic": "a", "data": 1}, headers=publisher) for publisher in publishers]
        assert [answer.code for answer in answers] == [code] * len(publishers)
    assert (await client.post({"topic": "a", "data": 1}, headers=token(jti="new"))).code == 429, "the same publisher"


@pytest.mark.gen_test
async def test_a_server_at_its_end_sends_publishers_elsewhere(client: Client) -> None:
    client.service.takes_events = False
    answer = await client.post({"topic": "a", "data": 1})
    assert (answer.code, error_of(answer)["code"]) == (503, "draining")
    assert int(answer.headers["Retry-After"]) >= 1
    assert client.published == 0
