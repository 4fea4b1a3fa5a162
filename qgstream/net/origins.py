"""Origins: which page a request came from, and what this server's own origin is. Pure.

Source: RFC 6454, sections 4 and 6.2: scheme, host and port, the host in lower case, the scheme's default port left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv6Address

# A host and its port as `Host` and an origin have them: a name (also an IPv4 address), or an IPv6 address in brackets.
# Browsers send international names as ASCII (xn--...). A dot at the end makes another origin, but it is the same name.
_AUTHORITY = re.compile(r"(?P<host>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]{2,45}\])(?::(?P<port>[0-9]{0,5}))?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_DEFAULT_PORTS = {"http": 80, "https": 443}
# What proxies say in X-Forwarded-Proto. Traefik sends `wss` for a WebSocket, whose origin has the scheme `https`.
_FORWARDED_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


def split_authority(text: str) -> tuple[str, int | None] | None:
    """The host in lower case (an IPv6 address in its shortest form, in brackets) and the port, None without one.

    None for any other text: a user name, a path, spaces, characters outside of ASCII.
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
    """The origin of a scheme and a `Host`, as a browser writes it in `Origin`; None for what is no host."""
    parts = split_authority(authority)
    scheme = scheme.lower()
    if parts is None or not _SCHEME.fullmatch(scheme):
        return None
    host, port = parts
    return f"{scheme}://{host}" if port in (None, _DEFAULT_PORTS.get(scheme)) else f"{scheme}://{host}:{port}"


def parse(text: str) -> str | None:
    """The one form of an origin; None for `null`, an empty one, several of them, and everything that is no origin."""
    scheme, separator, authority = text.partition("://")
    return serialize(scheme, authority) if separator else None


def forwarded_scheme(forwarded_proto: Sequence[str], proxies: int) -> str | None:
    """The scheme that a client spoke to the outermost of so many trusted proxies; None if that cannot be told.

    X-Forwarded-Proto is read from the right, one value for each proxy, as X-Forwarded-For. Most proxies replace the
    header instead of adding to it; then there are fewer values than proxies, and the leftmost is meant.
    """
    if not proxies:
        return None
    values = ",".join(forwarded_proto).rsplit(",", proxies)[-proxies:]
    return _FORWARDED_SCHEMES.get(values[0].strip().lower())
