"""One stream on a WebSocket: a connection whose client may also send close frames and pings."""

from __future__ import annotations

import socket
import time
from asyncio import Future
from typing import Any, ClassVar, cast

from tornado.iostream import SSLIOStream

from qgstream.delivery.connection import MAX_STRAY_BYTES, Connection
from qgstream.delivery.subscriber import PARKED
from qgstream.limits import TokenBucket
from qgstream.reasons import CloseReason, Transport
from qgstream.wire import websocket_frames as frames

# A client may send the bytes of a few pings per second without end, and a burst of `MAX_STRAY_BYTES` as on any stream.
_BYTES_PER_SECOND = 1024
_READ_BYTES = 4096


class WebSocketConnection(Connection):
    """A connection on a WebSocket. It gets framed events, messages and replays, and sends them like every stream.

    The connection reads the client's frames as they arrive, and holds nothing between two frames. It replies to close
    frames and pings. It refuses every other frame with the close code of the protocol, and the stream ends with the
    reason `client`. `close_code` is the close code of the stream, if it had one.
    """

    __slots__ = ("close_code", "_rest", "_pong", "_bucket", "_is_deaf", "_has_closed")

    transport: ClassVar[Transport] = "websocket"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.close_code: int | None = None
        self._rest = b""
        self._pong: bytes | None = None
        self._bucket: TokenBucket | None = None
        self._is_deaf = False
        self._has_closed = False
        super().__init__(*args, **kwargs)

    # Ending.

    def end(self, reason: CloseReason, message: bytes) -> None:
        """Send the closing message, whose last frame is a close. Close the socket after the client's close frame."""
        if self.close_code is None:
            self.close_code = frames.CLOSE_CODES[reason]
        super().end(reason, message)

    def _on_closing_sent(self, sent: Future[None]) -> None:
        if self._has_closed or sent.exception() is not None:
            super()._on_closing_sent(sent)
        elif self._is_deaf and not self.stream.closed():
            self._close_half()
        # Otherwise wait for the client's close frame. RFC 6455, 7.1.1: a server closes the connection "after both
        # sending and receiving a Close frame".

    def _close_half(self) -> None:
        # 7.1.7: the server does not process frames of a refused client any more, so closing the sending side tells the
        # client to go. TLS cannot close only one side.
        try:
            if isinstance(self.stream, SSLIOStream):
                self.close("client")
            else:
                self.stream.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # gone already: the close callback handles it

    # Reading.

    def _listen(self) -> None:
        try:
            read = cast("Future[bytes]", self.stream.read_bytes(_READ_BYTES, partial=True))
            read.add_done_callback(self._on_heard)
        except OSError:
            pass  # closed: the close callback handles it

    def _on_heard(self, future: Future[bytes]) -> None:
        if not self.is_open or future.exception() is not None:
            return
        received = future.result()
        if self._is_flood(len(received)):
            if self.reason is not None:
                self.close("client")
                return
            self._refuse(1008, f"more than {_BYTES_PER_SECOND} bytes a second were sent")
        elif not self._is_deaf:
            self._understand(frames.parse(self._rest + received))
        if self.is_open:
            self._listen()

    def _is_flood(self, size: int) -> bool:
        now = time.monotonic()
        if self._bucket is None:
            self._bucket = TokenBucket(MAX_STRAY_BYTES, now)
        return self._bucket.take(size, rate=_BYTES_PER_SECOND, burst=MAX_STRAY_BYTES, now=now) > 0

    def _understand(self, heard: frames.Received) -> None:
        self._rest = heard.rest
        if heard.ping is not None and self.reason is None:
            self._answer(frames.pong(heard.ping))
        if heard.refused is not None:
            self._refuse(heard.refused, heard.why)
        elif heard.closed is not None:
            self._has_closed = True
            if self.reason is not None:
                self.close("client")  # the reply to the server's close frame: its reason stays
            else:
                self.close_code = heard.closed
                self.end("client", frames.close(heard.closed))  # 5.5.1: "typically echos the status code it received"

    def _refuse(self, code: int, why: str) -> None:
        # 7.1.7: "An endpoint MUST NOT continue to attempt to process data". The server still reads and discards the
        # data. Unread data would turn the close of the socket into a reset, and the client might lose the close frame.
        self._is_deaf = True
        self._rest = b""
        if self.reason is None:
            self.close_code = code
            self.end("client", frames.close(code, why))

    # Pongs, between two chunks.

    def _answer(self, pong: bytes) -> None:
        self._pong = None
        if self.say(pong) or not self.is_open:
            return
        if self.cursor == PARKED:
            self._pong = pong  # until the socket has room, or the replay is over
        else:
            self.park(self.cursor, pong)

    def _on_flushed(self, future: Future[None]) -> None:
        if self._pong is None or not self.is_open or self.reason is not None:
            super()._on_flushed(future)
            return
        # Before the chunks of the feed: for a slow client, the feed may always have more chunks.
        pong, self._pong = self._pong, None
        self.write_rest(pong)

    def join(self) -> None:
        """Go live, and send a pong that waited for the end of the replay."""
        super().join()
        if self._pong is not None:
            self._answer(self._pong)
