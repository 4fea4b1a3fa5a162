"""Origins: the origin of the page that sent a request, and the origin of this server. Pure.

Source: RFC 6454, sections 4 and 6.2. An origin is scheme, host and port. The host is in lower case, and the default
port of the scheme is omitted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv6Address

# A host and its port in `Host` and in an origin: a name (or an IPv4 address), or an IPv6 address in brackets. Browsers
# send international names as ASCII (xn--...). A trailing dot makes a different origin, although the name is the same.
_AUTHORITY = re.compile(r"(?P<host>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]{2,45}\])(?::(?P<port>[0-9]{0,5}))?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_DEFAULT_PORTS = {"http": 80, "https": 443}
# The values that proxies send in X-Forwarded-Proto. Traefik sends `wss` for a WebSocket; the scheme of its origin is
# `https`.
_FORWARDED_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


def split_authority(text: str) -> tuple[str, int | None] | None:
    """Return the host in lower case (an IPv6 address in its shortest form, in brackets) and the port, which may be
    None.

    Returns None for any other text: a user name, a path, spaces, characters outside ASCII.
    """
    found = _AUTHORITY.fullmatch(text.lower()) if text.isascii() else None
    if found is None:
        return None
    host, port = found["host"], int(found["port"]) if found["port"] else None
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1])}]"
        except ValueError:
            return None
    return None if port is not None and port > 65535 else (host, port)


def serialize(scheme: str, authority: str) -> str | None:
    """Return the origin of a scheme and a `Host` as browsers write it in `Origin`; None if the text is not a host."""
    parts = split_authority(authority)
    scheme = scheme.lower()
    if parts is None or not _SCHEME.fullmatch(scheme):
        return None
    host, port = parts
    return f"{scheme}://{host}" if port in (None, _DEFAULT_PORTS.get(scheme)) else f"{scheme}://{host}:{port}"


def parse(text: str) -> str | None:
    """Return the canonical form of one origin; None for `null`, an empty text, several origins and all other text."""
    scheme, separator, authority = text.partition("://")
    return serialize(scheme, authority) if separator else None


def forwarded_scheme(forwarded_proto: Sequence[str], proxies: int) -> str | None:
    """Return the scheme between the client and the outermost of `proxies` trusted proxies; None if unknown.

    X-Forwarded-Proto is read from the right, one value for each proxy, like X-Forwarded-For. Most proxies replace the
    header instead of adding a value. The header then has fewer values than there are proxies, and the leftmost value
    counts.
    """
    if not proxies:
        return None
    values = ",".join(forwarded_proto).rsplit(",", proxies)[-proxies:]
    return _FORWARDED_SCHEMES.get(values[0].strip().lower())
