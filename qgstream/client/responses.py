"""How a client reads a server's response: each kind of refusal is an exception of its own. Pure."""

from __future__ import annotations

import json
import os
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from qgstream.errors import QgstreamError

# How much of a response that is not JSON is shown: of a proxy's HTML page, only the first words help.
_MOST_SHOWN = 200
# A repetition may succeed: the client was too early or too fast, or the server has a temporary fault.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

# The longest Retry-After. The client decides how to use the value, but can always sleep for this time.
_MOST_SECONDS = 1e9

# What anyio says, which has tried each address of a name, and keeps the reasons to itself.
_NO_ATTEMPT = "All connection attempts failed"

# LocalProtocolError: a header that cannot be sent.
_HOPELESS = (
    httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.LocalProtocolError, ssl.SSLCertVerificationError,
)  # fmt: skip


class ClientError(QgstreamError):
    """The base of what `connect`, `Publisher` and `AsyncPublisher` raise on purpose.

    A `ClientError` of no other kind says that no repetition helps: the URL cannot be used, or the server is no
    qgstream.

    Example::

        import qgstream

        try:
            async for event in qgstream.connect("http://localhost:8000", token="wrong"):
                print(event.data)
        except qgstream.ClientError as error:
            print(error.code, error)
    """

    code = "client_error"


class Unreachable(ClientError):
    """No response came before the client gave up.

    Args:
        message: What went wrong with the last try.
        is_uncertain: Whether the server may have taken what was sent.

    Attributes:
        is_uncertain: Of a publish: whether the server may have taken the event. The same `idempotency_key` repeats it
            safely within five minutes of the first try.

    Example::

        import qgstream

        with qgstream.Publisher("http://localhost:1", key="dev", deadline_seconds=0.1) as publisher:
            try:
                publisher.publish("orders", {"order": 7}, idempotency_key="order-7")
            except qgstream.Unreachable as error:
                print(error.is_uncertain)  # False: nothing was sent
    """

    code = "unreachable"

    def __init__(self, message: str, *, is_uncertain: bool = False) -> None:
        super().__init__(message)
        self.is_uncertain = is_uncertain


class Refused(ClientError):
    """The response of the server is an error.

    What is raised is one of `CredentialsRefused`, `RequestRefused` and `TryLater`.

    Args:
        status: The HTTP status.
        code: The stable word of the server's JSON.
        message: The sentence of the server's JSON.
        field: The part of the request that is wrong.
        retry_after_seconds: How long the server wants to be left alone, in seconds.

    Attributes:
        status: The HTTP status.
        code: The stable word of the server's JSON; `http_502` and the like if a proxy responded.
        message: The sentence of the server's JSON.
        field: The part of the request that is wrong; None if the server named none.
        retry_after_seconds: How long the server wants to be left alone, in seconds; None if it did not say.
        is_uncertain: Of a publish: whether the server may have taken the event all the same.

    Example::

        import qgstream

        with qgstream.Publisher("http://localhost:8000", key="dev") as publisher:
            try:
                publisher.publish("orders/*", {"order": 7})
            except qgstream.Refused as error:
                print(error.status, error.code, error.field)  # 400 invalid_field topic
    """

    is_uncertain = False

    def __init__(
        self, status: int, code: str, message: str, *, field: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.retry_after_seconds = retry_after_seconds
        # Any other response means that nothing was published (docs/http-interface.md).
        self.is_uncertain = code == "broker_down" or status in (500, 502, 504)


class UnusableToken(ClientError):
    """A key or token that no HTTP header can contain. Nothing was sent."""

    code = "unusable_token"


class RequestRefused(Refused):
    """The request itself is wrong: the same request gets the same response.

    See `Refused` for the attributes.

    Example::

        import qgstream

        with qgstream.Publisher("http://localhost:8000", key="dev") as publisher:
            try:
                publisher.publish("", {"order": 7})
            except qgstream.RequestRefused as error:
                print(error.code, error.field)
    """


class CredentialsRefused(Refused):
    """The response has the status 401 or 403: there was no key or token, it is not valid, or it does not allow this.

    See `Refused` for the attributes.

    Example::

        import qgstream

        with qgstream.Publisher("http://localhost:8000", key="wrong") as publisher:
            try:
                publisher.publish("orders", {"order": 7})
            except qgstream.CredentialsRefused as error:
                print(error.status, error.code)  # 401 unknown_key
    """


class TryLater(Refused):
    """A limit, a server that drains, or a fault that may pass: the server may take the same request later.

    A publisher raises `TryLater` when its `deadline_seconds` are over. See `Refused` for the attributes.

    Example::

        import qgstream

        def publish(publisher: qgstream.Publisher, order: int) -> bool:
            try:
                publisher.publish("orders", {"order": order}, idempotency_key=f"order-{order}")
            except qgstream.TryLater as error:
                print("later, in seconds:", error.retry_after_seconds)
                return False
            return True
    """


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refused:
    """Return the exception for an unsuccessful response. The names in `headers` are case-insensitive."""
    code, message, field = f"http_{status}", "", None
    try:
        error = json.loads(body)["error"]
        code, message, field = str(error["code"]), str(error["message"]), error.get("field")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        words = " ".join(body[: 4 * _MOST_SHOWN].decode("utf-8", "replace").split())
        message = f"got {words[:_MOST_SHOWN]!r}, expected a response of a qgstream server"
    if status in (401, 403):
        kind: type[Refused] = CredentialsRefused
    else:
        kind = TryLater if status in _PASSING else RequestRefused
    return kind(status, code, message, field=field, retry_after_seconds=_retry_after(headers.get("retry-after")))


def _retry_after(value: str | None) -> float | None:
    """Parse Retry-After (RFC 9110, 10.2.3): seconds or a date. Any other value counts as absent. httpx joins several
    such headers with commas; then the longest time counts."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if all(part.isascii() and part.isdigit() for part in parts):
        # For thousands of digits, float() returns infinity, which is no valid time to sleep, and int() raises an error.
        return min(max(map(float, parts)), _MOST_SECONDS)
    # OverflowError: a time zone with many digits.
    with suppress(ValueError, OverflowError):
        at = parsedate_to_datetime(value)
        # 5.6.7: every HTTP date is in UTC, and only the obsolete asctime() form does not say so.
        return min(max(0.0, at.replace(tzinfo=at.tzinfo or UTC).timestamp() - time.time()), _MOST_SECONDS)
    return None


def bearer(token: str) -> str:
    """Return the `Authorization` header for a key or token. Raises `UnusableToken`."""
    if not (token.isascii() and token.isprintable()):
        # The value is not repeated: it is a secret.
        raise UnusableToken(
            "the key or token has a character that no HTTP header can contain, expected printable ASCII"
        )
    return f"Bearer {token}"


def events_url(url: str) -> str:
    """Return the URL of the stream; an address without a path means `/events` there. Raises `ValueError`."""
    # The wrong value is not repeated: it may contain a token.
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises for a port out of range
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        raise ValueError("url: got something that is not a URL, expected http://host... or https://host...") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url: got the scheme {parts.scheme!r}, expected http://host... or https://host...")
    return parts._replace(path="/events").geturl() if parts.path in ("", "/") else url


def is_hopeless(error: httpx.HTTPError) -> bool:
    """Return whether the next try would fail in the same way."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _HOPELESS) or (isinstance(cause, httpx.ProxyError) and _is_refusal(str(cause)[:3])):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _is_refusal(status: str) -> bool:
    """Return whether the proxy's response to CONNECT, which starts the error's text, would be the same again."""
    return status.isdecimal() and 400 <= int(status) < 500 and int(status) not in _PASSING


def server_of(url: httpx.URL | str) -> str:
    """The server of a URL, without what may be secret in it: `http://127.0.0.1:8000`."""
    parsed = httpx.URL(url)
    return str(parsed.copy_with(username=None, password=None, raw_path=b"/", fragment=None)).rstrip("/")


def sentence(error: httpx.HTTPError) -> str:
    """Return the error as a sentence."""
    # The timeouts of httpx have no text.
    named: dict[type[httpx.HTTPError], str] = {
        httpx.ReadTimeout: "timeout: nothing was received for too long",
        httpx.ConnectTimeout: "timeout: no connection was made in time",
    }
    said = str(error)
    if said == _NO_ATTEMPT:
        said = next(filter(None, map(_words_of, _causes(error))), said)
    return re.sub(r"^\[Errno -?\d+\] ", "", said) or named.get(type(error), type(error).__name__)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield from cause.exceptions if isinstance(cause, BaseExceptionGroup) else (cause,)
        cause = cause.__cause__ or cause.__context__


def _words_of(error: BaseException) -> str | None:
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number is not None and number > 0 else None
