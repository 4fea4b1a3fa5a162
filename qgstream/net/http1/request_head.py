"""The head of an HTTP/1.1 request: bytes in, method, target and headers out. Pure.

Tornado's own parser knows no absolute-form target, and answers what it refuses without a word. The rules are those of
RFC 9112 (sections are named beside each), and strict wherever two readers of one request could disagree about its end.
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

# Envoy, Apache and gunicorn take 100 lines, HAProxy 101, hyper 100: no proxy lets more through. A line costs about
# 2 us, and a megabyte of headers has room for 200 000 of them.
MAX_HEADER_LINES = 128
# RFC 1035, 2.3.4 has 255 bytes for a name, which may be escaped. Tornado takes 80 ms to look at a megabyte of it.
MAX_HOST_CHARACTERS = 1024
# What an error repeats of a request.
_SHOWN = 100
# Digits of a Content-Length, beyond which it is taken for this many nines: int() refuses thousands with a ValueError.
_MOST_DIGITS = 18

# Every repetition is possessive (`*+`): what was matched is not tried again in another way, so that a long line of
# anything costs one pass.
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
# Section 3. Bytes above 0x7f are no part of a URI, but curl and others send a topic as it was typed, in UTF-8.
_REQUEST_LINE = re.compile(rf"({_NAME}) ([\x21-\x7e\x80-\xff]++) HTTP/([0-9])\.([0-9])\r?\n")
_METHOD_AND_TARGET = re.compile(rf"{_NAME} [\x21-\x7e\x80-\xff]++(?: HTTP/[0-9]++)?\r?\n")
# Section 5 and RFC 9110, 5.5: no control character but tab, so neither NUL nor a CR alone.
_HEADER_LINE = re.compile(rf"({_NAME}):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)\r?\n")
_END = re.compile(r"\r?\n")
# RFC 9110, 7.2 and RFC 3986, 3.2.2; a comma is left out, because a proxy joins two Host lines with one.
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:.]++\]|\[v[0-9A-Fa-f]++\.[A-Za-z0-9._~!$&'()*+;=:-]++\]"
    r"|(?:[A-Za-z0-9._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})*+)(?::[0-9]*+)?"
)
_ABSOLUTE = re.compile(r"(?i:(https?)://)([^/?#]*+)(.*+)")
_DIGITS = re.compile(r"[0-9]++")
_ORIGIN = re.compile(rb"(?i)\norigin:[ \t]*+([\x21-\x7e]{1,255}+)[ \t]*+\r?\n")


class RequestHead(NamedTuple):
    """What was asked. `target` begins with "/" or is "*"; `version` is "HTTP/1.1" or "HTTP/1.0".

    `content_length` is the number of bytes of the body, None for a chunked one. `persists` says whether the connection
    may carry another request, `expects_continue` whether the client waits for `100 Continue` before it sends a body.
    """

    method: str
    target: str
    version: str
    headers: HTTPHeaders
    content_length: int | None
    persists: bool
    expects_continue: bool


def parse_head(data: bytes, *, is_secure: bool) -> RequestHead:
    """Read a head, from its request line to the empty line behind its headers. `is_secure`: it came over TLS.

    Raises `MalformedRequest`, `HeadersTooLarge`, `ExpectationFailed`, `MisdirectedRequest`, `NotImplementedHere` or
    `VersionNotSupported`. The header `Host` of the answer is that of the target, as section 3.2.2 has it.
    """
    text = data.decode("latin-1")
    line = _REQUEST_LINE.match(text)
    if line is None:
        raise _bad_request_line(text)
    method, target, major, minor = line.groups()
    if major != "1":
        raise VersionNotSupported(f"got HTTP/{major}.{minor}, expected HTTP/1.1 or HTTP/1.0")
    # RFC 9110, 2.5: a request of a higher minor version is processed as one of the highest that is known.
    version = "HTTP/1.0" if minor == "0" else "HTTP/1.1"
    headers = _parse_headers(text, line.end())
    _check_host(headers, version)
    if method == "CONNECT":
        raise NotImplementedHere("got CONNECT, expected a request for this server: it is no proxy")
    if not target.startswith("/"):
        target = _origin_form(method, target, headers, is_secure)
    if "#" in target:
        raise MalformedRequest("request target: got a fragment (#...), which a client keeps to itself")
    return RequestHead(
        method, target, version, headers, _content_length(headers, version), _persists(headers, version),
        _expects_continue(headers, version),
    )  # fmt: skip


def find_origin(data: bytes) -> str | None:
    """The header `Origin` in a head that may be malformed: its page should be able to read why it was refused."""
    found = _ORIGIN.search(data)
    return found[1].decode("ascii") if found else None


def parse_trailers(data: bytes) -> None:
    """Check the trailer section of a chunked body, with the empty line at its end; nothing of it is used.

    Section 7.1.2: "A recipient that removes the chunked coding [...] MAY selectively retain or discard". Merged into
    the headers, a trailer could bring what a proxy has checked and removed there.
    """
    _parse_headers(data.decode("latin-1"), 0)


def _parse_headers(text: str, at: int) -> HTTPHeaders:
    if text.count("\n", at) > MAX_HEADER_LINES + 1:
        raise HeadersTooLarge(f"got more than {MAX_HEADER_LINES} header lines, expected at most so many")
    headers = HTTPHeaders()
    match = _HEADER_LINE.match
    while (line := match(text, at)) is not None:
        name, value = line.groups()
        at = line.end()
        if name in headers:
            headers.add(name, value.rstrip(" \t"))
        else:
            headers[name] = value.rstrip(" \t")  # `add` would check again what has been checked
    if _END.fullmatch(text, at) is None:
        raise _bad_header_line(text, at)
    return headers


def _check_host(headers: HTTPHeaders, version: str) -> None:
    """Section 3.2: "A server MUST respond with a 400" to none, to two, and to one that is no host."""
    hosts = headers.get_list("Host")
    if len(hosts) != 1:
        if hosts or version == "HTTP/1.1":
            raise MalformedRequest(f"Host: got {len(hosts)} header lines, expected exactly one")
    elif not _is_host(hosts[0]):
        raise MalformedRequest(f"Host: got {hosts[0][:_SHOWN]!r}, expected a host name or address and perhaps a port")


def _is_host(text: str) -> bool:
    return len(text) <= MAX_HOST_CHARACTERS and _HOST.fullmatch(text) is not None


def _origin_form(method: str, target: str, headers: HTTPHeaders, is_secure: bool) -> str:
    """The path and query of a target in another form. Section 3.2."""
    if target == "*" and method == "OPTIONS":
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        expected = "expected a path that begins with '/', an http or https URL, or '*' with OPTIONS"
        raise MalformedRequest(f"request target: got {target[:_SHOWN]!r}, {expected}")
    scheme, authority, rest = absolute.groups()
    # RFC 9110, 4.2.1: a URI "with an empty host identifier MUST" be rejected. 4.2.4: userinfo is "an error". It may be
    # a password, and is not repeated.
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
    """How long the body is; None for a chunked one. Section 6.3, in its order."""
    codings, lengths = headers.get_list("Transfer-Encoding"), headers.get_list("Content-Length")
    if codings:
        # Sections 6.1 and 11.2: either of the two may be what another reader on the way went by.
        if lengths:
            raise MalformedRequest("got Transfer-Encoding together with Content-Length, expected one of them")
        if version == "HTTP/1.0":
            raise MalformedRequest("Transfer-Encoding: got it in a request of HTTP/1.0, which does not have it")
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
    """Section 9.3: "close" wins, and HTTP/1.0 has to ask for it."""
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


# What is wrong, for whoever wrote the client. Not on the path of a right request.


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
        return MalformedRequest("header line: got one that begins with white space, expected a name (no folded lines)")
    name, colon, _ = line.partition(":")
    # A value is not repeated: it may be a secret.
    if not colon:
        return MalformedRequest("header line: got one without a colon, expected a name, a colon and a value")
    if re.fullmatch(_NAME, name) is None:
        return MalformedRequest(f"header line: got the name {name[:_SHOWN]!r}, expected letters, digits and hyphens")
    return MalformedRequest(f"{name[:_SHOWN]}: got a control character in the value, expected none")
