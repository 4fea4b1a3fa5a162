"""Who is connecting: the client's address behind trusted proxies, and what counts as one client. Pure.

An address has one form everywhere, in log lines, limits, filters and settings; `parse` makes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Proxies in a row. Real chains have fewer than five; the bound keeps a header of a megabyte cheap.
MAX_HOPS = 32
# Longer than every address with its brackets, zone and port: "[" + 45 characters + "%" + 15 + "]:65535".
_MAX_HOP_CHARACTERS = 80
_MAPPED_BITS = 96  # of ::ffff:0:0/96, the IPv4 addresses as IPv6 writes them (RFC 4291, 2.5.5.2)


class Client(NamedTuple):
    """Who sent a request. `proxies` is how many trusted proxies the request came through, the peer first."""

    address: str
    proxies: int = 0


def parse(text: str) -> Address | None:
    """An address, or None for any other text.

    An IPv4 address that is written as IPv6 (`::ffff:203.0.113.7`, a peer of a dual-stack socket) becomes IPv4. A zone
    (`fe80::1%eth0`) is left out: it has a meaning only on the machine that wrote it.
    """
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def canonical(text: str) -> str:
    """The one form of an address; any other text as it is."""
    if ":" not in text:
        return text  # IPv4 has one form only: `ip_address` refuses leading zeros
    address = parse(text)
    return text if address is None else str(address)


def parse_network(text: str, *, strict: bool = False) -> Network:
    """A network, or a single address as a network of one. With `strict` no bits may be set behind the prefix.

    Raises `ValueError` with what was got. Networks of IPv4 addresses that are written as IPv6 become IPv4.
    """
    address, slash, prefix = text.partition("/")
    network = ip_network(address.partition("%")[0] + slash + prefix, strict=strict)
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks or single addresses; raises `ValueError` with what was got."""
    return tuple(parse_network(text) for text in texts)


def is_in(text: str, networks: Sequence[Network]) -> bool:
    """Whether this is an address of one of the networks."""
    address = parse(text)
    return address is not None and any(address in network for network in networks)


def is_loopback(text: str) -> bool:
    """Whether this is an address by which a machine reaches itself: 127.0.0.0/8 or ::1. Names are none."""
    address = parse(text)
    return address is not None and address.is_loopback


def find_client(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> Client:
    """Who sent a request: the peer, or who trusted proxies say it is.

    X-Forwarded-For is read from the right, one hop for each trusted proxy and at most `MAX_HOPS`: what stands further
    left was written by the client, who can write anything. A hop that is no address ends the walk at the last one that
    is.
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
    """What per-address limits count by: an IPv4 address, or the /64 of an IPv6 one (one customer has at least that)."""
    if ":" not in address:
        return address
    parsed = parse(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, 64), strict=False))
    return address if parsed is None else str(parsed)


def _from_the_right(lines: Sequence[str]) -> Iterator[str]:
    # Not split: of a megabyte only the end is looked at.
    for line in reversed(lines):
        end = len(line)
        while end >= 0:
            comma = line.rfind(",", 0, end)
            yield line[comma + 1 : end]
            end = comma


def _without_port(hop: str) -> Address | None:
    """`[2001:db8::1]:443`, `192.0.2.1:5000` and plain addresses, without the port; None for anything else."""
    hop = hop.strip()
    if len(hop) > _MAX_HOP_CHARACTERS:
        return None  # `ip_address` would split it, and repeat it in its error
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    return parse(hop)
