"""Which names a server answers to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.net.allowed_hosts import is_allowed, parse_allowed_host

NAMES = tuple(map(parse_allowed_host, ["events.example.com", "*.example.org", "192.168.0.9", "[2001:DB8::A]", "x"]))

LOCAL = [
    "localhost", "localhost:8000", "LOCALHOST", "localhost.", "app.localhost:8000", "127.0.0.1", "127.0.0.1:8000",
    "127.8.9.10", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]:80",
]  # fmt: skip
NAMED = [
    "events.example.com", "events.example.com:8443", "EVENTS.Example.COM", "events.example.com.", "a.example.org",
    "a.b.example.org:1", "192.168.0.9", "[2001:db8::a]:80", "[2001:db8:0:0:0:0:0:a]", "x",
]  # fmt: skip
ADDRESSES = ["10.1.2.3", "10.1.2.3:9000", "0.0.0.0", "[2001:db8::b]", "[fe80::1]:80", "[::ffff:10.1.2.3]"]
FOREIGN = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "evillocalhost", "127.0.0.1.evil.example",
    "events.example.com.evil.example", "evilevents.example.com", "example.org", "evilexample.org", ".example.org",
    "example.com", "host.docker.internal", "127.1", "2130706433", "0x7f.0.0.1", "localdomain", "local",
]  # fmt: skip
NO_HOSTS = [
    "", ":8000", "localhost:port", "user@localhost", "localhost@evil.example", "localhost/", "loc%61lhost", "[::1",
    "[::1]evil.example", "::1", "localhost,evil.example", "localhost evil.example", "l\u00f6calhost", "localhost..",
    "*", "*.example.org", "a" * 300 + ".example.org",
]  # fmt: skip


@pytest.mark.parametrize("host", LOCAL)
@pytest.mark.parametrize("allowed", [(), NAMES])
@pytest.mark.parametrize("on_loopback", [True, False])
def test_a_machine_always_reaches_itself(host: str, allowed: tuple[str, ...], on_loopback: bool) -> None:
    assert is_allowed(host, allowed, on_loopback=on_loopback)


@pytest.mark.parametrize("host", NAMED)
def test_the_names_of_the_setting_hold_on_every_bind(host: str) -> None:
    assert is_allowed(host, NAMES, on_loopback=True)
    assert is_allowed(host, NAMES, on_loopback=False)


@pytest.mark.parametrize("host", [*FOREIGN, *NO_HOSTS])
def test_other_names_are_refused_on_the_loopback_and_where_names_are_set(host: str) -> None:
    assert not is_allowed(host, (), on_loopback=True)
    assert not is_allowed(host, NAMES, on_loopback=True)
    assert not is_allowed(host, NAMES, on_loopback=False)


@pytest.mark.parametrize("host", ADDRESSES)
def test_probes_ask_by_address_except_on_the_loopback(host: str) -> None:
    assert is_allowed(host, NAMES, on_loopback=False)
    assert not is_allowed(host, NAMES, on_loopback=True)
    assert not is_allowed(host, (), on_loopback=True)


@pytest.mark.parametrize("host", [*LOCAL, *NAMED, *ADDRESSES, *FOREIGN, *NO_HOSTS])
def test_without_names_a_server_elsewhere_answers_to_all(host: str) -> None:
    assert is_allowed(host, (), on_loopback=False)


@pytest.mark.parametrize("host", [*NAMED, *ADDRESSES, *FOREIGN])
def test_a_star_is_every_name(host: str) -> None:
    assert is_allowed(host, ("*",), on_loopback=True)
    assert is_allowed(host, ("*",), on_loopback=False)


@given(st.text())
def test_garbage_never_raises(host: str) -> None:
    is_allowed(host, NAMES, on_loopback=True)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Events.Example.com", "events.example.com"),
        ("events.example.com.", "events.example.com"),
        ("events.example.com:8443", "events.example.com"),
        ("*.Example.com", "*.example.com"),
        ("*.example.com:8443", "*.example.com"),
        ("host.docker.internal", "host.docker.internal"),
        ("my_host", "my_host"),
        ("192.168.0.9:80", "192.168.0.9"),
        ("2001:DB8::A", "2001:db8::a"),
        ("[2001:DB8::A]:80", "2001:db8::a"),
        ("::ffff:192.168.0.9", "192.168.0.9"),
        ("*", "*"),
    ],
)
def test_a_name_of_the_setting_has_one_form(text: str, name: str) -> None:
    assert parse_allowed_host(text) == name
    assert parse_allowed_host(name) == name


@pytest.mark.parametrize(
    "text",
    [
        "", "*.", "**", "*.*", "a.*", "*example.com", "http://example.com", "example.com/", "example.com/path",
        "user@example.com", "example.com:port", ".example.com", "*.192.168.0.1", "*.[::1]", "10.0.0.0/8", "a b",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a host name without a scheme"):
        parse_allowed_host(text)


def test_an_international_name_is_written_as_browsers_send_it() -> None:
    with pytest.raises(ValueError, match=r"an international name in its ASCII form \(xn--\.\.\.\)"):
        parse_allowed_host("b\u00fccher.example")
