"""A connection: one stream on an IOStream. Writes past Tornado's buffer, and notes why the stream ended."""

from __future__ import annotations

import errno
import socket
from asyncio import Future
from typing import Any, ClassVar, Protocol, cast

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from qgstream.delivery.feed import Feed
from qgstream.delivery.subscriber import PARKED, Subscriber
from qgstream.limits import LimitSettings
from qgstream.reasons import CloseReason, Transport
from qgstream.talkers import Name

# A client has nothing to send after its request. The server reads and discards what the client still sends (a pipelined
# request, stray bytes), because unread bytes would hide the client's FIN, and would turn the server's close into a
# reset. After so many bytes, the server closes the connection.
MAX_STRAY_BYTES = 64 * 1024
_SCRATCH = bytearray(4096)  # shared, because its content is never used


class ConnectionOwner(Protocol):
    """The interface of a connection's owner, which is the hub or the admin streams."""

    def has_room(self, connection: Connection) -> None:
        """The socket has room again."""

    def leaving(self, connection: Connection) -> None:
        """Set a deadline for the closing message that the connection sends, with `connection.reason`."""

    def closed(self, connection: Connection) -> None:
        """The stream has ended, with `connection.reason`."""


class Connection(Subscriber):
    """A subscriber with a socket, after its handshake.

    On plain TCP, the connection calls `socket.send` directly. If the kernel takes only a part of a chunk, the rest
    becomes the pending write of the IOStream. TLS uses `IOStream.write`.
    """

    __slots__ = (
        "owner", "stream", "id", "ip", "client_key", "user_agent", "opened_at", "reason", "slot", "replay",
        "named", "_open", "_stray_bytes",
    )  # fmt: skip

    transport: ClassVar[Transport] = "sse"
    close_code: int | None = None  # only of a transport with close codes

    def __init__(
        self, owner: ConnectionOwner, stream: IOStream, feed: Feed[Subscriber], *, id: int, ip: str, client_key: str,
        user_agent: str, opened_at: float,
    ) -> None:  # fmt: skip
        super().__init__(feed, self._send_buffered if isinstance(stream, SSLIOStream) else stream.socket.send)
        self.owner = owner
        self.stream = stream
        self.id = id
        self.ip = ip
        self.client_key = client_key
        self.user_agent = user_agent
        self.opened_at = opened_at
        self.reason: CloseReason | None = None
        self.slot = -1  # its slot in the heartbeat wheel
        self.replay: Any = None  # its `Replay`, until the connection is live
        self.named: str | Name | None = None  # the name of the key or of the token's user that opened the stream
        self._open = True
        self._stray_bytes = 0
        stream.set_close_callback(self._on_stream_closed)
        self._listen()

    @property
    def is_open(self) -> bool:
        """False once the stream has ended."""
        return self._open

    # Writing.

    def _send_buffered(self, data: bytes) -> int:
        if self.stream.writing():
            raise BlockingIOError
        self.stream.write(data)
        return len(data)

    def write_rest(self, rest: bytes | memoryview) -> None:
        """Let the IOStream send `rest`. When it is out, call `owner.has_room`."""
        try:
            self.stream.write(rest).add_done_callback(self._on_flushed)
        except StreamClosedError as error:
            self.fail(error)

    def _on_flushed(self, future: Future[None]) -> None:
        if self._open and self.reason is None and future.exception() is None:
            self.owner.has_room(self)

    def say(self, message: bytes) -> bool:
        """Send a message of the server between two chunks, if the socket has room. Return whether it was sent."""
        if self.cursor == PARKED:
            return False
        try:
            taken = self.send(message)
        except BlockingIOError:
            return False
        except OSError as error:
            self.fail(error)
            return False
        if taken < len(message):
            self.park(self.cursor, memoryview(message)[taken:])
        return True

    # Ending.

    def end(self, reason: CloseReason, message: bytes) -> None:
        """Send a closing message after the pending bytes, then close the connection.

        The owner sets a deadline, because a stalled peer would keep the connection open for ever.
        """
        if not self._open or self.reason is not None:
            return
        self.reason = reason
        self.leave()
        self.owner.leaving(self)
        try:
            self.stream.write(message).add_done_callback(self._on_closing_sent)
        except StreamClosedError:
            self.close(reason)

    def _on_closing_sent(self, _sent: Future[None]) -> None:
        self.close("client")  # the reason of the closing message stays

    def close(self, reason: CloseReason) -> None:
        """Close at once. If there is a reason already, that one stays."""
        if not self._open:
            return
        self._open = False
        self.reason = self.reason or reason
        self.leave()
        self.stream.set_close_callback(None)
        self.stream.close()
        self.owner.closed(self)

    def fail(self, error: OSError) -> None:
        """Close the connection after a failed write."""
        self.close(_reason_of(error, "write_error"))

    def _on_stream_closed(self) -> None:
        self.close(_reason_of(self.stream.error, "client"))

    # Reading.

    def _listen(self) -> None:
        # Without a pending read, the IOStream would not notice the peer's FIN.
        try:
            read = cast("Future[int]", self.stream.read_into(_SCRATCH, partial=True))
            read.add_done_callback(self._on_stray)
        except OSError:
            # The stream is closed, perhaps by this read: a broken TLS record raises here. The close callback handles
            # it.
            pass

    def _on_stray(self, future: Future[int]) -> None:
        if not self._open or future.exception() is not None:
            return
        self._stray_bytes += future.result()
        if self._stray_bytes > MAX_STRAY_BYTES:
            self.close("client")
        else:
            self._listen()


def _reason_of(error: BaseException | None, otherwise: CloseReason) -> CloseReason:
    if isinstance(error, StreamClosedError):
        error = error.real_error
    if isinstance(error, OSError) and error.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH):
        return "timeout"  # these errors come from TCP_USER_TIMEOUT and unreachable peers
    return otherwise


def tune_socket(stream: IOStream, limits: LimitSettings) -> None:
    """Prepare a socket for a long stream: send small events at once, detect dead peers, and bound kernel memory."""
    sock = stream.socket
    try:
        stream.set_nodelay(True)
        if limits.send_buffer_bytes:
            # Without this, the kernel buffers 2.8 MB for a stalled reader before a send fails; with it, 0.1 MB.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.send_buffer_bytes)
        if limits.tcp_user_timeout_seconds and hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(limits.tcp_user_timeout_seconds * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    except OSError:
        pass  # the connection is reset already: the first write will fail
