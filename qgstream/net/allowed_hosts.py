"""Which names this server answers to. Pure.

A page of evil.example whose name is made to resolve to 127.0.0.1 (DNS rebinding) is of the same origin as what it reads
there, so no CORS keeps it away. Only the `Host` tells: the browser sends the name that the page has.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from qgstream.net.addresses import is_loopback, parse
from qgstream.net.origins import split_authority

# A name has at most 253 characters, and a port five.
_MAX_CHARACTERS = 260


def parse_allowed_host(text: str) -> str:
    """A name, an address or a pattern of a setting in its one form; `*` as it is. A port is left out.

    Raises `ValueError` for anything else.
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
    """Whether a request with this `Host` is for this server; the port does not count.

    `allowed` are names that `parse_allowed_host` made. Without any, a server whose sockets are `on_loopback` answers to
    the names of the loopback alone, and any other server to every name.
    """
    if not (allowed or on_loopback):
        return True
    return len(host) <= _MAX_CHARACTERS and _is_allowed(host, tuple(allowed), on_loopback)


@lru_cache(maxsize=256)  # asked for each request, and nearly always the same
def _is_allowed(host: str, allowed: tuple[str, ...], on_loopback: bool) -> bool:
    if "*" in allowed:
        return True
    name = _name(host)
    if name is None:
        return False
    # No name server is asked for these (RFC 6761, 6.3), so no page can take them for its own.
    if name == "localhost" or name.endswith(".localhost") or is_loopback(name):
        return True
    # An address as the host cannot be rebound either. Probes, balancers and scrapers ask by address.
    if not on_loopback and parse(name) is not None:
        return True
    return any(_covers(each, name) for each in allowed)


def _covers(allowed: str, name: str) -> bool:
    return name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:]) and len(name) >= len(allowed))


def _name(host: str) -> str | None:
    """The host without its port and the brackets of an IPv6 address; None for what is no host."""
    parts = split_authority(host)
    if parts is None:
        return None
    name = parts[0].removesuffix(".")  # the same name, absolute
    address = parse(name.strip("[]"))
    return name if address is None else str(address)
