"""The head of a request. `hostile/http_table.py` has what is right and wrong; here is what a table cannot say."""

from __future__ import annotations

import time
from contextlib import suppress

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qgstream.errors import QgstreamError
from qgstream.net.http1.request_head import find_origin, parse_head

PIECES = st.sampled_from([
    b"GET", b"POST", b" ", b"\t", b"/", b"/a?b", b"http://x/", b"*", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\n", b"\r",
    b":", b"Host: x", b"X: y", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Connection: close", b"\0",
    b"Expect: 100-continue", b",", b"#", b"[", b"a", b"\xff", b"GET / HTTP/1.1\r\nHost: x\r\n",
])  # fmt: skip


# Heads in which only the first line, or only one place, may be odd: of pieces alone none becomes a head.
PARTS = st.sampled_from([b"/", b"a", b"?b", b"http://x/", b"http://", b"*", b"#", b"//", b":"])
ODD_LINES = st.tuples(
    st.sampled_from([b"GET", b"OPTIONS", b"POST"]), st.lists(PARTS, max_size=3).map(b"".join),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0"]),
).map(lambda words: b" ".join(words) + b"\r\nHost: x\r\n\r\n")  # fmt: skip


@st.composite
def nearly_heads(draw: st.DrawFn) -> bytes:
    """A head with a piece put in anywhere."""
    head = draw(st.sampled_from([b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /a?b HTTP/1.0\r\nX: y\r\n\r\n"]))
    at = draw(st.integers(0, len(head)))
    return head[:at] + draw(PIECES) + head[at:]


@given(ODD_LINES | nearly_heads() | st.lists(PIECES, max_size=20).map(b"".join))
@example(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
@example(b"GET a HTTP/1.1\r\nHost: x\r\n\r\n")
@example(b"GET * HTTP/1.1\r\nHost: x\r\n\r\n")
@example(b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n")
@example(b"GET /#a HTTP/1.1\r\nHost: x\r\n\r\n")
@example(b"GET / HTTP/1.2\r\nHost: x\r\n\r\n")
def test_a_head_is_one_or_is_refused(data: bytes) -> None:
    with suppress(QgstreamError):
        head = parse_head(data, is_secure=False)
        assert head.target.startswith("/") or (head.target, head.method) == ("*", "OPTIONS")
        assert "#" not in head.target
        assert head.version in ("HTTP/1.1", "HTTP/1.0")


@given(
    st.sampled_from([b"GET", b"POST", b"M-SEARCH"]),
    st.from_regex(rb"/[a-z?=&%+]{0,20}", fullmatch=True),
    st.sampled_from([b"1.1", b"1.0"]),
    st.lists(
        st.tuples(
            st.from_regex(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,10}", fullmatch=True),
            st.from_regex(rb"[!-~\x80-\xff]([ \t!-~\x80-\xff]{0,10}[!-~\x80-\xff])?", fullmatch=True),
        ),
        max_size=8,
    ),
)
def test_it_is_read_as_others_read_it(
    method: bytes, target: bytes, version: bytes, fields: list[tuple[bytes, bytes]]
) -> None:
    special = (b"host", b"content-length", b"transfer-encoding", b"expect", b"connection")
    fields = [(b"Host", b"x"), *((name, value) for name, value in fields if name.lower() not in special)]
    data = b"%b %b HTTP/%b\r\n" % (method, target, version)
    data += b"".join(b"%b: \t%b \r\n" % field for field in fields) + b"\r\n"
    head = parse_head(data, is_secure=False)
    other = h11.Connection(h11.SERVER)
    other.receive_data(data)
    event = other.next_event()
    assert isinstance(event, h11.Request)
    assert (head.method.encode(), head.target.encode()) == (event.method, event.target)
    assert head.version.encode() == b"HTTP/" + event.http_version
    ours = sorted((name.lower().encode(), value.encode("latin-1")) for name, value in head.headers.get_all())
    assert ours == sorted((bytes(name), bytes(value)) for name, value in event.headers)


def test_the_host_is_that_of_the_target() -> None:
    head = parse_head(b"GET http://b:8000/x?y HTTP/1.1\r\nHost: a\r\n\r\n", is_secure=False)
    assert (head.target, head.headers["Host"]) == ("/x?y", "b:8000")
    head = parse_head(b"GET https://b/ HTTP/1.0\r\n\r\n", is_secure=True)
    assert (head.target, head.headers["Host"]) == ("/", "b")


def test_several_lines_of_a_name_are_kept_apart() -> None:
    head = parse_head(b"GET / HTTP/1.1\r\nHost: x\r\nCookie: a=b\r\ncookie: c=d\r\n\r\n", is_secure=False)
    assert head.headers.get_list("Cookie") == ["a=b", "c=d"]


@pytest.mark.parametrize(
    ("data", "origin"),
    [
        (b"GET / HTTP/1.1\r\nOrigin: https://a.example\r\nbroken\r\n\r\n", "https://a.example"),
        (b"GET\norigin:https://a.example \n\n", "https://a.example"),
        (b"Origin: https://a.example\r\n\r\n", None),
        (b"GET /\r\nOrigin: a b\r\n\r\n", None),
        (b"GET /\r\nOrigin: a\r", None),
        (b"GET /\r\nX-Origin: a\r\n", None),
        (b"", None),
    ],
)
def test_the_page_that_sent_a_broken_request_is_found(data: bytes, origin: str | None) -> None:
    assert find_origin(data) == origin


@pytest.mark.parametrize("filling", [b" ", b"\t", b"x", b"\r", b" x", b":", b"\xff"])
@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\0\r\n\r\n", b"\r \r\n\r\n"])
@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.1\r\nHost: x\r\nX:", b"GET /", b"GET / HTTP/1.1\r\nHost: ", b"\nOrigin:"]
)
def test_a_megabyte_of_anything_is_read_once(head: bytes, filling: bytes, end: bytes) -> None:
    """Of processor time, on a machine with other work; what looks twice at each byte takes minutes."""
    data = head + filling * (1024 * 1024 // len(filling)) + end
    began = time.process_time()
    find_origin(data)
    said = ""
    try:
        parse_head(data, is_secure=False)
    except QgstreamError as error:
        said = str(error)
    assert len(said) < 500
    assert time.process_time() - began < 1
