"""An event as an AMQP message, and back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from qgstream.brokers.options import Address
from qgstream.brokers.rabbitmq.marks import Slip
from qgstream.brokers.rabbitmq.messages import Entry, NoStream, marked, parse, published
from qgstream.brokers.rabbitmq.options import urls
from qgstream.events.publication import Publication

NOW = 2_000_000_000.0


def delivered(routing_key: str, properties: Basic.Properties, body: bytes, *, offset: Any = 6) -> DeliveredMessage:
    """As RabbitMQ delivers it out of a stream."""
    headers = {name: value for name, value in (properties.headers or {}).items() if not isinstance(value, list | dict)}
    properties.headers = headers | ({"x-stream-offset": offset} if offset is not None else {})
    header = ContentHeader(body_size=len(body), properties=properties)
    delivery = Basic.Deliver(consumer_tag="c", delivery_tag=1, exchange="e", routing_key=routing_key)
    return DeliveredMessage(delivery=delivery, header=header, body=body, channel=None)  # type: ignore[arg-type]


def read(message: DeliveredMessage) -> Entry:
    return parse(message, users={"server", "other"}, max_event_bytes=100, now=NOW)


@pytest.mark.parametrize(
    "publication",
    [
        Publication(("a",), b"1"),
        Publication(("a", "b", "Bücher/€"), "日本".encode(), is_json=False),
        Publication(("東" * 256, "x" * 256), b"", is_json=False, event="Änderung", retry_ms=0, private=True),
        Publication(("a",), b"[" + b"1," * 500 + b"1]", idempotency_key="k" * 256),
    ],
)
def test_what_is_ours_arrives_as_it_was(publication: Publication) -> None:
    key, properties = published(publication, uid="u.1", user="server", seen=5, now=1234.5)
    assert len(key.encode()) <= 255
    assert publication.topics[0].startswith(key)
    entry = read(delivered(key, properties, publication.data))
    found = entry.publication
    assert found is not None
    for name in ("topics", "data", "is_json", "event", "retry_ms", "private"):
        assert getattr(found, name) == getattr(publication, name)
    assert (found.offset, found.published_at) == (7, 1234.5)
    assert entry == Entry(7, found, slip=Slip("event", "u.1", 5, 1234.5), key=publication.idempotency_key, at=1234.5)


def test_the_queues_of_others_are_found_by_every_topic() -> None:
    key, properties = published(Publication(("a", "b", "c"), b"1"), uid="u", user="u", seen=0, now=NOW)
    assert (key, (properties.headers or {})["CC"]) == ("a", ["b", "c"])


def test_a_mark_is_no_event() -> None:
    slip = Slip("is", "u", seen=4, epoch="e")
    assert read(delivered("stream", marked(slip, user="other"), b"")) == Entry(7, slip=slip)


@pytest.mark.parametrize("user", [None, "", "publisher", "serve", "server,other"])
def test_what_only_servers_say_is_believed_of_servers_alone(user: str | None) -> None:
    for mark in (Slip("is", "u", seen=4, epoch="e"), Slip("set", "u", epoch="e"), Slip("end", "u")):
        entry = read(delivered("stream", Basic.Properties(headers=mark.headers(), user_id=user), b""))
        assert (entry.slip, entry.publication) == (None, None)
        expected = f"got a mark of the user {user!r}, expected one of other, server (broker.url: users)"
        assert entry.problem == expected
    key, properties = published(Publication(("a",), b"1", idempotency_key="k"), uid="u", user="x", seen=5, now=NOW + 9)
    properties.user_id = user
    properties.timestamp = None
    entry = read(delivered(key, properties, b"1"))
    assert (entry.slip, entry.at) == (None, None)
    assert entry.key not in (None, "k"), "it is the key of a server"
    assert entry.publication is not None
    assert entry.publication.published_at == NOW
    assert (read(delivered(key, properties, b"1" * 101)).problem or "").startswith("data: got 101 bytes")


def test_the_keys_of_each_user_are_its_own() -> None:
    said = [("a", "k"), ("b", "k"), (None, "k"), ("", "k")]
    keys = [
        read(delivered("a", Basic.Properties(headers={"idempotency_key": key}, user_id=user), b"")).key
        for user, key in said
    ]
    assert len(set(keys)) == 3
    assert keys[2] == keys[3], "neither says who it is"


@pytest.mark.parametrize(
    ("stamp", "at"),
    [(None, None), (datetime(2030, 1, 1, tzinfo=UTC), 1893456000.0), (datetime(2099, 1, 1), None)],  # noqa: DTZ001
)
def test_the_time_is_what_the_publisher_says_unless_it_is_in_the_future(
    stamp: datetime | None, at: float | None
) -> None:
    entry = read(delivered("a", Basic.Properties(timestamp=stamp), b"x"))
    assert entry.publication is not None
    assert (entry.at, entry.publication.published_at) == (at, NOW if at is None else at)


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"event": 5}, "event: got int"),
        ({"event": "a\nb"}, "event: got U+000A"),
        ({"retry": "5"}, "retry: got '5'"),
        ({"retry": True}, "retry: got True"),
        ({"private": 0}, "private: got '0', expected a boolean"),
        ({"idempotency_key": ""}, "idempotency_key: got '', expected a string of 1 to 256"),
        ({"idempotency_key": 5}, "idempotency_key: got '5'"),
        ({"topics": "b"}, "topics: got 'b', expected a JSON list that begins with the routing key"),
        ({"topics": '["b", "a"]'}, "topics: got"),
        ({"topics": "[]"}, "topics: got"),
        ({"topics": "[" * 100_000}, "topics: got"),
        ({"topics": 5}, "topics: got"),
        ({"topics": '["a", 5]'}, "topic: got int"),
        ({"topics": '["\\ud800"]'}, "topic: got U+D800"),
        ({"topics": "[5]"}, "topic: got int"),
        ({"topics": f"[{'9' * 5000}]"}, "topics: got"),
    ],
)
def test_a_header_that_says_something_else_is_a_problem(headers: dict[str, Any], said: str) -> None:
    entry = read(delivered("a", Basic.Properties(headers=headers), b"x"))
    assert entry.publication is None
    assert (entry.problem or "").startswith(said), entry.problem


def test_what_is_too_large_is_a_problem_unless_it_is_ours() -> None:
    entry = read(delivered("a", Basic.Properties(), b"x" * 101))
    assert entry.problem == "data: got 101 bytes, expected at most 100"
    assert read(delivered("a", Basic.Properties(), b"x" * 100)).problem is None


@pytest.mark.parametrize("offset", [None, "6"])
def test_a_message_of_no_stream_is_an_error(offset: object) -> None:
    with pytest.raises(NoStream, match="expected a message of a stream"):
        read(delivered("a", Basic.Properties(), b"x", offset=offset))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://h", ["amqp://guest:guest@h:5672/%2F?name=qgstream"]),
        ("amqps://u:p%40%2F@h:1/shop", ["amqps://u:p%40%2F@h:1/shop?name=qgstream"]),
        (
            "amqp://u:p@one,[::1]:2/a%2Fb",
            ["amqp://u:p@one:5672/a%2Fb?name=qgstream", "amqp://u:p@[::1]:2/a%2Fb?name=qgstream"],
        ),
    ],
)
def test_a_url_is_taken_as_rabbitmq_means_it(url: str, expected: list[str]) -> None:
    found = urls(Address.parse(url))
    assert [str(url).replace("%252F", "%2F") for url in found] == expected
    assert all(url.user and url.password for url in found)
