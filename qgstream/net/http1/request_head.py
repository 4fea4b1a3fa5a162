"""The head of an HTTP/1.1 request: bytes in; method, target and headers out. Pure.

Tornado's parser does not support the absolute-form target, and closes without a response when a head is malformed. The
rules are those of RFC 9112 (comments name the sections). They are strict wherever two servers could disagree about the
end of a request.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from tornado.httputil import HTTPHeaders

from qgstream.errors import (
    ExpectationFailed,
    HeadersTooLarge,
    MalformedRequest,
    MisdirectedRequest,
    NotImplementedHere,
    QgstreamError,
    VersionNotSupported,
)

# Envoy, Apache and gunicorn accept 100 lines, HAProxy 101, hyper 100: no proxy forwards more. A line costs about 2 us,
# and a megabyte of headers has room for 200 000 lines.
MAX_HEADER_LINES = 128
# RFC 1035, 2.3.4 allows 255 bytes for a name, which may be escaped. Tornado needs 80 ms to process a host of a
# megabyte.
MAX_HOST_CHARACTERS = 1024
# The most characters of a request that an error repeats.
_SHOWN = 100
# A longer Content-Length is replaced with this many nines: int() raises ValueError for thousands of digits.
_MOST_DIGITS = 18

# Every repetition is possessive (`*+`): the matcher never backtracks, so a long line costs one pass.
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
# Section 3. Bytes above 0x7f are not allowed in a URI, but curl and others send a topic in UTF-8 without escapes.
_REQUEST_LINE = re.compile(rf"({_NAME}) ([\x21-\x7e\x80-\xff]++) HTTP/([0-9])\.([0-9])\r?\n")
_METHOD_AND_TARGET = re.compile(rf"{_NAME} [\x21-\x7e\x80-\xff]++(?: HTTP/[0-9]++)?\r?\n")
# Section 5 and RFC 9110, 5.5: no control character except tab, so neither NUL nor a lone CR.
_HEADER_LINE = re.compile(rf"({_NAME}):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)\r?\n")
_END = re.compile(r"\r?\n")
# RFC 9110, 7.2 and RFC 3986, 3.2.2, except the comma, because a proxy joins two Host lines with a comma.
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:.]++\]|\[v[0-9A-Fa-f]++\.[A-Za-z0-9._~!$&'()*+;=:-]++\]"
    r"|(?:[A-Za-z0-9._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})*+)(?::[0-9]*+)?"
)
_ABSOLUTE = re.compile(r"(?i:(https?)://)([^/?#]*+)(.*+)")
_DIGITS = re.compile(r"[0-9]++")
_ORIGIN = re.compile(rb"(?i)\norigin:[ \t]*+([\x21-\x7e]{1,255}+)[ \t]*+\r?\n")


class RequestHead(NamedTuple):
    """A parsed request head. `target` begins with "/" or is "*"; `version` is "HTTP/1.1" or "HTTP/1.0".

    `content_length` is the number of bytes in the body; None for a chunked body. `persists` says whether the connection
    may carry another request. `expects_continue` says whether the client waits for `100 Continue` before sending a
    body.
    """

    method: str
    target: str
    version: str
    headers: HTTPHeaders
    content_length: int | None
    persists: bool
    expects_continue: bool


def parse_head(data: bytes, *, is_secure: bool) -> RequestHead:
    """Parse a head, from its request line to the empty line after its headers. `is_secure` is True over TLS.

    Raises `MalformedRequest`, `HeadersTooLarge`, `ExpectationFailed`, `MisdirectedRequest`, `NotImplementedHere` or
    `VersionNotSupported`. The host of an absolute-form target replaces the `Host` header, as section 3.2.2 requires.
    """
    text = data.decode("latin-1")
    line = _REQUEST_LINE.match(text)
    if line is None:
        raise _bad_request_line(text)
    method, target, major, minor = line.groups()
    if major != "1":
        raise VersionNotSupported(f"got HTTP/{major}.{minor}, expected HTTP/1.1 or HTTP/1.0")
    # RFC 9110, 2.5: a request with a higher minor version is processed as the highest known minor version.
    version = "HTTP/1.0" if minor == "0" else "HTTP/1.1"
    headers = _parse_headers(text, line.end())
    _check_host(headers, version)
    if method == "CONNECT":
        raise NotImplementedHere("got CONNECT, expected another method: this server is not a proxy")
    if not target.startswith("/"):
        target = _origin_form(method, target, headers, is_secure)
    if "#" in target:
        raise MalformedRequest("request target: got a fragment (#...), expected none")
    return RequestHead(
        method, target, version, headers, _content_length(headers, version), _persists(headers, version),
        _expects_continue(headers, version),
    )  # fmt: skip


def find_origin(data: bytes) -> str | None:
    """Return the `Origin` in a head that may be malformed, so that the page can read the error response."""
    found = _ORIGIN.search(data)
    return found[1].decode("ascii") if found else None


def parse_trailers(data: bytes) -> None:
    """Validate the trailer section of a chunked body, including its final empty line; the trailers are discarded.

    Section 7.1.2: "A recipient that removes the chunked coding [...] MAY selectively retain or discard". Merged into
    the headers, a trailer could bring back a header that a proxy has checked and removed.
    """
    _parse_headers(data.decode("latin-1"), 0)


def _parse_headers(text: str, at: int) -> HTTPHeaders:
    if text.count("\n", at) > MAX_HEADER_LINES + 1:
        raise HeadersTooLarge(f"got too many header lines, expected at most {MAX_HEADER_LINES}")
    headers = HTTPHeaders()
    match = _HEADER_LINE.match
    while (line := match(text, at)) is not None:
        name, value = line.groups()
        at = line.end()
        if name in headers:
            headers.add(name, value.rstrip(" \t"))
        else:
            headers[name] = value.rstrip(" \t")  # `add` would validate the header again
    if _END.fullmatch(text, at) is None:
        raise _bad_header_line(text, at)
    return headers


def _check_host(headers: HTTPHeaders, version: str) -> None:
    """Section 3.2: "A server MUST respond with a 400" to a request without Host, with two, or with an invalid one."""
    hosts = headers.get_list("Host")
    if len(hosts) != 1:
        if hosts or version == "HTTP/1.1":
            raise MalformedRequest(f"Host: got {len(hosts)} header lines, expected exactly one")
    elif not _is_host(hosts[0]):
        raise MalformedRequest(
            f"Host: got {hosts[0][:_SHOWN]!r}, expected a host name or address, with or without port"
        )


def _is_host(text: str) -> bool:
    return len(text) <= MAX_HOST_CHARACTERS and _HOST.fullmatch(text) is not None


def _origin_form(method: str, target: str, headers: HTTPHeaders, is_secure: bool) -> str:
    """Return the path and query of a target in absolute form or asterisk form. Section 3.2."""
    if target == "*" and method == "OPTIONS":
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        expected = "expected a path that begins with '/', an http or https URL, or '*' with OPTIONS"
        raise MalformedRequest(f"request target: got {target[:_SHOWN]!r}, {expected}")
    scheme, authority, rest = absolute.groups()
    # RFC 9110, 4.2.1: a URI "with an empty host identifier MUST" be rejected. 4.2.4: userinfo is "an error". The error
    # does not repeat userinfo, which may be a password.
    if "@" in authority:
        raise MalformedRequest("request target: got a URL with a user in it, expected none")
    if not authority or authority.startswith(":") or not _is_host(authority):
        raise MalformedRequest(f"request target: got the host {authority[:_SHOWN]!r}, expected a host name or address")
    if scheme.lower() == "https" and not is_secure:
        # RFC 9110, 7.4: "a request for an "https" resource MUST be rejected unless it has been received over" TLS.
        raise MisdirectedRequest("request target: got an https URL on a connection without TLS, expected http")
    headers["Host"] = authority
    if rest.startswith("/"):
        return rest
    return "*" if method == "OPTIONS" and not rest else f"/{rest}"  # section 3.2.4


def _content_length(headers: HTTPHeaders, version: str) -> int | None:
    """Return the length of the body; None for a chunked body. The checks are in the order of section 6.3."""
    codings, lengths = headers.get_list("Transfer-Encoding"), headers.get_list("Content-Length")
    if codings:
        # Sections 6.1 and 11.2: another server on the path may have used either of the two headers.
        if lengths:
            raise MalformedRequest("got Transfer-Encoding together with Content-Length, expected only one of the two")
        if version == "HTTP/1.0":
            raise MalformedRequest("Transfer-Encoding: got the header in an HTTP/1.0 request, expected HTTP/1.1")
        names = [name.strip(" \t").lower() for name in ",".join(codings).split(",")]
        if names == ["chunked"]:
            return None
        if names[-1] != "chunked" or "chunked" in names[:-1] or "" in names:
            raise MalformedRequest(
                f"Transfer-Encoding: got {', '.join(names)[:_SHOWN]!r}, expected 'chunked' at its end"
            )
        raise NotImplementedHere(f"Transfer-Encoding: got {', '.join(names)[:_SHOWN]!r}, expected 'chunked' alone")
    if not lengths:
        return 0
    # "all values in the list are valid, and all values in the list are the same": a proxy may have joined two lines.
    values = {value.strip(" \t") for value in ",".join(lengths).split(",")}
    value = values.pop()
    if values or _DIGITS.fullmatch(value) is None:
        raise MalformedRequest(f"Content-Length: got {','.join(lengths)[:_SHOWN]!r}, expected one number of bytes")
    value = value.lstrip("0") or "0"
    return int(value if len(value) <= _MOST_DIGITS else "9" * _MOST_DIGITS)


def _persists(headers: HTTPHeaders, version: str) -> bool:
    """Section 9.3: "close" wins; an HTTP/1.0 client must send keep-alive for a persistent connection."""
    connection = headers.get("Connection")
    if connection is None:
        return version == "HTTP/1.1"
    options = {option.strip(" \t").lower() for option in connection.split(",")}
    if "close" in options:
        return False
    return version == "HTTP/1.1" or "keep-alive" in options


def _expects_continue(headers: HTTPHeaders, version: str) -> bool:
    """RFC 9110, 10.1.1."""
    expect = headers.get("Expect")
    if expect is None or version == "HTTP/1.0":  # "MUST ignore that expectation"
        return False
    expected = {member.strip(" \t").lower() for member in expect.split(",")} - {""}
    if expected - {"100-continue"}:
        raise ExpectationFailed(f"Expect: got {expect[:_SHOWN]!r}, expected '100-continue'")
    return bool(expected)


# Descriptions of malformed requests, for the developer of the client. Valid requests do not reach this code.


def _bad_request_line(text: str) -> QgstreamError:
    if _METHOD_AND_TARGET.match(text):
        return MalformedRequest("request line: got no version, expected HTTP/1.1 at its end")
    line = text.partition("\n")[0].removesuffix("\r")
    expected = "expected a method, a target and HTTP/1.1 with one space between them"
    return MalformedRequest(f"request line: got {line[:_SHOWN]!r}, {expected}")


def _bad_header_line(text: str, at: int) -> MalformedRequest:
    line = text[at:].partition("\n")[0].removesuffix("\r")
    if line.startswith((" ", "\t")):
        # Section 5.2: "obsolete line folding is unacceptable".
        return MalformedRequest("header line: got white space at its start, expected a name (no folded lines)")
    name, colon, _ = line.partition(":")
    # The error does not repeat the value, which may be a secret.
    if not colon:
        return MalformedRequest("header line: got a line without a colon, expected a name, a colon and a value")
    if re.fullmatch(_NAME, name) is None:
        return MalformedRequest(f"header line: got the name {name[:_SHOWN]!r}, expected letters, digits and hyphens")
    return MalformedRequest(f"{name[:_SHOWN]}: got a control character in the value, expected none")
