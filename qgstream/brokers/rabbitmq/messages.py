"""Converts an event to an AMQP message and back. Pure.

Any client may publish: a message to the exchange is an event of the topic in its routing key. So marks count only if
they come from users of the servers. RabbitMQ guarantees the property `user_id`: it rejects a message whose `user_id` is
not the user of the connection.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from aio_pika import Message
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from qgstream.brokers.rabbitmq.marks import Slip
from qgstream.errors import InvalidField, TooLarge
from qgstream.events.draft import received
from qgstream.events.namespaces import namespace, scoped
from qgstream.events.publication import Publication
from qgstream.events.topics import check_name

JSON = "application/json"
TEXT = "text/plain"
# The size limit of AMQP's short strings, such as routing keys.
MAX_SHORT_BYTES = 255
# The headers of an event. They are not lists or tables, because RabbitMQ drops those from messages in a stream.
EVENT, RETRY, PRIVATE, KEY, TOPICS = "event", "retry", "private", "idempotency_key", "topics"
# The bytes around the payload of a frame: type, channel, size, end.
FRAME_BYTES = 8
# RabbitMQ also routes by these (sender-selected distribution), to other queues.
CC = "CC"
# The header in which RabbitMQ states the offset of a message in its stream.
OFFSET = "x-stream-offset"


class NoStream(Exception):
    """The message did not come from a stream."""


class Entry(NamedTuple):
    """A message of the stream: a publication, or a mark; `problem` says why it is neither.

    The position of a message is its offset in the stream plus one, because positions start after 0.
    """

    position: int
    publication: Publication | None = None
    problem: str | None = None
    slip: Slip | None = None
    key: str | None = None
    at: float | None = None  # when the message was published, if stated; Unix seconds


def marked(mark: Slip, *, user: str) -> Basic.Properties:
    """Return the properties of a mark's message, whose body is empty. `user` is the user of the connection."""
    return _properties(mark.headers(), mark.uid, user_id=user)


def published(publication: Publication, *, uid: str, user: str, seen: int, now: float) -> tuple[str, Basic.Properties]:
    """Return the routing key and the properties of an event's message. `user` is the user of the connection."""
    topics = publication.topics
    headers = Slip("event", uid, seen, now).headers()
    keys = [_short(topic) for topic in topics]
    if len(topics) > 1:
        headers[CC] = keys[1:]
    if (keys[0],) != topics:
        headers[TOPICS] = json.dumps(topics, ensure_ascii=False)
    if publication.event is not None:
        headers[EVENT] = publication.event
    if publication.retry_ms is not None:
        headers[RETRY] = publication.retry_ms
    if publication.private:
        headers[PRIVATE] = True
    if publication.idempotency_key is not None:
        headers[KEY] = publication.idempotency_key
    content_type = JSON if publication.is_json else TEXT
    return keys[0], _properties(headers, uid, user_id=user, content_type=content_type, timestamp=int(now))


def _properties(headers: dict[str, Any], uid: str, **more: Any) -> Basic.Properties:
    message = Message(b"", headers=headers, message_id=uid, delivery_mode=2, app_id="qgstream", **more)
    return message.properties


def headers_bytes(properties: Basic.Properties) -> int:
    """Return the size of the frame with a message's properties and headers."""
    return len(ContentHeader(properties=properties).marshal()) + FRAME_BYTES


def _short(topic: str) -> str:
    """Cut a topic to the size limit of a routing key."""
    encoded = topic.encode()
    return topic if len(encoded) <= MAX_SHORT_BYTES else encoded[:MAX_SHORT_BYTES].decode(errors="ignore")


def parse(message: DeliveredMessage, *, users: Collection[str], max_event_bytes: int, now: float) -> Entry:
    """Parse a message of the stream.

    Slips count only if they come from one of the servers' `users`; `max_event_bytes` limits all other messages. Raises
    `NoStream` for a message that is not from a stream, and nothing else for any content.
    """
    properties = message.header.properties
    headers: Mapping[str, Any] = properties.headers or {}
    offset = headers.get(OFFSET)
    if not isinstance(offset, int):
        raise NoStream(f"got a message with the header {OFFSET} = {offset!r}, expected a message of a stream")
    slip = Slip.find(headers)
    if slip is not None and properties.user_id not in users:
        if slip.kind != "event":
            return Entry(
                offset + 1, problem=f"got a mark of the user {properties.user_id!r}, expected {_any_of(users)}"
            )
        slip = None  # the message still counts as an event
    if slip is not None and slip.kind != "event":
        return Entry(offset + 1, slip=slip)
    try:
        at = _said_time(properties, now) if slip is None else _bounded(slip.at, now)
        if slip is None and len(message.body) > max_event_bytes:
            raise TooLarge("data", len(message.body), max_event_bytes)
        publication = received(
            _topics(message.routing_key or "", headers.get(TOPICS)),
            message.body,
            is_json=_is_json(properties.content_type),
            event=_event(headers, properties.message_type),
            retry_ms=headers.get(RETRY),
            private=_is_private(headers),
            offset=offset + 1,
            published_at=now if at is None else at,
        )
        key = _key(headers)
        if key is not None and slip is None:
            # The user separates the keys of AMQP publishers, if a message states its user: RabbitMQ rejects a message
            # whose user is not the user of its connection.
            key = scoped(namespace("amqp", properties.user_id or ""), key)
    except (InvalidField, TooLarge) as error:
        return Entry(offset + 1, problem=str(error), slip=slip)
    except Exception as error:  # noqa: BLE001  # a gap in these functions must not keep readers from what follows
        return Entry(offset + 1, problem=f"{type(error).__name__}: {error}", slip=slip)
    return Entry(offset + 1, publication, slip=slip, key=key, at=at)


def _said_time(properties: Basic.Properties, now: float) -> float | None:
    stamp = properties.timestamp
    if not isinstance(stamp, datetime):
        return None
    return _bounded((stamp if stamp.tzinfo is not None else stamp.replace(tzinfo=UTC)).timestamp(), now)


def _bounded(at: float | None, now: float) -> float | None:
    return at if at is not None and at <= now else None  # one of the clocks is wrong


def _is_json(content_type: str | None) -> bool:
    kind = (content_type or "").partition(";")[0].strip().lower()
    return kind == JSON or kind.endswith("+json")


def _topics(routing_key: str, listed: object) -> Sequence[str]:
    if listed is None:
        return [routing_key]
    try:
        topics = json.loads(listed) if isinstance(listed, str) else None
    except (ValueError, RecursionError):
        topics = None
    # RabbitMQ's permissions apply to the routing key, so a header must not add a different first topic.
    if not isinstance(topics, list) or not topics or _short(check_name(topics[0])) != routing_key:
        raise InvalidField(TOPICS, f"got {str(listed)[:100]!r}, expected a JSON list that begins with the routing key")
    return topics


def _event(headers: Mapping[str, Any], message_type: str | None) -> str | None:
    event = headers.get(EVENT, message_type or None)
    if event is not None and not isinstance(event, str):
        raise InvalidField(EVENT, f"got {type(event).__name__}, expected a string")
    return event


def _is_private(headers: Mapping[str, Any]) -> bool:
    private = headers.get(PRIVATE, False)
    # Only booleans: a publisher that wrote "false" or 0 meant a value that the server must not guess.
    if not isinstance(private, bool):
        raise InvalidField(PRIVATE, f"got {str(private)[:100]!r}, expected a boolean")
    return private


def _any_of(users: Collection[str]) -> str:
    return f"one of {', '.join(sorted(users))} (broker.url: users)"


def _key(headers: Mapping[str, Any]) -> str | None:
    key = headers.get(KEY)
    if key is not None and (not isinstance(key, str) or not 0 < len(key) <= MAX_SHORT_BYTES + 1):
        raise InvalidField(KEY, f"got {str(key)[:100]!r}, expected a string of 1 to {MAX_SHORT_BYTES + 1} characters")
    return key
