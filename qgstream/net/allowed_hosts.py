"""The host names that this server accepts in `Host`. Pure.

In a DNS rebinding attack, the name evil.example resolves to 127.0.0.1. The page of evil.example then has the same
origin as the local server, so CORS does not stop the page from reading responses. Only `Host` reveals the attack: the
browser sends the name of the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from qgstream.net.addresses import is_loopback, parse
from qgstream.net.origins import split_authority

# A name has at most 253 characters, and a port has at most five.
_MAX_CHARACTERS = 260


def parse_allowed_host(text: str) -> str:
    """Return the canonical form of a name, an address or a pattern in a setting; return `*` unchanged. A port is
    removed.

    Raises `ValueError` for any other text.
    """
    if text == "*":
        return text
    subdomains = "*." if text.startswith("*.") else ""
    host = text.removeprefix(subdomains)
    address = None if subdomains else parse(host)
    name = _name(f"[{host}]" if address is not None and ":" in host else host)
    if name is None or (subdomains and parse(name) is not None):
        hint = ", an international name in its ASCII form (xn--...)" if not text.isascii() else ""
        raise ValueError(
            f"got {text!r}, expected a host name without a scheme or a path, an address, "
            f'a pattern such as *.example.com, or "*" for every host{hint}'
        )
    return subdomains + name


def is_allowed(host: str, allowed: Sequence[str], *, on_loopback: bool) -> bool:
    """Whether this server accepts a request with this `Host`; the port is ignored.

    `allowed` holds names that `parse_allowed_host` returned. If `allowed` is empty, a server whose sockets are
    `on_loopback` accepts only loopback names, and any other server accepts every name.
    """
    if not (allowed or on_loopback):
        return True
    return len(host) <= _MAX_CHARACTERS and _is_allowed(host, tuple(allowed), on_loopback)


@lru_cache(maxsize=256)  # called for each request, nearly always with the same arguments
def _is_allowed(host: str, allowed: tuple[str, ...], on_loopback: bool) -> bool:
    if "*" in allowed:
        return True
    name = _name(host)
    if name is None:
        return False
    # Resolvers do not send these names to DNS servers (RFC 6761, 6.3), so no attacker can rebind them.
    if name == "localhost" or name.endswith(".localhost") or is_loopback(name):
        return True
    # An IP address as the host cannot be rebound either. Probes, load balancers and scrapers use IP addresses.
    if not on_loopback and parse(name) is not None:
        return True
    return any(_covers(each, name) for each in allowed)


def _covers(allowed: str, name: str) -> bool:
    return name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:]) and len(name) >= len(allowed))


def _name(host: str) -> str | None:
    """Return the host without its port and without the brackets of an IPv6 address; None if the text is not a host."""
    parts = split_authority(host)
    if parts is None:
        return None
    name = parts[0].removesuffix(".")  # the trailing dot of an absolute name: the name is the same
    address = parse(name.strip("[]"))
    return name if address is None else str(address)
