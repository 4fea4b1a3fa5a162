"""What the environment says to HTTP clients, as a table."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from qgstream.net.environment import (
    BadEnvironment,
    Proxy,
    certificates_problem,
    client_tls,
    explained,
    proxy_for,
    system_tls,
)
from tests.hostile.certificates import make_certificate

PROXY = "http://proxy:3128"


def is_direct(no_proxy: str, host: str, port: int | None = None, scheme: str = "http") -> bool:
    return proxy_for(scheme, host, port, {"all_proxy": PROXY, "no_proxy": no_proxy}) is None


# Which proxy.


@pytest.mark.parametrize(
    ("environ", "http", "https"),
    [
        ({}, None, None),
        ({"http_proxy": "a"}, "http_proxy a", None),
        ({"https_proxy": "a"}, None, "https_proxy a"),
        ({"all_proxy": "a"}, "all_proxy a", "all_proxy a"),
        ({"HTTP_PROXY": "a", "HTTPS_PROXY": "b"}, "HTTP_PROXY a", "HTTPS_PROXY b"),
        ({"ALL_PROXY": "a", "HTTPS_PROXY": "b"}, "ALL_PROXY a", "HTTPS_PROXY b"),
        ({"http_proxy": "a", "HTTP_PROXY": "b"}, "http_proxy a", None),
        ({"http_proxy": "", "HTTP_PROXY": "b"}, None, None),
        ({"http_proxy": "", "ALL_PROXY": "c"}, "ALL_PROXY c", "ALL_PROXY c"),
        ({"HTTP_PROXY": "a", "REQUEST_METHOD": "GET"}, None, None),
        ({"http_proxy": "a", "REQUEST_METHOD": "GET"}, "http_proxy a", None),
        ({"HTTPS_PROXY": " a\n"}, None, "HTTPS_PROXY a"),
        ({"ftp_proxy": "a", "proxy": "b"}, None, None),
    ],
)
def test_which_variable_names_the_proxy(environ: dict[str, str], http: str | None, https: str | None) -> None:
    found = [proxy_for(scheme, "host", None, environ) for scheme in ("http", "https")]
    assert [each and f"{each.variable} {each.host}" for each in found] == [http, https]


@pytest.mark.parametrize(
    ("value", "proxy"),
    [
        ("proxy", Proxy("http_proxy", "http", "proxy")),
        ("proxy:3128", Proxy("http_proxy", "http", "proxy", 3128)),
        ("http://Proxy:3128/", Proxy("http_proxy", "http", "proxy", 3128)),
        ("HTTPS://proxy", Proxy("http_proxy", "https", "proxy")),
        ("socks5h://[::1]:1080", Proxy("http_proxy", "socks5h", "::1", 1080)),
        ("http://ann:p%40ss:w@proxy:1", Proxy("http_proxy", "http", "proxy", 1, "ann", "p@ss:w")),
        ("ann@proxy:1", Proxy("http_proxy", "http", "proxy", 1, "ann")),
    ],
)
def test_what_a_value_means(value: str, proxy: Proxy) -> None:
    found = proxy_for("http", "host", None, {"http_proxy": value})
    assert found == proxy
    assert "p@ss" not in repr(found)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("http://ann:hush@", "expected http://HOST:PORT"),
        ("http://ann:hush@[::1", "expected http://HOST:PORT"),
        ("http://ann:hush@proxy:port", "expected http://HOST:PORT"),
        ("http://ann:hush@proxy:99999", "expected http://HOST:PORT"),
        (":3128", "expected http://HOST:PORT"),
        ("ftp://ann:hush@proxy", "got the scheme 'ftp', expected one of http, https, socks5, socks5h"),
        ("socks4://proxy", "got the scheme 'socks4', expected one of http"),
    ],
)
def test_what_is_no_proxy_names_its_variable_and_no_password(value: str, said: str) -> None:
    with pytest.raises(BadEnvironment, match=f"^HTTPS_PROXY: .*{said}") as caught:
        proxy_for("https", "host", None, {"HTTPS_PROXY": value})
    assert "hush" not in str(caught.value)
    # It is in nobody's way who does not need it.
    assert proxy_for("http", "host", None, {"HTTPS_PROXY": value}) is None
    assert proxy_for("https", "host", None, {"HTTPS_PROXY": value, "NO_PROXY": "host"}) is None


# Which servers are reached without one.


@pytest.mark.parametrize(
    ("no_proxy", "direct", "through"),
    [
        ("", [], ["host", "127.0.0.1", "::1"]),
        ("*", ["host", "127.0.0.1", "::1"], []),
        ("x, *", ["host"], []),
        ("example.com", ["example.com", "EXAMPLE.com", "example.com.", "a.b.example.com"], ["notexample.com", "com"]),
        (".example.com", ["example.com", "a.example.com"], ["notexample.com"]),
        ("*.example.com", ["example.com", "a.example.com"], ["notexample.com"]),
        ("Example.Com.", ["example.com"], []),
        ("a,b c\t d\n,,e", ["a", "b", "c", "d", "e"], ["f"]),
        ("localhost", ["localhost", "a.localhost"], ["127.0.0.1", "localhost2"]),
        ("10.0.0.1", ["10.0.0.1"], ["10.0.0.10", "110.0.0.1"]),
        ("10.0.0.0/8", ["10.0.0.1", "10.255.255.255"], ["11.0.0.1", "::a00:1", "host"]),
        ("10.1.2.3/8", ["10.0.0.1"], ["11.0.0.1"]),
        ("fd00::/8", ["fd00::1", "fdff::"], ["fe00::", "253.0.0.1", "host"]),
        ("::1", ["::1", "0:0::1"], ["::2", "127.0.0.1"]),
        ("[::1]", ["::1"], ["::2"]),
        ("[fd00::]/8", [], ["fd00::1"]),
        ("fe80::/10", ["fe80::1%eth0"], ["::1"]),
        ("10.0.0.0/99,10.0.0.0/x,/8,[::1,fd00::/999,http://[,:1,::,[],]", [], ["10.0.0.1", "::1", "fd00::1", "host"]),
    ],
)
def test_no_proxy(no_proxy: str, direct: list[str], through: list[str]) -> None:
    assert [host for host in direct + through if is_direct(no_proxy, host)] == direct


@pytest.mark.parametrize("entry", ["host:8000", "http://host:8000", "all://host:8000", "HOST:8000"])
def test_no_proxy_for_one_port(entry: str) -> None:
    assert is_direct(entry, "host", 8000)
    assert is_direct(entry, "a.host", 8000)
    assert not is_direct(entry, "host", 8001)
    assert not is_direct(entry, "host")


def test_no_proxy_for_the_usual_ports_and_for_schemes() -> None:
    assert is_direct("host:80", "host")
    assert not is_direct("host:80", "host", scheme="https")
    assert is_direct("host:443", "host", scheme="https")
    assert is_direct("[::1]:443", "::1", scheme="https")
    assert is_direct("https://host", "host", scheme="https")
    assert not is_direct("https://host", "host")
    assert not is_direct("[::1]:x", "::1")


def test_no_proxy_in_capitals_counts_without_the_other() -> None:
    assert proxy_for("http", "host", None, {"http_proxy": PROXY, "NO_PROXY": "host"}) is None
    assert proxy_for("http", "host", None, {"http_proxy": PROXY, "NO_PROXY": "host", "no_proxy": "other"}) is not None


# Whom TLS trusts.


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Files with a certificate each."""
    folder = tmp_path_factory.mktemp("certificates")
    return str(make_certificate(folder, name="one")[0]), str(make_certificate(folder, name="two")[0])


def trusted(context: ssl.SSLContext) -> list[object]:
    return [dict(pair[0] for pair in each["subject"])["commonName"] for each in context.get_ca_certs()]  # type: ignore[misc]


def test_a_file_of_certificates_takes_the_place_of_the_usual_ones(two: tuple[str, str]) -> None:
    one, other = two
    assert trusted(client_tls({}, cafile=other)) == ["two"]
    assert trusted(client_tls({"SSL_CERT_FILE": "", "SSL_CERT_DIR": ""}, cafile=other)) == ["two"]
    found = client_tls({"SSL_CERT_FILE": one, "SSL_CERT_DIR": "/gone"}, cafile=other)
    assert trusted(found) == ["one"]
    assert (found.verify_mode, found.check_hostname) == (ssl.CERT_REQUIRED, True)
    # From a directory they are read when they are needed.
    assert trusted(client_tls({"SSL_CERT_DIR": f"/gone:{Path(one).parent}"}, cafile=other)) == []


def test_a_client_is_as_strict_as_pythons_own(two: tuple[str, str]) -> None:
    ours, theirs = client_tls({}, cafile=two[0]), ssl.create_default_context(cafile=two[0])
    for name in ("verify_flags", "verify_mode", "check_hostname", "options", "minimum_version", "protocol"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SSL_CERT_FILE", "/gone", "cannot read '/gone': No such file or directory"),
        ("SSL_CERT_FILE", "/", "cannot read '/': Is a directory"),
        ("SSL_CERT_FILE", __file__, f"got '{__file__}', expected a file of certificates in PEM form"),
        ("SSL_CERT_DIR", "/gone:/away", "got '/gone:/away', expected a directory of certificates"),
        ("SSL_CERT_DIR", __file__, f"got '{__file__}', expected a directory of certificates"),
    ],
)
def test_what_holds_no_certificates_is_named(variable: str, value: str, said: str, two: tuple[str, str]) -> None:
    with pytest.raises(BadEnvironment) as caught:
        client_tls({variable: value}, cafile=two[0])
    assert str(caught.value) == f"{variable}: {said}"
    # The server asks OpenSSL, which passes over what it cannot read, and says why only when nobody is trusted.
    assert isinstance(system_tls({variable: value}), ssl.SSLContext)
    untrusted = ssl.SSLCertVerificationError("certificate verify failed")
    assert explained(untrusted, {variable: value}).endswith(f"certificate verify failed',) ({variable}: {said})")
    assert explained(ValueError("other"), {variable: value}) == "other"
    assert explained(ValueError(), {variable: value}) == "ValueError"


def test_the_server_trusts_what_openssl_would(two: tuple[str, str]) -> None:
    assert trusted(system_tls({"SSL_CERT_FILE": two[0]})) == ["one"]
    usual = ssl.create_default_context()  # of this process's environment
    found = system_tls(os.environ)
    assert sorted(map(str, found.get_ca_certs())) == sorted(map(str, usual.get_ca_certs()))


def test_an_environment_that_is_well_explains_nothing(two: tuple[str, str]) -> None:
    assert certificates_problem({}) == ""
    assert certificates_problem({"SSL_CERT_FILE": two[0]}) == ""
    assert certificates_problem({"SSL_CERT_DIR": "/"}) == ""


def test_a_log_of_keys_that_cannot_be_written_is_left_out(tmp_path: Path, two: tuple[str, str]) -> None:
    gone = {"SSLKEYLOGFILE": str(tmp_path / "gone" / "keys")}
    assert client_tls(gone, cafile=two[0]).keylog_filename is None
    assert system_tls(gone).keylog_filename is None
    there = {"SSLKEYLOGFILE": str(tmp_path / "keys")}
    assert client_tls(there, cafile=two[0]).keylog_filename == there["SSLKEYLOGFILE"]
    assert system_tls(there).keylog_filename == there["SSLKEYLOGFILE"]
