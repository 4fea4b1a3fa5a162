"""Events as NATS messages: every topic has a subject of its own, and comes back from it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.brokers.nats.messages import size_bytes, to_headers, to_publication, to_subject, to_topic
from qgstream.errors import InvalidField
from qgstream.events.publication import Publication
from qgstream.events.topics import MAX_TOPIC_CHARACTERS, check_name

NAMES = st.text(
    st.one_of(st.sampled_from(". %>/aÄ"), st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="*")),
    min_size=1, max_size=MAX_TOPIC_CHARACTERS,
)  # fmt: skip


@given(NAMES)
def test_a_topic_comes_back_from_its_subject(topic: str) -> None:
    subject = to_subject("a.b", check_name(topic))
    assert to_topic("a.b", subject) == topic
    # What a NATS server calls a subject that can be published to.
    assert not re.search(r"[ \t\r\n]", subject)
    assert all(word not in ("", "*", ">") for word in subject.split("."))


@pytest.mark.parametrize(
    ("topic", "subject"),
    [
        ("orders", "log.orders"),
        ("orders.eu.1", "log.orders.eu.1"),
        ("orders/1", "log.orders/1"),
        ("日本/東京", "log.日本/東京"),
        ("x y", "log.x%20y"),
        ("a..b", "log.a%2E.b"),
        (".", "log.%2E"),
        (".a.", "log.%2Ea%2E"),
        ("100%", "log.100%25"),
        ("a>b", "log.a%3Eb"),
    ],
)
def test_what_a_subject_cannot_hold_is_encoded_and_nothing_else(topic: str, subject: str) -> None:
    assert to_subject("log", topic) == subject
    assert to_topic("log", subject) == topic


def test_a_subject_of_others_need_not_be_encoded() -> None:
    assert to_topic("log", "log.50%") == "50%"


def arrived(headers: dict[str, str], data: bytes = b"{}", subject: str = "log.orders") -> Publication:
    return to_publication("log", subject, headers, data, offset=7, published_at=1.5)


def test_a_plain_message_is_an_event() -> None:
    plain = arrived({}, b'{"order": 7}')
    assert (plain.topics, plain.data, plain.offset, plain.published_at) == (("orders",), b'{"order": 7}', 7, 1.5)
    assert (plain.is_json, plain.event, plain.retry_ms, plain.private) == (False, None, None, False)


def test_headers_say_the_rest_in_any_case() -> None:
    said = arrived({
        "content-type": "application/json; charset=utf-8", "EVENT": "created", "retry": "500", "Private": "Yes",
        "topics": '["a", "orders"]', "X-Other": "1",
    })  # fmt: skip
    assert (said.is_json, said.event, said.retry_ms, said.private) == (True, "created", 500, True)
    assert said.topics == ("a", "orders")


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=50), NAMES, NAMES)
def test_everything_comes_back(text: str, one: str, other: str) -> None:
    sent = Publication(tuple({one: 0, other: 0}), b"1", event=text, retry_ms=0, private=True, idempotency_key=text)
    headers = to_headers(sent)
    assert all(value.isascii() and value.isprintable() and value == value.strip() for value in headers.values())
    assert headers["Nats-Msg-Id"] == to_headers(sent)["Nats-Msg-Id"]
    came = to_publication("log", to_subject("log", one), headers, b"1", offset=1, published_at=0)
    for field in ("topics", "data", "is_json", "event", "retry_ms", "private"):
        assert getattr(came, field) == getattr(sent, field)


@pytest.mark.parametrize(
    ("headers", "data", "subject", "said"),
    [
        ({}, b"{}", "other.orders", "subject: got 'other.orders', expected log.<topic>"),
        ({}, b"{}", "catalog.orders", "subject: got 'catalog.orders'"),
        ({}, b"{}", "log.", "subject: got 'log.'"),
        ({}, b"{}", "log.%FF", "expected percent-encoded UTF-8"),
        ({}, b"{}", "log.%2A", "expected a name without '*'"),
        ({}, b"\xff", "log.orders", "data: got byte 0xff"),
        ({"Content-Type": "application/json"}, b"{", "log.orders", "data: not JSON"),
        ({"Event": "%FF"}, b"", "log.orders", "Event: got '%FF'"),
        ({"Event": "%0A"}, b"", "log.orders", "event: got U+000A"),
        ({"Retry": "soon"}, b"", "log.orders", "Retry: got 'soon', expected milliseconds"),
        ({"Retry": "-1"}, b"", "log.orders", "Retry: got '-1'"),
        ({"Retry": "9" * 400}, b"", "log.orders", "retry: got 999999999999, expected"),
        ({"Topics": "a, b"}, b"", "log.orders", "Topics: got 'a, b', expected a JSON list"),
        ({"Topics": "7"}, b"", "log.orders", "Topics: got '7'"),
        ({"Topics": '["a"]'}, b"", "log.orders", "with the subject's topic"),
        ({"Topics": '["orders", 7]'}, b"", "log.orders", "topic: got int"),
    ],
)
def test_what_is_no_event_is_refused_with_a_reason(
    headers: dict[str, str], data: bytes, subject: str, said: str
) -> None:
    with pytest.raises(InvalidField) as refused:
        arrived(headers, data, subject)
    assert said in str(refused.value)


def test_the_size_is_at_least_what_goes_over_the_wire() -> None:
    headers = {"Event": "created", "Nats-Msg-Id": "7"}
    wire = b"NATS/1.0\r\nEvent: created\r\nNats-Msg-Id: 7\r\n\r\n" + b"data"
    assert len(wire) <= size_bytes("log.a", headers, b"data") <= len(wire) + 64
