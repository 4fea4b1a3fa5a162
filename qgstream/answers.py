"""What a client makes of a server's answer: every refusal is an exception of its own kind. Pure."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import cache
from urllib.parse import urlsplit

import httpx

from qgstream.errors import QgstreamError

# Of what an answer says that is not JSON: a proxy's page of HTML helps nobody beyond its first words.
_MOST_SHOWN = 200
# Their senders ask for a repetition, or may be well again in a moment: too early, too many, and a server's own faults.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class ClientError(QgstreamError):
    """Base of what `connect`, `Publisher` and `AsyncPublisher` raise on purpose."""

    code = "client_error"


class Unreachable(ClientError):
    """No answer came, for as long as it was tried.

    `is_uncertain`: of a publish, that it may have been taken all the same. The same `idempotency_key` repeats it safely
    within five minutes of the first try.
    """

    code = "unreachable"

    def __init__(self, message: str, *, is_uncertain: bool = False) -> None:
        super().__init__(message)
        self.is_uncertain = is_uncertain


class Refused(ClientError):
    """The server answered, and not what was asked for.

    `status` is the HTTP status, `code` the stable word of the server's JSON (`http_502` and the like if a proxy
    answered), `message` its sentence, `field` the part of the request at fault, `retry_after_seconds` how long it wants
    to be left alone; the last two may be None.
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
        # After any other answer nothing was published (docs/http-interface.md).
        self.is_uncertain = code == "broker_down" or status in (500, 502, 504)


class RequestRefused(Refused):
    """The request itself is wrong: the same one gets the same answer."""


class CredentialsRefused(Refused):
    """401 or 403: no key or token, one that is not valid, or one that does not allow this."""


class TryLater(Refused):
    """A limit, a server that leaves, or a fault that may pass: the same request may be answered later."""


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refused:
    """The exception for an answer that is not the wanted one. `headers` know no upper and lower case."""
    code, message, field = f"http_{status}", "", None
    try:
        error = json.loads(body)["error"]
        code, message, field = str(error["code"]), str(error["message"]), error.get("field")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        words = " ".join(body[: 4 * _MOST_SHOWN].decode("utf-8", "replace").split())
        message = f"got {words[:_MOST_SHOWN]!r}, expected an answer of qgstream"
    if status in (401, 403):
        kind: type[Refused] = CredentialsRefused
    else:
        kind = TryLater if status in _PASSING else RequestRefused
    return kind(status, code, message, field=field, retry_after_seconds=_retry_after(headers.get("retry-after")))


def _retry_after(value: str | None) -> float | None:
    """RFC 9110, 10.2.3: seconds or a date; anything else is as good as nothing."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def events_url(url: str) -> str:
    """The URL of the stream; of a server's address alone it is `/events` there. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        # The rest is not repeated: it may hold a token.
        raise ValueError(f"url: got the scheme {parts.scheme!r}, expected http://host... or https://host...")
    return parts._replace(path="/events").geturl() if parts.path in ("", "/") else url


def is_hopeless(error: httpx.HTTPError) -> bool:
    """Whether the next try would end in the same way."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, httpx.UnsupportedProtocol | httpx.TooManyRedirects | ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def sentence(error: httpx.HTTPError) -> str:
    """What went wrong."""
    # httpx's timeouts have no words of their own.
    named: dict[type[httpx.HTTPError], str] = {
        httpx.ReadTimeout: "nothing came for too long",
        httpx.ConnectTimeout: "no connection came about in time",
    }
    return str(error) or named.get(type(error), type(error).__name__)


@cache
def _usual_trust() -> ssl.SSLContext:
    # Reading all certificates of the world takes a fifth of a second: once is enough.
    return httpx.create_ssl_context()


def trust(verify: ssl.SSLContext | bool) -> ssl.SSLContext | bool:
    """Whom TLS trusts, as httpx wants to know it."""
    return _usual_trust() if verify is True else verify
