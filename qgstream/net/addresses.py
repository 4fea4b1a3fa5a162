"""Client addresses: the client's address behind trusted proxies, and the key of per-address limits. Pure.

Log lines, limits, filters and settings all use the same form of an address; `parse` produces this form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# The number of proxies in a row. Real chains have fewer than five; the bound keeps a header of a megabyte cheap.
MAX_HOPS = 32
# Longer than any address with brackets, zone and port: "[" + 45 characters + "%" + 15 + "]:65535".
_MAX_HOP_CHARACTERS = 80
_MAPPED_BITS = 96  # the prefix of ::ffff:0:0/96, the IPv4-mapped IPv6 addresses (RFC 4291, 2.5.5.2)


class Client(NamedTuple):
    """The sender of a request. `proxies` is the number of trusted proxies that the request passed, including the
    peer."""

    address: str
    proxies: int = 0


def parse(text: str) -> Address | None:
    """Return the address, or None if the text is not an address.

    An IPv4-mapped IPv6 address (`::ffff:203.0.113.7`, the peer of a dual-stack socket) becomes an IPv4 address. A zone
    (`fe80::1%eth0`) is removed, because a zone has a meaning only on the machine that wrote the zone.
    """
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def canonical(text: str) -> str:
    """Return the canonical form of an address; return any other text unchanged."""
    if ":" not in text:
        return text  # IPv4 has only one form: `ip_address` rejects leading zeros
    address = parse(text)
    return text if address is None else str(address)


def parse_network(text: str, *, strict: bool = False) -> Network:
    """Parse a network; a single address becomes a network of one. With `strict`, no bits may be set after the prefix.

    Raises `ValueError` with the rejected text. IPv4-mapped IPv6 networks become IPv4 networks.
    """
    address, slash, prefix = text.partition("/")
    network = ip_network(address.partition("%")[0] + slash + prefix, strict=strict)
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Parse networks or single addresses; raises `ValueError` with the rejected text."""
    return tuple(parse_network(text) for text in texts)


def is_in(text: str, networks: Sequence[Network]) -> bool:
    """Whether the text is an address in one of the networks."""
    address = parse(text)
    return address is not None and any(address in network for network in networks)


def is_loopback(text: str) -> bool:
    """Whether the text is a loopback address (127.0.0.0/8 or ::1). Host names are not addresses."""
    address = parse(text)
    return address is not None and address.is_loopback


def find_client(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> Client:
    """Find the client that sent a request: the peer, or the address that trusted proxies report.

    X-Forwarded-For is read from the right: one hop for each trusted proxy, at most `MAX_HOPS`. The client itself can
    write anything into the values further left, so these values are ignored. The walk ends at the last valid address
    before a hop that is not an address.
    """
    address, proxies = canonical(peer), 0
    if not trusted:
        return Client(address)
    hops = _from_the_right(forwarded_for)
    while proxies < MAX_HOPS and is_in(address, trusted):
        proxies += 1
        hop = _without_port(next(hops, ""))
        if hop is None:
            break
        address = str(hop)
    return Client(address, proxies)


def client_key(address: str) -> str:
    """Return the key of per-address limits: an IPv4 address, or the /64 of an IPv6 address (a customer has at least a
    /64)."""
    if ":" not in address:
        return address
    parsed = parse(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, 64), strict=False))
    return address if parsed is None else str(parsed)


def _from_the_right(lines: Sequence[str]) -> Iterator[str]:
    # Not `split`: of a header of a megabyte, only the end is read.
    for line in reversed(lines):
        end = len(line)
        while end >= 0:
            comma = line.rfind(",", 0, end)
            yield line[comma + 1 : end]
            end = comma


def _without_port(hop: str) -> Address | None:
    """Remove the port of `[2001:db8::1]:443` or `192.0.2.1:5000`; return None for text that is not an address."""
    hop = hop.strip()
    if len(hop) > _MAX_HOP_CHARACTERS:
        return None  # `ip_address` would split the text and repeat the text in its error
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    return parse(hop)
