"""Lines for `qgstream publish`, as the pieces of a file come."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.cli import _lines


class Part(bytes):
    """Bytes that count what is copied to put them behind others."""

    copied = 0

    def __radd__(self, other: bytes) -> bytes:
        Part.copied += len(other)
        return bytes(other) + bytes(self)


class Pieces(BytesIO):
    """A file that gives a few bytes at a time."""

    size = 1

    def read(self, _size: int | None = -1) -> bytes:
        return Part(super().read(self.size))


def lines(content: bytes, size: int) -> list[tuple[int, str]]:
    def open_pieces(*_: Any, **__: Any) -> Pieces:
        file = Pieces(content)
        file.size = size
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_lines, "open", open_pieces, raising=False)
        return [(line.number, line.text) for some in _lines._lines_of("file") for line in some]


@given(st.lists(st.sampled_from(["", " ", "a", "ü", "\r", "\n", "\r\n", "\u2028"])).map("".join), st.integers(1, 9))
def test_lines_are_the_same_however_a_file_is_read(text: str, size: int) -> None:
    expected = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1)]
    assert lines(text.encode(), size) == [(number, line) for number, line in expected if line.strip()]


def test_a_long_line_is_not_copied_for_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Part, "copied", 0)
    assert lines(b"x" * 100_000 + b"\ny", 100) == [(1, "x" * 100_000), (2, "y")]
    assert Part.copied <= 100_000


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_line_is_too_long_however_its_end_comes(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lines, "MAX_LINE_BYTES", 10)
    assert lines(b"1234567890\n1234567890", size) == [(1, "1234567890"), (2, "1234567890")]
    with pytest.raises(_lines.BadInput, match="file, line 2: longer than 10 bytes"):
        lines(b"1\n12345678901\n3\n", size)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(_lines.BadInput, match=r"gone: No such file or directory"):
        list(_lines.batches([str(tmp_path / "gone")], most_lines=10, most_bytes=10))
