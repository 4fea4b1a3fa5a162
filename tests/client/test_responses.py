"""What a client makes of answers that are not what it asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.client.responses import (
    CredentialsRefused,
    Refused,
    RequestRefused,
    TryLater,
    UnusableToken,
    bearer,
    events_url,
    is_hopeless,
    refusal,
    sentence,
    server_of,
)
from tests.scripted import error


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://user:hush@example.com/events?access_token=hush#hush", "https://example.com"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
    ],
)
def test_a_server_is_named_without_secrets(url: str, server: str) -> None:
    assert server_of(url) == server


def test_the_words_of_the_system_without_its_numbers() -> None:
    assert sentence(httpx.ConnectError("[Errno 111] Connection refused")) == "Connection refused"
    assert sentence(httpx.ConnectError("[Errno -2] Name or service not known")) == "Name or service not known"
    several = httpx.ConnectError("All connection attempts failed")
    several.__cause__ = OSError("All connection attempts failed")
    several.__cause__.__cause__ = BaseExceptionGroup("", [ValueError(), ConnectionRefusedError(111, "x")])
    assert sentence(several) == "Connection refused"
    assert sentence(httpx.ConnectError("All connection attempts failed")) == "All connection attempts failed"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestRefused),
        (401, CredentialsRefused),
        (403, CredentialsRefused),
        (404, RequestRefused),
        (408, TryLater),
        (413, RequestRefused),
        (415, RequestRefused),
        (429, TryLater),
        (500, TryLater),
        (501, RequestRefused),
        (502, TryLater),
        (503, TryLater),
        (504, TryLater),
    ],
)
def test_each_status_is_of_its_kind(status: int, kind: type[Refused]) -> None:
    found = refusal(status, {}, error("a_code", "a sentence").encode())
    assert type(found) is kind
    assert str(found) == f"{status} a_code: a sentence"
    assert (found.status, found.code, found.message, found.field) == (status, "a_code", "a sentence", None)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>\n  <b>Bad gateway", b"{}", b"[]", b'{"error": 1}', b'{"error": {"code": 1}}', b"\xff", b"[" * 9000],
)
def test_an_answer_of_something_else_says_so(body: bytes) -> None:
    found = refusal(502, {}, body)
    assert found.code == "http_502"
    assert "expected a response of a qgstream server" in found.message
    assert len(str(found)) < 400


def test_the_field_is_told() -> None:
    assert refusal(400, {}, b'{"error": {"code": "invalid_field", "message": "m", "field": "topic"}}').field == "topic"


def retry_after(value: str) -> float | None:
    return refusal(503, {"retry-after": value}, b"").retry_after_seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("17", 17.0),
        (" 17 ", 17.0),
        ("000000000000017", 17.0),
        ("999999999", 999999999.0),
        ("9" * 5000, 1e9),
        ("5, 60", 60.0),  # two headers
        ("60,60", 60.0),
        ("5, soon", None),
        ("5,", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1e3", None),
        ("inf", None),
        ("", None),
        ("soon", None),
        ("\u0661", None),
        ("\u00b2", None),
        ("\ud800", None),
    ],
)
def test_retry_after_in_seconds(value: str, seconds: float | None) -> None:
    assert retry_after(value) == seconds


@pytest.fixture(params=["UTC", "Asia/Kolkata", "America/New_York"])
def _time_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_time_zone")
def test_retry_after_as_a_date() -> None:
    now = time.time()
    # RFC 9110, 5.6.7: the form that is sent, and the two that were sent once.
    forms = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"]
    for form in forms:
        seconds = retry_after(time.strftime(form, time.gmtime(now + 100)))
        assert seconds is not None
        assert 50 < seconds <= 100
        assert retry_after(time.strftime(form, time.gmtime(now - 100))) == 0


@pytest.mark.parametrize(
    "value",
    [
        "Mon, 99 Jan 2026 00:00:00 GMT",
        "Mon, 01 Jan 99999 00:00:00 GMT",
        "Mon, 01 Jan 2026 00:00:00 +99999999999999999999",
        "Mon, 01 Jan 2026 99:00:00 GMT",
        "Mon, 01 Jan",
        "Mon,",
    ],
)
def test_a_date_that_is_none_says_nothing(value: str) -> None:
    assert retry_after(value) is None


WORDS = ["Mon", ",", " ", "01", "Jan", "2026", "99999999999", "00:00:00", "GMT", "+", "-", "0"]


@given(st.text() | st.lists(st.sampled_from(WORDS)).map("".join))
def test_whatever_retry_after_is_it_is_a_time_or_nothing(value: str) -> None:
    seconds = retry_after(value)
    assert seconds is None or 0 <= seconds <= 1e9


@pytest.mark.parametrize(
    ("code", "status", "is_uncertain"),
    [
        ("broker_down", 503, True),
        ("draining", 503, False),
        ("max_connections", 503, False),
        ("server_error", 500, True),
    ],
)
def test_after_which_refusals_an_event_may_be_published(code: str, status: int, is_uncertain: bool) -> None:
    assert refusal(status, {}, error(code).encode()).is_uncertain is is_uncertain


@pytest.mark.parametrize(
    ("url", "full"),
    [
        ("http://localhost:8000", "http://localhost:8000/events"),
        ("https://host/", "https://host/events"),
        ("https://host?x=1", "https://host/events?x=1"),
        ("https://host/live/events", "https://host/live/events"),
    ],
)
def test_an_address_alone_is_its_stream(url: str, full: str) -> None:
    assert events_url(url) == full


@pytest.mark.parametrize("url", ["http://[::1", "http://h:99999", "http://h:port", "http://a\x7fb", "http://a\udc80"])
def test_what_is_no_url_is_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url: got something that is not a URL, expected http://host"):
        events_url(f"{url}/?access_token=hush")


@pytest.mark.parametrize("token", ["a\nb", "ü", "\udc80", "a\r", "\0"])
def test_a_token_that_no_header_can_carry(token: str) -> None:
    with pytest.raises(UnusableToken, match="expected printable ASCII") as caught:
        bearer(f"hush{token}")
    assert "hush" not in str(caught.value)


def test_an_error_without_words_is_named() -> None:
    assert sentence(httpx.ReadTimeout("")) == "timeout: nothing was received for too long"
    assert sentence(httpx.ConnectTimeout("")) == "timeout: no connection was made in time"
    assert sentence(httpx.WriteTimeout("")) == "WriteTimeout"
    assert sentence(httpx.WriteTimeout("what")) == "what"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx.ProxyError("407 Proxy Authentication Required"), True),
        (httpx.ProxyError("403 Forbidden"), True),
        (httpx.ProxyError("429 Too Many Requests"), False),
        (httpx.ProxyError("502 Bad Gateway"), False),
        (httpx.ProxyError("Proxy Server could not connect: Connection refused."), False),
        (httpx.ReadError("403"), False),
        (httpx.LocalProtocolError("Illegal header value"), True),
        (httpx.UnsupportedProtocol("ftp"), True),
    ],
)
def test_what_would_end_in_the_same_way_again(error: httpx.HTTPError, expected: bool) -> None:
    assert is_hopeless(error) is expected
