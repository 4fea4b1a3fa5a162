"""CORS: the origins whose pages may read responses. Pure: settings in, headers out.

Browsers enforce CORS, not servers. The server processes a request from a foreign origin but omits the CORS headers, so
the page cannot read the response. Source: the Fetch standard, "CORS protocol".
"""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from qgstream.net import origins
from qgstream.settings import Section


def parse_origin(text: str) -> str:
    """Return the form in which browsers write an origin or a pattern: lower case, no default port. `*` is unchanged.

    Raises `ValueError` for any other text: a path or a trailing slash would never match the `Origin` of a browser.
    """
    if text == "*":
        return text
    scheme, _, authority = text.partition("://")
    subdomains = "*." if authority.startswith("*.") else ""
    origin = origins.serialize(scheme, authority.removeprefix(subdomains))
    if origin is None or (subdomains and authority.startswith("*.[")):
        raise ValueError(
            f"got {text!r}, expected scheme://host or scheme://host:port without a path or a trailing slash, "
            'a pattern such as https://*.example.com, or "*" alone'
        )
    return origin.replace("://", f"://{subdomains}", 1)


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2


def _check_header_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f'got {name!r}, expected the name of a header, such as X-Request-Id, or "*" alone')
    return name


class CorsSettings(Section):
    """The section `[cors]`: the origins whose pages may open streams and read responses.

    Example::

        import qgstream

        service = qgstream.Service(qgstream.Hub(), cors=qgstream.CorsSettings(allow_origins=["https://www.example.com"]))
    """

    allow_origins: tuple[Annotated[str, AfterValidator(parse_origin)], ...] = Field(
        (), description='Exact origins, `https://*.example.com` patterns, or "*" alone for every origin.'
    )
    allow_headers: tuple[Annotated[str, AfterValidator(_check_header_name)], ...] = Field(
        # The headers that the server reads, and the headers that browser tracing adds to each `fetch` request: W3C
        # Trace Context, Baggage and Sentry. If a preflight names one header that is not in this list, the whole
        # preflight fails.
        (
            "Authorization", "Content-Type", "Last-Event-ID", "Cache-Control",
            "traceparent", "tracestate", "baggage", "sentry-trace",
        ),
        description='Headers that pages may send, or "*" alone for every header.',
    )  # fmt: skip
    allow_credentials: bool = Field(False, description='Whether pages may send cookies; not allowed together with "*".')
    max_age_seconds: int = Field(600, ge=0, description="How long a browser remembers a preflight's answer.")

    @field_validator("allow_origins", "allow_headers")
    @classmethod
    def _everybody_alone(cls, values: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        others = ", ".join(value for value in values if value != "*")
        if "*" in values and others:
            what = "origin" if info.field_name == "allow_origins" else "header"
            raise ValueError(f'got "*" beside {others}, expected "*" alone: it allows every {what} already')
        return ("*",) if "*" in values else values

    @model_validator(mode="after")
    def _no_credentials_for_everybody(self) -> Self:
        # Fetch standard, "CORS-preflight fetch": in a request with credentials, `*` is a literal header name.
        if self.allow_credentials and "*" in self.allow_headers:
            raise ValueError(
                'got allow_credentials = true with allow_headers = ["*"], expected the names of the headers: '
                "browsers do not accept the two together"
            )
        # Fetch standard, "CORS check": a browser rejects `*` for a request with credentials.
        if self.allow_credentials and "*" in self.allow_origins:
            raise ValueError(
                'got allow_credentials = true with allow_origins = ["*"], expected the exact origins: '
                "browsers do not accept the two together"
            )
        return self


_ALLOW_METHODS = "GET, HEAD, POST, PATCH, DELETE, OPTIONS"
_EXPOSE_HEADERS = "Retry-After"


def is_allowed(settings: CorsSettings, origin: str) -> bool:
    """Whether pages of this origin (in the form that browsers send) may read responses."""
    if settings.allow_origins == ("*",):
        return True
    parsed = origins.parse(origin)
    return parsed is not None and any(_covers(allowed, parsed) for allowed in settings.allow_origins)


def _covers(allowed: str, origin: str) -> bool:
    scheme, wildcard, domain = allowed.partition("*")
    if not wildcard:
        return allowed == origin
    # `https://*.example.com` matches subdomains of every depth, but not example.com itself.
    return origin.startswith(scheme) and origin.endswith(domain) and len(origin) > len(scheme) + len(domain)


def headers(settings: CorsSettings, origin: str | None, *, preflight: bool = False) -> list[tuple[str, str]]:
    """Return the CORS headers of the response to a request with this `Origin` (None for a request without `Origin`)."""
    if not settings.allow_origins:
        return []
    if settings.allow_origins == ("*",):
        answer = [("Access-Control-Allow-Origin", "*")]
    else:
        # Also for origins that are not allowed and for requests without `Origin`: a shared cache must keep the
        # responses apart.
        answer = [("Vary", "Origin")]
        if origin is None or not is_allowed(settings, origin):
            return answer
        answer.append(("Access-Control-Allow-Origin", origin))
        if settings.allow_credentials:
            answer.append(("Access-Control-Allow-Credentials", "true"))
    if preflight:
        # Fetch standard, "CORS non-wildcard request-header name": `*` does not cover Authorization.
        names = ("*", "Authorization") if settings.allow_headers == ("*",) else settings.allow_headers
        answer.append(("Access-Control-Allow-Methods", _ALLOW_METHODS))
        if names:
            answer.append(("Access-Control-Allow-Headers", ", ".join(names)))
        answer.append(("Access-Control-Max-Age", str(settings.max_age_seconds)))
    else:
        answer.append(("Access-Control-Expose-Headers", _EXPOSE_HEADERS))
    return answer
