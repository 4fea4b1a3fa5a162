"""The floor: the minimal work of a server in Python. `python -m qgstream.bench.floor` prints its port and serves.

It uses one epoll. Every GET is a stream, and the body of every POST is framed once and sent to every stream with one
`send` each. It parses almost no HTTP, has no limits and no history, and waits for slow readers: it is a yardstick, not
a server.
"""

from __future__ import annotations

import resource
import select
import socket
from collections.abc import Callable
from contextlib import suppress

from qgstream.wire import sse

_OPEN = sse.chunk(b": open\n\n")
_HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_PATIENCE_SECONDS = 5.0
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Floor:
    """Sends each body to every stream."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        self._sends: dict[int, Callable[[bytes], int]] = {}
        self._requests: dict[int, bytes] = {}

    def serve(self) -> None:
        """Serve for ever."""
        listening = self._listener.fileno()
        while True:
            for fd, _event in self._epoll.poll(-1, 512):
                if fd == listening:
                    self._accept()
                else:
                    self._read(fd)

    def _accept(self) -> None:
        while True:
            try:
                sock, _address = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets[sock.fileno()] = sock
            self._epoll.register(sock, select.EPOLLIN)

    def _read(self, fd: int) -> None:
        sock = self._sockets[fd]
        try:
            got = sock.recv(1024 * 1024)
        except BlockingIOError:
            return
        except OSError:
            got = b""
        if not got:
            self._sends.pop(fd, None)
            self._requests.pop(fd, None)
            self._sockets.pop(fd).close()
            return
        request = self._requests.pop(fd, b"") + got
        head, end, body = request.partition(b"\r\n\r\n")
        if not end or len(body) < _content_length(head):
            self._requests[fd] = request
        elif head.startswith(b"GET"):
            sock.send(_HEADERS + _OPEN)
            self._sends[fd] = sock.send
        else:
            self._publish(sse.chunk(sse.encode(body)))
            sock.send(_ANSWER)

    def _publish(self, chunk: bytes) -> None:
        for fd, send in list(self._sends.items()):
            try:
                taken = send(chunk)
            except BlockingIOError:
                taken = 0
            except OSError:
                continue  # the client has disconnected, which the next read finds
            if taken < len(chunk):
                self._wait(self._sockets[fd], chunk[taken:])

    def _wait(self, sock: socket.socket, rest: bytes) -> None:
        sock.settimeout(_PATIENCE_SECONDS)
        with suppress(OSError):
            sock.sendall(rest)
        sock.setblocking(False)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def main() -> None:
    """Print the port and serve until killed."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    floor = Floor()
    print(floor.port, flush=True)  # noqa: T201  # the parent process reads this line
    floor.serve()


if __name__ == "__main__":
    main()
