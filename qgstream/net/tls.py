"""What Python's `ssl` leaves out for a server: a clean end of TLS, and a word to clients of other protocols.

Sources: RFC 8446 (TLS 1.3), RFC 7301 (ALPN).
"""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import suppress

from qgstream.logs import log

ALPN_PROTOCOL = "http/1.1"

# RFC 8446, 5.1: a record has at most 2^14 bytes behind its header.
_HEADER_BYTES = 5
_MAX_RECORD_BYTES = _HEADER_BYTES + 2**14
_HANDSHAKE, _CLIENT_HELLO, _ALPN = 22, 1, 16
# A record of type alert (21): fatal (2), no_application_protocol (120).
_NO_APPLICATION_PROTOCOL = b"\x15\x03\x03\x00\x02\x02\x78"


def say_goodbye(sock: ssl.SSLSocket) -> None:
    """Send close_notify on a non-blocking socket whose handshake is over and on which nothing waits to be sent.

    RFC 8446, 6.1: each party must send it "before closing its write side": without it a client cannot tell the end of
    an answer from one that somebody has cut off, and OpenSSL 3 says `unexpected eof`. `SSLSocket.shutdown` sends none.
    Nobody waits for the client's own. Where the socket takes nothing at this moment, it stays unsaid.
    """
    with suppress(OSError, ValueError):  # mostly SSLWantReadError: ours is sent, theirs has not come
        sock.unwrap()


class TlsSocket(ssl.SSLSocket):
    """A client's socket that looks at the ClientHello before OpenSSL does.

    RFC 7301, 3.2: to a client that offers only protocols which the server does not have "the server SHALL respond with
    a fatal "no_application_protocol" alert". OpenSSL has a callback for that. Python's answers in it that there was
    nothing to agree about, and the client is served HTTP/1.1, which it has not offered.

    When the rest of a divided ClientHello arrives in the very moment between this look and OpenSSL's, the rest is not
    seen, and the client is served as it was before.
    """

    _hello: bytes | None = b""  # what has come of it; None when it was looked at

    def do_handshake(self, block: bool = False) -> None:
        """See `ssl.SSLSocket`. Raises `SSLEOFError` when the client was refused."""
        if self._hello is not None:
            self._look_at(self._hello)
        super().do_handshake(block)

    def _look_at(self, before: bytes) -> None:
        try:
            # Not `self.recv`, which is that of TLS.
            peeked = socket.socket.recv(self, _MAX_RECORD_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            # Nothing has come. OpenSSL must not read now: what arrives in this moment would not be looked at.
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "no ClientHello yet") from None
        except OSError:
            return  # the connection is gone: the handshake finds out
        hello = before + peeked
        offered = offered_protocols(hello)
        self._hello = hello if offered is None else None
        if offered and ALPN_PROTOCOL.encode() not in offered:
            names = [name[:50].decode("latin-1") for name in offered[:5]]
            log.debug("tls.no_common_protocol", extra={"offered": names, "expected": ALPN_PROTOCOL})
            with suppress(OSError):
                socket.socket.send(self, _NO_APPLICATION_PROTOCOL)
                socket.socket.recv(self, len(peeked))  # closed with bytes unread, the socket would send a reset
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the client offered no protocol that is spoken here")


def offered_protocols(data: bytes) -> list[bytes] | None:
    """The protocols in a ClientHello (RFC 8446, 4.1.2); none for one without ALPN, and for what is no ClientHello.

    None when there are bytes to come. A ClientHello in more than one record, which nobody sends, counts as none.
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
    """What stands behind its length, and the rest."""
    (length,) = struct.unpack_from("!B" if length_bytes == 1 else "!H", data)
    end = length_bytes + length
    if len(data) < end:
        raise IndexError
    return data[length_bytes:end], data[end:]
