"""GET and HEAD /events up to the first byte of the stream: what is asked for, what is refused, and how."""

from __future__ import annotations

import json
import math
import sys
from typing import Any
from urllib.parse import quote

import pytest
from tornado.httpclient import HTTPResponse

from qgstream.http import base
from qgstream.wire.sse import Event, Parser
from tests.http.asking import Client, Stream, error_of, until

HANDSHAKE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "A" * 22 + "==",
}  # fmt: skip
STREAM = {"Accept": "text/event-stream"}
FULL = {"limits": {"max_connections": 0, "overload_retry_seconds": 10}}


def rejected(client: Client, reason: str) -> float | None:
    return client.hub.metrics.registry.get_sample_value("qgstream_connections_rejected_total", {"reason": reason})


# What is asked for.


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("topic=", "topic"),
        ("topic=a&topic=", "topic"),
        ("topic=a*b", "topic"),
        ("topic", "topic"),
        ("topic=**", "topic"),
        ("topic=a%0Ab", "topic"),
        ("topic=a%0D%0Adata:x", "topic"),
        ("topic=%00", "topic"),
        ("topic=%7F", "topic"),
        ("topic=%C2%85", "topic"),
        ("topic=%FF", "topic"),
        ("topic=%ED%A0%80", "topic"),  # a surrogate in what is not quite UTF-8
        ("topic=" + "t" * 257, "topic"),
        ("&".join(f"topic=t{number}" for number in range(65)), "topic"),
        ("event=", "event"),
        ("event=a%0Ab", "event"),
        ("event=%FF", "event"),
        ("event=" + "e" * 257, "event"),
        ("&".join(f"event=e{number}" for number in range(65)), "event"),
        ("envelope=2", "envelope"),
        ("envelope=yes", "envelope"),
        ("envelope=", "envelope"),
        ("envelope=%FF", "envelope"),
        ("access_token=%FF", "access_token"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_wrong_parameter_is_named(client: Client, method: str, query: str, field: str) -> None:
    answer = await client.ask(method, f"/events?{query}", headers=STREAM)
    assert answer.code == 400
    if method == "GET":
        error = error_of(answer)
        assert (error["code"], error["field"]) == ("invalid_field", field)
        assert error["message"].startswith(f"{field}: got ")
    assert len(client.hub.registry) == 0
    assert len(client.hub.router) == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"max_topics_per_connection": 2}}])
async def test_as_many_topics_as_the_limit(client: Client) -> None:
    stream = await client.stream("a", "b")
    answer = await client.ask("GET", "/events?topic=a&topic=b&topic=c")
    assert error_of(answer)["message"] == "topic: got 3, expected at most 2"
    stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"max_subscription_characters": 256}}])
async def test_the_names_of_a_subscription_are_bounded_together(client: Client) -> None:
    stream = await client.stream("ä" * 255)
    stream.close()
    for path, headers, query, field in [
        ("/events", STREAM, "topic=" + "a" * 200 + "&event=" + "b" * 57, "topic"),
        ("/events", STREAM, "event=" + "b" * 200 + "&event=" + "c" * 57, "event"),
        ("/ws", HANDSHAKE, "topic=" + "a" * 200 + "&topic=" + "b" * 57, "topic"),
    ]:
        answer = await client.ask("GET", f"{path}?{query}", headers=headers)
        assert error_of(answer) == {
            "code": "invalid_field",
            "field": field,
            "message": f"{field}: got 257 characters in all topics and types, expected at most 256 "
            "(limits.max_subscription_characters)",
        }


@pytest.mark.gen_test
async def test_a_user_agent_is_shared_and_not_kept_for_ever(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    interned: list[str] = []

    def intern(text: str) -> str:
        interned.append(text)
        return text

    monkeypatch.setattr(sys, "intern", intern)  # CPython 3.12.0 keeps each for ever
    for agent in ("agent of two", "agent of two", *(f"agent {number}" for number in range(300))):
        stream = await client.stream(headers={"User-Agent": agent})
        stream.close()
        await until(lambda: len(client.hub.registry) == 0)
    assert not [text for text in interned if text.startswith("agent")]
    assert base._quoted_agent.cache_info().currsize == 256
    for _ in range(2):
        await client.stream(headers={"User-Agent": "agent of " + "two"})
    one, other = client.hub.registry
    assert one.user_agent is other.user_agent


@pytest.mark.gen_test
@pytest.mark.parametrize("name", ["orders", "*", "orders*", "a b", "ünï/cødé", "a&b=c", "x" * 256, "."])
async def test_a_topic_may_be_any_line_of_text(client: Client, name: str) -> None:
    stream = await client.stream(name)
    await client.publish(name.replace("*", "x"), "x")
    assert await stream.data() == "x"
    stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("query", "topics"),
    [
        ("unknown=1", ["*"]), ("=&=&", ["*"]), ("&&&", ["*"]), ("%", ["*"]), ("%zz", ["*"]),
        ("topic=a;b", ["a;b"]), ("envelope=0", ["*"]),
    ],
)  # fmt: skip
async def test_what_is_not_known_is_not_minded(client: Client, query: str, topics: list[str]) -> None:
    stream = Stream(await client.connect())
    await stream.open(f"/events?{query}", {})
    assert stream.connected["topics"] == topics
    stream.close()


SAID = [
    ("", ["*"], None),
    ("?topic=*&topic=a", ["*"], None),
    ("?topic=b&topic=a&topic=b&topic=c/*", ["a", "b", "c/*"], None),
    ("?topics=a&topic=b&_=1&topics=c", ["b"], ["topics", "_"]),
    ("?access_tokn=secret", ["*"], ["access_tokn"]),
    ("?%C3%BC=1&%FF=1&=1&%0D%0Adata:=", ["*"], ["ü", "\ufffd", "", "\r\ndata:"]),
    ("?event=x&envelope=1&last_event_id=&lastEventId=&lastEventID=&replay=latest&access_token=test-key", ["*"], None),
    ("?" + "&".join(f"{number}{'x' * 100}" for number in range(20)), ["*"], [f"{n}{'x' * 63}" for n in range(8)]),
]


@pytest.mark.gen_test
@pytest.mark.parametrize(("query", "topics", "ignored"), SAID)
async def test_it_is_told_what_it_was_understood_to_ask(
    client: Client, query: str, topics: list[str], ignored: list[str] | None
) -> None:
    stream = Stream(await client.connect())
    await stream.open(f"/events{query}", {})
    assert (stream.connected["topics"], stream.connected.get("ignored")) == (topics, ignored)
    stream.close()


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "qgstream")


def connected_line(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    (record,) = [record for record in caplog.records if record.getMessage() == "events.connected"]
    return vars(record)


@pytest.mark.gen_test
@pytest.mark.parametrize(("query", "topics", "ignored"), SAID)
async def test_the_log_says_what_was_ignored(
    client: Client, caplog: pytest.LogCaptureFixture, query: str, topics: list[str], ignored: list[str] | None
) -> None:
    stream = Stream(await client.connect())
    await stream.open(f"/events{query}", {})
    said = connected_line(caplog).get("ignored")
    assert said == (None if ignored is None else [name.replace("\r\n", r"\r\n") for name in ignored])
    stream.close()


OWN = "http://tests"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("origin", "said"),
    [(None, None), (OWN, None), ("https://a.example", "https://a.example"), ("null", "null"), ("x" * 300, "x" * 200)],
)
async def test_the_log_says_which_other_origin_asked(
    client: Client, caplog: pytest.LogCaptureFixture, origin: str | None, said: str | None
) -> None:
    stream = await client.stream(headers={"Origin": origin} if origin else {})
    assert connected_line(caplog).get("origin") == said
    stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("id", "replay", "reason"),
    [("", "none", None), ("earliest", "complete", None), ("0000000000-7", "reset", "epoch_changed"),
     ("nonsense", "reset", "unknown_id")],
)  # fmt: skip
async def test_the_log_says_what_the_stream_says_of_its_replay(
    client: Client, caplog: pytest.LogCaptureFixture, id: str, replay: str, reason: str | None
) -> None:
    stream = await client.stream(headers={"Last-Event-ID": id} if id else {})
    line = connected_line(caplog)
    assert stream.connected["replay"] == line["replay"] == replay
    assert line.get("reason") == reason
    stream.close()


# Where to go on. No id is answered with an error, which stops an EventSource for good.

ODD_IDS = [
    "nonsense", "-", "x" * 500, "earliest x", "EARLIEST", "a-1-2", "../../etc/passwd", "1' OR '1'='1", "é", "\x80\xff",
    "18446744073709551616", "a-99999999999999999999", "*", "null", "undefined", "{}", "%s%n",
]  # fmt: skip


@pytest.mark.gen_test
@pytest.mark.parametrize("parameter", ["last_event_id", "lastEventId", "lastEventID", "Last-Event-ID"])
@pytest.mark.parametrize("odd", ODD_IDS)
async def test_an_odd_id_is_told_of_its_gap(client: Client, parameter: str, odd: str) -> None:
    if parameter == "Last-Event-ID":
        target, headers = "/events", f"Last-Event-ID: {odd}\r\n"
    else:
        target, headers = f"/events?{parameter}={quote(odd.encode('latin-1'))}", ""
    iostream = await client.connect()
    await iostream.write(f"GET {target} HTTP/1.1\r\nHost: tests\r\n{headers}\r\n".encode("latin-1"))
    assert (await iostream.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    size = int(await iostream.read_until(b"\r\n"), 16)
    events = list(Parser().feed(await iostream.read_bytes(size)))
    messages = [json.loads(event.data) for event in events]
    assert [message["event"] for message in messages] == ["connected", "reset"]
    assert [event.id for event in events] == ["", str(client.hub.window.position)]
    assert (messages[0]["replay"], messages[1]["reason"]) == ("reset", "unknown_id")
    iostream.close()


@pytest.mark.gen_test
async def test_the_header_wins_over_the_query(client: Client) -> None:
    first = (await client.publish("a", "one"))["id"]
    await client.publish("a", "two")
    stream = await client.stream("a", headers={"Last-Event-ID": first}, last_event_id="nonsense")
    assert await stream.data() == "two"
    stream.close()
    # An empty header is none: browsers send none, and some polyfills an empty one.
    stream = await client.stream("a", headers={"Last-Event-ID": ""}, lastEventId=first)
    assert await stream.data() == "two"
    stream.close()
    # So is an empty parameter: one that was added to a URL which has it already must not lose the client's place.
    stream = Stream(await client.connect())
    await stream.open(f"/events?topic=a&last_event_id={first}&last_event_id=", {})
    assert await stream.data() == "two"
    stream.close()


# HEAD.


@pytest.mark.gen_test
async def test_the_head_of_a_stream_takes_no_slot(client: Client) -> None:
    answer = await client.ask("HEAD", "/events?topic=a")
    assert (answer.code, answer.body) == (200, b"")
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache, no-transform"
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert len(client.hub.registry) == 0
    assert client.hub.metrics.registry.get_sample_value("qgstream_connections_opened_total") == 0


@pytest.mark.gen_test
async def test_a_kept_alive_connection_goes_on_after_a_head(client: Client) -> None:
    """Were a body sent with it, the next answer would be taken for something else."""
    iostream = await client.connect()
    await iostream.write(b"HEAD /events HTTP/1.1\r\nHost: tests\r\n\r\nGET /health HTTP/1.1\r\nHost: tests\r\n\r\n")
    assert b"text/event-stream" in await iostream.read_until(b"\r\n\r\n")
    assert (await iostream.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert await iostream.read_until(b"}\n") == b'{"status": "ok"}\n'
    iostream.close()


# One too many.


def message_of(answer: HTTPResponse) -> tuple[Event, dict[str, Any]]:
    (event,) = Parser().feed(answer.body)
    return event, json.loads(event.data)


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [FULL])
@pytest.mark.parametrize(
    "accept", ["text/event-stream", "text/html, text/event-stream;q=0.5", "Text/Event-Stream", "text/event-stream, */*"]
)
async def test_an_event_source_over_the_limit_comes_back_by_itself(client: Client, accept: str) -> None:
    answer = await client.ask("GET", "/events", headers={"Accept": accept})
    assert answer.code == 200
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache, no-transform"
    assert answer.headers["Connection"] == "close"
    event, message = message_of(answer)
    assert event.event == "message"
    assert event.id == ""  # a client keeps the id that it came with
    assert message.pop("timestamp")
    assert message == {"event": "rejected", "reason": "max_connections"}
    assert event.retry_ms is not None
    assert 10_000 <= event.retry_ms <= 20_000
    assert rejected(client, "max_connections") == 1


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [FULL])
@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/html", ""])
async def test_everybody_else_gets_503(client: Client, accept: str | None) -> None:
    answer = await client.ask("GET", "/events", headers={} if accept is None else {"Accept": accept})
    assert answer.code == 503
    assert error_of(answer) == {
        "code": "max_connections",
        "message": "too many open streams: got 0, expected at most 0",
    }
    assert 10 <= int(answer.headers["Retry-After"]) <= 20
    assert answer.headers["Connection"] == "close"
    assert rejected(client, "max_connections") == 1


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": FULL["limits"] | {"overload_response": "error"}}])
async def test_errors_for_all_when_asked_for(client: Client) -> None:
    answer = await client.ask("GET", "/events", headers=STREAM)
    assert (answer.code, error_of(answer)["code"]) == (503, "max_connections")


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [FULL])
async def test_refused_clients_do_not_come_back_as_one(client: Client) -> None:
    retries = set()
    for _ in range(50):
        event, _message = message_of(await client.ask("GET", "/events", headers=STREAM))
        assert event.retry_ms is not None
        retries.add(event.retry_ms)
    assert len(retries) >= 45
    assert 10_000 <= min(retries) < 12_000 < 18_000 < max(retries) <= 20_000  # 1 in 40 000 runs has none in a fifth
    after = [int((await client.ask("GET", "/events")).headers["Retry-After"]) for _ in range(50)]
    assert len(set(after)) >= 7
    assert all(10 <= seconds <= 20 for seconds in after)


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"max_connections_per_ip": 1}}])
async def test_too_many_from_one_address(client: Client) -> None:
    stream = await client.stream()
    answer = await client.ask("GET", "/events")
    assert answer.code == 429
    assert error_of(answer) == {
        "code": "max_connections_per_ip",
        "message": "too many open streams from your address: got 1, expected at most 1",
    }
    assert int(answer.headers["Retry-After"]) >= 10
    _event, message = message_of(await client.ask("GET", "/events", headers=STREAM))
    assert message["reason"] == "max_connections_per_ip"
    assert rejected(client, "max_connections_per_ip") == 2
    next(iter(client.hub.registry)).close("kicked")
    (await client.stream()).close()
    stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"connect_rate_per_ip": 0.01, "connect_burst_per_ip": 2}}])
async def test_too_fast_from_one_address_is_told_how_long(client: Client) -> None:
    streams = [await client.stream(), await client.stream()]
    answer = await client.ask("GET", "/events")
    assert (answer.code, error_of(answer)["code"]) == (429, "connect_rate_per_ip")
    # 100 s until there is a token, and jitter on top.
    assert 99 <= int(answer.headers["Retry-After"]) <= 200
    event, message = message_of(await client.ask("GET", "/events", headers=STREAM))
    assert message["reason"] == "connect_rate_per_ip"
    assert event.retry_ms is not None
    assert 99_000 <= event.retry_ms <= 200_000
    # What is no stream is not counted.
    for path in ("/health", "/events?topic="):
        await client.ask("GET", path)
    assert math.isclose(rejected(client, "connect_rate_per_ip") or 0, 2)
    for stream in streams:
        stream.close()


@pytest.mark.gen_test
async def test_a_server_that_leaves_takes_no_new_streams(client: Client) -> None:
    client.hub.draining = True
    _event, message = message_of(await client.ask("GET", "/events", headers=STREAM))
    assert message["reason"] == "draining"
    answer = await client.ask("GET", "/events")
    assert (answer.code, error_of(answer)["code"]) == (503, "draining")
    assert rejected(client, "draining") == 2


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [FULL])
@pytest.mark.parametrize("accept", ["text/event-stream", "*/*"])
async def test_the_socket_of_a_refused_client_is_closed(client: Client, accept: str) -> None:
    iostream = await client.connect()
    await iostream.write(f"GET /events HTTP/1.1\r\nHost: tests\r\nAccept: {accept}\r\n\r\n".encode())
    answer = await iostream.read_until_close()
    assert answer.startswith(b"HTTP/1.1 ")
    assert b"rejected" in answer or b"max_connections" in answer


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [FULL])
async def test_a_wrong_request_is_wrong_also_when_the_server_is_full(client: Client) -> None:
    assert (await client.ask("GET", "/events?topic=", headers=STREAM)).code == 400
    assert (await client.ask("GET", "/events?access_token=wrong", headers=STREAM)).code == 401
    assert rejected(client, "max_connections") == 0
