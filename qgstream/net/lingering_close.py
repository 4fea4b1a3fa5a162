"""Lingering close: the server has closed its side of a socket, and the client may still be sending."""

from __future__ import annotations

import socket
from collections import OrderedDict

from tornado.ioloop import IOLoop

# A client that has read its response closes at once; this timeout is for a client that is still sending.
LINGER_SECONDS = 2.0
_CHUNK_BYTES = 64 * 1024


class LingeringSockets:
    """Reads and discards what clients send after their last response, for `LINGER_SECONDS` or until they close.

    If a socket is closed while bytes are unread, the kernel sends a reset. The client's system then discards the
    response that the client has not read yet (RFC 9112, 9.6). nginx has `lingering_close` for the same purpose.
    """

    def __init__(self) -> None:
        # In order of arrival. An OrderedDict, because finding the first entry of a plain dict walks over all deleted
        # entries.
        self._open: OrderedDict[socket.socket, object] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def take(self, sock: socket.socket) -> None:
        """Close the sending side of a non-blocking socket at once, and the whole socket when the client has finished
        sending."""
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # the connection is already gone
            sock.close()
            return
        if _is_over(sock):
            sock.close()
        else:
            loop = IOLoop.current()
            loop.add_handler(sock, self._forget_what_came, IOLoop.READ)
            self._open[sock] = loop.call_later(LINGER_SECONDS, self._close, sock)

    def close_oldest(self) -> bool:
        """Close the oldest lingering socket. Returns whether there was one."""
        if not self._open:
            return False
        self._close(next(iter(self._open)))
        return True

    def close_all(self) -> None:
        """Close all sockets when the server stops."""
        while self.close_oldest():
            pass

    def _forget_what_came(self, sock: socket.socket, _events: int) -> None:
        if _is_over(sock):
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        loop = IOLoop.current()
        loop.remove_timeout(self._open.pop(sock))
        loop.remove_handler(sock)
        sock.close()


def _is_over(sock: socket.socket) -> bool:
    """Read once. Return whether the client has closed its side or is gone."""
    try:
        said = sock.recv(_CHUNK_BYTES)
    except BlockingIOError:
        return False
    except OSError:
        said = b""
    return not said
