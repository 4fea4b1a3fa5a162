"""Converts an event to a NATS message and back: topics to subjects, the rest to headers. Pure.

Any client may write messages: `nats pub qgstream.orders '{"order": 7}'` is an event of the topic `orders`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

from qgstream.errors import InvalidField
from qgstream.events.draft import received
from qgstream.events.publication import Publication

# The headers of this server's messages, all of them optional. Header values are ASCII: see `_quoted`.
EVENT = "Event"
CONTENT_TYPE = "Content-Type"
RETRY = "Retry"
PRIVATE = "Private"
TOPICS = "Topics"
# A header of JetStream: it does not store a message whose id it has seen within the stream's duplicate window.
MESSAGE_ID = "Nats-Msg-Id"

JSON = "application/json"
# Replaces headers that cannot be parsed.
UNREADABLE = "qgstream-unreadable"
# The values of a boolean header.
_YES = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
# A subject consists of words with dots between them. A word is neither empty nor a wildcard, and white space ends a
# subject.
_NO_SUBJECT = re.compile(r"[ \t\r\n%*>]|^\.|\.(?=\.)|\.$")


def to_subject(prefix: str, topic: str) -> str:
    """Return the subject of a topic, below the stream's prefix.

    Characters that a subject cannot contain are percent-encoded: spaces, `*`, `>`, `%`, and dots without a word before
    or after them. All other characters are unchanged.
    """
    return f"{prefix}.{_NO_SUBJECT.sub(lambda found: f'%{ord(found[0]):02X}', topic)}"


def to_topic(prefix: str, subject: str) -> str:
    """Return the topic of a subject. Raises `InvalidField` for a subject that is not below the prefix or not UTF-8."""
    head, _, tail = subject.partition(f"{prefix}.")
    if head or not tail:
        raise InvalidField("subject", f"got {subject!r}, expected {prefix}.<topic>")
    try:
        return unquote(tail, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidField("subject", f"got {subject!r}, expected percent-encoded UTF-8") from error


def to_headers(publication: Publication) -> dict[str, str]:
    """Return the headers for everything in a publication except its data and its first topic."""
    headers: dict[str, str] = {}
    if publication.is_json:
        headers[CONTENT_TYPE] = JSON
    if publication.event is not None:
        headers[EVENT] = _quoted(publication.event)
    if publication.retry_ms is not None:
        headers[RETRY] = str(publication.retry_ms)
    if publication.private:
        headers[PRIVATE] = "true"
    if len(publication.topics) > 1:
        headers[TOPICS] = json.dumps(publication.topics)
    if publication.idempotency_key is not None:
        headers[MESSAGE_ID] = _quoted(publication.idempotency_key)
    return headers


def size_bytes(subject: str, headers: Mapping[str, str], data: bytes) -> int:
    """Return the size of a message as the server counts it, or slightly more."""
    return len(subject.encode()) + sum(len(name) + len(value) + 4 for name, value in headers.items()) + len(data) + 32


def headers_bytes(headers: Mapping[str, str]) -> int:
    """Return the size of a message's headers on the wire."""
    return len("NATS/1.0\r\n\r\n") + sum(len(name) + len(value.encode()) + 4 for name, value in headers.items())


def to_publication(
    prefix: str, subject: str, headers: Mapping[str, str], data: bytes, *, offset: int, published_at: float
) -> Publication:
    """Return the publication in a message. Raises `InvalidField` if the message is not a publication."""
    if UNREADABLE in headers:
        raise InvalidField("headers", f"got headers that cannot be parsed:  {headers[UNREADABLE]}")
    given = {name.lower(): value for name, value in headers.items()}
    content_type = given.get(CONTENT_TYPE.lower(), "").partition(";")[0].strip().lower()
    event = given.get(EVENT.lower())
    return received(
        _topics(prefix, subject, given.get(TOPICS.lower())),
        data,
        is_json=content_type == JSON,
        event=None if event is None else _unquoted(EVENT, event),
        retry_ms=_retry_ms(given.get(RETRY.lower())),
        private=_is_private(given.get(PRIVATE.lower(), "")),
        offset=offset,
        published_at=published_at,
    )


def _topics(prefix: str, subject: str, listed: str | None) -> list[str]:
    topic = to_topic(prefix, subject)
    if listed is None:
        return [topic]
    try:
        topics = json.loads(listed)
    except (ValueError, RecursionError) as error:
        raise InvalidField(TOPICS, f"got {listed[:100]!r}, expected a JSON list of names") from error
    # NATS checks permissions on the subject, so a header must not replace the subject's topic.
    if not isinstance(topics, list) or topic not in topics:
        raise InvalidField(TOPICS, f"got {listed[:100]!r}, expected a JSON list of names with the subject's topic")
    return topics


def _is_private(value: str) -> bool:
    # An unknown value must not make an event public.
    if value.strip().lower() not in _YES:
        raise InvalidField(PRIVATE, f"got {value[:100]!r}, expected true or false")
    return _YES[value.strip().lower()]


def _retry_ms(value: str | None) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit()):
        raise InvalidField(RETRY, f"got {value[:100]!r}, expected milliseconds")
    return int(value[:12])


def _quoted(value: str) -> str:
    """Encode a header value. NATS removes white space at its ends, and does not define its encoding."""
    return quote(value, safe=_SAFE)


def _unquoted(name: str, value: str) -> str:
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidField(name, f"got {value[:100]!r}, expected percent-encoded UTF-8") from error
