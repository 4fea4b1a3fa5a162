"""A draft: checks an event once, where it enters the server, and makes a publication of it. Pure.

A checked publication cannot fail later: its size is within the limit, it can be encoded, and it injects no fields.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Sized

import msgspec

from qgstream.errors import BadRequest, InvalidField, TooLarge
from qgstream.events.namespaces import APPLICATION, scoped
from qgstream.events.publication import Publication
from qgstream.events.topics import check_name, check_text
from qgstream.suggestions import did_you_mean

MAX_TOPICS_PER_EVENT = 64
# A batch goes into the log in one piece: 8 MiB of the smallest events are 300 000, which held the loop for nine
# seconds.
MAX_EVENTS_PER_BATCH = 10_000
# How much of a batch is parsed between two looks at the clock, which takes about a millisecond. Each event counts as
# `_EVENT_COSTS_BYTES` more bytes, so that this is right for small events and for events with 64 topics.
BYTES_PER_LOOK = 8 * 1024
_EVENT_COSTS_BYTES = 512
# JSON may write any character as `\uXXXX`, which is the first number. The second number is enough for the other fields
# of an event (64 topics of 256 characters, each written as two `\uXXXX`). The server refuses a longer object without
# parsing it: 8 MiB take 0.3 s.
_ESCAPED_BYTES = 6
_MAX_FIELDS_BYTES = 256 * 1024
MAX_RETRY_MS = 24 * 3600 * 1000

# RFC 8259, 8.1: parsers "MAY ignore the presence of a byte order mark rather than treating it as an error". Editors and
# programs on Windows write one.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_encode_json = msgspec.json.Encoder().encode


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON object of one event. `data` stays as the publisher wrote it, so no number loses a digit."""

    topic: str | list[str]
    data: msgspec.Raw
    event: str | None = None
    retry: int | float | None = None
    private: bool = False
    idempotency_key: str | None = None


_decoder = msgspec.json.Decoder(Body)
_check_json = msgspec.json.Decoder(msgspec.Raw).decode
_decode_string = msgspec.json.Decoder(str).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# How msgspec names the place of an error: "... - at `$.topic[1]`" in one object, "`$[3].topic`" in the fourth line of a
# batch.
_WHERE = re.compile(r" - at `\$(?:\[(\d+)\])?\.?(\w+)?[^`]*`$")
_FIELD = re.compile(r"(?s)field `(.+)`")
_UNKNOWN_FIELD = "Object contains unknown field"
# Matches up to the first escaped lone surrogate. Passes text, surrogate pairs and all other escapes.
_TO_LONE_SURROGATE = re.compile(
    rb"(?s)(?:[^\\]++|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\(?!u[dD][89a-fA-F]).)*+(?=\\u[dD][89a-fA-F])"
)
# Matches a lone surrogate anywhere, and also text behind an escaped backslash that looks like one. To replace such text
# does no harm.
_LONE_SURROGATE = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|[c-fC-F][0-9a-fA-F]{2}(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
)
# Replaces a lone surrogate during the search for its field. No JSON encoder writes it with these capitals.
_MARK = rb"\uFfFd"
# A line of a batch that is not blank, without leading whitespace.
_LINE = re.compile(rb"\S[^\n]*")


def draft(
    topic: object,
    data: object,
    *,
    event: object = None,
    retry_ms: object = None,
    private: bool = False,
    idempotency_key: object = None,
    namespace: bytes = APPLICATION,
    max_event_bytes: int,
) -> Publication:
    """Make a publication of Python values.

    A string is sent unchanged, any other value as JSON. `namespace` is the publisher's (see `namespaces`).
    """
    encoded = _utf8("data", data) if isinstance(data, str) else _json(data)
    return _checked(
        topic, encoded, not isinstance(data, str), event, retry_ms, private, idempotency_key, max_event_bytes,
        namespace=namespace,
    )  # fmt: skip


def received(
    topics: Iterable[str],
    data: bytes,
    *,
    is_json: bool = False,
    event: str | None = None,
    retry_ms: int | None = None,
    private: bool = False,
    offset: int,
    published_at: float,
) -> Publication:
    """Make a publication of an entry in an engine's log, which other programs may have written.

    The bytes are sent unchanged, and checked to be JSON if `is_json` is true. Raises `InvalidField` for an entry that
    no stream can carry.
    """
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise InvalidField("data", f"got byte 0x{data[error.start]:02x} at {error.start}, expected UTF-8") from error
    if is_json:
        data = data.removeprefix(BYTE_ORDER_MARK)
        try:
            _check_json(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidField("data", f"not JSON: {error}") from error
        if b"\n" in data or b"\r" in data:
            data = data.replace(b"\n", b" ").replace(b"\r", b" ")  # only between tokens: see `_publication`
    publication = _checked(tuple(topics), data, is_json, event, retry_ms, private, None, len(data))
    publication.offset, publication.published_at = offset, published_at
    return publication


def parse_json(body: bytes, max_event_bytes: int, *, namespace: bytes) -> Publication:
    """Parse one event as a JSON object, from the publisher of this namespace.

    Raises `BadRequest` or `TooLarge`, which name the field.
    """
    return _parse(body.removeprefix(BYTE_ORDER_MARK), max_event_bytes, namespace)


def parse_ndjson(body: bytes, max_event_bytes: int, *, namespace: bytes) -> Generator[None, None, list[Publication]]:
    """Parse a batch from the publisher of this namespace: one JSON object for each line. Blank lines are skipped.

    A job for `Slices.result`. Its errors name the line (the first is 1) and the field.
    """
    publications: list[Publication] = []
    number, end, cost = 1, 0, 0
    start = len(BYTE_ORDER_MARK) if body.startswith(BYTE_ORDER_MARK) else 0
    for match in _LINE.finditer(body, start):
        number += body.count(b"\n", end, match.start())
        end = match.end()
        if len(publications) == MAX_EVENTS_PER_BATCH:
            raise BadRequest(
                f"got more than {MAX_EVENTS_PER_BATCH} events, expected at most {MAX_EVENTS_PER_BATCH} in a batch",
                code="too_many_events",
            )
        try:
            publications.append(_parse(match[0], max_event_bytes, namespace))
        except (BadRequest, TooLarge) as error:
            error.args = (f"line {number}: {error}",)
            raise
        cost += len(match[0]) + _EVENT_COSTS_BYTES
        if cost >= BYTES_PER_LOOK:
            cost = 0
            yield
    if not publications:
        raise BadRequest("got no event, expected at least one JSON object", code="empty_body")
    return publications


def _parse(text: bytes, max_event_bytes: int, namespace: bytes) -> Publication:
    max_bytes = _ESCAPED_BYTES * max_event_bytes + _MAX_FIELDS_BYTES
    if len(text) > max_bytes:
        raise TooLarge("the JSON of an event", len(text), max_bytes)
    _check_utf8(text)
    try:
        return _publication(_decoder.decode(text), max_event_bytes, namespace)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _bad_json(error, text) from error


def _publication(body: Body, max_event_bytes: int, namespace: bytes) -> Publication:
    raw = bytes(body.data)
    is_json = not raw.startswith(b'"')
    if is_json:
        # Line ends in valid JSON are only between tokens; inside strings they are escaped.
        data = raw.replace(b"\n", b" ").replace(b"\r", b" ") if b"\n" in raw or b"\r" in raw else raw
    else:
        data = _utf8("data", _decode_string(raw))
    retry = body.retry
    if isinstance(retry, float) and retry.is_integer():
        retry = int(retry)  # in JSON, 3000.0 and 3000 are the same number
    return _checked(
        topic=body.topic,
        data=data,
        is_json=is_json,
        event=body.event,
        retry_ms=retry,
        private=body.private,
        key=body.idempotency_key,
        limit=max_event_bytes,
        namespace=namespace,
    )


def _json(data: object) -> bytes:
    try:
        return _encode_json(data)
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise InvalidField(
            "data", f"got {type(data).__name__}, expected a value that JSON can represent: {error}"
        ) from error


def _checked(
    topic: object, data: bytes, is_json: bool, event: object, retry_ms: object, private: bool, key: object, limit: int,
    *, namespace: bytes = b"",
) -> Publication:  # fmt: skip
    if isinstance(topic, str):
        topics: tuple[str, ...] = (check_name(topic),)
    elif isinstance(topic, Iterable):
        if isinstance(topic, Sized) and len(topic) > MAX_TOPICS_PER_EVENT:  # before a list of two million names is read
            raise InvalidField("topic", f"got {len(topic)} names, expected 1 to {MAX_TOPICS_PER_EVENT}")
        topics = tuple(dict.fromkeys(check_name(name) for name in topic))
        if not 0 < len(topics) <= MAX_TOPICS_PER_EVENT:
            raise InvalidField("topic", f"got {len(topics)} names, expected 1 to {MAX_TOPICS_PER_EVENT}")
    else:
        raise InvalidField("topic", f"got {type(topic).__name__}, expected a name or a list of names")
    if len(data) > limit:
        raise TooLarge("data", len(data), limit)
    if retry_ms is not None and (type(retry_ms) is not int or not 0 <= retry_ms <= MAX_RETRY_MS):
        raise InvalidField("retry", f"got {retry_ms!r}, expected milliseconds from 0 to {MAX_RETRY_MS}")
    return Publication(
        topics,
        data,
        is_json=is_json,
        event=None if event is None else check_text("event", event),
        retry_ms=retry_ms,
        private=private,
        idempotency_key=None if key is None else scoped(namespace, check_text("idempotency_key", key)),
    )


def _utf8(field: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        bad = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise InvalidField(field, f"got the lone surrogate {bad}, expected Unicode text") from error


def _check_utf8(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"got byte 0x{body[error.start]:02x} at {error.start}, expected UTF-8", code="invalid_encoding"
        ) from error


def _find_surrogate(text: bytes) -> str | None:
    """Return the field with an escaped lone surrogate. msgspec only says that such JSON is malformed or truncated."""
    # json.loads would take 0.3 s for an event at the default limits, because it makes an object of everything.
    before = _TO_LONE_SURROGATE.match(text)
    if before is None:
        return None
    marked = before[0] + _MARK + text[before.end() + len(_MARK) :]
    try:
        fields = _decode_fields(_LONE_SURROGATE.sub(rb"\\ufffd", marked))
    except (msgspec.DecodeError, RecursionError):
        return None
    return next((name for name, value in fields.items() if _MARK in bytes(value)), None)


def _bad_json(error: Exception, body: bytes) -> BadRequest:
    if isinstance(error, RecursionError):
        return BadRequest("data: nested too deeply", field="data", code="invalid_json")
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        field = _find_surrogate(body)
        if field is not None:
            return InvalidField(field, "got a lone surrogate, expected Unicode text")
        return BadRequest(f"not JSON: {text}", code="invalid_json")
    where, sentence = _WHERE.search(text), _WHERE.sub("", text)
    named = _FIELD.search(sentence)
    field = where[2] if where else named[1][:100] if named else None  # an unknown name may be of any length
    sentence = sentence[:300]
    if named and text.startswith(_UNKNOWN_FIELD):
        known = Body.__struct_fields__
        sentence = "unknown field" + (did_you_mean(named[1], known) or f", expected one of {', '.join(known)}")
    return InvalidField(field, sentence) if field else BadRequest(sentence, code="invalid_field")
