"""`qgstream.connect`: nothing is missed in silence, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

import qgstream
from qgstream import (
    ClientError,
    CredentialsRefused,
    EventsMissed,
    Publisher,
    ReceivedEvent,
    RequestRefused,
    Reset,
    State,
    Stream,
    TryLater,
    Unreachable,
)
from qgstream.client import stream as client
from tests.deploy.programs import free_port
from tests.hostile.certificates import make_certificate
from tests.scripted import STREAM, Script, enveloped, error, own, refused, stream
from tests.serving import KEY, ServerProcess

CONNECTED = own("connected", id="e-0", replay="none")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(client, "MIN_ASKED_SECONDS", 0.001)


async def take(events: Stream, count: int) -> list[ReceivedEvent]:
    taken: list[ReceivedEvent] = []
    async for event in events:
        taken.append(event)
        if len(taken) == count:
            break
    return taken


def ids(events: list[ReceivedEvent]) -> list[str]:
    return [event.id for event in events]


# What is given out.


@pytest.mark.gen_test
async def test_an_event_is_what_was_published_and_the_servers_own_messages_are_none() -> None:
    text = '{ "n": 12345678901234567890.10, "m": 1E400 }'
    blocks = [
        CONNECTED,
        enveloped("e-1", "orders", data=text, event="created"),
        own("heartbeat", id="e-1"),
        own("a word of next year", id="e-1"),
        enveloped("e-2", ["a", "b"], data='"a\\r\\nb"'),
        enveloped("e-3", data="null"),
        enveloped("e-4", data='{"event": "closing", "timestamp": "now", "reason": "a lie"}'),
    ]
    async with Script([stream(*blocks), b""]) as server, qgstream.connect(server.url) as events:
        one, two, three, four = await take(events, 4)
    assert (one.id, one.topic, one.topics, one.event, one.raw) == ("e-1", "orders", ("orders",), "created", text)
    assert one.data == {"n": 12345678901234567890.10, "m": float("inf")}
    assert (two.topics, two.topic, two.event, two.data) == (("a", "b"), "a", "message", "a\r\nb")
    assert three.data is None
    assert four.data["reason"] == "a lie"


@pytest.mark.gen_test
async def test_it_asks_for_what_was_asked_for() -> None:
    async with Script([stream(CONNECTED, enveloped("e-1"))]) as server:
        events = qgstream.connect(
            server.url + "/live/events?who=me", topics=["a", "b/*"], events="created", last_event_id="earliest",
            replay="latest", token="hush", headers={"X-Mine": "1"},
        )  # fmt: skip
        async with events:
            await take(events, 1)
        line = server.asked[0].split("\r\n")[0]
    assert line == "GET /live/events?who=me&topic=a&topic=b%2F%2A&event=created&replay=latest&envelope=1 HTTP/1.1"
    assert server.header("Accept") == ["text/event-stream"]
    assert server.header("Last-Event-ID") == ["earliest"]
    assert server.header("Authorization") == ["Bearer hush"]
    assert server.header("X-Mine") == ["1"]


@pytest.mark.parametrize("url", ["ftp://host/hush", "localhost:8000", "http://", "/events?access_token=hush"])
def test_a_url_that_can_be_none(url: str) -> None:
    with pytest.raises(ValueError, match="expected http://host") as caught:
        qgstream.connect(url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"give_up_seconds": float("nan")}, "give_up_seconds: got nan, expected 0 or more"),
        ({"give_up_seconds": -1.0}, "give_up_seconds: got -1, expected 0 or more"),
        ({"heartbeat_seconds": 0.0}, "heartbeat_seconds: got 0, expected more than 0"),
        ({"heartbeat_seconds": float("nan")}, "heartbeat_seconds: got nan, expected more than 0"),
        ({"last_event_id": "a\nb"}, r"last_event_id: got 'a\\nb', expected the id of an event"),
        ({"last_event_id": "\udc80"}, r"last_event_id: got '\\udc80', expected the id of an event"),
    ],
)
def test_an_argument_that_can_be_none(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        qgstream.connect("http://127.0.0.1:1", **arguments)


@pytest.mark.gen_test
async def test_an_id_goes_back_as_it_came() -> None:
    async with Script([stream(CONNECTED, enveloped("e-ü\u2028")), stream(CONNECTED, enveloped("e-2"))]) as server:
        async with qgstream.connect(server.url, last_event_id="ü") as events:
            assert ids(await take(events, 2)) == ["e-ü\u2028", "e-2"]
        assert server.header("Last-Event-ID") == ["ü", "e-ü\u2028"]


# Coming back.


@pytest.mark.gen_test
async def test_it_comes_back_with_the_last_id_whatever_ended_the_stream() -> None:
    cut_short = stream(CONNECTED, enveloped("e-1")) + b"id: e-2\ndata: half an ev"
    chunked = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nid: e-9"
    answers = [
        b"",  # closed without an answer
        cut_short,
        chunked,
        stream(own("connected", id="e-1", replay="complete"), enveloped("e-2"), own("heartbeat", id="e-7")),
        stream(own("connected", id="e-7", replay="complete"), ": heartbeat\nid: e-8"),
        stream(own("connected", id="e-8", replay="complete"), enveloped("e-9"), own("closing", reason="drain")),
        refused(502, "<html>bad gateway", "Retry-After: 0"),
        stream(own("rejected", reason="max_connections")),
        stream(own("connected", id="e-9", replay="complete"), enveloped("e-10")),
    ]
    states: list[State] = []
    async with Script([*answers]) as server, qgstream.connect(server.url, on_state=states.append) as events:
        assert ids(await take(events, 4)) == ["e-1", "e-2", "e-9", "e-10"]
        assert events.last_event_id == "e-10"
        assert server.header("Last-Event-ID") == ["", "", "e-1", "e-1", "e-7", "e-8", "e-9", "e-9", "e-9"]
    replays = ["none", "complete", "complete", "complete", "complete"]
    assert [state.replay for state in states if state.name == "connected"] == replays
    reasons = [state.reason for state in states if state.name == "waiting"]
    assert reasons[3:6] == ["the stream ended", "the stream ended", "drain"]
    assert reasons[6:] == [
        "502 http_502: got '<html>bad gateway', expected a response of a qgstream server",
        "max_connections",
    ]


@pytest.mark.gen_test
async def test_a_goodbye_says_when_to_come_back() -> None:
    states: list[State] = []
    first = stream(own("connected", retry_ms=5), own("closing", retry_ms=37, reason="kicked"))
    second = stream(own("rejected", retry_ms=41, reason="max_connections"))
    async with (
        Script([first, second, stream(CONNECTED, enveloped("e-1"))]) as server,
        qgstream.connect(server.url, on_state=states.append) as events,
    ):
        await take(events, 1)
    assert [state.seconds for state in states if state.name == "waiting"] == [0.037, 0.041]


class Clock:
    """Time for the client that passes only while it waits. After `ends_at` seconds it raises TimeoutError."""

    def __init__(self, ends_at: float) -> None:
        self.now = 0.0
        self.ends_at = ends_at
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        if self.now >= self.ends_at:
            raise TimeoutError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock(60)
    monkeypatch.undo()  # the real bounds
    monkeypatch.setattr(client, "asyncio", found)
    monkeypatch.setattr(client, "time", found)
    return found


AT_ONCE = {
    "nothing": b"",
    "Retry-After: 0": refused(503, error("full"), "Retry-After: 0"),
    "a date that has passed": refused(429, error("rate"), "Retry-After: Thu, 01 Jan 1970 00:00:00 GMT"),
    "a date that is none": refused(503, error("full"), "Retry-After: Thu, 99 Jan 1970"),
    "less than nothing": refused(503, error("full"), "Retry-After: -5"),
    "two headers": refused(503, error("full"), "Retry-After: 0", "Retry-After: 0"),
    "a goodbye": stream(own("rejected", retry_ms=0, reason="max_connections")),
    "retry: 0": stream("retry: 0"),
    "retry: 000": stream("retry: 000"),
}


@pytest.mark.gen_test
@pytest.mark.parametrize("answer", AT_ONCE.values(), ids=AT_ONCE)
async def test_no_answer_makes_a_client_come_back_without_a_pause(answer: bytes, clock: Clock) -> None:
    async with Script([answer] * 1000) as server:
        with pytest.raises(TimeoutError):
            await take(qgstream.connect(server.url), 1)
        # Half a second at least, and doubled each time.
        assert len(server.asked) <= 7
    assert clock.waits == sorted(clock.waits)
    assert min(clock.waits) >= 0.5


@pytest.mark.gen_test
async def test_streams_that_end_at_once_are_not_a_loop_without_a_pause(clock: Clock) -> None:
    answer = stream(own("connected", retry_ms=0), own("closing", retry_ms=0, reason="drain"))
    async with Script([answer] * 1000) as server:
        with pytest.raises(TimeoutError):
            await take(qgstream.connect(server.url), 1)
        assert len(server.asked) <= 120
    assert min(clock.waits) >= 0.5
    assert len(set(clock.waits)) > 1  # nobody is in step


TOO_LATE = {
    "seconds": refused(503, error("full"), "Retry-After: 999999999"),
    "many digits": refused(503, error("full"), f"Retry-After: {'9' * 5000}"),
    "a date": refused(503, error("full"), "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT"),
    "a goodbye": stream(own("rejected", retry_ms=10**12, reason="max_connections")),
    "retry:": stream(f"retry: {'9' * 5000}"),
}


@pytest.mark.gen_test
@pytest.mark.parametrize("answer", TOO_LATE.values(), ids=TOO_LATE)
async def test_no_answer_keeps_a_client_away_for_good(answer: bytes, clock: Clock) -> None:
    clock.ends_at = 1500
    async with Script([answer] * 1000) as server:
        with pytest.raises(TimeoutError):
            await take(qgstream.connect(server.url), 1)
    assert min(clock.waits) >= 300
    assert max(clock.waits) <= 450
    assert len(set(clock.waits)) > 1  # nobody is in step


@pytest.mark.gen_test
async def test_what_can_be_obeyed_is_obeyed(clock: Clock) -> None:
    answers = [refused(503, error("full"), "Retry-After: 7"), stream(own("rejected", retry_ms=1234, reason="x"))]
    async with Script([*answers, stream(own("rejected", retry_ms=120_000, reason="x"))]) as server:
        with pytest.raises(TimeoutError):
            await take(qgstream.connect(server.url), 1)
    assert 7 <= clock.waits[0] <= 10.5
    assert clock.waits[1:] == [1.234, 120.0]  # the server has jittered these


@pytest.mark.parametrize(
    ("failures", "stay_away", "low", "high"),
    [(0, None, 2, 3), (1, None, 4, 6), (3, None, 16, 24), (9, None, 60, 90), (5000, None, 60, 90), (4, 7.0, 7, 10.5)],
)
def test_failures_in_a_row_double_the_wait_and_nobody_is_in_step(
    failures: int, stay_away: float | None, low: float, high: float
) -> None:
    waits = set()
    for _ in range(50):
        events = qgstream.connect("http://127.0.0.1:1")
        events._retry_seconds, events._failures = 2.0, failures
        waits.add(events._pause(client._Ended("it", stay_away_seconds=stay_away)))
    assert low <= min(waits) < max(waits) <= high


@pytest.mark.gen_test
async def test_a_silent_connection_is_given_up() -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        writer.write(stream(CONNECTED, enveloped("e-1")))

    states: list[State] = []
    async with (
        Script([silent, stream(own("connected", replay="complete"), enveloped("e-2"))]) as server,
        qgstream.connect(server.url, heartbeat_seconds=0.3, on_state=states.append) as events,
    ):
        assert ids(await take(events, 2)) == ["e-1", "e-2"]
    assert states[1].reason == "timeout: nothing was received for too long"


@pytest.mark.gen_test
async def test_it_gives_up_when_it_was_told_to() -> None:
    port = free_port()
    began = time.monotonic()
    with pytest.raises(Unreachable, match=rf"no stream from http://127.0.0.1:{port} for 0.5 s: Connection refused$"):
        await take(qgstream.connect(f"http://127.0.0.1:{port}", give_up_seconds=0.5), 1)
    assert time.monotonic() - began >= 0.5  # the first pause alone would end later


# What was missed.


@pytest.mark.gen_test
async def test_a_reset_cannot_be_missed() -> None:
    reset = own("reset", id="e-9", reason="too_old")
    answers = [
        stream(own("connected", id="e-9", replay="reset"), reset, enveloped("e-10")),
        stream(own("connected", id="e-9", replay="complete"), enveloped("e-10")),
    ]
    async with Script([*answers]) as server, qgstream.connect(server.url, last_event_id="e-1") as events:
        with pytest.raises(EventsMissed, match=r"events were missed \(too_old\)") as caught:
            await take(events, 1)
        assert caught.value.reset == Reset("too_old", "e-9")
        assert ids(await take(events, 1)) == ["e-10"]
        assert server.header("Last-Event-ID") == ["e-1", "e-9"]


@pytest.mark.gen_test
@pytest.mark.parametrize("is_async", [True, False])
async def test_what_follows_a_reset_waits_for_on_reset(is_async: bool) -> None:
    happened: list[object] = []

    def loaded(reset: Reset) -> None:
        happened.append(reset)

    async def load(reset: Reset) -> None:
        await asyncio.sleep(0)
        loaded(reset)

    reset = own("reset", id="e-9", reason="too_old")
    answer = stream(own("connected", id="e-9", replay="reset"), reset, enveloped("e-10"))
    async with (
        Script([answer]) as server,
        qgstream.connect(server.url, last_event_id="e-1", on_reset=load if is_async else loaded) as events,
    ):
        happened += ids(await take(events, 1))
    assert happened == [Reset("too_old", "e-9"), "e-10"]


@pytest.mark.gen_test
async def test_who_could_not_load_its_state_is_told_again() -> None:
    failures: list[Exception] = [httpx.ReadError("the database is away"), TryLater(503, "x", "y")]

    async def load(reset: Reset) -> None:
        if failures:
            raise failures[0]

    reset = own("reset", id="e-9", reason="too_old")
    answer = stream(own("connected", id="e-9", replay="reset"), reset, enveloped("e-10"))
    async with (
        Script([answer, answer, answer]) as server,
        qgstream.connect(server.url, last_event_id="e-1", on_reset=load) as events,
    ):
        while failures:
            with pytest.raises(type(failures[0])):
                await take(events, 1)
            assert events.last_event_id == "e-1"
            failures.pop(0)
        assert ids(await take(events, 1)) == ["e-10"]
        assert server.header("Last-Event-ID") == ["e-1", "e-1", "e-1"]


@pytest.mark.gen_test
@pytest.mark.parametrize("position", ["", "e-9"], ids=["none", "of version 0.1"])
async def test_a_connection_that_breaks_before_the_reset_hides_nothing(position: str) -> None:
    said = own("connected", id=position, replay="reset")
    answers = [stream(said), stream(said, own("reset", id="e-9", reason="too_old"))]
    async with Script([*answers]) as server, qgstream.connect(server.url, last_event_id="e-1") as events:
        with pytest.raises(EventsMissed):
            await take(events, 1)
        assert server.header("Last-Event-ID") == ["e-1", "e-1"]


@pytest.mark.gen_test
@pytest.mark.parametrize("is_told", ["by an exception", "by a call"])
async def test_after_a_reset_with_the_latest_values_it_starts_over_until_it_has_one(is_told: str) -> None:
    resets: list[Reset] = []
    async with (
        Script([
            stream(own("connected", replay="reset"), own("reset", reason="too_old")),
            stream(own("connected", replay="none")),
            stream(own("connected", replay="none"), enveloped("e-3")),
            stream(own("connected", replay="complete"), enveloped("e-4")),
        ]) as server,
        qgstream.connect(
            server.url, last_event_id="e-1", replay="latest", on_reset=resets.append if is_told == "by a call" else None
        ) as events,
    ):  # fmt: skip
        if is_told == "by an exception":
            with pytest.raises(EventsMissed) as caught:
                await take(events, 2)
            resets.append(caught.value.reset)
        assert ids(await take(events, 2)) == ["e-3", "e-4"]
        assert server.header("Last-Event-ID") == ["e-1", "", "", "e-3"]
    assert resets == [Reset("too_old", "")]


# What ends it.


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, RequestRefused), (401, CredentialsRefused), (403, CredentialsRefused), (404, RequestRefused)],
)
async def test_what_would_be_refused_again_is_an_exception(status: int, kind: type[qgstream.Refused]) -> None:
    async with Script([refused(status, error("a_code", "because")), b""]) as server:
        with pytest.raises(kind, match=f"{status} a_code: because") as caught:
            await take(qgstream.connect(server.url), 1)
    assert (caught.value.status, caught.value.code, caught.value.message) == (status, "a_code", "because")


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi",
            "got 'text/html', expected text",
        ),
        (stream("data: 1"), r"got an event without an envelope \('1'\)"),
        (stream("data: no JSON"), "expected a stream of a qgstream server"),
        (stream("event: x\n" + own("closing")), "got an event without an envelope"),
        (STREAM + b"data: " + b"x" * 2000, "got an event that is too long, expected at most 1000 bytes"),
        (refused(302, "", "Location: /again"), "redirect"),
        (STREAM + b"data:\n" * 300, "got an event that is too long, expected at most 1000 bytes"),
    ],
    ids=["HTML", "a number", "no JSON", "a typed message", "no end", "redirects", "empty lines"],
)
async def test_what_is_no_stream_of_ours_is_an_exception(answer: bytes, said: str) -> None:
    async with Script([answer] * 30) as server:
        with pytest.raises(ClientError, match=said):
            await take(qgstream.connect(server.url, max_event_bytes=1000), 1)


# Tokens.


@pytest.mark.gen_test
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_token_may_be_another_one_for_each_connection(is_async: bool) -> None:
    tokens = iter(["one", "two"])

    async def fetch() -> str:
        return next(tokens)

    async with (
        Script([stream(CONNECTED), stream(CONNECTED, enveloped("e-1"))]) as server,
        qgstream.connect(server.url, token=fetch if is_async else lambda: next(tokens)) as events,
    ):
        await take(events, 1)
        assert server.header("Authorization") == ["Bearer one", "Bearer two"]


@pytest.mark.gen_test
async def test_a_token_that_cannot_be_had_is_the_callers_to_see() -> None:
    def fetch() -> str:
        raise httpx.ReadError("the issuer is away")

    with pytest.raises(httpx.ReadError, match="the issuer is away"):
        await take(qgstream.connect("http://127.0.0.1:1", token=fetch), 1)


# Leaving.


async def divide(events: Stream) -> None:
    async for event in events:
        1 / len(event.topics[1:])


@pytest.mark.gen_test
@pytest.mark.parametrize("way", ["break", "with", "error", "cancel"])
async def test_leaving_closes_the_connection(way: str) -> None:
    async with Script([stream(CONNECTED, enveloped("e-1"))]) as server:
        events = qgstream.connect(server.url)
        if way == "break":
            async for _ in events:
                break
        elif way == "with":
            async with events:
                iterator = aiter(events)
                await anext(iterator)
        elif way == "error":
            with pytest.raises(ZeroDivisionError):
                await divide(events)
        else:
            waiting = asyncio.create_task(take(events, 2))
            await asyncio.wait_for(server.was_asked.wait(), 20)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await asyncio.wait_for(server.gone.wait(), 20)


@pytest.mark.gen_test
async def test_the_next_iteration_goes_on() -> None:
    answers = [stream(CONNECTED, enveloped("e-1"), enveloped("e-2")), stream(CONNECTED, enveloped("e-2"))]
    async with Script([*answers]) as server, qgstream.connect(server.url) as events:
        assert ids(await take(events, 1)) == ["e-1"]
        assert ids(await take(events, 1)) == ["e-2"]
        assert server.header("Last-Event-ID") == ["", "e-1"]


@pytest.mark.gen_test
async def test_two_iterations_at_once_are_refused() -> None:
    async with Script([stream(CONNECTED, enveloped("e-1"))]) as server:
        events = qgstream.connect(server.url)
        waiting = asyncio.create_task(take(events, 2))
        await asyncio.wait_for(server.was_asked.wait(), 20)
        with pytest.raises(RuntimeError, match="asynchronous generator is already running"):
            await take(events, 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


@pytest.mark.gen_test
async def test_a_client_of_ones_own_stays_open() -> None:
    async with Script([stream(CONNECTED, enveloped("e-1"))]) as server, httpx.AsyncClient() as http:
        async with qgstream.connect(server.url, http=http) as events:
            await take(events, 1)
        assert not http.is_closed


@pytest.mark.gen_test
async def test_who_is_slow_makes_the_server_wait() -> None:
    block = enveloped("e-1", data='"' + "x" * 50_000 + '"').encode() + b"\n\n"
    taken_by_the_kernel: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def flood(writer: asyncio.StreamWriter) -> None:
        writer.write(stream(CONNECTED))
        written = waiting = 0
        while written < 200_000_000 and waiting < 8_000_000:
            writer.write(block)
            written += len(block)
            await asyncio.sleep(0)
            waiting = writer.transport.get_write_buffer_size()
        taken_by_the_kernel.set_result(written - waiting)

    async with Script([flood]) as server, qgstream.connect(server.url) as events:
        iterator = aiter(events)
        await anext(iterator)
        # Both ends of a loopback hold several megabytes; the rest has not left.
        assert await asyncio.wait_for(taken_by_the_kernel, 30) < 50_000_000


# With a real server.


@pytest.mark.gen_test
async def test_through_a_crash_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "broker__url": f"sqlite://{tmp_path}/log.db",
        "limits__retry_seconds": 0.05,
        "heartbeat__interval_seconds": 0.5,
    }
    port = free_port()
    server = await asyncio.to_thread(ServerProcess, tmp_path, port=port, **settings)
    received: list[int] = []
    connected, some_are_there = asyncio.Event(), asyncio.Event()

    async def listen() -> None:
        async for event in qgstream.connect(server.url, topics="n", on_state=lambda _: connected.set()):
            received.append(event.data)
            if len(received) == 60:
                some_are_there.set()
            if event.event == "last":
                return

    def publish(first: int) -> None:
        with Publisher(f"http://127.0.0.1:{port}", key=KEY) as publisher:
            for n in range(first, first + 50):
                publisher.publish("n", n)

    listening = asyncio.create_task(listen())
    try:
        await asyncio.wait_for(connected.wait(), 20)
        await asyncio.to_thread(publish, 0)
        publishing = asyncio.create_task(asyncio.to_thread(publish, 50))
        await asyncio.wait_for(some_are_there.wait(), 20)
        server.kill()
        server = await asyncio.to_thread(ServerProcess, tmp_path, port=port, **settings)
        await publishing
        with Publisher(server.url, key=KEY) as publisher:
            await asyncio.to_thread(publisher.publish, "n", 100, event="last")
        await asyncio.wait_for(listening, 30)
        assert received == list(range(101))
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await asyncio.to_thread(server.stop)


@pytest.mark.gen_test
async def test_tls_trusts_whom_it_was_told_to_trust(tmp_path: Path) -> None:
    certfile, keyfile = make_certificate(tmp_path)
    server = await asyncio.to_thread(
        ServerProcess, tmp_path, scheme="https", server__certfile=str(certfile), server__keyfile=str(keyfile)
    )
    try:
        with pytest.raises(ClientError, match="certificate verify failed"):
            await take(qgstream.connect(server.url), 1)
        with pytest.raises(ClientError, match="certificate verify failed"):
            await asyncio.to_thread(publish_once, server.url, True)
        trusting = ssl.create_default_context(cafile=certfile)
        await asyncio.to_thread(publish_once, server.url, trusting)
        async with qgstream.connect(server.url, verify=trusting, last_event_id="earliest") as events:
            assert [event.data for event in await take(events, 1)] == ["over TLS"]
    finally:
        await asyncio.to_thread(server.stop)


def publish_once(url: str, verify: ssl.SSLContext | bool) -> None:
    with Publisher(url, key=KEY, verify=verify) as publisher:
        publisher.publish("t", "over TLS")
