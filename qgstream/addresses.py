"""Who is connecting: the client's address behind trusted proxies, and what counts as one client. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks or single addresses; raises `ValueError` with what was got."""
    return tuple(ip_network(text, strict=False) for text in texts)


def client_address(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """The address of the client: the peer's, or what trusted proxies say of it.

    X-Forwarded-For is read from the right, one hop for each trusted proxy: what stands further left was written by the
    client, who can write anything. A hop that is no address ends the walk at the last one that is.
    """
    address = peer
    if not trusted:
        return address
    hops = [hop.strip() for line in forwarded_for for hop in line.split(",")]
    while _is_in(address, trusted) and hops:
        hop = _bare(hops.pop())
        if hop is None:
            break
        address = hop
    return address


def client_key(address: str) -> str:
    """What per-address limits count by: an IPv4 address, or the /64 of an IPv6 one (one customer has at least that)."""
    if ":" not in address:
        return address
    try:
        parsed = IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((parsed, 64), strict=False))


def _is_in(address: str, networks: Sequence[Network]) -> bool:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)


def _bare(hop: str) -> str | None:
    """`[2001:db8::1]:443`, `192.0.2.1:5000` and plain addresses, without the port; None for anything else."""
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return str(ip_address(hop))
    except ValueError:
        return None
