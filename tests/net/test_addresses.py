"""Who is connecting, behind proxies that are trusted and clients that are not."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.net.addresses import (
    MAX_HOPS,
    Client,
    canonical,
    client_key,
    find_client,
    is_in,
    is_loopback,
    parse,
    parse_network,
    parse_networks,
)

TRUSTED = parse_networks(["10.0.0.0/8", "::1", "2001:db8:ff::/48"])
ADDRESS = st.ip_addresses().map(str)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),  # what a dual-stack socket calls a peer that speaks IPv4
        ("::FFFF:203.0.113.7", "203.0.113.7"),
        ("::ffff:cb00:7107", "203.0.113.7"),
        ("0:0:0:0:0:ffff:cb00:7107", "203.0.113.7"),
        ("::ffff:203.0.113.7%eth0", "203.0.113.7"),
        ("2001:DB8::A", "2001:db8::a"),
        ("2001:0db8:0000:0000:0000:0000:0000:000a", "2001:db8::a"),
        ("2001:db8:0:0:0:0:0:a", "2001:db8::a"),
        ("fe80::1%eth0", "fe80::1"),
        ("fe80::1%25eth0", "fe80::1"),
        ("::1", "::1"),
        ("::", "::"),
        ("64:ff9b::203.0.113.7", "64:ff9b::cb00:7107"),  # translated, and so another one: its network is not ours
    ],
)
def test_an_address_has_one_form(text: str, form: str) -> None:
    assert canonical(text) == form == str(parse(text))
    # In everything that is made from it.
    assert client_key(text) == client_key(form)
    assert find_client(text, (), ()) == Client(form)
    assert find_client("10.0.0.1", [text], TRUSTED).address == form
    assert is_in(text, [parse_network(form)])
    assert is_in(form, [parse_network(text)])
    assert parse_network(text) == parse_network(form)


@pytest.mark.parametrize(
    "text",
    [
        "", "localhost", "192.0.2", "192.0.2.01", "0x7f.1", "127.1", "2130706433", "192.0.2.1.", "1:2", "[::1]",
        "::ffff:203.0.113.300", "2001:db8::1::", "\u0661.2.3.4", "10.0.0.0/8", " 10.0.0.1",
    ],
)  # fmt: skip
def test_any_other_text_is_no_address(text: str) -> None:
    assert parse(text) is None
    assert canonical(text) == client_key(text) == text
    assert not is_in(text, parse_networks(["0.0.0.0/0", "::/0"]))
    assert not is_loopback(text)


@pytest.mark.parametrize("text", ["127.0.0.1", "127.8.9.10", "::1", "0:0::1", "::ffff:127.0.0.1", "::1%lo"])
def test_a_machine_reaches_itself_by_these(text: str) -> None:
    assert is_loopback(text)


@pytest.mark.parametrize("text", ["0.0.0.0", "::", "192.168.0.1", "::ffff:192.0.2.1", "fe80::1", "localhost"])
def test_and_not_by_those(text: str) -> None:
    assert not is_loopback(text)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("10.0.0.1", "10.0.0.1/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:0:0/95", "::fffe:0:0/95"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("fe80::1%eth0", "fe80::1/128"),
        ("fe80::%eth0/64", "fe80::/64"),
    ],
)
def test_a_network_has_one_form(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize("text", ["10.0.0.1/8", "::ffff:10.0.0.1/104", "2001:db8::1/32"])
def test_a_setting_must_not_have_bits_behind_the_prefix(text: str) -> None:
    with pytest.raises(ValueError, match="host bits set"):
        parse_network(text, strict=True)


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "expected"),
    [
        ("192.0.2.7", ["198.51.100.1"], "192.0.2.7"),  # nobody we trust says so
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["[::FFFF:198.51.100.1]:443"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, ::ffff:10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1,\t[2001:DB8:FF::9%eth0]:5 "], "198.51.100.1"),
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
    assert find_client(peer, forwarded_for, TRUSTED).address == expected


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "proxies"),
    [
        ("192.0.2.7", ["198.51.100.1"], 0),
        ("10.0.0.1", [], 1),
        ("10.0.0.1", ["198.51.100.1"], 1),
        ("10.0.0.1", ["1.2.3.4, 198.51.100.1, 10.0.0.2"], 2),
        ("10.0.0.1", ["1.2.3.4, 198.51.100.1", "::1", "10.0.0.2"], 3),
    ],
)
def test_the_trusted_proxies_on_the_way_are_counted(peer: str, forwarded_for: list[str], proxies: int) -> None:
    assert find_client(peer, forwarded_for, TRUSTED).proxies == proxies


def test_without_trusted_proxies_the_header_is_nothing() -> None:
    assert find_client("10.0.0.1", ["198.51.100.1"], ()) == Client("10.0.0.1", 0)


class Unread(list[str]):
    """A header that must not be looked at."""

    def __iter__(self) -> object:  # type: ignore[override]
        raise AssertionError("it was read")

    __reversed__ = __iter__  # type: ignore[assignment]


@pytest.mark.parametrize("trusted", [(), TRUSTED])
def test_what_a_stranger_writes_is_not_even_read(trusted: tuple[()]) -> None:
    assert find_client("192.0.2.7", Unread(["10.0.0.1"]), trusted) == Client("192.0.2.7", 0)


def test_no_more_hops_are_looked_at_than_a_chain_can_have() -> None:
    trusted_hops = [f"10.0.0.{number}" for number in range(200)]
    assert find_client("10.1.0.0", ["198.51.100.1, " + ", ".join(trusted_hops)], TRUSTED) == Client(
        trusted_hops[-MAX_HOPS], MAX_HOPS
    )
    chain = ["198.51.100.1", *trusted_hops[1:MAX_HOPS]]
    assert find_client("10.1.0.0", [",".join(chain)], TRUSTED) == Client("198.51.100.1", MAX_HOPS)


@pytest.mark.parametrize(
    "hop", ["10.0.0.1,", "1.2.3.4, ", "::ffff:10.0.0.1,", ",", "[", ".", ":", "1", " ", "[::1%"], ids=repr
)
def test_a_megabyte_costs_nothing(hop: str) -> None:
    lines = [hop * (1024 * 1024 // len(hop)), "198.51.100.1"]
    for forwarded_for in (lines, lines[:1]):
        began = time.process_time()
        for _ in range(10):
            find_client("10.0.0.1", forwarded_for, TRUSTED)
        # 10 s each when every hop was looked at, now below 2 ms.
        assert (time.process_time() - began) / 10 < 0.1


@given(st.text(), st.lists(st.text()))
def test_garbage_never_raises(peer: str, forwarded_for: list[str]) -> None:
    find_client(peer, forwarded_for, TRUSTED)
    client_key(peer)


@given(st.lists(st.text()), ADDRESS)
def test_what_a_client_writes_is_never_believed(written: list[str], client: str) -> None:
    chain = ", ".join([*written, client])
    assert find_client("10.0.0.1", [chain], parse_networks(["10.0.0.1"])).address in (canonical(client), "10.0.0.1")


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
