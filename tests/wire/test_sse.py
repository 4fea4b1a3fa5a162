"""The event stream format, against a plain reading of WHATWG HTML 9.2."""

from __future__ import annotations

import itertools
import re
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qgstream.wire import sse
from qgstream.wire.sse import Event, Parser

# Everything that UTF-8 can carry, with the characters that matter at every other draw.
TEXT = st.text(st.one_of(st.sampled_from("\r\n:\0 \ufeff\u2028\x85adt"), st.characters(exclude_categories=["Cs"])))
LINE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


def by_the_standard(stream: bytes) -> list[Event]:
    """9.2.6, word for word and without a thought for speed or for parts."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = re.split("\r\n|\r|\n", text)
    events: list[Event] = []
    data = event = last_event_id = buffered_id = ""
    retry: int | None = None
    for line in lines[:-1]:  # what no line end follows is not a line yet
        if line == "":
            last_event_id = buffered_id
            if data != "":
                events.append(Event(data.removesuffix("\n"), event or "message", last_event_id, retry))
            data = event = ""
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                event = value
            elif field == "data":
                data += value + "\n"
            elif field == "id" and "\0" not in value:
                buffered_id = value
            elif field == "retry" and re.fullmatch("[0-9]+", value):
                retry = min(int(value), 10**15)
    return events


def parse_in_parts(stream: bytes, cuts: list[int]) -> list[Event]:
    parser, start = Parser(), 0
    events: list[Event] = []
    for cut in [*sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]:
        events += parser.feed(stream[start:cut])
        start = cut
    return events


@given(TEXT, st.none() | LINE, st.none() | LINE, st.none() | st.integers(0, 10**9), st.lists(st.integers(0, 10**6)))
def test_what_is_encoded_is_what_is_parsed(
    data: str, event: str | None, id: str | None, retry_ms: int | None, cuts: list[int]
) -> None:
    stream = sse.encode(data.encode(), event=event, id=id, retry_ms=retry_ms)
    normalised = re.sub("\r\n|\r", "\n", data)  # the format has one line end
    assert parse_in_parts(stream, cuts) == [Event(normalised, event or "message", id or "", retry_ms)]


FIELDS = st.sampled_from(["data", "event", "id", "retry", "", "Data", "data ", "\ufeffdata"])
BLOCKS = st.lists(
    st.tuples(FIELDS, st.sampled_from(["", ":", ": ", ":  "]), TEXT, st.sampled_from(["\n", "\r", "\r\n", "\n\n"]))
)


@given(BLOCKS, st.booleans(), st.lists(st.integers(0, 10**6)))
@example([("data", ":", "x", "\r"), ("", "", "", "\n"), ("data", ":", "y", "\n\n")], False, list(range(20)))
def test_any_stream_in_any_parts_reads_as_the_standard_says(
    blocks: list[tuple[str, str, str, str]], with_bom: bool, cuts: list[int]
) -> None:
    stream = ("\ufeff" * with_bom + "".join("".join(block) for block in blocks)).encode()
    assert parse_in_parts(stream, cuts) == by_the_standard(stream)


@given(st.binary(max_size=200), st.lists(st.integers(0, 300)))
def test_bytes_that_are_no_text_become_what_a_browser_shows(stream: bytes, cuts: list[int]) -> None:
    assert parse_in_parts(b"data: " + stream.replace(b"\r", b"").replace(b"\n", b"") + b"\n\n", cuts)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\ndata: b\n\n", [Event("a\nb")]),
        (b"data:\n\n", [Event("")]),
        (b"data\n\n", [Event("")]),
        (b"event: x\n\n", []),
        (b"data: cut off\n", []),
        (b"id: 1\n\ndata: x\n\n", [Event("x", id="1")]),
        (b"id: 1\ndata: x\n\nid\ndata: y\n\n", [Event("x", id="1"), Event("y")]),
        (b"id: a\0b\ndata: x\n\n", [Event("x")]),
        (b"retry: 10\n\ndata: x\n\n", [Event("x", retry_ms=10)]),
        (b"retry: 1_0\nretry: +1\nretry: \xd9\xa1\ndata: x\n\n", [Event("x")]),
        (b": comment\ndata: x\n\n", [Event("x")]),
        ("data: \u2028\x85\n\n".encode(), [Event("\u2028\x85")]),
    ],
)
def test_the_corners_of_the_format(stream: bytes, expected: list[Event]) -> None:
    assert list(Parser().feed(stream)) == expected
    assert by_the_standard(stream) == expected


def test_the_parser_keeps_what_the_next_connection_needs() -> None:
    parser = Parser(last_event_id="before")
    assert [event.id for event in parser.feed(b"data: x\n\n")] == ["before"]
    list(parser.feed(b"retry: 5\nid: after\n\n"))
    assert (parser.last_event_id, parser.retry_ms) == ("after", 5)


def test_an_id_counts_only_with_the_end_of_its_block() -> None:
    parser = Parser()
    list(parser.feed(b"id: 7\ndata: x\n"))
    assert parser.last_event_id == ""
    list(parser.feed(b"\n"))
    assert parser.last_event_id == "7"


def test_a_line_ends_with_its_cr() -> None:
    parser = Parser()
    assert list(parser.feed(b"data: x\r\n\r")) == [Event("x")]  # nothing is waited for
    assert list(parser.feed(b"")) == []
    assert list(parser.feed(b"\ndata: y\n")) == []  # the LF belongs to that CR
    assert list(parser.feed(b"\r")) == [Event("y")]
    assert list(parser.feed(b"data: z\n\n")) == [Event("z")]


def test_a_byte_order_mark_may_come_in_parts() -> None:
    for stream, expected in (
        (b"\xef\xbb\xbfdata: x\n\n", [Event("x")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: x\n\n", []),  # a second one is part of a field's name
        (b"\xef\xbbdata: x\n\n", []),
    ):
        for cut in range(len(stream)):
            assert parse_in_parts(stream, [cut]) == expected
            assert parse_in_parts(stream, list(range(len(stream)))) == expected


@pytest.mark.parametrize(
    ("digits", "retry_ms"),
    [("0", 0), ("007", 7), ("0" * 5000 + "5", 5), ("999999999999999", 999999999999999), ("9" * 5000, 10**15)],
)
def test_a_time_of_many_digits_is_a_long_one(digits: str, retry_ms: int) -> None:
    assert list(Parser().feed(f"retry: {digits}\ndata: x\n\n".encode())) == [Event("x", retry_ms=retry_ms)]


# What it costs.

ENDLESS = {
    "a line": b"data: " + b"x" * 100,
    "lines": b"data: x\n" * 100,
    "empty lines": b"data:\n" * 100,
    "empty lines without a colon": b"data\r" * 100,
    "a type": b"event: " + b"x" * 100,
    "types": b"event: x\n" * 100,
    "ids": b"id: x\n" * 100,
    "times": b"retry: 1\n" * 100,
    "unknown fields": b"x\n" * 100,
    "a comment": b":" + b"x" * 100,
    "comments in an event": b"data: x\n" + b":\n" * 100,
}


@pytest.mark.parametrize("stream", ENDLESS.values(), ids=ENDLESS)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_event_without_an_end_is_bounded(stream: bytes, size: int) -> None:
    parser = Parser(max_pending_bytes=50)
    pieces = iter([stream[start : start + size] for start in range(0, len(stream), size)])
    with pytest.raises(ValueError, match="expected at most 50 bytes"):
        list(itertools.chain.from_iterable(map(parser.feed, pieces)))
    assert len(stream) - sum(map(len, pieces)) <= max(size, 51 + size)


def test_comments_without_an_event_are_not_one() -> None:
    parser = Parser(max_pending_bytes=50)
    for _ in range(100):
        assert list(parser.feed(b": still here\n")) == []
    assert list(parser.feed(b"data: x\n\n")) == [Event("x")]


@given(BLOCKS, st.integers(0, 40), st.lists(st.integers(0, 10**6)))
@example([("data", ":", "12345", "\n"), ("", "", "", "\n")], 10, [11])  # the end of a line is not the next one
def test_the_bound_is_the_same_however_the_stream_is_cut(
    blocks: list[tuple[str, str, str, str]], bound: int, cuts: list[int]
) -> None:
    stream = "".join("".join(block) for block in blocks).encode()

    def read(cuts: list[int]) -> tuple[list[Event], bool]:
        parser, start = Parser(max_pending_bytes=bound), 0
        events: list[Event] = []
        try:
            for cut in [*sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]:
                for event in parser.feed(stream[start:cut]):
                    events.append(event)  # noqa: PERF402  # those before an error count
                start = cut
        except ValueError:
            return events, True
        return events, False

    assert read(cuts) == read([])


class Counted:
    """The pattern of line ends, which counts the bytes that it looks through."""

    def __init__(self) -> None:
        self.looked_at = 0

    def finditer(self, text: bytes, start: int = 0) -> Iterator[re.Match[bytes]]:
        self.looked_at += len(text) - start
        return re.compile(rb"\r\n|\r|\n").finditer(text, start)


@pytest.mark.parametrize("size", [1, 100, 4096])
@pytest.mark.parametrize("stream", [b"data: " + b"x" * 50_000 + b"\n\n", b"data: x\r\n\r\n" * 5000, b"data:\n" * 8000])
def test_each_byte_is_looked_at_once(stream: bytes, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted()
    monkeypatch.setattr(sse, "_END_OF_LINE", counted)
    parser = Parser()
    for start in range(0, len(stream), size):
        list(parser.feed(stream[start : start + size]))
    assert counted.looked_at <= len(stream)


@pytest.mark.parametrize("stream", [b"data:\n" * 100_000, b"data: ab\n" * 50_000, b"data: " + b"x" * 500_000])
def test_what_is_kept_of_an_event_is_no_more_than_what_came(stream: bytes) -> None:
    parser = Parser()
    tracemalloc.start()
    try:
        for start in range(0, len(stream), 16):
            list(parser.feed(stream[start : start + 16]))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < len(stream) * 1.5 + 100_000  # and there is no second copy beside it


def test_a_comment_fires_nothing_and_moves_the_position() -> None:
    parser = Parser()
    assert list(parser.feed(sse.comment("heartbeat"))) == []
    assert parser.last_event_id == ""
    assert list(parser.feed(sse.comment("heartbeat", id="e-3"))) == []
    assert parser.last_event_id == "e-3"


@given(st.binary(min_size=1, max_size=100_000))
def test_a_chunk_says_its_length_in_hexadecimal(payload: bytes) -> None:
    size, _, rest = sse.chunk(payload).partition(b"\r\n")
    assert int(size, 16) == len(payload)
    assert rest == payload + b"\r\n"
