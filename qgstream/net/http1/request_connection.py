"""One request and its response on a client's connection: reading the request, and refusing a malformed one.

Tornado writes the responses. Tornado's own reader closes without a response when a request is malformed, and does not
support all of HTTP/1.1 (see `request_head` and `chunked`).
"""

from __future__ import annotations

import asyncio
import re
import time
from asyncio import Future
from collections.abc import Callable, Iterable
from typing import cast

from tornado.http1connection import HTTP1Connection
from tornado.httputil import (
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import SSLIOStream

from qgstream.errors import (
    BadRequest,
    HeadersTooLarge,
    MalformedRequest,
    QgstreamError,
    RequestTimeout,
    TargetTooLong,
    TooLarge,
)
from qgstream.logs import access_log
from qgstream.net.http1.chunked import ChunkedBody
from qgstream.net.http1.client_stream import ClientStream, EndOfHead
from qgstream.net.http1.refusals import refusal
from qgstream.net.http1.request_head import RequestHead, find_origin, parse_head

# RFC 9112, 2.2: a server "SHOULD ignore at least one empty line (CRLF) received prior to the request-line".
_MAX_EMPTY_LINES = 16
_EMPTY_LINES = re.compile(rb"\A(?:\r?\n)+")
# A body that has already arrived is read without a pause. After this many bytes other work gets its turn, as in
# Tornado.
_YIELD_BYTES = 256 * 1024
# The time that a client has to read the response that refuses its request.
_REFUSAL_SECONDS = 5.0

CorsHeaders = Callable[[str | None], Iterable[tuple[str, str]]]


class RequestConnection(HTTP1Connection):
    """The class with which Tornado's server reads a request and writes the response."""

    @staticmethod
    def cors_headers(origin: str | None) -> Iterable[tuple[str, str]]:  # noqa: ARG004  # for the replacement
        """Return the CORS headers of a refusal for this `Origin`. The server replaces this function."""
        return ()

    @staticmethod
    def refused(address: str, error: QgstreamError) -> None:
        """Called when a request from this address was refused before a handler received the request. The server
        replaces this function."""

    # The status of the refusal if a handler was waiting for the request's body; otherwise 0.
    refusal_status = 0

    # How long the client may take to start this request, on a connection that has already carried requests. The head
    # must arrive within `header_timeout` after the start. None for the first request, whose `header_timeout` starts
    # with the connection.
    idle_seconds: float | None = None
    _late: object = None  # the running timeout

    async def read_response(self, delegate: HTTPMessageDelegate) -> bool:
        """Read one request, pass it to the delegate, and wait for the response. Return whether the connection stays
        open.

        Tornado's server calls this method `read_response`, because Tornado's HTTP client uses the same class for
        responses.
        """
        stream = cast(ClientStream, self.stream)
        head, data, must_tell_end = None, b"", False
        try:
            data = await self._receive_head(stream)
            head = parse_head(data, is_secure=isinstance(stream, SSLIOStream))
            data = b""  # frees the head, which may be a megabyte, while the request is processed
            start_line = RequestStartLine(head.method, head.target, head.version)
            self._request_start_line, self._request_headers = start_line, head.headers
            self._disconnect_on_finish = not head.persists or self.no_keep_alive
            if head.persists and head.version == "HTTP/1.0":
                head.headers["Connection"] = "keep-alive"  # with this value, Tornado sends keep-alive in its response
            received = delegate.headers_received(start_line, head.headers)
            must_tell_end = True
            if received is not None:
                await received
            if self._is_detached():
                must_tell_end = False
                return False
            if head.content_length != 0:
                await self._receive_body(stream, head, delegate)
            self._read_finished = True
            if not self._write_finished:
                delegate.finish()
                must_tell_end = False
            if not (self._is_detached() or self._finish_future.done() or stream.closed()):
                stream.set_close_callback(self._on_connection_close)
                await self._finish_future
        except (QgstreamError, HTTPInputError) as error:
            # The error gets no second name: a second name makes a cycle, which keeps this frame and the head until the
            # collector runs.
            origin = find_origin(data) if head is None else head.headers.get("Origin")
            is_head = data.startswith(b"HEAD ") if head is None else head.method == "HEAD"
            await self._refuse(stream, error, origin, with_body=not is_head, has_handler=must_tell_end)
            return False
        finally:
            if must_tell_end:
                delegate.on_connection_close()
            self._clear_callbacks()
        return not self._is_detached()

    def _is_detached(self) -> bool:
        return cast("ClientStream | None", self.stream) is None

    # Reading.

    async def _receive_head(self, stream: ClientStream) -> bytes:
        max_bytes, since = self.params.max_header_size, time.monotonic()
        for _ in range(_MAX_EMPTY_LINES):
            finder = EndOfHead(max_bytes)
            self._expect_head(stream, finder, since)
            try:
                data = await stream.read_until_found(finder)
            finally:
                stream.io_loop.remove_timeout(self._late)
                self._late = None
            if data[:1] in b"\r\n":
                data = _EMPTY_LINES.sub(b"", data)
            if data:
                break
        else:
            raise MalformedRequest("got more than {_MAX_EMPTY_LINES} empty lines, expected a request")
        if data.endswith((b"\n\n", b"\n\r\n")):
            return data
        if b"\n" not in data:
            raise TargetTooLong(f"request line: got too many bytes, expected at most {max_bytes}")
        raise HeadersTooLarge(f"got too many bytes of headers, expected at most {max_bytes}")

    def _expect_head(self, stream: ClientStream, finder: EndOfHead, since: float) -> None:
        """Check again at the deadline of the head or, while the request has not started, at its earliest possible
        deadline."""
        now, seconds = time.monotonic(), self.params.header_timeout or 0
        if self.idle_seconds is None:
            left = since + seconds - now
        elif finder.begun_at is not None:
            left = finder.begun_at + seconds - now
        else:
            left = min(since + self.idle_seconds - now, seconds)
        if left > 0:
            self._late = stream.io_loop.call_later(left, self._expect_head, stream, finder, since)
        else:
            self._close_late(stream, finder)

    def _close_late(self, stream: ClientStream, finder: EndOfHead | None) -> None:
        """Handle a timeout. A connection on which no request has started closes without a response."""
        if finder is None or finder.begun_at is not None:
            what = "body" if finder is None else "header section"
            error = RequestTimeout(f"the {what} did not arrive in time")
            headers = self._request_headers
            # The stream may already be closed, by a read whose result nobody has awaited yet.
            if self._response_start_line is None and not stream.closed():
                stream.write(self._refusal(error, None if headers is None else headers.get("Origin")))
        stream.close()

    async def _receive_body(self, stream: ClientStream, head: RequestHead, delegate: HTTPMessageDelegate) -> None:
        length = head.content_length
        if length is not None and length > self._max_body_size:
            raise TooLarge("body", length, self._max_body_size)
        if head.expects_continue and not self._write_finished:
            stream.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        late = None
        if self._body_timeout is not None:
            late = stream.io_loop.call_later(self._body_timeout, self._close_late, stream, None)
        try:
            if length is None:
                await self._receive_chunks(stream, delegate)
            else:
                await self._receive_bytes(stream, length, delegate)
        finally:
            if late is not None:
                stream.io_loop.remove_timeout(late)

    async def _receive_bytes(self, stream: ClientStream, length: int, delegate: HTTPMessageDelegate) -> None:
        since_pause = 0
        while length:
            data = await stream.read_bytes(min(self.params.chunk_size, length), partial=True)
            length -= len(data)
            since_pause = await self._hand_on(data, delegate, since_pause)

    async def _receive_chunks(self, stream: ClientStream, delegate: HTTPMessageDelegate) -> None:
        body, since_pause = ChunkedBody(self._max_body_size), 0
        while not body.is_complete:
            read = await stream.read_until_found(body)
            if body.error is not None:
                try:
                    raise body.error
                finally:
                    body.error = None  # otherwise the error keeps this frame alive, and this frame the body, in a cycle
            # All bytes on the wire count: a chunk may carry a hundred bytes of framing around each byte of data.
            since_pause += len(read)
            data = body.take()
            since_pause = await self._hand_on(data, delegate, since_pause - len(data))

    async def _hand_on(self, data: bytes, delegate: HTTPMessageDelegate, since_pause: int) -> int:
        if data and not self._write_finished:
            taken = delegate.data_received(data)
            if taken is not None:
                await taken
        since_pause += len(data)
        if since_pause < _YIELD_BYTES:
            return since_pause
        await asyncio.sleep(0)
        return 0

    # Answering.

    def write_headers(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders, chunk: bytes | None = None
    ) -> Future[None]:
        """See `HTTPConnection`. `Connection: close` closes the connection. Tornado alone would send keep-alive to an
        HTTP/1.0 client."""
        if headers.get("Connection") == "close":
            self._disconnect_on_finish = True
            if self._request_headers is not None:
                self._request_headers["Connection"] = "close"
        return super().write_headers(start_line, headers, chunk)

    async def _refuse(
        self, stream: ClientStream, error: Exception, origin: str | None, *, with_body: bool, has_handler: bool
    ) -> None:
        """Send the error and close the connection. The end of this request, and the start of a next one, are
        unknown."""
        if not isinstance(error, QgstreamError):
            error = BadRequest(str(error))  # an error of Tornado, for a malformed query or form
        said = {"status": error.status, "code": error.code, "reason": str(error), "remote_ip": str(self.context)}
        access_log.debug("request.refused", extra=said)
        if has_handler:
            self.refusal_status = error.status  # the handler sends the error, because it knows more about the request
        else:
            self.refused(str(self.context), error)
        late = stream.io_loop.call_later(_REFUSAL_SECONDS, stream.close)
        try:
            if self._write_finished:
                # the response was sent before the error was detected, and the connection closes after the response
                await self._finish_future
            elif self._response_start_line is None:
                await stream.write(self._refusal(error, origin, with_body=with_body))
        finally:
            stream.io_loop.remove_timeout(late)
            self.close()

    def _refusal(self, error: QgstreamError, origin: str | None, *, with_body: bool = True) -> bytes:
        return refusal(error, self.cors_headers(origin), time.time(), with_body=with_body)
