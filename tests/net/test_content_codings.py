"""Coded bodies, decoded in pieces, up to a bound."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.errors import BadRequest, TooLarge, UnsupportedContentCoding
from qgstream.net.content_codings import MAX_MEMBERS, PIECE_BYTES, Decoder, decode_body, decoder_for, prefers_gzip

MIB = 1024 * 1024
CODED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress,
}  # fmt: skip


def decoded(decoder: Decoder, *parts: bytes) -> bytes:
    return b"".join([piece for part in parts for piece in decoder.decode(part)] + [decoder.finish()])


@given(st.sampled_from(sorted(CODED)), st.binary(max_size=2000), st.integers(1, 100))
def test_it_is_what_was_coded_however_it_is_cut(coding: str, body: bytes, size: int) -> None:
    coded = CODED[coding](body)
    parts = [coded[at : at + size] for at in range(0, len(coded), size)]
    assert decoded(Decoder(coding), *parts) == body
    assert decode_body(coded, coding, len(body)) == body


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5), st.integers(1, 30))
def test_gzip_may_have_several_members(bodies: list[bytes], size: int) -> None:
    coded = b"".join(map(gzip.compress, bodies))
    parts = [coded[at : at + size] for at in range(0, len(coded), size)]
    assert decoded(Decoder("gzip"), *parts) == b"".join(bodies)


@pytest.mark.parametrize("coding", sorted(CODED))
def test_what_is_cut_off_anywhere_is_refused(coding: str) -> None:
    coded = CODED[coding](Random(1).randbytes(100))
    for end in range(1, len(coded)):
        with pytest.raises(BadRequest) as caught:
            decode_body(coded[:end], coding, MIB)
        assert caught.value.code == "invalid_content_coding"


@pytest.mark.parametrize("coding", sorted(CODED))
@given(st.binary(max_size=300))
def test_garbage_is_refused(coding: str, body: bytes) -> None:
    for garbage in (body, CODED[coding](b"x") + body):
        with suppress(BadRequest):
            decode_body(garbage, coding, MIB)


def test_a_piece_is_bounded_and_a_bomb_is_not_held() -> None:
    bomb = gzip.compress(bytes(100 * MIB))
    made = 0
    for piece in Decoder("gzip").decode(bomb):
        assert len(piece) <= PIECE_BYTES
        made += len(piece)
    assert made == 100 * MIB
    with pytest.raises(TooLarge, match="decoded body: got 524288 bytes, expected at most 300000"):
        decode_body(bomb, "gzip", 300_000)


def test_members_without_end_are_refused() -> None:
    member = gzip.compress(b"")
    assert decode_body(member * MAX_MEMBERS, "gzip", 0) == b""
    with pytest.raises(BadRequest, match="too many gzip members, expected at most 1000"):
        decode_body(member * (MAX_MEMBERS + 1), "gzip", 0)


@pytest.mark.parametrize("content_encoding", ["", "identity", "Identity", " identity , ", ","])
def test_what_is_not_coded(content_encoding: str) -> None:
    assert decoder_for(content_encoding) is None
    assert decode_body(b"x", content_encoding, 0) == b"x"


@pytest.mark.parametrize(
    "content_encoding", ["br", "gzip, gzip", "compress", "zstd", "gzip;q=1", "gz ip", "\xe9" * 999]
)
def test_what_is_not_known(content_encoding: str) -> None:
    with pytest.raises(UnsupportedContentCoding) as caught:
        decoder_for(content_encoding)
    assert (caught.value.status, caught.value.accepted) == (415, "gzip, deflate, identity")
    assert len(str(caught.value)) < 250


# Which coding an answer has.


@pytest.mark.parametrize(
    ("header", "prefers"),
    [
        ("", False),
        ("gzip", True),
        ("x-gzip", True),
        ("GZip", True),
        ("gzip, deflate, br, zstd", True),  # what browsers send
        ("br;q=1.0, gzip;q=0.8, *;q=0.1", True),
        ("deflate, br", False),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("gzip ; Q=0.001", True),
        ("\tgzip\t;\tq=1.000\t", True),
        ("gzip, *;q=0", True),
        ("identity", False),
        ("identity;q=0", False),
        ("identity, gzip;q=0.5", False),
        ("identity;q=0.5, gzip;q=0.5", True),
        ("identity;q=0.5, gzip;q=1", True),
        ("gzip;q=2", False),
        ("gzip;q=0.0001", False),
        ("gzip;q=", False),
        ("gzip;level=9", False),
        ("gzip;q=1;level=9", False),
        ("gzipped", False),
        (",;,=, ;q=1,", False),
    ],
)
def test_gzip_is_for_those_who_want_it(header: str, prefers: bool) -> None:
    assert prefers_gzip(header) is prefers


@given(st.text(max_size=200))
def test_any_header_has_an_answer(header: str) -> None:
    assert prefers_gzip(header) in (True, False)
