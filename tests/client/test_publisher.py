"""Publishers: what they send, what they repeat, and what they say when it does not work."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import pytest

from qgstream import (
    AsyncPublisher,
    ClientError,
    CredentialsRefused,
    InvalidField,
    Published,
    Publisher,
    RequestRefused,
    TryLater,
    Unreachable,
)
from qgstream.backoff import Backoff
from qgstream.brokers.base import IDEMPOTENCY_SECONDS
from qgstream.client import publisher
from qgstream.client.publisher import MAX_DEADLINE_SECONDS
from tests.deploy.programs import free_port
from tests.scripted import Answer, Script, error, refused
from tests.serving import KEY, ServerProcess

TAKEN = refused(200, '{"id": "e-1", "subscribers": 2}')
ALL_TAKEN = refused(200, '{"ids": ["e-1", "e-2"], "subscribers": 2}')


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "Backoff", partial(Backoff, first_seconds=0.001, limit_seconds=0.01))


def bodies(server: Script) -> list[dict[str, Any]]:
    return [json.loads(asked.partition("\r\n\r\n")[2]) for asked in server.asked]


class Both:
    """The same call on both kinds of publisher."""

    def __init__(self, is_async: bool) -> None:
        self.is_async = is_async

    async def publish(
        self, url: str, topic: Any, data: Any, *, setup: dict[str, Any] | None = None, **fields: Any
    ) -> Published:
        if self.is_async:
            async with AsyncPublisher(url, **{"key": KEY} | (setup or {})) as each:
                return await each.publish(topic, data, **fields)

        def call() -> Published:
            with Publisher(url, **{"key": KEY} | (setup or {})) as each:
                return each.publish(topic, data, **fields)

        return await asyncio.to_thread(call)

    async def publish_all(self, url: str, events: list[dict[str, Any]]) -> tuple[str, ...]:
        if self.is_async:
            async with AsyncPublisher(url, key=KEY) as each:
                return (await each.publish_all(events)).ids

        def call() -> tuple[str, ...]:
            with Publisher(url, key=KEY) as each:
                return each.publish_all(events).ids

        return await asyncio.to_thread(call)


@pytest.fixture(params=[True, False], ids=["AsyncPublisher", "Publisher"])
def both(request: pytest.FixtureRequest) -> Both:
    return Both(request.param)


# What is sent.


@dataclasses.dataclass
class Order:
    number: int
    at: datetime


@pytest.mark.gen_test
async def test_an_event_is_sent_as_hub_publish_would(both: Both) -> None:
    async with Script([TAKEN]) as server:
        receipt = await both.publish(
            server.url,
            ["a", "b"],
            Order(7, datetime(2026, 1, 2, tzinfo=UTC)),
            event="created",
            retry_ms=5,
            private=True,
        )
        (body,) = bodies(server)
        assert server.header("Authorization") == [f"Bearer {KEY}"]
        assert server.header("Content-Type") == ["application/json"]
    assert (receipt.id, receipt.subscribers) == ("e-1", 2)
    key = body.pop("idempotency_key")
    assert len(key) == 32
    assert body == {
        "topic": ["a", "b"], "data": {"number": 7, "at": "2026-01-02T00:00:00Z"}, "event": "created", "retry": 5,
        "private": True,
    }  # fmt: skip


@pytest.mark.gen_test
async def test_a_batch_has_a_key_for_each_event(both: Both) -> None:
    async with Script([b"", ALL_TAKEN]) as server:
        ids = await both.publish_all(server.url, [{"topic": "a", "data": 1}, {"topic": "b", "data": 2, "event": "e"}])
        first, second = (asked.partition("\r\n\r\n")[2] for asked in server.asked)
        assert server.header("Content-Type") == ["application/x-ndjson"] * 2
    assert ids == ("e-1", "e-2")
    assert first == second
    one, two = map(json.loads, first.split("\n"))
    assert (one["topic"], two["event"]) == ("a", "e")
    assert one["idempotency_key"] != two["idempotency_key"]


@pytest.mark.gen_test
@pytest.mark.parametrize("data", [object(), {"x": "\ud800"}], ids=["object", "surrogate"])
async def test_what_json_cannot_hold_is_not_sent(both: Both, data: object) -> None:
    async with Script([TAKEN]) as server:
        with pytest.raises(InvalidField, match="data: got "):
            await both.publish(server.url, "a", data)
        with pytest.raises(InvalidField, match="event 2: data: got "):
            await both.publish_all(server.url, [{"topic": "a", "data": 1}, {"topic": "a", "data": data}])
        with pytest.raises(TypeError, match=r"event 1: .*'dat'"):
            await both.publish_all(server.url, [{"topic": "a", "dat": 1}])
        assert server.asked == []


@pytest.mark.gen_test
async def test_text_that_json_cannot_hold_names_its_field(both: Both) -> None:
    for name in ("topic", "event", "idempotency_key"):
        fields: dict[str, Any] = {"topic": "a", "data": 1, name: "\udc80"}
        with pytest.raises(InvalidField, match=f"^{name}: got str, expected a value that JSON can represent"):
            await both.publish("http://127.0.0.1:1", **fields)


# What is repeated.


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
        refused(429, error("publish_rate_per_key"), "Retry-After: 0"),
        refused(503, error("broker_down"), "Retry-After: 0"),
        refused(503, error("draining")),
        refused(502, "<html>"),
    ],
    ids=["nothing", "cut short", "429", "broker_down", "no Retry-After", "a proxy"],
)
async def test_what_may_work_the_next_time_is_repeated_with_its_key(both: Both, answer: Answer) -> None:
    async with Script([answer, answer, TAKEN]) as server:
        receipt = await both.publish(server.url, "a", 1)
        assert len({body["idempotency_key"] for body in bodies(server)}) == 1
        assert len(server.asked) == 3
    assert receipt.id == "e-1"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, RequestRefused), (401, CredentialsRefused), (403, CredentialsRefused), (413, RequestRefused)],
)
async def test_what_would_be_refused_again_is_not_repeated(both: Both, status: int, kind: type[Exception]) -> None:
    async with Script([refused(status, error("a_code", "because")), TAKEN]) as server:
        with pytest.raises(kind, match=f"^{status} a_code: because$"):
            await both.publish(server.url, "a", 1)
        assert len(server.asked) == 1


@pytest.mark.gen_test
async def test_it_does_not_wait_beyond_its_deadline(both: Both) -> None:
    later = refused(503, error("draining", "leaving"), "Retry-After: 60")
    async with Script([later, TAKEN]) as server:
        with pytest.raises(TryLater, match="503 draining: leaving") as caught:
            await both.publish(server.url, "a", 1, deadline_seconds=10)
        assert caught.value.retry_after_seconds == 60
        assert not caught.value.is_uncertain
        assert len(server.asked) == 1


class Clock:
    """Time for a publisher that passes only while it waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class AsyncClock(Clock):
    async def sleep(self, seconds: float) -> None:  # type: ignore[override]  # as asyncio has it
        super().sleep(seconds)


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "header",
    ["0", "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 99 Jan 1970", "-5", "0\r\nRetry-After: 0"],
    ids=["0", "a date that has passed", "a date that is none", "less than nothing", "two headers"],
)
async def test_no_answer_makes_it_repeat_without_a_pause(
    both: Both, header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = AsyncClock() if both.is_async else Clock()
    monkeypatch.undo()  # the real pauses
    monkeypatch.setattr(publisher, "asyncio" if both.is_async else "time", clock)
    if both.is_async:
        monkeypatch.setattr(publisher, "time", clock)
    async with Script([refused(503, error("full"), f"Retry-After: {header}")] * 1000) as server:
        with pytest.raises(TryLater):
            await both.publish(server.url, "a", 1)
        # 0.1 seconds at first, doubled each time up to 5, of which at least a half: in 30 seconds.
        assert 5 < len(server.asked) <= 18


def test_a_moment_that_is_asked_for_does_not_shorten_the_pauses() -> None:
    tries = publisher._Tries(30, 0.0)
    tries._backoff = Backoff(first_seconds=2.0)
    assert tries.refused(TryLater(503, "full", "", retry_after_seconds=0.001), 0.0) >= 1.0


@pytest.mark.gen_test
@pytest.mark.parametrize("header", ["999999999", "9" * 5000, "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_what_is_beyond_its_deadline_is_not_waited_for(both: Both, header: str) -> None:
    async with Script([refused(503, error("full"), f"Retry-After: {header}")] * 2) as server:
        with pytest.raises(TryLater) as caught:
            await both.publish(server.url, "a", 1)
        assert len(server.asked) == 1
    assert caught.value.retry_after_seconds is not None
    assert 1e8 < caught.value.retry_after_seconds <= 1e9


@pytest.mark.gen_test
async def test_a_key_that_no_header_can_carry_is_not_sent(both: Both) -> None:
    async with Script([TAKEN]) as server:
        with pytest.raises(ClientError, match="has a character that no HTTP header can contain"):
            await both.publish(server.url, "a", 1, setup={"key": "a\nb"})
        assert server.asked == []


@pytest.mark.gen_test
async def test_on_retry_is_told_of_each_pause(both: Both) -> None:
    told: list[tuple[str, float]] = []
    setup = {"on_retry": lambda error, seconds: told.append((str(error), seconds))}
    async with Script([b"", refused(503, error("draining")), TAKEN]) as server:
        assert (await both.publish(server.url, "a", 1, setup=setup)).id == "e-1"
    (first, pause), (second, _) = told
    assert first.startswith(f"no answer from {server.url}: ")
    assert second.startswith("503 draining: ")
    assert pause > 0


@pytest.mark.gen_test
async def test_what_nobody_can_know_is_said(both: Both) -> None:
    port = free_port()
    with pytest.raises(Unreachable, match=r"no answer from http://127\.0\.0\.1:\d+: ") as caught:
        await both.publish(f"http://127.0.0.1:{port}", "a", 1, deadline_seconds=0.05)
    assert not caught.value.is_uncertain
    async with Script([b""] * 1000) as server:
        with pytest.raises(Unreachable) as caught:
            await both.publish(server.url, "a", 1, setup={"deadline_seconds": 0.5})
        assert caught.value.is_uncertain
    # The last answer alone would say that nothing happened; the first try got none.
    async with Script([b"", refused(503, error("draining"), "Retry-After: 60")]) as server:
        with pytest.raises(TryLater) as refusal:
            await both.publish(server.url, "a", 1)
        assert refusal.value.is_uncertain


def test_what_one_try_left_open_the_next_does_not_close() -> None:
    tries = publisher._Tries(30, 0.0)
    assert tries.unanswered(httpx.ReadError("sent, and then it broke"), 0.0) > 0
    with pytest.raises(Unreachable) as caught:
        tries.unanswered(httpx.ConnectError("nobody there"), 30.0)
    assert caught.value.is_uncertain


@pytest.mark.gen_test
async def test_a_server_that_says_nothing_is_asked_again(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "TRY_SECONDS", 0.5)

    async def silent(_writer: asyncio.StreamWriter) -> None:
        pass

    async with Script([silent, TAKEN, TAKEN, TAKEN]) as server:
        assert (await both.publish(server.url, "a", 1)).id == "e-1"


@pytest.mark.gen_test
async def test_an_answer_of_something_else_is_no_success(both: Both) -> None:
    for body in ("<html>hello", "{}", "[]"):
        async with Script([refused(200, body)]) as server:
            with pytest.raises(RequestRefused, match=r"200 http_200: .*expected a response of a qgstream server"):
                await both.publish(server.url, "a", 1)


@pytest.mark.parametrize("seconds", [0, -1, MAX_DEADLINE_SECONDS + 1, float("nan")])
def test_a_deadline_that_would_publish_twice_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="deadline_seconds: got "):
        Publisher("http://127.0.0.1:1", deadline_seconds=seconds)
    # The last try may still be under way when the deadline comes.
    assert MAX_DEADLINE_SECONDS + publisher.TRY_SECONDS < IDEMPOTENCY_SECONDS


def test_a_url_that_can_be_none() -> None:
    with pytest.raises(ValueError, match="expected http://host"):
        Publisher("localhost:8000")


def test_a_client_of_ones_own_stays_open() -> None:
    with httpx.Client() as http:
        with Publisher("http://127.0.0.1:1", http=http):
            pass
        assert not http.is_closed


# With a real server.


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server"), limits__max_event_bytes=100) as server:
        yield server


@pytest.mark.gen_test
async def test_what_a_real_server_says_arrives(both: Both, real: ServerProcess) -> None:
    key = f"mine, {both.is_async}"
    first = await both.publish(real.url, "a", "text", idempotency_key=key)
    assert (await both.publish(real.url, "a", "text", idempotency_key=key)).id == first.id
    assert len(set(await both.publish_all(real.url, [{"topic": "a", "data": n} for n in range(3)]))) == 3
    with pytest.raises(RequestRefused) as caught:
        await both.publish(real.url, "a*", 1)
    assert (caught.value.status, caught.value.code, caught.value.field) == (400, "invalid_field", "topic")
    with pytest.raises(RequestRefused, match="413 too_large: data: got 202 bytes, expected at most 100"):
        await both.publish(real.url, "a", ["x" * 198])
    with pytest.raises(CredentialsRefused, match="401 unknown_key"):
        await both.publish(real.url, "a", 1, setup={"key": "wrong"})
    with pytest.raises(RequestRefused, match="404 not_found"):
        await both.publish(real.url + "/nowhere", "a", 1)
