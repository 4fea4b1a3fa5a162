"""A relay in front of a server: cuts streams, answers for a server that is away, and remembers what was asked."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Relay:
    """Listens on a free port of the loopback and passes everything on to `target_port`.

    After `cut` all connections are broken and each new one gets `answer` (nothing: it is closed at once) until
    `restore`. `requests` has the head of each connection's first request.
    """

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[str] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._muted: set[socket.socket] = set()
        self._answer: bytes | None = None
        self._is_held = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self, answer: bytes = b"") -> None:
        """Break every connection, and answer new ones with `answer` alone."""
        with self._lock:
            self._answer = answer
            for each in self._open:
                _shut(each)

    def hold(self) -> None:
        """Give new connections no answer, and keep them open."""
        with self._lock:
            self._is_held = True

    def mute(self) -> None:
        """Pass nothing more on to the clients of now, without a word: a path that has died."""
        with self._lock:
            self._muted |= self._open

    def restore(self) -> None:
        """Pass new connections on again."""
        with self._lock:
            self._answer = None
            self._is_held = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            serving = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(serving)
            serving.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket() as server:
            with self._lock:
                self._open |= {client, server}
            head = b""
            try:
                while b"\r\n\r\n" not in head:
                    received = client.recv(65536)
                    if not received:
                        return
                    head += received
                with self._lock:
                    self.requests.append(head.partition(b"\r\n\r\n")[0].decode("latin-1"))
                    answer, is_held = self._answer, self._is_held
                if answer is not None:
                    client.sendall(answer)
                    return
                while is_held:
                    if not client.recv(65536):
                        return
                server.connect(self._target)
                server.sendall(head)
                back = threading.Thread(target=self._pump, args=(server, client))
                back.start()
                self._pump(client, server)
                back.join()
            except OSError:
                pass  # cut
            finally:
                with self._lock:
                    self._open -= {client, server}
                    self._muted -= {client, server}

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while received := source.recv(65536):
                if sink not in self._muted:
                    sink.sendall(received)
        except OSError:
            pass  # cut
        # Either end gone is both gone: a half-open relay would hide a cut.
        _shut(sink)
        _shut(source)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        _shut(self._listener)
        self._listener.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()


def _shut(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
