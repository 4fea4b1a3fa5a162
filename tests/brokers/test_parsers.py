"""What takes engines' entries apart returns what a stream can carry, or raises `InvalidField`, for any bytes.

What they raise beside that would end nothing (`skips.read`), and would still be a gap that somebody has to find.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.msg import Msg
from pamqp.commands import Basic

from qgstream.brokers.nats.client import Client
from qgstream.brokers.nats.messages import to_publication
from qgstream.brokers.rabbitmq.messages import parse
from qgstream.brokers.redis import broker as redis
from qgstream.brokers.sqlite import log as sqlite_log
from qgstream.errors import InvalidField
from qgstream.events.namespaces import APPLICATION
from qgstream.events.publication import Publication
from qgstream.events.subscription import Subscription
from qgstream.sources.base import Unpublishable, as_draft
from qgstream.sources.lines import Parse, event_of
from qgstream.wire.framing import Framing
from tests.brokers.test_rabbitmq_messages import delivered

NOW = 2e9
# Text as foreign programs write it: digits of other scripts, surrogates, control characters, and what looks like ours.
TEXTS = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=("Nd", "No", "Cc", "Cs", "Zs")), max_size=8),
    st.sampled_from(
        ["", "1", "0", "-1", "9" * 5000, "²", "٣", "1e9", "true", "no", "[", "[" * 5000, "a*", "%FF", "%00"]
    ),
    st.lists(st.one_of(st.text(max_size=5), st.integers(), st.none()), max_size=3).map(json.dumps),
    st.sampled_from(['["t"]', '["t", "\\ud800"]', f"[{'9' * 5000}]", "[" * 50_000, '{"t": 1}', "NaN", "\x00"]),
)
BYTES = st.one_of(
    st.binary(max_size=20), TEXTS.map(lambda text: text.encode(errors="surrogatepass")), st.just(b"\xff" * 300)
)


def check(publication: Publication) -> None:
    """A stream can carry it."""
    for framing, envelope in ((Framing.RAW, False), (Framing.RAW, True), (Framing.WEBSOCKET, False)):
        assert Subscription(framing=framing, envelope=envelope).frame(publication, "epoch", {})
    assert publication.topics
    json.dumps(publication.topics, ensure_ascii=False).encode()
    if publication.is_json:
        json.loads(publication.data, parse_int=str)


# Redis: names and values.

NAMES = st.sampled_from([b"topic", b"data", b"json", b"event", b"retry", b"private"])
FIELDS = st.lists(st.one_of(NAMES, BYTES), max_size=16)


@given(FIELDS, st.lists(st.tuples(NAMES, BYTES), max_size=8))
@example([], [(b"topic", b"t"), (b"data", b"x"), (b"retry", b"9" * 5000)])
@example([b"topic"], [])
def test_any_fields(flat: list[bytes], pairs: list[tuple[bytes, bytes]]) -> None:
    for fields in (flat, [part for pair in pairs for part in pair]):
        for more in ([], [b"topic", b"t", b"data", b"1"]):
            try:
                check(redis._publication(10**15, fields + more))
            except InvalidField:
                continue


# NATS: the protocol, subjects, headers.


@given(TEXTS, st.dictionaries(st.sampled_from(["Event", "content-type", "RETRY", "Private", "Topics"]), TEXTS), BYTES)
@example("t", {"Retry": "9" * 5000}, b"x")
@example("t", {"Topics": f"[{'9' * 5000}]"}, b"x")
def test_any_subject_and_headers(topic: str, headers: dict[str, str], data: bytes) -> None:
    for subject in (topic, f"log.{topic}", "log.t"):
        for body in (data, b"1"):
            try:
                check(to_publication("log", subject, headers, body, offset=1, published_at=NOW))
            except InvalidField:
                continue


SUBJECTS = st.binary(min_size=1, max_size=12).filter(lambda raw: not set(raw) & set(b" \t\r\n"))
HEADERS = st.one_of(st.none(), st.binary(max_size=30).map(lambda raw: b"NATS/1.0" + raw), st.just(b"NATS/1.0"))


@given(st.lists(st.tuples(SUBJECTS, HEADERS, BYTES), min_size=1, max_size=5), st.integers(1, 50))
@example([(b"\xff", None, b""), (b"t", b"NATS/1.0", b"x"), (b"a\x0bb", None, b"y" * 9000), (b"t", None, b"z")], 50)
@example([(b"a\x0b", b"NATS/1.0 \xff\r\n\r\n", b"")], 7)
def test_any_message_on_the_wire(messages: list[tuple[bytes, bytes | None, bytes]], step: int) -> None:
    """Each comes out, in order, and the next can still be read."""
    wire = b""
    for subject, headers, data in messages:
        place = b"$JS.ACK.s.c.1.1.1.1.0"
        if headers is None:
            wire += b"MSG %s 1 %s %d\r\n%s\r\n" % (subject, place, len(data), data)
        else:
            size = len(headers)
            wire += b"HMSG %s 1 %s %d %d\r\n%s%s\r\n" % (subject, place, size, size + len(data), headers, data)

    async def read() -> list[Msg]:
        client = Client()
        found: list[Msg] = []
        client._subs[1] = _Subscription(found)  # type: ignore[assignment]
        for start in range(0, len(wire), step * 100):
            await client._ps.parse(wire[start : start + step * 100])
        return found

    found = asyncio.run(read())
    assert [message.data for message in found] == [data for _, _, data in messages]
    for message in found:
        try:
            check(
                to_publication("log", f"log.{message.subject}", message.headers or {}, b"1", offset=1, published_at=NOW)
            )
        except InvalidField:
            continue


class _Subscription:
    """What the client knows of one."""

    def __init__(self, found: list[Msg]) -> None:
        self._received = self._max_msgs = self._pending_size = self._pending_bytes_limit = 0
        self._jsi = self._future = None
        self._pending_queue = self
        self.put_nowait = found.append


# RabbitMQ: properties, headers of any type, body.

VALUES: st.SearchStrategy[Any] = st.one_of(
    TEXTS, st.binary(max_size=20), st.integers(), st.booleans(), st.none(), st.floats(), st.decimals(),
    st.datetimes(), st.just(Decimal("1e6000")), st.lists(st.integers()),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
SLIPS = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["event", "is", "set", "end", "x"]), "uid": TEXTS},
        optional={"seen": st.integers(), "at": st.floats(), "epoch": TEXTS, "instead_of": TEXTS},
    ).map(json.dumps),
)
TABLES = st.fixed_dictionaries(
    {},
    optional={
        "event": VALUES, "retry": VALUES, "private": VALUES, "idempotency_key": VALUES, "topics": VALUES, "CC": VALUES,
        "qgstream": SLIPS,
    },
)  # fmt: skip


@given(TEXTS, TABLES, BYTES, TEXTS, TEXTS, st.one_of(st.none(), st.datetimes(), st.datetimes(timezones=st.just(UTC))))
@example("t", {"topics": '["\ud800"]'}, b"x", "", "", None)
@example("t", {"topics": '["\\ud800"]'}, b"x", "", "", None)
@example("t", {"qgstream": '{"kind": "event", "uid": "u", "at": 1e300}'}, b"x", "", "", None)
@example("t", {"qgstream": "\ud800"}, b"x", "", "", None)
@example("t", {"qgstream": '{"x": ' + "[" * 50_000}, b"x", "", "", None)
@example("t", {}, b"x", "", "", datetime.max)  # noqa: DTZ901
@example("t", {}, b"x", "", "", datetime.min)  # noqa: DTZ901
def test_any_properties(
    key: str, table: dict[str, Any], body: bytes, kind: str, content_type: str, stamp: datetime | None
) -> None:
    properties = Basic.Properties(
        message_type=kind, content_type=content_type, timestamp=stamp, headers=table, user_id="server"
    )
    for routing_key in (key, "t"):
        message = delivered(routing_key, properties, body)
        entry = parse(message, users={"server"}, max_event_bytes=1000, now=NOW)
        assert entry.position == 7
        assert entry.at is None or entry.at <= NOW
        assert not (entry.problem or "").partition(":")[0].endswith("Error"), entry.problem
        if entry.publication is not None:
            assert entry.publication.published_at <= NOW
            check(entry.publication)


# SQLite: any type in any column.

CELLS: st.SearchStrategy[Any] = st.one_of(st.none(), st.integers(), st.floats(allow_nan=False), TEXTS, BYTES)


@given(CELLS, CELLS, CELLS, CELLS, CELLS, CELLS, CELLS, st.integers(0, 127))
@example(1.0, f"[{'9' * 5000}]", None, None, 0, 0, b"x", 127)
def test_any_row(
    at: object, topics: object, event: object, retry: object, is_json: object, private: object, data: object, odd: int
) -> None:
    given = (at, topics, event, retry, is_json, private, data)
    good = (1.0, '["t"]', None, None, 0, 0, b"x")
    cells = [one if odd & 1 << n else other for n, (one, other) in enumerate(zip(given, good, strict=True))]
    try:
        check(sqlite_log._publication((7, *cells)))  # type: ignore[arg-type]
    except InvalidField:
        return


# Lines of files, programs and documents.


@given(st.one_of(BYTES, st.binary()), st.sampled_from(["text", "json", "event"]))
@example(b"9" * 5000, "json")
@example(b'{"data": 1, "retry": ' + b"9" * 5000 + b"}", "event")
@example(b'{"data": "\\ud800"}', "event")
@example(b'{"data": 1, "event": "\\ud800"}', "event")
@example(b"\x00", "text")
def test_any_line(line: bytes, kind: Parse) -> None:
    item = event_of(line, "t", None, kind)
    if isinstance(item, Unpublishable):
        return
    try:
        check(as_draft(item).publication(10**6, namespace=APPLICATION))
    except InvalidField:
        return


@pytest.mark.parametrize("retry", ["9" * 5000, "²", "٣", "1_0", " 1", "+1"])
def test_milliseconds_are_ascii_digits(retry: str) -> None:
    with pytest.raises(InvalidField, match="retry: got"):
        redis._publication(10**15, [b"topic", b"t", b"data", b"x", b"retry", retry.encode()])
    with pytest.raises(InvalidField, match=r"(?i)retry: got"):
        to_publication("log", "log.t", {"Retry": retry}, b"x", offset=1, published_at=NOW)
