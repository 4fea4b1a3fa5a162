"""Which origins may read the answers."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from qgstream.net.cors import CorsSettings, headers, is_allowed, parse_origin

PRODUCTION = CorsSettings(allow_origins=("https://app.example.com", "https://*.example.org", "http://localhost:3000"))


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com",
        "HTTPS://APP.EXAMPLE.COM",
        "https://a.example.org",
        "https://a.b.example.org",
        "http://localhost:3000",
    ],
)
def test_listed_origins_and_patterns_are_allowed(origin: str) -> None:
    assert is_allowed(PRODUCTION, origin)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "https://example.org",
        "https://.example.org",
        "https://evil-example.org",
        "https://a.example.org.evil.com",
        "https://a.example.org:444",
        "http://a.example.org",
        "https://app.example.com:8443",
        "https://app.example.com.evil.com",
        "https://evil.com#.example.org",
        "https://evil.com/.example.org",
        "https://evil.com?.example.org",
        "https://evil@a.example.org",
        "https://app.example.comx",
        "http://localhost:30000",
        "http://localhost",
    ],
)
def test_lookalikes_are_not(origin: str) -> None:
    assert not is_allowed(PRODUCTION, origin)


def test_everybody_is_a_star_and_needs_no_vary() -> None:
    everybody = CorsSettings(allow_origins=("*",))
    answer = dict(headers(everybody, "https://anybody.example"))
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert "Vary" not in answer
    assert dict(headers(everybody, None))["Access-Control-Allow-Origin"] == "*"


def test_a_list_answers_with_the_origin_and_always_varies() -> None:
    assert dict(headers(PRODUCTION, "http://localhost:3000"))["Access-Control-Allow-Origin"] == "http://localhost:3000"
    for origin in (None, "https://evil.example", "http://localhost:3000"):
        assert ("Vary", "Origin") in headers(PRODUCTION, origin)
    for origin in (None, "https://evil.example"):
        assert headers(PRODUCTION, origin) == [("Vary", "Origin")]


def test_credentials_are_allowed_to_listed_origins_only() -> None:
    settings = CorsSettings(allow_origins=("https://app.example.com",), allow_credentials=True)
    assert ("Access-Control-Allow-Credentials", "true") in headers(settings, "https://app.example.com")
    assert ("Access-Control-Allow-Credentials", "true") not in headers(settings, "https://evil.example")
    with pytest.raises(ValidationError, match="browsers do not accept the two together"):
        CorsSettings(allow_origins=("*",), allow_credentials=True)


def test_a_preflight_says_methods_headers_and_for_how_long() -> None:
    settings = CorsSettings(allow_origins=("*",), max_age_seconds=7)
    answer = dict(headers(settings, "https://a.example", preflight=True))
    assert "POST" in answer["Access-Control-Allow-Methods"]
    assert "Last-Event-ID" in answer["Access-Control-Allow-Headers"]
    assert answer["Access-Control-Max-Age"] == "7"


def asked(settings: CorsSettings) -> str | None:
    """The value of the header that names headers."""
    return dict(headers(settings, "https://app.example.com", preflight=True)).get("Access-Control-Allow-Headers")


def test_a_page_with_tracing_passes_its_preflight() -> None:
    allowed = str(asked(PRODUCTION)).lower().split(", ")
    # What the tracing of OpenTelemetry and of Sentry adds to a request of a page, beside what the server reads.
    for name in ("traceparent", "tracestate", "baggage", "sentry-trace", "authorization", "content-type"):
        assert name in allowed


@pytest.mark.parametrize(
    ("names", "header"),
    [
        (("X-Request-Id", "traceparent"), "X-Request-Id, traceparent"),
        (("Authorization",), "Authorization"),
        (("*",), "*, Authorization"),  # a star does not stand for Authorization
        (("*", "*"), "*, Authorization"),
        ((), None),
    ],
)
def test_a_preflight_has_the_headers_of_the_setting(names: tuple[str, ...], header: str | None) -> None:
    assert (
        asked(PRODUCTION.model_copy(update={"allow_headers": CorsSettings(allow_headers=names).allow_headers}))
        == header
    )


@pytest.mark.parametrize("name", ["", "X Request", "X-Request:", "a\r\nb", "a, b", "\u00e9", "a\n"])
def test_what_is_no_name_of_a_header_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="expected the name of a header"):
        CorsSettings(allow_headers=(name,))


def test_a_star_among_headers_is_alone_and_without_credentials() -> None:
    with pytest.raises(
        ValidationError, match=r'got "\*" beside traceparent, expected "\*" alone: it allows every header'
    ):
        CorsSettings(allow_headers=("*", "traceparent"))
    with pytest.raises(ValidationError, match="expected the names of the headers: browsers do not accept"):
        CorsSettings(allow_origins=("https://a.example",), allow_headers=("*",), allow_credentials=True)
    CorsSettings(allow_origins=("https://a.example",), allow_headers=("traceparent",), allow_credentials=True)


def test_no_origins_is_no_cors() -> None:
    assert headers(CorsSettings(), "https://a.example") == []


@pytest.mark.parametrize(
    "origin", ["https://a.example/", "https://a.example/x", "a.example", "https://*", "https://a.*"]
)
def test_what_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="expected scheme"):
        parse_origin(origin)


def test_a_schemes_own_port_is_left_out_as_browsers_do() -> None:
    assert parse_origin("HTTPS://A.example:443") == "https://a.example"
    assert parse_origin("http://a.example:80") == "http://a.example"
    assert parse_origin("http://a.example:443") == "http://a.example:443"
