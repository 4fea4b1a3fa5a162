"""Accepted sockets: tuned, counted, and never more than the descriptors allow."""

from __future__ import annotations

import errno
import resource
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple, cast

from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, SSLIOStream
from tornado.netutil import add_accept_handler

from qgstream.errors import ConfigError, QgstreamError
from qgstream.limits import LimitSettings
from qgstream.logs import log
from qgstream.net.addresses import canonical
from qgstream.net.http1.client_stream import ClientsStream, TlsClientsStream
from qgstream.net.http1.request_connection import CorsHeaders, RequestConnection
from qgstream.net.lingering_close import Lingering
from qgstream.net.tls import TlsSocket

# Descriptors that are not accepted sockets: standard streams, epoll, listeners, the self-pipe, certificates being
# read, /proc for metrics, a broker's connections. And those who ask on admin.port, who must get in when all is full.
RESERVED_DESCRIPTORS = 64
ADMIN_SOCKETS = 32

# A last event id may come with a header of a megabyte and is answered `reset`, not a 400 that stops an EventSource.
MAX_HEADER_BYTES = 1024 * 1024 + 64 * 1024
# Of anything but a publish, which sets its own.
MAX_BODY_BYTES = 64 * 1024
# Of the first request of a connection; of the next ones, from their first byte on.
HEADER_SECONDS = 30.0
# Until that byte comes. Above the 60 s of common balancers: whoever closes first knows that no request is on its way.
KEEPALIVE_SECONDS = 75.0
BODY_SECONDS = 30.0
# The kernel's queue of connections not accepted yet, and (in Tornado) the accepts of one turn of the loop.
BACKLOG = 1024
# What accept(2) says when there is nothing to make a socket of, and how long nobody is let in then. The pause is
# asyncio's own (`ACCEPT_RETRY_DELAY`).
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
ACCEPT_PAUSE_SECONDS = 1.0
# Of the connections that may be closed for a new one; those at work on an answer are passed over, and are few.
_LOOKED_AT = 256


def max_sockets(limits: LimitSettings, *, streams: int = 0) -> int:
    """The hard cap on accepted sockets: streams, and some for publishers, probes and those being refused.

    There are some for those even when more streams are open than a lowered `max_connections` allows.
    """
    if limits.max_sockets:
        return limits.max_sockets
    return max(streams, limits.max_connections) + limits.max_connections // 10 + 100


def raise_descriptor_limit(limits: LimitSettings) -> int:
    """Raise the soft limit on file descriptors of this process to the hard one.

    Args:
        limits: The limits whose sockets must fit.

    Returns:
        The limit that holds now.

    Raises:
        ConfigError: The sockets cannot fit. The message has the arithmetic.

    Example::

        import qgstream

        qgstream.raise_descriptor_limit(qgstream.LimitSettings(max_connections=100))
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    sockets = max_sockets(limits)
    needed = sockets + RESERVED_DESCRIPTORS
    allowed = max(soft, needed) if hard == resource.RLIM_INFINITY else hard
    if needed > allowed:
        fits = allowed - RESERVED_DESCRIPTORS
        key, got = "limits.max_sockets", limits.max_sockets
        if not got:
            key, got, fits = "limits.max_connections", limits.max_connections, (fits - 100) * 10 // 11
        problem = (
            f"{key}: got {got}, which needs {needed} descriptors "
            f"({sockets} sockets + {RESERVED_DESCRIPTORS} reserved), but the hard limit is {allowed}; "
            f"expected at most {max(0, fits)}, or a higher limit (ulimit -Hn, LimitNOFILE=)"
        )
        raise ConfigError([problem])
    if soft != allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


class TlsContext(ssl.SSLContext):
    """A server's context for Tornado, whose accept loop forgives a socket that is gone already only ECONNABORTED.

    Wrapping one that was reset, as port scans and balancers' probes do, raises ECONNRESET, EPROTO and others: each
    would be a traceback that anybody could cause.
    """

    sslsocket_class = TlsSocket

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """See `ssl.SSLContext`. Nothing is said on the wire yet."""
        try:
            return super().wrap_socket(*args, **kwargs)
        except OSError as error:
            raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from error


class _Listener:
    """A listening socket for Tornado's accept loop, which would spin when descriptors run out: the socket stays
    readable, and each turn is a traceback in the log, thousands a second.

    `pause` is called then; those who wait do so in the kernel's queue meanwhile.
    """

    def __init__(self, listener: socket.socket, pause: Callable[[socket.socket], None]) -> None:
        self._socket = listener
        self._pause = pause

    def fileno(self) -> int:
        """See `socket.fileno`."""
        return self._socket.fileno()

    def accept(self) -> tuple[socket.socket, Any]:
        """See `socket.accept`."""
        try:
            return self._socket.accept()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            log.error("server.out_of_sockets", extra={"reason": str(error), "pause_seconds": ACCEPT_PAUSE_SECONDS})
            self._pause(self._socket)
            raise BlockingIOError(errno.EWOULDBLOCK, str(error)) from error


class _Waited(NamedTuple):
    """Whose request is waited for; Tornado begins to serve it in the turn of the loop after that which accepted it."""

    ip: str
    served_by: HTTP1Connection | None

    @property
    def is_detached(self) -> bool:
        """Whether a handler has taken the socket away, which the server hears of in a later turn of the loop."""
        return self.served_by is not None and cast(IOStream | None, self.served_by.stream) is None


class StreamServer(HTTPServer):
    """Tornado's `HTTPServer` with a cap on sockets, and with the timeouts and bounds that a public server needs.

    Args:
        request_callback: The application.
        limits: Called for the limits in effect.
        detached: Called for the number of open streams, whose sockets count under the cap.
        refused: Called with the address of each socket that is closed because of the cap.
        refused_request: Called with the address and the error of each request that is refused before a handler sees it.
        cors_headers: Called with the origin of such a request, for the headers that let a page read the answer.
        keepalive_seconds: Called for the seconds that a connection may be idle between two requests.
        kwargs: Other arguments of `HTTPServer`.

    Example::

        import qgstream
        from tornado.web import Application

        async with qgstream.Service(qgstream.Hub()) as service:
            server = qgstream.StreamServer(
                Application(qgstream.routes(service)),
                limits=lambda: service.limits,
                detached=lambda: len(service.hub.registry),
            )
            server.listen(8888)
            server.stop()
    """

    def initialize(  # type: ignore[override]  # Configurable: the signature is this class's own
        self,
        request_callback: Any,
        *,
        limits: Callable[[], LimitSettings] = LimitSettings,
        detached: Callable[[], int] = lambda: 0,
        refused: Callable[[str], None] = lambda _ip: None,
        refused_request: Callable[[str, QgstreamError], None] = lambda _ip, _error: None,
        cors_headers: CorsHeaders = lambda _origin: (),
        keepalive_seconds: Callable[[], float] = lambda: KEEPALIVE_SECONDS,
        **kwargs: Any,
    ) -> None:
        """See `HTTPServer`; `refused(ip)` is told of each socket closed for the cap, `refused_request(ip, error)`
        of each request that is refused before a handler has it. `cors_headers(origin)` gives the headers that let a
        page read why its request was refused, and `keepalive_seconds()` how long a connection may be idle between two
        requests."""
        super().initialize(
            request_callback,
            idle_connection_timeout=HEADER_SECONDS,
            body_timeout=BODY_SECONDS,
            max_header_size=MAX_HEADER_BYTES,
            max_body_size=MAX_BODY_BYTES,
            **kwargs,
        )
        # Whose request is not there yet, the longest waited for first, and those that are at work on one.
        self._waited_for: OrderedDict[ClientsStream, _Waited] = OrderedDict()
        self._lingering = Lingering()
        self._plain, self._tls = (
            type(kind.__name__, (kind,), {"lingering": self._lingering}) for kind in (ClientsStream, TlsClientsStream)
        )
        hooks = {"cors_headers": staticmethod(cors_headers), "refused": staticmethod(refused_request)}
        self._requests = type("RequestConnection", (RequestConnection,), hooks)
        self._limits = limits
        self._detached = detached
        self._refused = refused
        self._keepalive_seconds = keepalive_seconds

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """See `TCPServer`."""
        for listener in sockets:
            self._sockets[listener.fileno()] = listener
            self._listen_on(listener)

    def _listen_on(self, listener: socket.socket) -> None:
        self._handlers[listener.fileno()] = add_accept_handler(
            _Listener(listener, self._pause),  # type: ignore[arg-type]  # has all that is used of a socket
            self._handle_connection,
        )

    def _pause(self, listener: socket.socket) -> None:
        self._handlers[listener.fileno()]()  # its loop ends, and it is not looked at any more
        self._handlers[listener.fileno()] = lambda: None  # for `stop`
        IOLoop.current().call_later(ACCEPT_PAUSE_SECONDS, self._go_on, listener)

    def _go_on(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:  # not stopped meanwhile
            try:
                self._listen_on(listener)
            except OSError as error:  # epoll may be out of memory, too: nobody would be let in any more
                log.error("server.out_of_sockets", extra={"reason": str(error), "pause_seconds": ACCEPT_PAUSE_SECONDS})
                IOLoop.current().call_later(ACCEPT_PAUSE_SECONDS, self._go_on, listener)

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """A socket was accepted."""
        ip = canonical(str(address[0])) if address else ""
        if self._is_full() and not self._make_room():
            # Not even a word: writing one would need the descriptor for longer.
            stream.close()
            self._refused(ip)
            return
        # TCPServer makes its streams itself; this is how they become ours.
        stream.__class__ = self._tls if isinstance(stream, SSLIOStream) else self._plain
        stream.set_nodelay(True)
        # Now: all that are accepted in one turn of the loop are here before Tornado begins with the first.
        self._waited_for[cast(ClientsStream, stream)] = _Waited(ip, None)
        # Tornado takes `request.remote_ip` from it.
        super().handle_stream(stream, (ip, *address[1:]) if address else address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """See `HTTPServer`: a client may send its next request."""
        stream = _stream_of(server_conn)
        known = self._waited_for.pop(stream, None)
        self._waited_for[stream] = _Waited(known.ip if known else "", cast(HTTP1Connection, request_conn))
        # Tornado's connection makes it itself; this is how it becomes ours.
        request_conn.__class__ = self._requests
        if known is not None and known.served_by is not None:
            cast(RequestConnection, request_conn).idle_seconds = self._keepalive_seconds()
        return super().start_request(server_conn, request_conn)

    def on_close(self, server_conn: object) -> None:
        """See `HTTPServer`: it has closed, or its handler has detached it, and then its end is not ours."""
        stream = _stream_of(server_conn)
        stream.end_lingering()
        self._waited_for.pop(stream, None)
        super().on_close(server_conn)

    async def close_all_connections(self) -> None:
        """See `HTTPServer`."""
        await super().close_all_connections()
        self._lingering.close_all()

    def _is_full(self) -> bool:
        streams = self._detached()
        cap, others = max_sockets(self._limits(), streams=streams), streams + len(self._lingering)
        if len(self._waited_for) + others < cap:
            return False
        looked_at = islice(self._waited_for.items(), _LOOKED_AT)
        for stream in [stream for stream, waited in looked_at if waited.is_detached]:
            del self._waited_for[stream]  # it is counted among the streams
        return len(self._waited_for) + others >= cap

    def _make_room(self) -> bool:
        """Close the connection that has been waited for longest: it sends its request slowly, or none (nginx does so
        with what it calls reusable). Else somebody who opens sockets and sends nothing would keep everybody out."""
        if self._lingering.close_oldest():
            return True
        for stream, waited in islice(self._waited_for.items(), _LOOKED_AT):
            # A stream reads as well: closed for somebody else it would be lost to a client that was answered 200.
            if waited.served_by is None or (stream.reading() and not waited.is_detached):  # and not at work
                del self._waited_for[stream]
                stream.close_at_once()
                self._refused(waited.ip)
                return True
        return False


def _stream_of(server_conn: object) -> ClientsStream:
    return cast(ClientsStream, cast(HTTP1ServerConnection, server_conn).stream)


def log_descriptors(limits: LimitSettings) -> None:
    """One line at the start, so that an operator sees what the limits came to."""
    log.info(
        "limits.in_effect",
        extra={
            "max_connections": limits.max_connections,
            "max_sockets": max_sockets(limits),
            "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        },
    )
