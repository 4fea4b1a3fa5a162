from __future__ import annotations

from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.sources.base import Unpublishable, as_draft
from qgstream.sources.lines import MAX_LINE_BYTES, LineSplitter, Parse, event_of

LIMIT = 1 << 20


@hypothesis.settings(max_examples=50)
@given(st.lists(st.sampled_from([b"", b"a", b"bb", b"a\rb", "ü".encode(), b"\xff"])), st.data())
def test_lines_are_the_same_however_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(line + data.draw(st.sampled_from([b"\n", b"\r\n"])) for line in lines) + b"rest"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    splitter = LineSplitter()
    parts = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    found = [line for part in parts for line in splitter.feed(part)]
    assert found == lines
    assert splitter.rest() == [b"rest"]
    assert splitter.rest() == []


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_a_line_that_is_too_long_is_passed_over_once(size: int) -> None:
    text = b"good\n" + b"x" * 50 + b"\nbetter\nexactlyten\n" + b"y" * 11 + b"\n"
    splitter = LineSplitter(max_bytes=10)
    found = [line for start in range(0, len(text), size) for line in splitter.feed(text[start : start + size])]
    assert found == [b"good", None, b"better", b"exactlyten", None]


class Part(bytes):
    """Bytes that count what is copied to put them behind others."""

    copied = 0

    def split(self, *args: Any, **kwargs: Any) -> list[bytes]:
        return list(map(Part, super().split(*args, **kwargs)))

    def __radd__(self, other: Any) -> Any:
        if isinstance(other, bytearray):
            other.extend(self)  # in place, as a bytearray does it
            return other
        Part.copied += len(other)
        return Part(bytes(other) + bytes(self))


def test_a_line_in_many_parts_is_not_copied_for_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Part, "copied", 0)
    splitter = LineSplitter()
    for _ in range(1000):
        assert splitter.feed(Part(b"x" * 100)) == []
    assert splitter.feed(Part(b"\nrest")) == [b"x" * 100_000]
    assert splitter.rest() == [b"rest"]
    assert Part.copied <= 100_000


def data(line: bytes | None, parse: Parse, **fields: str | None) -> tuple[object, ...]:
    publication = as_draft(event_of(line, "t", fields.get("event"), parse)).publication(LIMIT, namespace=b"")
    return publication.topics, publication.data, publication.is_json, publication.event


@pytest.mark.parametrize(
    ("line", "parse", "expected"),
    [
        (b" two  words ", "text", (("t",), b" two  words ", False, None)),
        (b"\xff\xfe", "text", (("t",), "\ufffd\ufffd".encode(), False, None)),
        (b"", "text", (("t",), b"", False, None)),
        (b'{"n": 12345678901234567890.10}', "json", (("t",), b'{"n": 12345678901234567890.10}', True, None)),
        (b' "a \\"string\\"" ', "json", (("t",), b'a "string"', False, None)),
        (b"[1]", "json", (("t",), b"[1]", True, None)),
        (b"\xef\xbb\xbf[1]", "json", (("t",), b"[1]", True, None)),  # a byte order mark
        (b'\xef\xbb\xbf{"data": 1}', "event", (("t",), b"1", True, None)),
        (b"\xef\xbb\xbftext", "text", (("t",), b"\xef\xbb\xbftext", False, None)),
        (b'{"data": 1.50}', "event", (("t",), b"1.50", True, None)),
        (b'{"topic": ["a", "b"], "data": "x", "event": "e", "retry": 5}', "event", (("a", "b"), b"x", False, "e")),
    ],
)
def test_what_is_published_for_a_line(line: bytes, parse: Parse, expected: tuple[object, ...]) -> None:
    assert data(line, parse) == expected


def test_the_type_is_that_of_the_options_unless_the_line_says_another() -> None:
    assert data(b"1", "json", event="o")[-1] == "o"
    assert data(b'{"data": 1}', "event", event="o")[-1] == "o"
    assert data(b'{"data": 1, "event": null}', "event", event="o")[-1] is None


@pytest.mark.parametrize(
    ("line", "parse", "said"),
    [
        (None, "text", f"got a line of more than {MAX_LINE_BYTES} bytes"),
        (b"{", "json", "got a line that is not JSON: "),
        (b"", "json", "got a line that is not JSON: "),
        (b'"\xff"', "json", "got a line that is not JSON: 'utf-8' codec"),
        (b'{"n": "\xff"}', "json", "got a line that is not JSON: 'utf-8' codec"),
        (b'{"data": {"n": "\xff"}}', "event", "got a line that is not a JSON object: 'utf-8' codec"),
        (b"[" * 100_000 + b"]" * 100_000, "json", "got a line that is not JSON: "),
        (b"5", "event", "got a line that is not a JSON object: "),
        (b'{"data": }', "event", "got a line that is not a JSON object: "),
    ],
)
def test_what_is_refused(line: bytes | None, parse: Parse, said: str) -> None:
    refused = event_of(line, "t", None, parse)
    assert isinstance(refused, Unpublishable)
    assert refused.reason.startswith(said)
