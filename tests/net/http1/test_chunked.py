"""A body in chunks, however it is cut and whatever is behind it. What is right and wrong: `hostile/http_table.py`."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.errors import MalformedRequest, QgstreamError, TooLarge
from qgstream.net.http1.chunked import MAX_LINE_BYTES, MAX_TRAILER_BYTES, PIECE_BYTES, ChunkedBody

MIB = 1024 * 1024


def read(said: bytes, size: int, max_bytes: int = 64 * MIB) -> tuple[bytes, bytes]:
    """The body, and what is behind it, when so much comes at once. Raises what is wrong with it."""
    body, buffer, data = ChunkedBody(max_bytes), bytearray(), b""
    for at in range(0, len(said), size):
        buffer += said[at : at + size]
        while not body.is_complete and body.search(buffer) is not None:
            del buffer[: body.end()]
            data += body.take()
            if body.error is not None:
                raise body.error
        if body.is_complete:
            return data, bytes(buffer) + said[at + size :]
    raise EOFError


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(1, 50), st.booleans())
def test_it_is_what_was_sent_however_it_is_cut(parts: list[bytes], size: int, trailers: bool) -> None:
    said = b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in parts)
    said += b"0\r\nX: y\r\n\r\n" if trailers else b"0\r\n\r\n"
    behind = b"GET / HTTP/1.1\r\n\r\n"
    assert read(said + behind, size) == (b"".join(parts), behind)


@given(st.binary(max_size=60), st.integers(1, 20))
def test_garbage_is_an_error_of_the_clients_or_no_end(said: bytes, size: int) -> None:
    with suppress(QgstreamError, EOFError):
        read(said, size, 100)


WRONG = [
    b"5\n", b"g\r\n", b"5 \r\n", b"5;\r\n", b"5;a\rb\r\n", b"1\r\nxy", b"1\r\nx\n", b"0\r\nX\r\n\r\n",
    b"0\r\nX: y\n\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("said", WRONG)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_what_is_wrong_is_found_however_it_is_cut(said: bytes, size: int) -> None:
    with pytest.raises(MalformedRequest):
        read(said, size)


def test_a_line_and_the_trailers_are_bounded() -> None:
    line = b"1;" + b"a" * (MAX_LINE_BYTES - 4)
    assert read(line + b"\r\nx\r\n0\r\n\r\n", 7)[0] == b"x"
    for size in (1, 5000):
        with pytest.raises(MalformedRequest, match="size line"):
            read(line + b"aaa", size)
        with pytest.raises(MalformedRequest, match="trailers: got too many bytes"):
            read(b"0\r\nX: " + b"y" * MAX_TRAILER_BYTES, size)


def test_the_bound_holds_before_the_data_comes() -> None:
    assert read(b"5\r\nabcde\r\n0\r\n\r\n", 3, 5)[0] == b"abcde"
    with pytest.raises(TooLarge, match="body: got 6 bytes, expected at most 5"):
        read(b"5\r\nabcde\r\n1\r\n", 3, 5)


def test_it_is_handed_on_in_pieces_and_holds_nothing_back() -> None:
    body, buffer = ChunkedBody(64 * MIB), bytearray(b"%x\r\n" % MIB)
    while len(buffer) < PIECE_BYTES:
        assert body.search(buffer) is None
        buffer += bytes(10_000)
    assert body.search(buffer) is body
    taken = body.end()
    assert taken == len(buffer)
    assert len(body.take()) == taken - len(b"100000\r\n")
    assert body.take() == b""
