"""Bans: who is kept away, until when, and what cannot be banned."""

from __future__ import annotations

import base64
import hashlib
import json
from ipaddress import IPv6Address, ip_address, ip_network
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.auth.authenticator import ANONYMOUS, Principal
from qgstream.errors import Conflict, InvalidField
from qgstream.reasons import BAN_KINDS, BanKind
from qgstream.service.bans import MAX_BANS, MAX_RETRY_SECONDS, Ban, Bans, check_value

KEY = Principal("alice", "publish_key", ("*",), ("*",))
USER = Principal("bob", "token", identity=("token", "issuer", "bob"), token_id="id-1")
NO_SUBJECT = Principal("token", "token", identity=("token", "", "", "00ff"), token_id="00ff")


def ban(bans: Bans, kind: BanKind, value: str, *, seconds: float | None = 60, now: float = 0) -> Ban:
    return bans.add(kind, check_value(kind, value), seconds=seconds, now=now, unix_now=1000)[0]


def is_banned(bans: Bans, address: str = "192.0.2.1", principal: Principal = ANONYMOUS, now: float = 1) -> bool:
    return bans.find(address, principal, now) is not None


@pytest.mark.parametrize(
    ("kind", "value", "banned", "others"),
    [
        ("address", "192.0.2.1", [("192.0.2.1", ANONYMOUS)], [("192.0.2.2", KEY), ("2001:db8::1", USER)]),
        ("address", "2001:DB8:0::1", [("2001:db8::1", ANONYMOUS)], [("2001:db8::2", ANONYMOUS)]),
        ("address", "::ffff:192.0.2.1", [("192.0.2.1", KEY)], [("192.0.2.2", KEY)]),
        ("network", "192.0.2.0/24", [("192.0.2.0", ANONYMOUS), ("192.0.2.255", USER)], [("192.0.3.0", USER)]),
        ("network", "2001:db8::/48", [("2001:db8:0:ffff::1", KEY)], [("2001:db8:1::", KEY), ("32.1.13.184", KEY)]),
        ("network", "192.0.2.7", [("192.0.2.7", ANONYMOUS)], [("192.0.2.6", ANONYMOUS), ("", ANONYMOUS)]),
        ("network", "128.0.0.0/1", [("255.255.255.255", KEY)], [("127.255.255.255", KEY), ("8000::", KEY)]),
        ("key", "alice", [("192.0.2.1", KEY)], [("192.0.2.1", Principal("alice", "admin_key")), ("192.0.2.1", USER)]),
        ("user", "bob", [("192.0.2.1", USER)], [("192.0.2.1", Principal("bob", "publish_key"))]),
        ("user", "token", [], [("192.0.2.1", NO_SUBJECT)]),  # what a token without a subject is called
        ("token", "id-1", [("192.0.2.1", USER)], [("192.0.2.1", NO_SUBJECT), ("192.0.2.1", KEY)]),
        ("token", "00ff", [("192.0.2.1", NO_SUBJECT)], [("192.0.2.1", USER)]),
    ],
)
def test_a_ban_meets_those_it_names(kind: BanKind, value: str, banned: Any, others: Any) -> None:
    bans = Bans()
    ban(bans, kind, value)
    assert all(is_banned(bans, *one) for one in banned)
    assert not any(is_banned(bans, *one) for one in others)


addresses = st.one_of(st.ip_addresses(v=4), st.integers(2**64, 2**128 - 1).map(IPv6Address))  # none that is mapped


@given(address=addresses, other=addresses, length=st.integers(1, 128))
def test_networks_are_those_of_ipaddress(address: Any, other: Any, length: int) -> None:
    network = ip_network((address, min(length, address.max_prefixlen)), strict=False)
    bans = Bans()
    bans.add("network", str(network), seconds=None, now=0, unix_now=0)
    for one in (address, other):
        assert is_banned(bans, str(one)) == (ip_address(str(one)) in network)


def test_a_ban_ends_by_itself_whoever_asks() -> None:
    for asks in (lambda b: is_banned(b, now=60), lambda b: b.purge(60)):
        bans = Bans()
        ban(bans, "address", "192.0.2.1", seconds=60)
        ban(bans, "network", "192.0.2.0/24", seconds=60)
        ban(bans, "user", "bob", seconds=None)
        assert is_banned(bans, now=59.9)
        assert (bans.count("address", 59.9), bans.count("address", 60)) == (1, 0)
        asks(bans)
        assert [one.kind for one in bans] == ["user"]
        assert not bans._networks
        assert is_banned(bans, principal=USER, now=1e12)


def test_a_lifted_ban_leaves_nothing_behind() -> None:
    bans = Bans()
    for kind, value in (("network", "10.0.0.0/8"), ("network", "11.0.0.0/8"), ("address", "10.1.1.1")):
        ban(bans, kind, value)  # type: ignore[arg-type]
    first = next(iter(bans))
    assert bans.remove(first.id) is first
    assert bans.remove(first.id) is None
    assert not is_banned(bans, "10.0.0.1")
    assert is_banned(bans, "11.0.0.1")
    for one in bans:
        bans.remove(one.id)
    assert (len(bans), bans._networks, bans._by_value) == (0, {}, {})


def test_what_is_banned_already_keeps_its_id() -> None:
    bans = Bans()
    first, is_new = bans.add("network", "10.0.0.0/8", seconds=1, reason="a", now=0, unix_now=0)
    again, is_new_again = bans.add("network", "10.0.0.0/8", seconds=99, reason="b", now=0, unix_now=0)
    assert (is_new, is_new_again, first.id, len(bans)) == (True, False, again.id, 1)
    assert is_banned(bans, "10.0.0.1", now=50)
    assert bans.get(first.id) is again


def test_their_number_is_bounded_and_those_that_are_over_do_not_count() -> None:
    bans = Bans()
    for number in range(MAX_BANS):
        ban(bans, "user", f"u{number}", seconds=10)
    with pytest.raises(Conflict, match=f"at most {MAX_BANS}"):
        ban(bans, "user", "one more", now=9)
    ban(bans, "user", "u0", now=9)  # it is there
    ban(bans, "user", "one more", now=10)
    assert len(bans) == 2


def test_clients_come_back_within_minutes_and_publishers_are_told_the_end() -> None:
    bans = Bans()
    short, long, ever = (
        ban(bans, "user", name, seconds=seconds) for name, seconds in (("a", 7), ("b", 9999), ("c", None))
    )
    waits = [one.rejection(2).wait_seconds for one in (short, long, ever)]
    assert waits == [5, MAX_RETRY_SECONDS, MAX_RETRY_SECONDS]
    assert [one.error(2).retry_after_seconds for one in (short, long, ever)] == [5, 9997, None]
    assert "until 1970-01-01T00:16:47" in short.message
    assert ever.message == "your credentials are banned"
    assert ban(bans, "network", "10.0.0.0/8", seconds=None).message == "your address is banned"
    assert ever.ends_at == inf
    assert ever.document()["expires_at"] is None


def part(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def test_of_a_whole_token_its_id_is_taken() -> None:
    signed = f"{part({'alg': 'HS256'})}.{part({'sub': 'bob'})}"
    assert check_value("token", f"{signed}.c2ln") == hashlib.sha256(signed.encode()).hexdigest()
    assert check_value("token", f"{part({'alg': 'HS256'})}.{part({'jti': 'j-1'})}.c2ln") == "j-1"
    for jti in ("", 7, None, "j" * 257, ["j"]):
        text = f"{part({'alg': 'HS256'})}.{part({'jti': jti})}"
        assert check_value("token", f"{text}.c2ln") == hashlib.sha256(text.encode()).hexdigest()
    assert check_value("token", "a jti") == "a jti"


@pytest.mark.parametrize("kind", BAN_KINDS)
@pytest.mark.parametrize("value", ["", 7, True, None, [], {}, 1e308, "a\nb", "\ud800", "\x00", "x" * 20_000])
def test_what_is_no_text_is_refused(kind: BanKind, value: object) -> None:
    with pytest.raises(InvalidField) as caught:
        check_value(kind, value)
    assert caught.value.field == kind


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("address", "10.0.0.0/8", "there is the field network"),
        ("address", "10.0.0", "expected an IPv4 or IPv6 address"),
        ("address", "010.0.0.1", "expected an IPv4 or IPv6 address"),
        ("address", "9" * 1000, "expected an IPv4 or IPv6 address"),
        ("network", "10.0.0.1/8", "no bits set after its prefix"),
        ("network", "10.0.0.0/33", "expected a network"),
        ("network", "10.0.0.0/-1", "expected a network"),
        ("network", "10.0.0.0/8/8", "expected a network"),
        ("network", "2001:db8::/129", "expected a network"),
        ("network", "10.0.0.0/" + "9" * 1000, "expected a network"),
        ("network", "nan", "expected a network"),
        ("network", "0.0.0.0/0", "every address"),
        ("network", "::/0", "every address"),
        ("token", "e30.e30.!", None),
        ("token", "bm8.bm8.bm8", "cannot be decoded"),
    ],
)
def test_what_cannot_be_banned_says_why(kind: BanKind, value: str, expected: str | None) -> None:
    if expected is None:
        assert check_value(kind, value) == value  # no JWT, so it is an id
        return
    with pytest.raises(InvalidField, match=expected) as caught:
        check_value(kind, value)
    assert len(str(caught.value)) < 300
