"""Content codings: decoding gzip and deflate request bodies piece by piece, and choosing the coding of a response.
Pure.

Source: RFC 9110, 8.4 and 12.5.3.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from qgstream.errors import BadRequest, TooLarge, UnsupportedContentCoding

# The value of Accept-Encoding in a 415 response (RFC 9110, 12.5.3 and 15.5.16).
ACCEPTED = "gzip, deflate, identity"
# A decoded body can be a thousand times longer than the coded body. The decoder produces at most this many bytes at a
# time.
PIECE_BYTES = 256 * 1024
# RFC 1952, 2.2: "A gzip file consists of a series of members". Each member needs a new decoder, about 5 us.
MAX_MEMBERS = 1000

# zlib's number for each format. RFC 9110, 8.4.1.2: deflate is the "zlib" format of RFC 1950, which frames deflated
# data.
_FORMATS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


# 12.4.2: qvalue = ( "0" [ "." 0*3DIGIT ] ) / ( "1" [ "." 0*3("0") ] )
_WEIGHT = re.compile(r"[ \t]*[Qq]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)[ \t]*")


def prefers_gzip(accept_encoding: str) -> bool:
    """Whether a client with this Accept-Encoding accepts gzip and prefers gzip at least as much as identity.

    A part that cannot be parsed is ignored: every client accepts identity.
    """
    weights: dict[str, float] = {}
    for part in accept_encoding.split(","):
        coding, _, parameter = part.partition(";")
        found = _WEIGHT.fullmatch(parameter or "q=1")
        if found is not None:
            weights[coding.strip(" \t").lower()] = float(found[1])
    # 8.4.1.3: "A recipient SHOULD consider "x-gzip" to be equivalent to "gzip"."
    gzip = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


class Decoder:
    """Decodes one body. Raises `BadRequest` with the code `invalid_content_coding` if the body is not coded as
    announced."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflater = zlib.decompressobj(_FORMATS[coding])
        self._members = 1

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Decode the next part of the coded body, in pieces of at most `PIECE_BYTES`."""
        while data:
            if self._inflater.eof:
                self._begin_member()
            try:
                piece = self._inflater.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise self._invalid(f"got data that is not {self._coding} ({error})") from None
            data = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            if piece:
                yield piece

    def finish(self) -> bytes:
        """Return the rest of the decoded body. Call this method after the whole coded body has arrived."""
        rest = self._inflater.flush()
        if not self._inflater.eof:
            raise self._invalid(f"got {self._coding} data that is cut off, expected all of the data")
        return rest

    def _begin_member(self) -> None:
        self._members += 1
        if self._coding == "deflate":
            raise self._invalid("got bytes after the end of the deflate data, expected none")
        if self._members > MAX_MEMBERS:
            raise self._invalid(f"got too many gzip members, expected at most {MAX_MEMBERS}")
        self._inflater = zlib.decompressobj(_FORMATS[self._coding])

    @staticmethod
    def _invalid(message: str) -> BadRequest:
        return BadRequest(f"body: {message}", code="invalid_content_coding")


def decoder_for(content_encoding: str) -> Decoder | None:
    """Return the decoder for a `Content-Encoding`; None if the body is not coded.

    Raises `UnsupportedContentCoding` for any other coding, and for several codings: each coding may multiply the
    length.
    """
    codings = [coding.strip(" \t").lower() for coding in content_encoding.split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _FORMATS:
        got = f"Content-Encoding: got {content_encoding[:100]!r}, expected one of {ACCEPTED}"
        raise UnsupportedContentCoding(got, accepted=ACCEPTED)
    return Decoder(codings[0])


def decode_body(body: bytes, content_encoding: str, max_bytes: int) -> bytes:
    """Decode a whole short body. Also raises `TooLarge` if the decoded body has more than `max_bytes`."""
    decoder = decoder_for(content_encoding)
    if decoder is None or not body:
        return body
    decoded = bytearray()
    for piece in decoder.decode(body):
        decoded += piece
        if len(decoded) > max_bytes:
            raise TooLarge("decoded body", len(decoded), max_bytes)
    decoded += decoder.finish()
    return bytes(decoded)
