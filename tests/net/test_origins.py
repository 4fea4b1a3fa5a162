"""Origins have one form, and this server knows its own."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.net.origins import forwarded_scheme, parse, serialize, split_authority


@pytest.mark.parametrize(
    ("scheme", "host", "origin"),
    [
        ("http", "h.example", "http://h.example"),
        ("https", "h.example", "https://h.example"),
        ("HTTPS", "H.Example", "https://h.example"),
        ("http", "h.example:80", "http://h.example"),
        ("https", "h.example:443", "https://h.example"),
        ("http", "h.example:443", "http://h.example:443"),
        ("https", "h.example:80", "https://h.example:80"),
        ("https", "h.example:8443", "https://h.example:8443"),
        ("https", "h.example:0443", "https://h.example"),
        ("https", "h.example:", "https://h.example"),
        ("http", "localhost:8000", "http://localhost:8000"),
        ("http", "localhost:65535", "http://localhost:65535"),
        ("http", "my_host-1", "http://my_host-1"),
        ("http", "192.0.2.1:8000", "http://192.0.2.1:8000"),
        ("http", "[::1]:8000", "http://[::1]:8000"),
        ("http", "[0:0:0:0:0:0:0:1]:80", "http://[::1]"),
        ("http", "[2001:DB8::A]", "http://[2001:db8::a]"),
        # The same name, and another origin (RFC 6454 compares hosts as they are written).
        ("https", "h.example.", "https://h.example."),
        ("https", "xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        # No host that a browser could be on.
        ("https", "", None),
        ("https", ":443", None),
        ("https", "user@h.example", None),
        ("https", "user:password@h.example", None),
        ("https", "h.example/path", None),
        ("https", "h.example:port", None),
        ("https", "h.example:65536", None),
        ("https", "h.example:123456", None),
        ("https", "h..example", None),
        ("https", ".h.example", None),
        ("https", "*.example", None),
        ("https", "h%2eexample", None),
        ("https", "b\u00fccher.example", None),
        ("https", "\u212aelvin.example", None),  # its lower case is ASCII
        ("https", "h.example, h.example", None),
        ("https", " h.example", None),
        ("https", "[::1", None),
        ("https", "[::1]x", None),
        ("https", "[::g]", None),
        ("https", "[::1%eth0]", None),
        ("https", "::1", None),
        ("", "h.example", None),
        ("1http", "h.example", None),
    ],
)
def test_an_origin_has_one_form(scheme: str, host: str, origin: str | None) -> None:
    assert serialize(scheme, host) == origin
    assert parse(f"{scheme}://{host}") == origin
    if origin is not None:
        assert parse(origin) == origin


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "NULL", "*", "h.example", "https:h.example", "https:/h.example", "://h.example", "https://",
        "https://h.example/", "https://h.example https://h.example", "https://h.example,https://h.example",
        "file:///etc/passwd", "data:text/html,x", "about:blank", "https://h.example\t", "https://h.example#",
    ],
)  # fmt: skip
def test_what_no_page_is_from_is_no_origin(text: str) -> None:
    assert parse(text) is None


def test_an_extension_of_a_browser_has_an_origin() -> None:
    assert parse("chrome-extension://abcdefghijklmnop") == "chrome-extension://abcdefghijklmnop"


@given(st.text())
def test_garbage_never_raises(text: str) -> None:
    assert parse(text) is None or "://" in text
    split_authority(text)


@pytest.mark.parametrize(
    ("values", "proxies", "scheme"),
    [
        (["https"], 0, None),  # nobody we trust says so
        ([], 1, None),
        ([""], 1, None),
        (["https"], 1, "https"),
        (["http"], 1, "http"),
        (["HTTPS "], 1, "https"),
        (["wss"], 1, "https"),
        (["ws"], 1, "http"),
        (["https, http"], 1, "http"),  # the client wrote https, and the proxy that it spoke to adds what it spoke
        (["https", "http"], 1, "http"),
        (["https, http"], 2, "https"),
        (["http", "https,http"], 2, "https"),
        (["https"], 2, "https"),  # the inner proxy passes it on, or both replace it
        (["http, https, http, http"], 3, "https"),
        (["ftp"], 1, None),
        (["https://"], 1, None),
        (["https, "], 1, None),
        (["https, nonsense"], 1, None),
    ],
)
def test_the_scheme_is_what_the_outermost_trusted_proxy_was_spoken_to(
    values: list[str], proxies: int, scheme: str | None
) -> None:
    assert forwarded_scheme(values, proxies) == scheme


@pytest.mark.parametrize("value", ["https,", ",", "x"])
def test_a_megabyte_costs_nothing(value: str) -> None:
    began = time.process_time()
    for _ in range(10):
        forwarded_scheme([value * (1024 * 1024 // len(value))], 3)
    assert (time.process_time() - began) / 10 < 0.1
