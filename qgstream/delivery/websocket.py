"""One stream on a WebSocket: a connection like every other, whose client may say goodbye and ping."""

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

# What a client may send: the bytes of a few pings a second for as long as it likes, and a burst as on any stream.
_BYTES_PER_SECOND = 1024
_READ_BYTES = 4096


class WebSocketConnection(Connection):
    """Events, messages and replays are framed before they come here, and go the way of every stream's.

    A client's frames are read as they come; between two of them nothing is held. Its close is answered, and so are its
    pings; everything else is refused with the code that the protocol has for it, which ends the stream for the reason
    `client`. `close_code` is the code that it ended with, when there was one.
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
        """Say goodbye, whose last frame is a close; the socket is closed when the client has answered that."""
        if self.close_code is None:
            self.close_code = frames.CLOSE_CODES[reason]
        super().end(reason, message)

    def _on_closing_sent(self, sent: Future[None]) -> None:
        if self._has_closed or sent.exception() is not None:
            super()._on_closing_sent(sent)
        elif self._is_deaf and not self.stream.closed():
            self._close_half()
        # Else the client answers: 7.1.1, a server closes "after both sending and receiving a Close frame".

    def _close_half(self) -> None:
        # 7.1.7: who is refused is not heard any more, so this side's end is what tells it to go. TLS has no such half.
        try:
            if isinstance(self.stream, SSLIOStream):
                self.close("client")
            else:
                self.stream.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # gone already: the close callback has it

    # Reading.

    def _listen(self) -> None:
        try:
            read = cast("Future[bytes]", self.stream.read_bytes(_READ_BYTES, partial=True))
            read.add_done_callback(self._on_heard)
        except OSError:
            pass  # closed: the close callback has it

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
                self.close("client")  # the answer to our goodbye, whose reason stands
            else:
                self.close_code = heard.closed
                self.end("client", frames.close(heard.closed))  # 5.5.1: "typically echos the status code it received"

    def _refuse(self, code: int, why: str) -> None:
        # 7.1.7: "An endpoint MUST NOT continue to attempt to process data". It is read all the same: what lay unread in
        # the socket would make its close a reset, which may cost the client the frame that says why.
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
            self._pong = pong  # until there is room, or its replay is over
        else:
            self.park(self.cursor, pong)

    def _on_flushed(self, future: Future[None]) -> None:
        if self._pong is None or not self.is_open or self.reason is not None:
            super()._on_flushed(future)
            return
        # Before what waits in the feed: of that there may be more for as long as the client is slow.
        pong, self._pong = self._pong, None
        self.write_rest(pong)

    def join(self) -> None:
        """Go live; the replay had the socket for itself."""
        super().join()
        if self._pong is not None:
            self._answer(self._pong)
