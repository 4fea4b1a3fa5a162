"""What somebody wants to publish, checked once."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qgstream.errors import BadRequest, InvalidField, TooLarge
from qgstream.events import draft as drafts
from qgstream.events.draft import (
    MAX_EVENTS_PER_BATCH,
    MAX_RETRY_MS,
    MAX_TOPICS_PER_EVENT,
    draft,
    received,
)
from qgstream.events.namespaces import namespace, scoped
from qgstream.events.publication import Publication

ME = namespace("publish_key", "tests")
parse_json = partial(drafts.parse_json, namespace=ME)


def parse_ndjson(received: bytes, max_event_bytes: int) -> list[Publication]:
    """All of it at once."""
    job = drafts.parse_ndjson(received, max_event_bytes, namespace=ME)
    try:
        while True:
            next(job)
    except StopIteration as end:
        return cast(list[Publication], end.value)


LIMIT = 1000
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)


def body(**fields: object) -> bytes:
    return json.dumps({"topic": "a", "data": 1} | fields).encode()


@given(JSON, st.sampled_from([None, 1, "\t"]))
def test_any_json_comes_out_as_it_went_in(data: Any, indent: Any) -> None:
    publication = parse_json(json.dumps({"topic": "a", "data": data}, indent=indent).encode(), 10**6)
    if isinstance(data, str):
        assert (publication.is_json, publication.data.decode()) == (False, data)
    else:
        assert publication.is_json
        assert json.loads(publication.data) == data
        assert b"\n" not in publication.data


def test_no_number_loses_a_digit() -> None:
    raw = b'{"n": 18446744073709551616123, "x": 0.1000000000000000055511151231257827}'
    assert parse_json(b'{"topic": "a", "data": ' + raw + b"}", LIMIT).data == raw


def test_every_field_arrives() -> None:
    publication = parse_json(
        body(topic=["a", "b", "a"], event="created", retry=5, private=True, idempotency_key="k"), LIMIT
    )
    assert publication.topics == ("a", "b")
    assert (publication.event, publication.retry_ms) == ("created", 5)
    assert (publication.private, publication.idempotency_key) == (True, scoped(ME, "k"))


def is_well(publication: Publication) -> bool:
    """Whether a stream can carry it."""
    texts = (*publication.topics, publication.event or "", publication.idempotency_key or "")
    return bool(publication.topics) and not any(set(text) & set("\r\n\0") for text in texts)


NAME = st.text(st.characters(codec="ascii", exclude_characters="*\x7f", min_codepoint=32), min_size=1, max_size=20)
EVENTS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"topic": NAME | st.lists(NAME, min_size=1, max_size=3), "data": JSON},
    optional={
        "event": NAME, "retry": st.integers(0, 10_000), "private": st.booleans(), "idempotency_key": NAME,
    },
)  # fmt: skip
FIELDS = st.sampled_from(["topic", "data", "event", "retry", "private", "idempotency_key", "x"])


@given(st.lists(EVENTS, min_size=1, max_size=3))
def test_any_event_is_published(events: list[dict[str, Any]]) -> None:
    publications = parse_ndjson("\n".join(map(json.dumps, events)).encode(), 10**6)
    assert len(publications) == len(events)
    assert all(map(is_well, publications))
    assert [p.data for p in publications] == [parse_json(json.dumps(one).encode(), 10**6).data for one in events]


@given(EVENTS, st.dictionaries(FIELDS, JSON))
def test_any_object_is_published_or_refused(event: dict[str, Any], odd: dict[str, Any]) -> None:
    with suppress(BadRequest, TooLarge):
        assert is_well(parse_json(json.dumps(event | odd).encode(), LIMIT))


@st.composite
def nearly_json(draw: st.DrawFn) -> bytes:
    """Events as NDJSON, with something put in or left out at any place."""
    text = b"\n".join(json.dumps(event).encode() for event in draw(st.lists(EVENTS, min_size=1, max_size=2)))
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.binary(max_size=3)) + text[at + draw(st.integers(0, 2)) :]


@given(nearly_json() | st.binary(max_size=300))
@example(b'{"topic": "a", "data": 1, "retry": ' + b"9" * 5000 + b"}")
@example(b'{"topic": "a", "data": ' + b"[" * 100_000)
@example(b'{"topic": "a", "data": "\\ud800"}')
@example(b'{"topic": "a\xff", "data": 1}')
def test_any_bytes_are_published_or_refused(received: bytes) -> None:
    with suppress(BadRequest, TooLarge):
        assert is_well(parse_json(received, LIMIT))
    with suppress(BadRequest, TooLarge):
        assert all(map(is_well, parse_ndjson(received, LIMIT)))


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b", "\x1f", "\x7f", "\x85", ""])
@pytest.mark.parametrize("field", ["topic", "event", "idempotency_key"])
def test_nothing_is_injected_through_a_field(field: str, bad: str) -> None:
    with pytest.raises(InvalidField, match=f"^{field}: ") as caught:
        parse_json(body(**{field: bad}), LIMIT)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("received", "field"),
    [
        (body(topic=7), "topic"),
        (body(topic=["a", 7]), "topic"),
        (body(topic=[]), "topic"),
        (body(topic=[f"t{n}" for n in range(MAX_TOPICS_PER_EVENT + 1)]), "topic"),
        (body(topic="a*"), "topic"),
        (body(event=7), "event"),
        (body(retry="5"), "retry"),
        (body(retry=-1), "retry"),
        (body(retry=1.5), "retry"),
        (body(retry=True), "retry"),
        (body(retry=MAX_RETRY_MS + 1), "retry"),
        (body(private="yes"), "private"),
        (body(idempotency_key=1), "idempotency_key"),
        (b'{"data": 1}', "topic"),
        (b'{"topic": "a"}', "data"),
        (body(unknown=1), "unknown"),
        (b'{"topic": "a", "data": "\\ud800"}', "data"),
        (b'{"topic": "\\ud800", "data": 1}', "topic"),
        (b'{"topic": "a", "data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "data"),
    ],
)
def test_a_refusal_names_the_field(received: bytes, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_json(received, LIMIT)
    assert caught.value.field == field
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("received", "field"),
    [
        (rb'{"event": "\\ud800", "topic": "a", "data": "\ud83d\ude00\ud83d"}', "data"),
        (rb'{"event": "\ud83d\ude00", "topic": "a", "data": [{"x": "\uDE00\ud83d"}]}', "data"),
        (rb'{"data": "\ud83d\ud83d\ude00", "topic": "a"}', "data"),
        (rb'{"data": "\ud83d\ude00\uDE00", "topic": "a"}', "data"),
        (rb'{"data": {"\udfff": 1}, "topic": "a"}', "data"),
        (rb'{"data": "\ud83d\ude00", "topic": ["a", "\ud83d"]}', "topic"),
        (rb'{"data": 1, "topic": "a", "idempotency_key": "\udbff"}', "idempotency_key"),
    ],
    ids=range(7),
)
def test_a_lone_surrogate_is_found_among_pairs(received: bytes, field: str) -> None:
    with pytest.raises(InvalidField, match="lone surrogate") as caught:
        parse_json(received, LIMIT)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "received", [b"", b"[]", b"7", b"{", b'{"topic": "a", "data": 1} x', b"\xff", b'{"topic":\xff}']
)
def test_what_is_no_json_object_is_refused(received: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_json(received, LIMIT)


def test_an_event_over_the_limit_says_both_sizes() -> None:
    parse_json(body(data="x" * LIMIT), LIMIT)
    with pytest.raises(TooLarge, match="data: got 1001 bytes, expected at most 1000") as caught:
        parse_json(body(data="x" * (LIMIT + 1)), LIMIT)
    assert (caught.value.got_bytes, caught.value.limit_bytes) == (LIMIT + 1, LIMIT)


def test_a_batch_is_all_or_nothing_and_says_which_line() -> None:
    good = body()
    assert len(parse_ndjson(good + b"\n\n" + good + b"\r\n", LIMIT)) == 2
    for bad, sentence in [
        (b"{", "line 2: "),
        (body(topic=7), "line 2: topic"),
        (body(topic="a\n"), "line 2: topic"),
        (body(data="x" * (LIMIT + 1)), "line 2: data: got"),
    ]:
        with pytest.raises((BadRequest, TooLarge), match=sentence):
            parse_ndjson(good + b"\n" + bad + b"\n" + good, LIMIT)
    with pytest.raises(BadRequest, match="no event"):
        parse_ndjson(b"\n \n", LIMIT)
    with pytest.raises(BadRequest, match="at most") as caught:
        parse_ndjson(b"\n".join([good] * (MAX_EVENTS_PER_BATCH + 1)), LIMIT)
    assert caught.value.code == "too_many_events"


@given(JSON)
def test_python_values_are_sent_as_json_and_strings_as_they_are(data: Any) -> None:
    publication = draft(["a"], data, max_event_bytes=10**6)
    if isinstance(data, str):
        assert publication.data == data.encode()
    else:
        assert json.loads(publication.data) == data


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"data": object()}, "data"),
        ({"data": {1: object()}}, "data"),
        ({"data": "\ud800"}, "data"),
        ({"data": {"a": "\ud800"}}, "data"),
        ({"topic": 7}, "topic"),
        ({"topic": ["a", None]}, "topic"),
        ({"event": "a\n"}, "event"),
        ({"retry_ms": 1.0}, "retry"),
    ],
)
def test_python_values_that_cannot_be_sent_name_their_field(arguments: dict[str, Any], field: str) -> None:
    call: dict[str, Any] = {"topic": "a", "data": 1, "max_event_bytes": LIMIT} | arguments
    with pytest.raises(InvalidField) as caught:
        draft(**call)
    assert caught.value.field == field


# However long a body is.


def test_a_long_batch_is_parsed_once_and_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with it, and wherever."""
    parsed, one = [0], drafts._parse

    def counted(*args: Any) -> Publication:
        parsed[0] += 1
        return one(*args)

    monkeypatch.setattr(drafts, "_parse", counted)
    many = json.dumps({"topic": [f"t{n}" for n in range(MAX_TOPICS_PER_EVENT)], "data": "x" * 100}).encode()
    for line, bad in [(body(), b"{"), (many, body(data="\ud800")), (body(data="x" * LIMIT), body(topic="a\n"))]:
        parsed[0] = 0
        job = drafts.parse_ndjson(b"\n".join([*[line] * 999, bad]), LIMIT, namespace=ME)
        looks = [0]
        with pytest.raises(BadRequest, match=r"^line 1000: "):
            looks.extend(parsed[0] for _ in job)
        looks.append(parsed[0])
        assert parsed[0] == 1000
        event_bytes = len(line) + drafts._EVENT_COSTS_BYTES
        longest = max(after - before for before, after in pairwise(looks))
        assert longest * event_bytes < drafts.BYTES_PER_LOOK + event_bytes


def test_no_more_events_are_parsed_than_a_batch_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, one = [0], drafts._parse

    def counted(*args: Any) -> Publication:
        parsed[0] += 1
        return one(*args)

    monkeypatch.setattr(drafts, "_parse", counted)
    with pytest.raises(BadRequest, match="more than 10000 events"):
        parse_ndjson(b"\n".join([body()] * 100_000), LIMIT)
    assert parsed[0] == MAX_EVENTS_PER_BATCH


def test_lines_are_counted_with_the_blank_ones() -> None:
    with pytest.raises(BadRequest, match=r"^line 6: not JSON"):
        parse_ndjson(b"\n \r\n" + body() + b"\r\n\n\n{\n" + body(), LIMIT)
    with pytest.raises(BadRequest, match=r"^line 1: not JSON"):
        parse_ndjson(json.dumps({"topic": "a", "data": 1}, indent=1).encode(), LIMIT)


@pytest.mark.parametrize(
    "received",
    [
        b'{"topic": "a", "data": [' + b"[[]]," * 500_000 + b"1]}",
        b'{"topic": "a", "data": "' + b"\\ud800" * 500_000 + b'"}',
        b'{"data": 1, "topic": [' + b'"a",' * 500_000 + b'"a"]}',
    ],
    ids=range(3),
)
def test_what_no_event_can_be_is_not_parsed(received: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_decoder", "_check_utf8", "_find_surrogate"):
        monkeypatch.delattr(drafts, name)
    for parse in (parse_json, parse_ndjson):
        with pytest.raises(TooLarge, match=r"JSON of an event: got \d+ bytes, expected at most 268144"):
            parse(received, LIMIT)


def test_any_event_within_the_bounds_may_be_escaped_as_much_as_json_allows() -> None:
    smiley = "\\ud83d\\ude00"
    topics = ", ".join(f'"{smiley * 250}{n}"' for n in range(MAX_TOPICS_PER_EVENT))
    long = smiley * 256
    received = f'{{"topic": [{topics}], "event": "{long}", "idempotency_key": "{long}", "data": "{smiley * 250}"}}'
    assert len(parse_json(received.encode(), LIMIT).topics) == MAX_TOPICS_PER_EVENT


def test_a_list_of_names_that_is_too_long_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(drafts, "check_name")
    with pytest.raises(InvalidField, match="got 65 names"):
        parse_json(body(topic=["a"] * 65), LIMIT)


# What others wrote into an engine's log.


def test_what_is_received_is_sent_as_it_is() -> None:
    publication = received(["a", "b", "a"], b"x\ny", event="e", retry_ms=5, private=True, offset=7, published_at=8.5)
    assert (publication.topics, publication.data, publication.is_json) == (("a", "b"), b"x\ny", False)
    assert (publication.event, publication.retry_ms, publication.private) == ("e", 5, True)
    assert (publication.offset, publication.published_at) == (7, 8.5)
    publication = received(["a"], b'{"n":\r\n 1.50}', is_json=True, offset=1, published_at=1)
    assert (publication.data, publication.is_json) == (b'{"n":   1.50}', True)


def test_json_may_begin_with_a_byte_order_mark() -> None:
    """RFC 8259, 8.1. Text may not: there it is a character like others."""
    event = b'\xef\xbb\xbf{"topic": "a", "data": 1}'
    assert parse_json(event, LIMIT).data == b"1"
    assert [publication.data for publication in parse_ndjson(event + b"\n" + event[3:], LIMIT)] == [b"1", b"1"]
    assert received(["a"], b"\xef\xbb\xbf1", is_json=True, offset=1, published_at=1).data == b"1"
    assert received(["a"], b"\xef\xbb\xbf1", offset=1, published_at=1).data == b"\xef\xbb\xbf1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"topics": []}, "topic: got 0 names, expected 1 to 64"),
        ({"topics": ["a*"]}, "topic: got 'a*', expected a name"),
        ({"topics": [""]}, "topic: got an empty string"),
        ({"data": b"\xff"}, "data: got byte 0xff at 0, expected UTF-8"),
        ({"data": b"{", "is_json": True}, "data: not JSON: Input data was truncated"),
        ({"data": b"[" * 100_000, "is_json": True}, "data: not JSON"),
        ({"data": b"", "is_json": True}, "data: not JSON"),
        ({"event": "a\nid: 1"}, "event: got U+000A"),
        ({"retry_ms": -1}, "retry: got -1"),
    ],
)
def test_what_no_stream_can_carry_is_not_received(arguments: dict[str, Any], said: str) -> None:
    call: dict[str, Any] = {"topics": ["a"], "data": b"1", "offset": 1, "published_at": 1.0} | arguments
    with pytest.raises(InvalidField) as caught:
        received(**call)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("topics", "topics: unknown field; did you mean topic?"),
        ("dta", "dta: unknown field; did you mean data?"),
        ("events", "events: unknown field; did you mean event?"),
        ("retry_ms", "retry_ms: unknown field; did you mean retry?"),
        ("idempotency-key", "idempotency-key: unknown field; did you mean idempotency_key?"),
        ("event type", "event type: unknown field; did you mean event?"),
        ("`topic`", "`topic`: unknown field; did you mean topic?"),
        ("xyz", "xyz: unknown field, expected one of topic, data, event, retry, private, idempotency_key"),
    ],
)
def test_a_misspelt_field_has_a_suggestion(name: str, said: str) -> None:
    with pytest.raises(InvalidField, match=f"^{said.replace('?', '[?]')}$") as caught:
        parse_json(json.dumps({"topic": "a", "data": 1, name: 1}).encode(), 1000)
    assert caught.value.field == name
    lines = b'{"topic": "a", "data": 1}\n' + json.dumps({name: 1}).encode()
    with pytest.raises(InvalidField, match=rf"^line 2: {name}: unknown field"):
        parse_ndjson(lines, 1000)
