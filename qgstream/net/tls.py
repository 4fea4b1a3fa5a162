"""TLS features that Python's `ssl` lacks for a server: close_notify, and the ALPN alert for unsupported protocols.

Sources: RFC 8446 (TLS 1.3), RFC 7301 (ALPN).
"""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import suppress

from qgstream.logs import log

ALPN_PROTOCOL = "http/1.1"

# RFC 8446, 5.1: a record has at most 2^14 bytes after its header.
_HEADER_BYTES = 5
_MAX_RECORD_BYTES = _HEADER_BYTES + 2**14
_HANDSHAKE, _CLIENT_HELLO, _ALPN = 22, 1, 16
# A record of type alert (21): fatal (2), no_application_protocol (120).
_NO_APPLICATION_PROTOCOL = b"\x15\x03\x03\x00\x02\x02\x78"


def send_close_notify(sock: ssl.SSLSocket) -> None:
    """Send close_notify on a non-blocking socket after the handshake; all earlier data must already be sent.

    RFC 8446, 6.1: each party must send close_notify "before closing its write side". Without it a client cannot tell
    the end of a response from a connection that an attacker cut off, and OpenSSL 3 reports `unexpected eof`.
    `SSLSocket.shutdown` sends no close_notify. This function does not wait for the client's close_notify. If the socket
    cannot take the record at once, close_notify is not sent.
    """
    # mostly SSLWantReadError: the server's close_notify is sent, the client's has not arrived
    with suppress(OSError, ValueError):
        sock.unwrap()


class TlsSocket(ssl.SSLSocket):
    """A server-side TLS socket that inspects the ClientHello before OpenSSL reads the ClientHello.

    RFC 7301, 3.2: to a client that offers only protocols which the server does not have "the server SHALL respond with
    a fatal "no_application_protocol" alert". OpenSSL has a callback for this alert. Python's callback reports "no
    agreement" instead, and the client gets HTTP/1.1, which the client has not offered.

    If the rest of a split ClientHello arrives between this inspection and OpenSSL's read, the rest is not inspected,
    and the client gets HTTP/1.1.
    """

    _hello: bytes | None = b""  # the received part; None after the inspection

    def do_handshake(self, block: bool = False) -> None:
        """See `ssl.SSLSocket`. Raises `SSLEOFError` when the server has refused the client."""
        if self._hello is not None:
            self._look_at(self._hello)
        super().do_handshake(block)

    def _look_at(self, before: bytes) -> None:
        try:
            # Not `self.recv`, which returns decrypted data.
            peeked = socket.socket.recv(self, _MAX_RECORD_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            # Nothing has arrived. OpenSSL must not read now: data that arrives at this moment would not be inspected.
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "no ClientHello yet") from None
        except OSError:
            return  # the connection is gone; the handshake reports the error
        hello = before + peeked
        offered = offered_protocols(hello)
        self._hello = hello if offered is None else None
        if offered and ALPN_PROTOCOL.encode() not in offered:
            names = [name[:50].decode("latin-1") for name in offered[:5]]
            log.debug("tls.no_common_protocol", extra={"offered": names, "expected": ALPN_PROTOCOL})
            with suppress(OSError):
                socket.socket.send(self, _NO_APPLICATION_PROTOCOL)
                socket.socket.recv(self, len(peeked))  # closing the socket while bytes are unread would send a reset
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the client offered no protocol that this server supports")


def offered_protocols(data: bytes) -> list[bytes] | None:
    """Return the ALPN protocols in a ClientHello (RFC 8446, 4.1.2); an empty list without ALPN or without a
    ClientHello.

    Returns None if more bytes are needed. A ClientHello in several records, which no client sends, counts as empty.
    """
    if data[:1] not in (b"", bytes([_HANDSHAKE])):
        return []
    if len(data) < _HEADER_BYTES or len(data) < (end := _HEADER_BYTES + int.from_bytes(data[3:5])):
        return None if len(data) < _MAX_RECORD_BYTES else []
    try:
        return _protocols(memoryview(data)[_HEADER_BYTES:end])
    except (struct.error, IndexError):
        return []


def _protocols(message: memoryview) -> list[bytes]:
    if message[0] != _CLIENT_HELLO:
        return []
    rest = message[4 + 2 + 32 :]  # type and length, version, random
    for length_bytes in (1, 2, 1):  # session id, cipher suites, compression methods
        _, rest = _vector(rest, length_bytes)
    extensions, _ = _vector(rest, 2)
    while extensions:
        (kind,) = struct.unpack_from("!H", extensions)
        body, extensions = _vector(extensions[2:], 2)
        if kind == _ALPN:
            names, _ = _vector(body, 2)
            found = []
            while names:
                name, names = _vector(names, 1)
                found.append(bytes(name))
            return found
    return []


def _vector(data: memoryview, length_bytes: int) -> tuple[memoryview, memoryview]:
    """Split a length-prefixed vector: return its content and the remaining data."""
    (length,) = struct.unpack_from("!B" if length_bytes == 1 else "!H", data)
    end = length_bytes + length
    if len(data) < end:
        raise IndexError
    return data[length_bytes:end], data[end:]
