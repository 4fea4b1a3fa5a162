"""Content codings: of a request's body, gzip and deflate in, bytes out, in pieces; and which one an answer may have.
Pure. Source: RFC 9110, 8.4 and 12.5.3.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from qgstream.errors import BadRequest, TooLarge, UnsupportedContentCoding

# For the header Accept-Encoding of a 415 (RFC 9110, 12.5.3 and 15.5.16).
ACCEPTED = "gzip, deflate, identity"
# A coded body can be a thousand times longer when it is decoded: so much of it is made at once.
PIECE_BYTES = 256 * 1024
# RFC 1952, 2.2: "A gzip file consists of a series of members". Each takes a new decoder, about 5 us.
MAX_MEMBERS = 1000

# zlib's names for a format. RFC 9110, 8.4.1.2: deflate is the "zlib" format of RFC 1950, a frame around deflated data.
_FORMATS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


# 12.4.2: qvalue = ( "0" [ "." 0*3DIGIT ] ) / ( "1" [ "." 0*3("0") ] )
_WEIGHT = re.compile(r"[ \t]*[Qq]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)[ \t]*")


def prefers_gzip(accept_encoding: str) -> bool:
    """Whether a client with this header takes gzip, and wants it no less than the plain bytes.

    A part that is not understood is as if it were not there: the plain bytes are right for everybody.
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
    """Decodes one body. Raises `BadRequest` with the code `invalid_content_coding` for what was not coded so."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflater = zlib.decompressobj(_FORMATS[coding])
        self._members = 1

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What the next part of the coded body adds, in pieces of at most `PIECE_BYTES`."""
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
        """The rest, when the whole coded body has come."""
        rest = self._inflater.flush()
        if not self._inflater.eof:
            raise self._invalid(f"got {self._coding} data that is cut off, expected it to its end")
        return rest

    def _begin_member(self) -> None:
        self._members += 1
        if self._coding == "deflate":
            raise self._invalid("got more behind the end of the deflate data, expected nothing")
        if self._members > MAX_MEMBERS:
            raise self._invalid(f"got more than {MAX_MEMBERS} gzip members, expected at most so many")
        self._inflater = zlib.decompressobj(_FORMATS[self._coding])

    @staticmethod
    def _invalid(message: str) -> BadRequest:
        return BadRequest(f"body: {message}", code="invalid_content_coding")


def decoder_for(content_encoding: str) -> Decoder | None:
    """The decoder for a `Content-Encoding`; None for a body that is not coded.

    Raises `UnsupportedContentCoding` for any other coding, and for more than one: each may multiply the length.
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
    """A short body as a whole; also raises `TooLarge` for one of more than `max_bytes` when it is decoded."""
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
