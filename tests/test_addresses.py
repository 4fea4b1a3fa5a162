"""Who is connecting, behind proxies that are trusted and clients that are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.addresses import client_address, client_key, parse_networks

TRUSTED = parse_networks(["10.0.0.0/8", "::1", "2001:db8:ff::/48"])
ADDRESS = st.ip_addresses().map(str)


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "expected"),
    [
        ("192.0.2.7", ["198.51.100.1"], "192.0.2.7"),  # nobody we trust says so
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.2.3.4, 198.51.100.1"], "198.51.100.1"),  # 1.2.3.4 is what the client wrote
        ("10.0.0.1", ["198.51.100.1, 10.0.0.2"], "198.51.100.1"),  # two proxies
        ("10.0.0.1", ["198.51.100.1", "10.0.0.2"], "198.51.100.1"),  # in two headers
        ("10.0.0.1", ["10.9.9.9, 10.0.0.2"], "10.9.9.9"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, _hidden, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("::1", ["198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("2001:db8:ff::5", ["198.51.100.1"], "198.51.100.1"),
        ("", ["198.51.100.1"], ""),
    ],
)
def test_the_chain_is_read_from_the_right_through_trusted_hops(
    peer: str, forwarded_for: list[str], expected: str
) -> None:
    assert client_address(peer, forwarded_for, TRUSTED) == expected


def test_without_trusted_proxies_the_header_is_nothing() -> None:
    assert client_address("10.0.0.1", ["198.51.100.1"], ()) == "10.0.0.1"


@given(st.text(), st.lists(st.text()))
def test_garbage_never_raises(peer: str, forwarded_for: list[str]) -> None:
    client_address(peer, forwarded_for, TRUSTED)
    client_key(peer)


@given(st.lists(st.text()), ADDRESS)
def test_what_a_client_writes_is_never_believed(written: list[str], client: str) -> None:
    chain = ", ".join([*written, client])
    assert client_address("10.0.0.1", [chain], parse_networks(["10.0.0.1"])) in (client, "10.0.0.1")


@given(ADDRESS)
def test_one_client_has_one_key(address: str) -> None:
    key = client_key(address)
    assert key == client_key(address)
    assert (key == address) if "." in address and ":" not in address else "/" in key or "." in key


def test_an_ipv6_customer_is_one_client() -> None:
    assert client_key("2001:db8:1:2::1") == client_key("2001:db8:1:2:ffff::9") == "2001:db8:1:2::/64"
    assert client_key("2001:db8:1:3::1") != client_key("2001:db8:1:2::1")
    assert client_key("::ffff:192.0.2.1") == client_key("192.0.2.1") == "192.0.2.1"
    assert client_key("fe80::1%eth0") == "fe80::/64"
    assert client_key("not:an:address") == "not:an:address"


def test_a_network_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nonsense"):
        parse_networks(["nonsense"])
