"""What is published is what arrives, byte for byte, through the clients that people use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial

import pytest

from qgstream.limits import LimitSettings
from qgstream.wire.sse import Event
from tests.interop.clients import Reader, with_curl, with_httpx, with_npm
from tests.publishing import post
from tests.serving import ServerProcess

MAX_EVENT_BYTES = LimitSettings().max_event_bytes

TEXTS = {
    "empty": "",
    "LF": "one\ntwo\n\nfour\n",
    "CR": "one\rtwo\r\rfour\r",
    "CRLF": "one\r\ntwo\r\n\r\nfour\r\n",
    "line ends mixed": "\r\n\n\r\r\r\n\n",
    "only a line end": "\n",
    "line and paragraph separators": "a\u2028b\u2029c",
    "next line, vertical tab, form feed, and others that splitlines() splits on": "a\x85b\x0bc\x0cd\x1ce\x1df\x1eg",
    "those beside real line ends": "a\u2028b\nc\x85d\re\x0bf\r\ng\u2029h",
    "leading spaces": "   three",
    "only a space": " ",
    "leading colons": "::x\n: x",
    "what looks like fields": "data: x\nevent: y\nid: z\nretry: 1\n: comment",
    "a field without a colon": "data\n\ndata",
    "byte order mark": "\ufeffx\ufeff",
    "emoji": "\U0001f600 \U0001f469\u200d\U0001f680 \U0001f1eb\U0001f1f7",
    "NUL and other controls": "a\0b\x01c\x1bd\x7fe",
    "every plane": "\u00e9\u0939\u20ac\ud7ff\ue000\ufffd\uffff\U00010000\U0010ffff",
    "quotes and backslashes": '"\\n\\u2028\\"',
    "256 KiB": "x" * MAX_EVENT_BYTES,
    "256 KiB of emoji": "\U0001f600" * (MAX_EVENT_BYTES // 4),
    "256 KiB of lines": "0123456789abcde\n" * (MAX_EVENT_BYTES // 16),
    "256 KiB of line ends": "\n" * MAX_EVENT_BYTES,
}

# JSON as somebody wrote it: the text itself must arrive, not only its meaning.
WRITTEN = {
    "spaces and long numbers": '{ "n" : 12345678901234567890.10,"m":1E400, "k" :[ ] }',
    "escapes": r'["\u2028\ud83d\ude00\/\r\n\u0000", "' + "\u2028\x7f" + '"]',
    "a key twice": '{"a": 1, "a": 2}',
    "null": "null",
    "256 KiB": json.dumps(["x" * (MAX_EVENT_BYTES - 4)]),
}


def as_json(text: str) -> str | None:
    """The text inside JSON; None when escaping makes it too large to be published."""
    written = json.dumps([text], ensure_ascii=False)
    return written if len(written.encode()) <= MAX_EVENT_BYTES else None


def normalised(text: str) -> str:
    """What the format itself does to a plain string, and all that it may do: it has one line end (9.2.6)."""
    return re.sub("\r\n|\r", "\n", text)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    # The whole lot is published at once; how far behind a client may be is another test's matter.
    with ServerProcess(
        tmp_path_factory.mktemp("server"), heartbeat__interval_seconds=3600, limits__max_backlog_bytes=2**26
    ) as running:
        yield running


@pytest.fixture(params=["npm eventsource", "httpx-sse", "curl -N", "curl -N --http1.0"])
def reader(request: pytest.FixtureRequest) -> Reader:
    name: str = request.param
    if name == "npm eventsource":
        return partial(with_npm, modules=request.getfixturevalue("node_modules"))
    if name == "httpx-sse":
        return with_httpx
    request.getfixturevalue("require_program")("curl")
    return lambda url: with_curl(url, *name.split()[2:])


def publish_all_kinds(server: ServerProcess, topic: str) -> None:
    def publish(event: str, written: str) -> None:
        post(server, f'{{"topic": "{topic}", "event": "{event}", "data": {written}}}', "application/json")

    for text in TEXTS.values():
        publish("text", json.dumps(text, ensure_ascii=False))
    for written in all_written():
        publish("json", written)
    publish("end", "0")


def all_written() -> list[str]:
    return [*WRITTEN.values(), *(written for written in map(as_json, TEXTS.values()) if written is not None)]


def receive(server: ServerProcess, reader: Reader, query: str, topic: str) -> list[Event]:
    """All events of one stream, from the first published to the one before the end."""
    with reader(f"{server.url}/events?topic={topic}{query}") as events:
        assert json.loads(next(events).data)["event"] == "connected"
        publish_all_kinds(server, topic)
        received: list[Event] = []
        for event in events:
            if event.event == "end":
                return received
            received.append(event)
    raise AssertionError(f"the stream ended after {len(received)} events")


def assert_same(received: list[str], expected: list[str]) -> None:
    # 256 KiB in an assertion's message help nobody.
    differing = [(got[:200], want[:200]) for got, want in zip(received, expected, strict=True) if got != want]
    assert not differing


def test_data_survives(server: ServerProcess, reader: Reader, request: pytest.FixtureRequest) -> None:
    topic = re.sub(r"\W", "-", request.node.name)
    received = receive(server, reader, "", topic)
    texts = [event.data for event in received if event.event == "text"]
    assert_same(texts, [normalised(text) for text in TEXTS.values()])
    written = [event.data for event in received if event.event == "json"]
    assert_same(written, all_written())
    assert len({event.id for event in received}) == len(received)


def test_in_an_envelope_every_string_survives_as_it_was(
    server: ServerProcess, reader: Reader, request: pytest.FixtureRequest
) -> None:
    topic = re.sub(r"\W", "-", request.node.name)
    received = receive(server, reader, "&envelope=1", topic)
    envelopes = [json.loads(event.data, strict=True) for event in received]
    assert_same([each["data"] for each in envelopes if each["event"] == "text"], list(TEXTS.values()))
    # The JSON text stands in the envelope as it was written.
    for event, written in zip([event for event in received if event.event == "json"], all_written(), strict=True):
        assert event.data.endswith(f'"data": {written}}}')
    assert {each["topic"] for each in envelopes} == {topic}
    assert [each["id"] for each in envelopes] == [event.id for event in received]
