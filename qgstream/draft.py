"""A draft: what somebody wants to publish, checked once, where it comes in. Pure.

After this nothing can go wrong with a publication any more: it fits, it encodes, and it injects nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import msgspec

from qgstream.errors import BadRequest, InvalidField, TooLarge
from qgstream.namespaces import APPLICATION, scoped
from qgstream.publication import Publication
from qgstream.topics import check_name, check_text

MAX_TOPICS_PER_EVENT = 64
# A batch goes into the log in one piece, at about 30 us an event, and nothing else runs meanwhile: 8 MiB of the
# smallest events are 300 000, which held the loop for nine seconds.
MAX_EVENTS_PER_BATCH = 10_000
MAX_RETRY_MS = 24 * 3600 * 1000

# RFC 8259, 8.1: parsers "MAY ignore the presence of a byte order mark rather than treating it as an error". Editors and
# programs on Windows write one.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_encode_json = msgspec.json.Encoder().encode


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON of one published event. `data` stays as it was written: no number loses a digit."""

    topic: str | list[str]
    data: msgspec.Raw
    event: str | None = None
    retry: int | float | None = None
    private: bool = False
    idempotency_key: str | None = None


_decoder = msgspec.json.Decoder(Body)
_check_json = msgspec.json.Decoder(msgspec.Raw).decode
_decode_string = msgspec.json.Decoder(str).decode
# msgspec's words for where: "... - at `$.topic[1]`" in one object, "`$[3].topic`" in the fourth line of a batch.
_WHERE = re.compile(r" - at `\$(?:\[(\d+)\])?\.?(\w+)?[^`]*`$")
_FIELD = re.compile(r"field `(\w+)`")
_ESCAPED_SURROGATE = re.compile(rb"(?i)\\ud[89a-f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


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
    """A publication of Python values: a string is sent as it is, anything else as JSON. `namespace` is that of the
    publisher (see `namespaces`)."""
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
    """A publication of what lies in an engine's log, where anybody may have written it: bytes that are sent as they
    are, JSON when they are said to be. Raises `InvalidField` for what no stream can carry."""
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
            data = data.replace(b"\n", b" ").replace(b"\r", b" ")  # only between tokens, see below
    publication = _checked(tuple(topics), data, is_json, event, retry_ms, private, None, len(data))
    publication.offset, publication.published_at = offset, published_at
    return publication


def parse_json(body: bytes, max_event_bytes: int, *, namespace: bytes) -> Publication:
    """One event as a JSON object, from the publisher of this namespace; raises `BadRequest` or `TooLarge` that name the
    field."""
    _check_utf8(body)
    body = body.removeprefix(BYTE_ORDER_MARK)
    try:
        return _publication(_decoder.decode(body), max_event_bytes, namespace)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _bad_json(error, body) from error


def parse_ndjson(body: bytes, max_event_bytes: int, *, namespace: bytes) -> list[Publication]:
    """A batch from the publisher of this namespace, one JSON object a line; blank lines are skipped. Errors name the
    line (from 1) and the field."""
    _check_utf8(body)
    body = body.removeprefix(BYTE_ORDER_MARK)
    try:
        parsed = _decoder.decode_lines(body)
    except (msgspec.DecodeError, RecursionError) as error:
        _find_bad_line(body, max_event_bytes)
        raise _bad_json(error, body) from error
    if len(parsed) > MAX_EVENTS_PER_BATCH:
        raise BadRequest(
            f"got {len(parsed)} events, expected at most {MAX_EVENTS_PER_BATCH} at once", code="too_many_events"
        )
    publications = []
    for number, event in enumerate(parsed, 1):
        try:
            publications.append(_publication(event, max_event_bytes, namespace))
        except (BadRequest, TooLarge) as error:
            error.args = (f"event {number}: {error}",)
            raise
    if not publications:
        raise BadRequest("got no event, expected at least one JSON object", code="empty_body")
    return publications


def _find_bad_line(body: bytes, max_event_bytes: int) -> None:
    for number, line in enumerate(body.split(b"\n"), 1):
        if line.strip():
            try:
                parse_json(line, max_event_bytes, namespace=b"")
            except (BadRequest, TooLarge) as error:
                error.args = (f"line {number}: {error}",)
                raise


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
        retry = int(retry)  # JSON does not tell 3000.0 from 3000
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
        raise InvalidField("data", f"got {type(data).__name__}, expected what JSON can hold: {error}") from error


def _checked(
    topic: object, data: bytes, is_json: bool, event: object, retry_ms: object, private: bool, key: object, limit: int,
    *, namespace: bytes = b"",
) -> Publication:  # fmt: skip
    if isinstance(topic, str):
        topics: tuple[str, ...] = (check_name(topic),)
    elif isinstance(topic, Iterable):
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


def _find_surrogate(body: bytes) -> str | None:
    """The field with an escaped lone surrogate. msgspec says of one only that the JSON is malformed or cut off."""
    if _ESCAPED_SURROGATE.search(body) is None:
        return None
    try:
        parsed = json.loads(body)
        fields = parsed.items() if isinstance(parsed, dict) else ()
        return next((name for name, value in fields if _SURROGATE.search(json.dumps(value, ensure_ascii=False))), None)
    except (ValueError, RecursionError):
        return None


def _bad_json(error: Exception, body: bytes) -> BadRequest:
    if isinstance(error, RecursionError):
        return BadRequest("data: nested too deeply", field="data", code="invalid_json")
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        field = _find_surrogate(body)
        if field is not None:
            return InvalidField(field, "got a lone surrogate, expected Unicode text")
        return BadRequest(f"not JSON: {text}", code="invalid_json")
    where, named = _WHERE.search(text), _FIELD.search(text)
    field = where[2] if where else named[1][:100] if named else None  # an unknown name may be of any length
    sentence = _WHERE.sub("", text)[:300]
    return InvalidField(field, sentence) if field else BadRequest(sentence, code="invalid_field")
