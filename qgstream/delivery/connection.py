"""One stream on an IOStream: writing past Tornado's buffer, noticing the end, and saying why."""

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

# A client has nothing to say after its request. What it sends all the same (a pipelined request, stray bytes) is read
# and forgotten, because unread bytes would hide its FIN and turn our close into a reset; this much, then it is closed.
MAX_STRAY_BYTES = 64 * 1024
_SCRATCH = bytearray(4096)  # shared: nobody looks at it


class ConnectionOwner(Protocol):
    """Who looks after connections: the hub."""

    def has_room(self, connection: Connection) -> None:
        """The socket takes bytes again."""

    def leaving(self, connection: Connection) -> None:
        """It says goodbye, for `connection.reason`: to be closed if that is not taken."""

    def closed(self, connection: Connection) -> None:
        """The stream has ended, for `connection.reason`."""


class Connection(Subscriber):
    """A subscriber with a socket, after its handshake.

    Plain TCP is offered bytes directly (`socket.send`); what the kernel does not take of one chunk becomes the
    IOStream's pending write. TLS goes through `IOStream.write`.
    """

    __slots__ = (
        "owner", "stream", "id", "ip", "client_key", "user_agent", "opened_at", "reason", "slot", "replay",
        "named", "_open", "_stray_bytes",
    )  # fmt: skip

    transport: ClassVar[Transport] = "sse"
    close_code: int | None = None  # of a transport that has them

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
        self.slot = -1  # where the heartbeat wheel has it
        self.replay: Any = None  # its walk through the log, until it is live
        self.named: str | Name | None = None  # whose credentials opened it: the name of a key, or a token's
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
        """Let the IOStream send `rest` when it can; then the host hears that there is room."""
        try:
            self.stream.write(rest).add_done_callback(self._on_flushed)
        except StreamClosedError as error:
            self.fail(error)

    def _on_flushed(self, future: Future[None]) -> None:
        if self._open and self.reason is None and future.exception() is None:
            self.owner.has_room(self)

    def say(self, message: bytes) -> bool:
        """Send a message of the server's own between two chunks, if the socket has room. Whether it went out."""
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
        """Say goodbye behind what is already on its way, and close when it is out. The host sets a deadline: a stalled
        peer would keep it for ever."""
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
        self.close("client")  # the reason of the goodbye stands

    def close(self, reason: CloseReason) -> None:
        """Close at once. The first reason given stands."""
        if not self._open:
            return
        self._open = False
        self.reason = self.reason or reason
        self.leave()
        self.stream.set_close_callback(None)
        self.stream.close()
        self.owner.closed(self)

    def fail(self, error: OSError) -> None:
        """A write failed."""
        self.close(_reason_of(error, "write_error"))

    def _on_stream_closed(self) -> None:
        self.close(_reason_of(self.stream.error, "client"))

    # Reading.

    def _listen(self) -> None:
        # A pending read is also what lets the IOStream see the peer's FIN.
        try:
            read = cast("Future[int]", self.stream.read_into(_SCRATCH, partial=True))
            read.add_done_callback(self._on_stray)
        except OSError:
            # Closed, also by this read: a broken TLS record is raised from here. The close callback has it.
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
        return "timeout"  # what TCP_USER_TIMEOUT and unreachable peers end with
    return otherwise


def tune_socket(stream: IOStream, limits: LimitSettings) -> None:
    """Make a socket fit for a long stream: small events at once, dead peers noticed, kernel memory bounded."""
    sock = stream.socket
    try:
        stream.set_nodelay(True)
        if limits.send_buffer_bytes:
            # A stalled reader takes 2.8 MB of kernel buffer before user space hears of it; this makes it 0.1 MB.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.send_buffer_bytes)
        if limits.tcp_user_timeout_seconds and hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(limits.tcp_user_timeout_seconds * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    except OSError:
        pass  # reset already: the first write finds out
