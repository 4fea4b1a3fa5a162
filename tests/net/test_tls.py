"""The ClientHello, as far as it is looked at. `hostile/test_tls.py` has the sockets."""

from __future__ import annotations

import socket
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.net.tls import TlsSocket, offered_protocols
from tests.hostile.test_tls import hello

WITH_H2 = hello("h2", "http/1.1")


@pytest.mark.parametrize("offered", [["h2"], ["http/1.1", "h2"], ["x" * 255]])
def test_what_a_client_offers(offered: list[str]) -> None:
    assert offered_protocols(hello(*offered)) == [name.encode() for name in offered]


def test_a_client_without_alpn_offers_nothing() -> None:
    assert offered_protocols(hello()) == []


def test_a_part_is_not_judged() -> None:
    for end in range(len(WITH_H2)):
        assert offered_protocols(WITH_H2[:end]) is None
    assert offered_protocols(WITH_H2 + b"more") == [b"h2", b"http/1.1"]


@given(st.binary(max_size=100))
def test_what_is_no_hello_offers_nothing(data: bytes) -> None:
    assert not offered_protocols(data)


@given(st.integers(0, len(WITH_H2) - 1), st.integers(0, 255))
def test_a_broken_one_is_left_to_openssl(at: int, value: int) -> None:
    broken = bytearray(WITH_H2)
    broken[at] = value
    offered_protocols(bytes(broken))  # raises nothing


def test_openssl_reads_nothing_before_the_hello_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """It arrives between this look and OpenSSL's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = TlsSocket
    client, served = socket.socketpair()
    with client, served:
        served.setblocking(False)
        monkeypatch.setattr(ssl.SSLSocket, "do_handshake", lambda *_: pytest.fail("OpenSSL was asked"))
        with context.wrap_socket(served, server_side=True, do_handshake_on_connect=False) as wrapped:
            with pytest.raises(ssl.SSLWantReadError):
                wrapped.do_handshake()
            client.sendall(hello("h2"))
            with pytest.raises(ssl.SSLEOFError, match="no protocol that this server supports"):
                wrapped.do_handshake()
