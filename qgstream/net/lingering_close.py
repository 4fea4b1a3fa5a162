"""Sockets that are closed but for what their clients may still be sending."""

from __future__ import annotations

import socket
from collections import OrderedDict

from tornado.ioloop import IOLoop

# A client that has read its answer closes at once; this is for one that is still sending.
LINGER_SECONDS = 2.0
_CHUNK_BYTES = 64 * 1024


class Lingering:
    """What a client sends behind its last answer is read and forgotten until it closes, for `LINGER_SECONDS`.

    A socket that is closed with bytes unread sends a reset, and with that the client's system throws the answer away
    which it has not read yet: RFC 9112, 9.6; nginx has `lingering_close`.
    """

    def __init__(self) -> None:
        # In the order of their coming. Not a plain dict: to find its first entry, Python walks all that were deleted.
        self._open: OrderedDict[socket.socket, object] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def take(self, sock: socket.socket) -> None:
        """Close a non-blocking socket: its sending side at once, all of it when the client has nothing more to say."""
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # it is no connection any more
            sock.close()
            return
        if _is_over(sock):
            sock.close()
        else:
            loop = IOLoop.current()
            loop.add_handler(sock, self._forget_what_came, IOLoop.READ)
            self._open[sock] = loop.call_later(LINGER_SECONDS, self._close, sock)

    def close_oldest(self) -> bool:
        """Make room. Returns whether there was one."""
        if not self._open:
            return False
        self._close(next(iter(self._open)))
        return True

    def close_all(self) -> None:
        """For the end of a server."""
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
    """Read once: whether the client has closed or is gone."""
    try:
        said = sock.recv(_CHUNK_BYTES)
    except BlockingIOError:
        return False
    except OSError:
        said = b""
    return not said
