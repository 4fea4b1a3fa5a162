"""Accepted sockets: configured, counted, and limited to the available file descriptors."""

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
from qgstream.net.http1.client_stream import ClientStream, TlsClientStream
from qgstream.net.http1.request_connection import CorsHeaders, RequestConnection
from qgstream.net.lingering_close import LingeringSockets
from qgstream.net.tls import TlsSocket

# Descriptors that are not accepted sockets: standard streams, epoll, listeners, the self-pipe, certificates being read,
# /proc for metrics, a broker's connections. Also the clients of admin.port, which must get in when the server is full.
RESERVED_DESCRIPTORS = 64
ADMIN_SOCKETS = 32

# A last event id may arrive in a header of a megabyte. The server replays `reset` for such an id, because a 400 would
# stop an EventSource.
MAX_HEADER_BYTES = 1024 * 1024 + 64 * 1024
# For every request except a publish, which sets its own limit.
MAX_BODY_BYTES = 64 * 1024
# The timeout for the head of the first request on a connection; for later requests, the timeout starts at their first
# byte.
HEADER_SECONDS = 30.0
# The timeout for the first byte of a later request. More than the 60 s of common load balancers: the side that closes
# first must know that no request is on its way.
KEEPALIVE_SECONDS = 75.0
BODY_SECONDS = 30.0
# The length of the kernel's queue of pending connections, and (in Tornado) the number of accepts in one turn of the
# loop.
BACKLOG = 1024
# The errors of accept(2) when the system has no resources for a socket, and the pause before the next accept. The pause
# is the same as in asyncio (`ACCEPT_RETRY_DELAY`).
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
ACCEPT_PAUSE_SECONDS = 1.0
# The number of connections that `_make_room` examines. Connections with a response in progress are skipped, and are
# few.
_LOOKED_AT = 256


def max_sockets(limits: LimitSettings, *, streams: int = 0) -> int:
    """Return the hard cap on accepted sockets: streams, plus some for publishers, probes and refused clients.

    The extra sockets also exist while more streams are open than a lowered `max_connections` allows.
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
    """A TLS server context whose `wrap_socket` raises only ECONNABORTED for sockets that are already gone.

    Tornado's accept loop tolerates only ECONNABORTED. Wrapping a socket that was reset (by a port scan or a load
    balancer's probe) raises ECONNRESET, EPROTO and others. Without this class, any client could cause tracebacks in the
    log.
    """

    sslsocket_class = TlsSocket

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """See `ssl.SSLContext`. This method sends and receives nothing."""
        try:
            return super().wrap_socket(*args, **kwargs)
        except OSError as error:
            raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from error


class _Listener:
    """A listening socket for Tornado's accept loop that pauses when descriptors run out.

    Without the pause, Tornado's loop spins: the socket stays readable, and each turn logs a traceback, thousands a
    second. This class calls `pause` instead; new connections wait in the kernel's queue meanwhile.
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


class _WaitingConnection(NamedTuple):
    """A connection that is waiting for its request. Tornado starts to serve a connection one loop turn after the
    accept."""

    ip: str
    served_by: HTTP1Connection | None

    @property
    def is_detached(self) -> bool:
        """Whether a handler has detached the socket. The server is told in a later turn of the loop."""
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
        """See `HTTPServer`.

        The server calls `refused(ip)` for each socket closed at the cap, and `refused_request(ip, error)` for each
        request refused before a handler receives the request. `cors_headers(origin)` returns the headers with which a
        page can read the refusal. `keepalive_seconds()` returns how long a connection may be idle between two requests.
        """
        super().initialize(
            request_callback,
            idle_connection_timeout=HEADER_SECONDS,
            body_timeout=BODY_SECONDS,
            max_header_size=MAX_HEADER_BYTES,
            max_body_size=MAX_BODY_BYTES,
            **kwargs,
        )
        # Connections that wait for a request, longest wait first, and connections with a request in progress.
        self._waited_for: OrderedDict[ClientStream, _WaitingConnection] = OrderedDict()
        self._lingering = LingeringSockets()
        self._plain, self._tls = (
            type(kind.__name__, (kind,), {"lingering": self._lingering}) for kind in (ClientStream, TlsClientStream)
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
        self._handlers[listener.fileno()]()  # its loop ends, and the listener is no longer polled
        self._handlers[listener.fileno()] = lambda: None  # for `stop`
        IOLoop.current().call_later(ACCEPT_PAUSE_SECONDS, self._go_on, listener)

    def _go_on(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:  # the server was not stopped meanwhile
            try:
                self._listen_on(listener)
            except OSError as error:  # epoll may be out of memory too; the listener would stay paused for ever
                log.error("server.out_of_sockets", extra={"reason": str(error), "pause_seconds": ACCEPT_PAUSE_SECONDS})
                IOLoop.current().call_later(ACCEPT_PAUSE_SECONDS, self._go_on, listener)

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Handle an accepted socket."""
        ip = canonical(str(address[0])) if address else ""
        if self._is_full() and not self._make_room():
            # No response: sending one would hold the descriptor for longer.
            stream.close()
            self._refused(ip)
            return
        # TCPServer creates the streams itself; assigning `__class__` turns them into this project's class.
        stream.__class__ = self._tls if isinstance(stream, SSLIOStream) else self._plain
        stream.set_nodelay(True)
        # Registered now: all connections accepted in one turn are registered before Tornado serves the first of them.
        self._waited_for[cast(ClientStream, stream)] = _WaitingConnection(ip, None)
        # Tornado takes `request.remote_ip` from the address.
        super().handle_stream(stream, (ip, *address[1:]) if address else address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """See `HTTPServer`: the client may now send its next request."""
        stream = _stream_of(server_conn)
        known = self._waited_for.pop(stream, None)
        self._waited_for[stream] = _WaitingConnection(known.ip if known else "", cast(HTTP1Connection, request_conn))
        # Tornado's connection object creates `request_conn`; assigning `__class__` turns it into this project's class.
        request_conn.__class__ = self._requests
        if known is not None and known.served_by is not None:
            cast(RequestConnection, request_conn).idle_seconds = self._keepalive_seconds()
        return super().start_request(server_conn, request_conn)

    def on_close(self, server_conn: object) -> None:
        """See `HTTPServer`. The connection has closed, or its handler has detached the connection and now owns its
        end."""
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
            del self._waited_for[stream]  # a detached connection is counted among the streams
        return len(self._waited_for) + others >= cap

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for its request. Returns whether there was one.

        Such a client sends its request slowly or not at all. nginx does the same with its "reusable" connections.
        Otherwise a client could open sockets, send nothing, and keep every other client out.
        """
        if self._lingering.close_oldest():
            return True
        for stream, waited in islice(self._waited_for.items(), _LOOKED_AT):
            # An open stream also reads. Closing it here would drop a stream whose client has received a 200.
            # and has no request in progress
            if waited.served_by is None or (stream.reading() and not waited.is_detached):
                del self._waited_for[stream]
                stream.close_at_once()
                self._refused(waited.ip)
                return True
        return False


def _stream_of(server_conn: object) -> ClientStream:
    return cast(ClientStream, cast(HTTP1ServerConnection, server_conn).stream)


def log_descriptors(limits: LimitSettings) -> None:
    """Log one line at start with the resulting limits, for the operator."""
    log.info(
        "limits.in_effect",
        extra={
            "max_connections": limits.max_connections,
            "max_sockets": max_sockets(limits),
            "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        },
    )
