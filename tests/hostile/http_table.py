"""What is said on a socket, and what must come back: HTTP/1.1 from the beginning of its grammar, as data.

A row is a name, the bytes of one connection, and what is expected: the status of each answer in turn, then pieces that
must be somewhere in what was received. `CLOSED` behind the statuses means that the server closes the connection by
itself; without it, it must still answer another request. To add a row, write down what the standard says.
"""

from __future__ import annotations

import gzip
import zlib
from typing import NamedTuple

from tests.serving import KEY

CLOSED = 0
KIB = 1024


class Row(NamedTuple):
    """One conversation. `answers` are the statuses in turn, `pieces` what is somewhere in the bytes that came."""

    name: str
    said: bytes
    answers: tuple[int, ...]
    pieces: tuple[bytes, ...] = ()


def error(code: str, *pieces: str) -> tuple[bytes, ...]:
    """The pieces of a refusal: JSON with this code, which a page of any origin may read."""
    return (
        f'"code": "{code}"'.encode(), b"Content-Type: application/json; charset=", b"Access-Control-Allow-Origin: *",
        *(piece.encode() for piece in pieces),
    )  # fmt: skip


MALFORMED = error("malformed_request")
HOST = b"Host: x\r\n"
OK = b'{"status": "ok"}\n'
EVENT = b'{"topic": "a", "data": 1}'


def get(
    target: bytes, *headers: bytes, method: bytes = b"GET", version: bytes = b"HTTP/1.1", host: bytes = HOST
) -> bytes:
    """A request without a body."""
    return b"%b %b %b\r\n%b%b\r\n" % (method, target, version, host, b"".join(line + b"\r\n" for line in headers))


def post(*headers: bytes, body: bytes = EVENT, media_type: bytes = b"application/json", length: bool = True) -> bytes:
    """A publish with the tests' key."""
    lines = [b"Authorization: Bearer " + KEY.encode(), b"Content-Type: " + media_type, *headers]
    if length:
        lines.append(b"Content-Length: %d" % len(body))
    return get(b"/events", *lines, method=b"POST") + body


def chunked(body: bytes, *headers: bytes) -> bytes:
    """A publish whose body is written as it goes over the wire."""
    return post(b"Transfer-Encoding: chunked", *headers, body=body, length=False)


HEALTH = get(b"/health")

REQUEST_LINES = [
    Row("origin-form", HEALTH, (200,), (OK,)),
    Row("absolute-form", get(b"http://x/health"), (200,), (OK,)),
    Row("absolute-form, https without TLS", get(b"https://x/health"), (421, CLOSED), error("misdirected_request")),
    Row("absolute-form, scheme in capitals", get(b"HTTP://x:80/health?a=b"), (200,), (OK,)),
    Row("absolute-form, IPv6", get(b"http://[::1]:8000/health"), (200,), (OK,)),
    Row("absolute-form without a path", get(b"http://x"), (200,), (b"<!doctype html>",)),
    Row("absolute-form with a query alone", get(b"http://x?a=b"), (200,), (b"<!doctype html>",)),
    Row("absolute-form of HTTP/1.0", get(b"http://x/health", version=b"HTTP/1.0", host=b""), (200, CLOSED), (OK,)),
    Row("absolute-form with a user", get(b"http://a:secret@x/health"), (400, CLOSED),
        error("malformed_request", "a user in it")),
    Row("absolute-form without a host", get(b"http:///health"), (400, CLOSED), MALFORMED),
    Row("absolute-form with a port alone", get(b"http://:80/health"), (400, CLOSED), MALFORMED),
    Row("absolute-form with a bad host", get(b"http://a,b/health"), (400, CLOSED), MALFORMED),
    Row("absolute-form of another scheme", get(b"ftp://x/health"), (400, CLOSED), MALFORMED),
    Row("absolute-form, and no Host", get(b"http://x/health", host=b""), (400, CLOSED), MALFORMED),
    Row("asterisk-form", get(b"*", method=b"OPTIONS"), (204,), (b"Allow: GET, HEAD, POST, ",)),
    Row("asterisk-form as an absolute one", get(b"http://x", method=b"OPTIONS"), (204,), (b"Allow: GET, HEAD, POST,",)),
    Row("asterisk-form of a GET", get(b"*"), (400, CLOSED), MALFORMED),
    Row("authority-form", get(b"x:443", method=b"CONNECT"), (501, CLOSED), error("not_implemented", "proxy")),
    Row("authority-form of a GET", get(b"x:443"), (400, CLOSED), MALFORMED),
    Row("an empty line before it", b"\r\n" + HEALTH, (200,), (OK,)),
    Row("three empty lines before it", b"\r\n\n\r\n" + HEALTH, (200,), (OK,)),
    Row("endless empty lines", b"\r\n" * 3000, (400, CLOSED), MALFORMED),
    Row("lone LFs", b"GET /health HTTP/1.1\nHost: x\n\n", (200,), (OK,)),
    Row("a lone CR at its end", b"GET /health HTTP/1.1\rHost: x\r\n\r\n", (400, CLOSED), MALFORMED),
    Row("a lone CR before it", b"\rGET /health HTTP/1.1\r\nHost: x\r\n\r\n", (400, CLOSED), MALFORMED),
    Row("two spaces", b"GET  /health HTTP/1.1\r\nHost: x\r\n\r\n", (400, CLOSED), MALFORMED),
    Row("a tab", b"GET\t/health HTTP/1.1\r\nHost: x\r\n\r\n", (400, CLOSED), MALFORMED),
    Row("a space before it", b" GET /health HTTP/1.1\r\nHost: x\r\n\r\n", (400, CLOSED), MALFORMED),
    Row("a space behind it", b"GET /health HTTP/1.1 \r\nHost: x\r\n\r\n", (400, CLOSED), MALFORMED),
    Row("a space in the target", get(b"/he alth"), (400, CLOSED), MALFORMED),
    Row("HTTP/0.9", b"GET /health\r\n\r\n", (400, CLOSED), error("malformed_request", "version")),
    Row("HTTP/1.0", get(b"/health", version=b"HTTP/1.0", host=b""), (200, CLOSED), (OK,)),
    Row("HTTP/1.7", get(b"/health", version=b"HTTP/1.7"), (200,), (OK,)),
    Row("HTTP/1.7, a stream", get(b"/events", version=b"HTTP/1.7") + b"\r\n", (200,), (b"Transfer-Encoding: chunked",)),
    Row("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (505, CLOSED), error("http_version_not_supported")),
    Row("HTTP/0.9 by name", get(b"/", version=b"HTTP/0.9"), (505, CLOSED), error("http_version_not_supported")),
    Row("HTTP/3 without a minor", get(b"/", version=b"HTTP/3"), (400, CLOSED), MALFORMED),
    Row("HTTP/11.1", get(b"/", version=b"HTTP/11.1"), (400, CLOSED), MALFORMED),
    Row("http/1.1", get(b"/", version=b"http/1.1"), (400, CLOSED), MALFORMED),
    Row("no method", b" /health HTTP/1.1\r\nHost: x\r\n\r\n", (400, CLOSED), MALFORMED),
    Row("a method that is none", get(b"/health", method=b"G{T"), (400, CLOSED), MALFORMED),
    Row("a method that nobody knows", get(b"/health", method=b"BREW"), (501,), error("not_implemented", "BREW")),
    Row("a method in small letters", get(b"/health", method=b"get"), (501,), error("not_implemented")),
    Row("a very long method", get(b"/health", method=b"X" * 9000), (501,), error("not_implemented")),
    Row("TRACE", get(b"/health", method=b"TRACE"), (405,), error("method_not_allowed")),
    Row("a method that the path does not have", get(b"/health", method=b"PUT"), (405,),
        (*error("method_not_allowed"), b"Allow: GET, HEAD, OPTIONS")),
    Row("NUL", b"GET /hea\0lth HTTP/1.1\r\nHost: x\r\n\r\n", (400, CLOSED), MALFORMED),
    Row("a very long request line", get(b"/" + b"x" * 1200 * KIB), (414, CLOSED), error("target_too_long")),
]  # fmt: skip

TARGETS = [
    Row("escaped letters", get(b"/%65vents?topic=%61"), (200,), (b'"connected"',)),
    Row("escaped letters in an operator's path", get(b"/%6detrics"), (404,), error("not_found")),
    Row("an escaped slash", get(b"%2fevents"), (400, CLOSED), MALFORMED),
    Row("an escaped slash in the path", get(b"/%2Fevents"), (404,), error("not_found")),
    Row("two slashes", get(b"//events"), (404,), error("not_found")),
    Row("a slash behind", get(b"/events/"), (404,), error("not_found")),
    Row("dots", get(b"/a/../events"), (404,), error("not_found")),
    Row("a parameter of the path", get(b"/events;a=b"), (404,), error("not_found")),
    Row("another case", get(b"/Events"), (404,), error("not_found")),
    Row("a fragment", get(b"/health#a"), (400, CLOSED), error("malformed_request", "fragment")),
    Row("a semicolon in the query", get(b"/events?topic=a;event=b&x=1"), (200,), (b'"connected"',)),
    Row("a plus is a space", get(b"/events?event=a%00+b"), (400,), error("invalid_field")),
    Row("raw UTF-8 in the query", get("/events?topic=Bücher".encode()), (200,), (b'"connected"',)),
    Row("raw bytes that are no UTF-8", get(b"/events?topic=\xff"), (400,), error("invalid_field", "0xff")),
    Row("raw UTF-8 in the path", get("/Bücher".encode()), (404,), error("not_found")),
    Row("a broken escape", get(b"/health%zz"), (404,), error("not_found")),
    Row("a question mark alone", get(b"/health?"), (200,), (OK,)),
    Row("two question marks", get(b"/health??"), (200,), (OK,)),
    Row("too many parameters", get(b"/health?" + b"a=b&" * 5000), (400, CLOSED), error("bad_request", "query")),
]  # fmt: skip

HEADERS = [
    Row("no Host", get(b"/health", host=b""), (400, CLOSED), error("malformed_request", "Host")),
    Row("two Hosts", get(b"/health", host=HOST * 2), (400, CLOSED), error("malformed_request", "Host")),
    Row("two Hosts of HTTP/1.0", get(b"/", version=b"HTTP/1.0", host=HOST * 2), (400, CLOSED), MALFORMED),
    Row("two Hosts, joined", get(b"/health", host=b"Host: x, x\r\n"), (400, CLOSED), MALFORMED),
    Row("a Host that is none", get(b"/health", host=b"Host: a b\r\n"), (400, CLOSED), MALFORMED),
    Row("a Host with a user", get(b"/health", host=b"Host: a@b\r\n"), (400, CLOSED), MALFORMED),
    Row("a Host with a path", get(b"/health", host=b"Host: a/b\r\n"), (400, CLOSED), MALFORMED),
    Row("a Host with half an address", get(b"/health", host=b"Host: [::1\r\n"), (400, CLOSED), MALFORMED),
    Row("a Host with a bad port", get(b"/health", host=b"Host: a:8x\r\n"), (400, CLOSED), MALFORMED),
    Row("a Host of a megabyte", get(b"/health", host=b"Host: %b\r\n" % (b"x" * 1024 * KIB)), (400, CLOSED), MALFORMED),
    Row("a target with a Host of a megabyte", get(b"http://" + b"x" * 1024 * KIB + b"/"), (400, CLOSED), MALFORMED),
    Row("a Host of IPv6 and a port", get(b"/health", host=b"Host: [::1]:8000\r\n"), (200,), (OK,)),
    Row("a name in any case", get(b"/health", host=b"hOsT: x\r\n"), (200,), (OK,)),
    Row("no space, and many", get(b"/health", b"A:b", b"C:   \t d \t "), (200,), (OK,)),
    Row("an empty value", get(b"/health", b"A:"), (200,), (OK,)),
    Row("a value of UTF-8", get(b"/health", "A: Bücher".encode()), (200,), (OK,)),
    Row("a space before the colon", get(b"/health", b"A : b"), (400, CLOSED), error("malformed_request", "'A '")),
    Row("a space in a name", get(b"/health", b"a b: c"), (400, CLOSED), MALFORMED),
    Row("no name", get(b"/health", b": b"), (400, CLOSED), MALFORMED),
    Row("no colon", get(b"/health", b"nothing"), (400, CLOSED), error("malformed_request", "colon")),
    Row("a name of UTF-8", get(b"/health", "Bücher: a".encode()), (400, CLOSED), MALFORMED),
    Row("NUL in a name", get(b"/health", b"a\0b: c"), (400, CLOSED), MALFORMED),
    Row("NUL in a value", get(b"/health", b"A: b\0c"), (400, CLOSED), error("malformed_request", "A: ", "control")),
    Row("another control character", get(b"/health", b"A: b\x01c"), (400, CLOSED), MALFORMED),
    Row("a lone CR in a value", get(b"/health", b"A: b\rC: d"), (400, CLOSED), MALFORMED),
    Row("a folded line", get(b"/health", b"A: b", b" c"), (400, CLOSED), error("malformed_request", "white space")),
    Row("white space before the first", get(b"/health", host=b" \r\nHost: x\r\n"), (400, CLOSED), MALFORMED),
    Row("128 lines", get(b"/health", *[b"A: b"] * 127), (200,), (OK,)),
    Row("129 lines", get(b"/health", *[b"A: b"] * 128), (431, CLOSED), error("headers_too_large", "128")),
    Row("more than a megabyte", get(b"/health", b"A: " + b"b" * 1200 * KIB), (431, CLOSED), error("headers_too_large")),
    Row("Connection: close", get(b"/health", b"Connection: close"), (200, CLOSED), (OK, b"Connection: close")),
    Row("close in a list", get(b"/health", b"Connection: x,  Close ,y"), (200, CLOSED), (OK, b"Connection: close")),
    Row("close on another line", get(b"/health", b"Connection: x", b"Connection: close"), (200, CLOSED), (OK,)),
    Row("keep-alive and close", get(b"/health", b"Connection: keep-alive, close"), (200, CLOSED), (OK,)),
    Row("HTTP/1.0 and keep-alive", get(b"/health", b"Connection: Keep-Alive", version=b"HTTP/1.0"), (200,),
        (OK, b"Connection: Keep-Alive")),
    Row("HTTP/1.0 and keep-alive in a list", get(b"/health", b"Connection: x, keep-alive", version=b"HTTP/1.0"), (200,),
        (OK, b"Connection: Keep-Alive")),
    Row("HTTP/1.0, keep-alive, and close", get(b"/health", b"Connection: keep-alive, close", version=b"HTTP/1.0"),
        (200, CLOSED), (OK,)),
    Row("HTTP/1.0 and keep-alive, and the server closes", get(b"/events", b"Connection: keep-alive", b"Expect: x",
        b"Content-Length: 5", method=b"POST", version=b"HTTP/1.0"), (401, CLOSED), (b"Connection: close",)),
    Row("HTTP/1.0 and keep-alive, a stream", get(b"/events?last_event_id=x", b"Connection: keep-alive",
        version=b"HTTP/1.0"), (200,), (b'"connected"',)),
    Row("Upgrade: h2c", get(b"/health", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c",
        b"HTTP2-Settings: AAMAAABkAAQAAP__"), (200,), (OK,)),
    Row("Upgrade: TLS", get(b"/health", b"Connection: Upgrade", b"Upgrade: TLS/1.2"), (200,), (OK,)),
    Row("Range", get(b"/health", b"Range: bytes=0-1"), (200,), (OK,)),
    Row("If-Match", get(b"/health", b'If-Match: "x"'), (200,), (OK,)),
    Row("If-None-Match: *", get(b"/health", b"If-None-Match: *"), (200,), (OK,)),
    Row("If-Modified-Since", get(b"/health", b"If-Modified-Since: Sat, 01 Jan 2050 00:00:00 GMT"), (200,), (OK,)),
    Row("If-Range", get(b"/client.js", b"Range: bytes=0-1", b'If-Range: "x"'), (200,), (b'\nEtag: "',)),
    Row("Max-Forwards", get(b"*", b"Max-Forwards: 0", method=b"OPTIONS"), (204,)),
    Row("Expect: 100-continue without a body", get(b"/health", b"Expect: 100-continue"), (200,), (OK,)),
    Row("Expect of something else", get(b"/health", b"Expect: 200-ok"), (417, CLOSED), error("expectation_failed")),
    Row("Expect of something else in a list", get(b"/health", b"Expect: 100-continue, x"), (417, CLOSED),
        error("expectation_failed")),
    Row("Expect of HTTP/1.0", get(b"/health", b"Expect: x", version=b"HTTP/1.0"), (200, CLOSED), (OK,)),
]  # fmt: skip

TWO = b"2\r\n{}\r\n"
CHUNKS = b"5;a\r\n" + EVENT[:5] + b"\r\n%X\r\n" % len(EVENT[5:]) + EVENT[5:] + b"\r\n"
BODIES = [
    Row("a length", post(), (200,), (b'"id": ',)),
    Row("no length", post(length=False, body=b""), (400,), error("empty_body")),
    Row("no length, and bytes behind it", post(length=False, body=EVENT + b"\r\n\r\n"), (400, 400, CLOSED),
        (*error("empty_body"), b'"code": "malformed_request"')),
    Row("a length twice", post(b"Content-Length: %d" % len(EVENT)), (200,), (b'"id": ',)),
    Row("a length twice on one line", post(b"Content-Length: 25, 25", length=False), (200,), (b'"id": ',)),
    Row("zeros before it", post(b"Content-Length: 00025", length=False), (200,), (b'"id": ',)),
    Row("two lengths", post(b"Content-Length: 3"), (400, CLOSED), error("malformed_request", "Content-Length")),
    Row("two lengths on one line", post(b"Content-Length: 25, 3", length=False), (400, CLOSED), MALFORMED),
    Row("an empty length", post(b"Content-Length:", length=False), (400, CLOSED), MALFORMED),
    Row("a length with a comma behind it", post(b"Content-Length: 25,", length=False), (400, CLOSED), MALFORMED),
    Row("a length with a sign", post(b"Content-Length: +25", length=False), (400, CLOSED), MALFORMED),
    Row("a negative length", post(b"Content-Length: -25", length=False), (400, CLOSED), MALFORMED),
    Row("a length in hexadecimal", post(b"Content-Length: 0x19", length=False), (400, CLOSED), MALFORMED),
    Row("a length with an underscore", post(b"Content-Length: 2_5", length=False), (400, CLOSED), MALFORMED),
    Row("a length in other digits", post("Content-Length: ٢٥".encode(), length=False), (400, CLOSED), MALFORMED),
    Row("a length of all memory", post(b"Content-Length: " + b"9" * 18, length=False), (413, CLOSED),
        error("too_large")),
    Row("a length of many digits", post(b"Content-Length: " + b"9" * 5000, length=False), (413, CLOSED),
        error("too_large")),
    Row("a GET with a body", get(b"/health", b"Content-Length: 3") + b"abc", (200,), (OK,)),
    Row("a GET with chunks", get(b"/health", b"Transfer-Encoding: chunked") + TWO + b"0\r\n\r\n", (200,), (OK,)),
    Row("a GET with too much", get(b"/health", b"Content-Length: 65537"), (413, CLOSED), error("too_large", "65537")),
    Row("chunks", chunked(CHUNKS + b"0\r\n\r\n"), (200,), (b'"id": ',)),
    Row("chunks, the coding in another case", post(b"Transfer-Encoding: Chunked", length=False,
        body=CHUNKS + b"0\r\n\r\n"), (200,), (b'"id": ',)),
    Row("a size in small letters and with zeros", chunked(b"0019\r\n%b\r\n000\r\n\r\n" % EVENT), (200,), (b'"id": ',)),
    Row("many extensions", chunked(b'19 ; a = b;c="d;\\"\t";e\r\n%b\r\n0;z\r\n\r\n' % EVENT), (200,), (b'"id": ',)),
    Row("trailers", chunked(CHUNKS + b"0\r\nX-A: b\r\nX-C: d\r\n\r\n"), (200,), (b'"id": ',)),
    Row("a trailer that would be a credential", get(b"/events", b"Content-Type: application/json",
        b"Transfer-Encoding: chunked", method=b"POST") + CHUNKS + b"0\r\nAuthorization: Bearer " + KEY.encode()
        + b"\r\n\r\n", (401,), error("unauthorized")),
    Row("a trailer that is none", chunked(CHUNKS + b"0\r\nX A: b\r\n\r\n"), (400, CLOSED), MALFORMED),
    Row("a trailer that ends in LF", chunked(CHUNKS + b"0\r\nA: b\nC: d\r\n\r\n"), (400, CLOSED), MALFORMED),
    Row("endless trailers", chunked(CHUNKS + b"0\r\n" + b"X: y\r\n" * 5000), (400, CLOSED), error("malformed_request")),
    Row("129 trailers", chunked(CHUNKS + b"0\r\n" + b"X: y\r\n" * 129 + b"\r\n"), (431, CLOSED),
        error("headers_too_large")),
    Row("no size", chunked(b"\r\n" + CHUNKS), (400, CLOSED), error("malformed_request", "chunk")),
    Row("a size that is none", chunked(b"g\r\n"), (400, CLOSED), MALFORMED),
    Row("a size with 0x", chunked(b"0x19\r\n" + EVENT + b"\r\n0\r\n\r\n"), (400, CLOSED), MALFORMED),
    Row("a size with a sign", chunked(b"+19\r\n" + EVENT + b"\r\n0\r\n\r\n"), (400, CLOSED), MALFORMED),
    Row("a negative size", chunked(b"-1\r\n"), (400, CLOSED), MALFORMED),
    Row("a size with an underscore", chunked(b"1_9\r\n"), (400, CLOSED), MALFORMED),
    Row("a size with a space behind it", chunked(b"19 \r\n" + EVENT + b"\r\n0\r\n\r\n"), (400, CLOSED), MALFORMED),
    Row("a size of many digits", chunked(b"f" * 40 + b"\r\n"), (400, CLOSED), MALFORMED),
    Row("a size of all memory", chunked(b"f" * 15 + b"\r\n"), (413, CLOSED), error("too_large")),
    Row("a size that ends in LF", chunked(b"19\n" + EVENT + b"\r\n0\r\n\r\n"), (400, CLOSED), MALFORMED),
    Row("a lone CR in an extension", chunked(b"19;a\rb\r\n" + EVENT + b"\r\n0\r\n\r\n"), (400, CLOSED), MALFORMED),
    Row("a LF in an extension", chunked(b"19;a\nb\r\n" + EVENT + b"\r\n0\r\n\r\n"), (400, CLOSED), MALFORMED),
    Row("an endless extension", chunked(b"19;" + b"a" * 4000), (400, CLOSED), MALFORMED),
    Row("more data than its size", chunked(b"5\r\n" + EVENT + b"\r\n0\r\n\r\n"), (400, CLOSED), MALFORMED),
    Row("two other bytes behind the data", chunked(b"19\r\n" + EVENT + b"XX0\r\n\r\n"), (400, CLOSED), MALFORMED),
    Row("data that ends in LF", chunked(b"19\r\n" + EVENT + b"\n0\r\n\r\n"), (400, CLOSED), MALFORMED),
    Row("a length and chunks", post(b"Transfer-Encoding: chunked"), (400, CLOSED),
        error("malformed_request", "Transfer-Encoding")),
    Row("chunks and a length of none", chunked(CHUNKS + b"0\r\n\r\n", b"Content-Length: 0"), (400, CLOSED), MALFORMED),
    Row("chunks of HTTP/1.0", get(b"/events", b"Transfer-Encoding: chunked", method=b"POST", version=b"HTTP/1.0"),
        (400, CLOSED), MALFORMED),
    Row("chunked twice", post(b"Transfer-Encoding: chunked, chunked", length=False), (400, CLOSED), MALFORMED),
    Row("chunked on two lines", post(*[b"Transfer-Encoding: chunked"] * 2, length=False), (400, CLOSED), MALFORMED),
    Row("chunked and then another", post(b"Transfer-Encoding: chunked, gzip", length=False), (400, CLOSED), MALFORMED),
    Row("not chunked at all", post(b"Transfer-Encoding: identity", length=False), (400, CLOSED), MALFORMED),
    Row("an empty coding", post(b"Transfer-Encoding:", length=False), (400, CLOSED), MALFORMED),
    Row("a coding with VT", post(b"Transfer-Encoding: \x0bchunked", length=False), (400, CLOSED), MALFORMED),
    Row("chunked with a parameter", post(b"Transfer-Encoding: chunked;a=b", length=False), (400, CLOSED), MALFORMED),
    Row("gzip as a transfer coding", post(b"Transfer-Encoding: gzip, chunked", length=False), (501, CLOSED),
        error("not_implemented", "gzip, chunked")),
    Row("Expect: 100-continue", post(b"Expect: 100-Continue"), (100, 200), (b'"id": ',)),
    Row("Expect: 100-continue and chunks", chunked(CHUNKS + b"0\r\n\r\n", b"Expect: 100-continue"), (100, 200)),
    Row("Expect: 100-continue without a key", get(b"/events", b"Expect: 100-continue", b"Content-Length: 5",
        method=b"POST"), (401, CLOSED), error("unauthorized")),
    Row("Expect: 100-continue and too much", get(b"/health", b"Expect: 100-continue", b"Content-Length: 99999"),
        (413, CLOSED), error("too_large")),
    Row("a form that is none", get(b"/health", b"Content-Type: multipart/form-data; boundary=x", b"Content-Length: 3")
        + b"abc", (400,), error("bad_request", "multipart")),
]  # fmt: skip

CODED = gzip.compress(EVENT)
CODINGS = [
    Row("gzip", post(b"Content-Encoding: gzip", body=CODED), (200,), (b'"id": ',)),
    Row("gzip in capitals", post(b"Content-Encoding: GZIP", body=CODED), (200,), (b'"id": ',)),
    Row("x-gzip", post(b"Content-Encoding: x-gzip", body=CODED), (200,), (b'"id": ',)),
    Row("gzip in two members", post(b"Content-Encoding: gzip",
        body=gzip.compress(EVENT[:9]) + gzip.compress(EVENT[9:])), (200,), (b'"id": ',)),
    Row("deflate", post(b"Content-Encoding: deflate", body=zlib.compress(EVENT)), (200,), (b'"id": ',)),
    Row("identity", post(b"Content-Encoding: identity"), (200,), (b'"id": ',)),
    Row("an empty coding of the content", post(b"Content-Encoding:"), (200,), (b'"id": ',)),
    Row("gzip in chunks", chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(CODED), CODED), b"Content-Encoding: gzip"), (200,),
        (b'"id": ',)),
    Row("gzip of a batch", post(b"Content-Encoding: gzip", media_type=b"application/x-ndjson",
        body=gzip.compress(EVENT + b"\n" + EVENT)), (200,), (b'"ids": ',)),
    Row("gzip that is none", post(b"Content-Encoding: gzip"), (400,), error("invalid_content_coding", "gzip")),
    Row("gzip that is cut off", post(b"Content-Encoding: gzip", body=CODED[:-1]), (400,),
        error("invalid_content_coding", "cut off")),
    Row("gzip of nothing", post(b"Content-Encoding: gzip", body=b""), (400,), error("empty_body")),
    Row("gzip with a wrong checksum", post(b"Content-Encoding: gzip", body=CODED[:-8] + b"12345678"), (400,),
        error("invalid_content_coding")),
    Row("gzip with more behind it", post(b"Content-Encoding: gzip", body=CODED + b"more"), (400,),
        error("invalid_content_coding")),
    Row("deflate with more behind it", post(b"Content-Encoding: deflate", body=zlib.compress(EVENT) + b"more"), (400,),
        error("invalid_content_coding")),
    Row("deflate twice", post(b"Content-Encoding: deflate", body=zlib.compress(EVENT) + zlib.compress(b" ")), (400,),
        error("invalid_content_coding")),
    Row("deflate without its frame", post(b"Content-Encoding: deflate", body=zlib.compress(EVENT)[2:-4]), (400,),
        error("invalid_content_coding")),
    Row("a bomb", post(b"Content-Encoding: gzip", body=gzip.compress(b" " * 40 * KIB * KIB)), (413,),
        error("too_large", "decoded")),
    Row("an unknown coding", post(b"Content-Encoding: br"), (415,),
        (*error("unsupported_content_coding", "'br'"), b"Accept-Encoding: gzip, deflate, identity")),
    Row("two codings", post(b"Content-Encoding: gzip, gzip", body=gzip.compress(CODED)), (415,),
        error("unsupported_content_coding")),
    Row("identity and gzip", post(b"Content-Encoding: identity, gzip", body=CODED), (200,), (b'"id": ',)),
    Row("a type that is not read has no coding to say", post(media_type=b"text/plain"), (415,),
        error("unsupported_media_type")),
    Row("gzip for an operator's path", get(b"/admin/limits", b"Authorization: Bearer admin-key",
        b"Content-Type: application/json", b"Content-Encoding: gzip", b"Content-Length: %d" % len(gzip.compress(b"{}")),
        method=b"PATCH") + gzip.compress(b"{}"), (200,), (b'"limits"',)),
    Row("an unknown coding for an operator's path", get(b"/admin/limits", b"Authorization: Bearer admin-key",
        b"Content-Type: application/json", b"Content-Encoding: br", b"Content-Length: 2", method=b"PATCH") + b"{}",
        (415,), (*error("unsupported_content_coding"), b"Accept-Encoding: ")),
    Row("a bomb for an operator's path", get(b"/admin/limits", b"Authorization: Bearer admin-key",
        b"Content-Type: application/json", b"Content-Encoding: gzip", b"Content-Length: %d"
        % len(gzip.compress(b" " * 1024 * KIB)), method=b"PATCH") + gzip.compress(b" " * 1024 * KIB), (413,),
        error("too_large")),
    Row("a byte order mark", post(body=b"\xef\xbb\xbf" + EVENT), (200,), (b'"id": ',)),
    Row("a byte order mark before a batch", post(body=b"\xef\xbb\xbf" + EVENT + b"\n" + EVENT,
        media_type=b"application/x-ndjson"), (200,), (b'"ids": ',)),
    Row("a byte order mark alone", post(body=b"\xef\xbb\xbf"), (400,), error("empty_body")),
    Row("two byte order marks", post(body=b"\xef\xbb\xbf" * 2 + EVENT), (400,), error("invalid_json")),
    Row("a byte order mark for an operator's path", get(b"/admin/limits", b"Authorization: Bearer admin-key",
        b"Content-Type: application/json", b"Content-Length: 5", method=b"PATCH") + b"\xef\xbb\xbf{}", (200,)),
]  # fmt: skip

CONVERSATIONS = [
    Row("two at once", HEALTH + get(b"/nothing"), (200, 404), (OK,)),
    Row("two at once, the first with a body", post() + HEALTH, (200, 200), (b'"id": ', OK)),
    Row("two at once, the first with chunks", chunked(CHUNKS + b"0\r\nX: y\r\n\r\n") + HEALTH, (200, 200), (OK,)),
    Row("an empty line between two", post() + b"\r\n" + HEALTH, (200, 200), (OK,)),
    Row("a bad one behind a good one", HEALTH + b"nonsense\r\n\r\n", (200, 400, CLOSED), MALFORMED),
    Row("a good one behind a bad one", b"nonsense\r\n\r\n" + HEALTH, (400, CLOSED), MALFORMED),
    Row("one behind the last one", get(b"/health", b"Connection: close") + HEALTH, (200, CLOSED), (OK,)),
]  # fmt: skip

# Each GET path, so that HEAD has the same answer without its body.
PATHS = (
    b"/health", b"/ready", b"/metrics", b"/", b"/client.js", b"/client.min.js", b"/client.d.ts", b"/docs",
    b"/openapi.json", b"/admin", b"/admin/overview", b"/admin/limits", b"/admin/connections", b"/admin/topics",
    b"/admin/config", b"/admin/bans", b"/admin/maintenance", b"/admin/evictions", b"/admin/openapi.json", b"/nothing",
)  # fmt: skip

TABLE = [*REQUEST_LINES, *TARGETS, *HEADERS, *BODIES, *CODINGS, *CONVERSATIONS]
