"""The base of all handlers: CORS on each response, errors as JSON, and authentication."""

from __future__ import annotations

import math
import time
from asyncio import Future
from functools import cached_property, lru_cache
from http.client import responses
from typing import Any, Literal, cast

from tornado.escape import json_encode
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPServerRequest
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from qgstream.auth.authenticator import ANONYMOUS, Credentials, Principal
from qgstream.errors import (
    Forbidden,
    InvalidField,
    MethodNotAllowed,
    NotFound,
    NotImplementedHere,
    QgstreamError,
    UnknownHost,
    UnsupportedContentCoding,
)
from qgstream.logs import log, quote
from qgstream.net import cors, origins
from qgstream.net.addresses import Client, find_client
from qgstream.net.cookies import cookie_value
from qgstream.service.refusal_log import result_of
from qgstream.service.service import Service
from qgstream.talkers import Asker

# How much of a request a log line contains.
MAX_METHOD_CHARACTERS = 50
MAX_PATH_CHARACTERS = 500
MAX_AGENT_CHARACTERS = 200

# The errors that are logged for requests other than streams and publishing. A wrong path or parameter only gets its
# response.
_REFUSING = frozenset({401, 403, 421, 429, 503})

# Tornado's own errors, by status, as codes of this server. Any other fault of a client is `bad_request`.
_CODES = {401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}

# The methods of this server's paths, and the methods that clients know: those of RFC 9110 (section 9), of RFC 5789, and
# QUERY.
_METHODS = "GET, HEAD, POST, PATCH, DELETE, OPTIONS"
_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS", "PUT", "CONNECT", "TRACE", "QUERY"})


# Most clients send one of a few values. The cached text is shared and costs a stream nothing (otherwise 0.2 KiB of its
# 4). Not `sys.intern`: on CPython 3.12.0 to 3.12.5, an interned text is never freed.
@lru_cache(maxsize=256)
def _quoted_agent(user_agent: str) -> str:
    return quote(user_agent, MAX_AGENT_CHARACTERS)


class BaseHandler(RequestHandler):
    """A handler with the service. It may raise the errors of `errors` anywhere."""

    principal: Principal = ANONYMOUS  # until the credentials are validated

    def __init__(
        self, application: Application, request: HTTPServerRequest, *, service: Service, **kwargs: Any
    ) -> None:
        # Before super().__init__, which calls set_default_headers before initialize().
        self.service = service
        # A draining server releases its kept-alive sockets one by one, instead of cutting them all at its end.
        self.close_after_answer = service.hub.draining
        super().__init__(application, request, **kwargs)

    def set_default_headers(self) -> None:
        """Set the CORS headers of every response, also of errors and preflights. This must never raise: an exception
        here would cut the connection."""
        self.set_header("Server", "qgstream")
        if self.close_after_answer:
            self.set_header("Connection", "close")
        origin = self.request.headers.get("Origin")
        for name, value in cors.headers(self.service.cors, origin, preflight=self.request.method == "OPTIONS"):
            self.set_header(name, value)

    def options(self, *_path: str) -> None:
        """Respond to a preflight on any path; no authentication is needed."""
        origin = self.other_origin()
        if origin is not None:
            self.service.refused_origins.see(origin, self.service.cors)
        self.set_status(204)
        self.set_header("Allow", self.allowed_methods)

    def head(self, *path: str) -> Any:  # a coroutine where `get` is one
        """As GET, without its body: Tornado sends none. Without a GET this is 405."""
        return self.get(*path)

    @property
    def allowed_methods(self) -> str:
        """Return the methods for the Allow header: those that this class implements. A HEAD that works like GET is
        listed if GET is."""
        written = [
            method for method in self.SUPPORTED_METHODS
            if getattr(type(self), method.lower()) is not getattr(RequestHandler, method.lower())
        ]  # fmt: skip
        return ", ".join(method for method in written if method != "HEAD" or "GET" in written)

    def check_xsrf_cookie(self) -> None:
        """Check nothing, also in an application with `xsrf_cookies`. Programs publish with a key and have no such
        cookie. For a client with a cookie, `authenticate` checks the origin."""

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Decode a query parameter as UTF-8, or raise an error that names the field."""
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            got = f"got byte 0x{value[error.start]:02x} at {error.start}, expected UTF-8"
            raise InvalidField(name or "path", got) from None

    def read_body_up_to(self, max_bytes: int) -> None:
        """Limit the body, for handlers of `stream_request_body`. When the socket closes while the client still sends,
        the client gets a reset instead of the response. So a refused body is read and discarded, up to a limit."""
        cast(HTTP1Connection, self.request.connection).set_max_body_size(max_bytes)

    # Authentication.

    @property
    def remote_ip(self) -> str:
        """The client's address; behind trusted proxies, the address that they report."""
        return self._client.address

    @cached_property
    def _client(self) -> Client:
        # Once for each request: the header may be a megabyte long.
        forwarded_for = self.request.headers.get_list("X-Forwarded-For") if self.service.trusted_proxies else ()
        return find_client(self.request.remote_ip or "", forwarded_for, self.service.trusted_proxies)

    def is_own_origin(self, origin: str) -> bool:
        """Return whether a page of this origin (as a browser sends it) is a page of this server."""
        return self._own_origin is not None and origins.parse(origin) == self._own_origin

    def other_origin(self) -> str | None:
        """The origin of the page that asks, if that is not a page of this server; None without one."""
        origin = self.request.headers.get("Origin")
        return None if origin is None or self.is_own_origin(origin) else origin

    @cached_property
    def _own_origin(self) -> str | None:
        proxies = self._client.proxies
        forwarded = origins.forwarded_scheme(self.request.headers.get_list("X-Forwarded-Proto"), proxies)
        return origins.serialize(forwarded or self.request.protocol, self.request.host)

    def foreign_origin(self, origin: str) -> Forbidden:
        """Return the error that refuses a page of another origin."""
        own = self._own_origin
        message = f"Origin: got {origin[:200]!r}, expected {own!r} (this server's own) or one of cors.allow_origins"
        if own is not None and origin.lower().partition("://")[2] == own.partition("://")[2]:
            message += (
                "; behind a proxy that ends TLS, the proxy must send X-Forwarded-Proto, "
                "and server.trusted_proxies must name the proxy"
            )
        return Forbidden(message)

    @property
    def asker(self) -> Asker:
        """The client as far as it is known at this moment, for the log and the tables of talkers."""
        return Asker.of(self.remote_ip, self.user_agent, self.principal)

    @property
    def user_agent(self) -> str:
        """The User-Agent, cut and escaped for display."""
        return _quoted_agent(self.request.headers.get("User-Agent", "")[:MAX_AGENT_CHARACTERS])

    @property
    def takes_cookie(self) -> bool:
        """Return whether a cookie may authenticate this request. A page of another origin sends the cookie too, and
        cannot read the response."""
        return True

    def authenticate(self) -> Principal:
        """Return the principal of the request; without credentials, the anonymous principal. Raises `Unauthorized` for
        invalid credentials, and `TooManyRequests` for an address that has sent too many invalid ones."""
        jwt = self.service.auth.settings.jwt
        cookie_name = jwt.cookie if jwt is not None else None
        credentials = Credentials(
            authorization=self.request.headers.get("Authorization"),
            # Of several values, the last non-empty one counts, as for every parameter here.
            access_token=next(filter(None, reversed(self.get_query_arguments("access_token"))), None),
            cookie=(
                cookie_value(self.request.headers.get_list("Cookie"), cookie_name)
                if cookie_name and self.takes_cookie
                else None
            ),
        )
        if credentials.source == "cookie" and self.request.method not in ("GET", "HEAD"):
            self._check_origin()
        self.principal = self.service.authenticate(credentials, self.remote_ip)
        return self.principal

    def _check_origin(self) -> None:
        # Any page can make the browser send the cookie, so the page must have an allowed origin.
        origin = self.request.headers.get("Origin", "")
        if not self.is_own_origin(origin) and (
            "*" in self.service.cors.allow_origins or not cors.is_allowed(self.service.cors, origin)
        ):
            raise self.foreign_origin(origin)

    # Responses.

    def compute_etag(self) -> str | None:
        """Return None: no response is for a cache, and Tornado would reply to `If-None-Match: *` with 304."""
        return None

    def on_finish(self) -> None:
        """Close the socket after the response if this was requested: a `Connection: close` header alone does not close
        it."""
        if self.close_after_answer:
            stream = cast(HTTP1Connection, self.request.connection).stream
            if not stream.closed():
                stream.write(b"").add_done_callback(lambda _: stream.close())

    def on_connection_close(self) -> None:
        """The client has gone. Free what the request holds now: the cyclic garbage collector is tuned to run rarely."""
        super().on_connection_close()
        self._break_cycles()
        if hasattr(self.request, "_body_future"):  # of a streamed body; its error holds the frame that waited for it
            over: Future[None] = Future()
            over.set_result(None)
            self.request._body_future = over  # noqa: SLF001  # Tornado has no public name for it

    def answer(self, document: dict[str, object]) -> None:
        """Send a JSON response that no cache stores. It ends with a newline, for a shell prompt on its own line."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        self.write(json_encode(document) + "\n")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Send `{"error": {"code", "message"}}`, for this server's own errors and for Tornado's."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        method = (self.request.method or "")[:MAX_METHOD_CHARACTERS]
        if isinstance(error, HTTPError) and error.status_code == 405 and method not in _KNOWN_METHODS:
            # RFC 9110, 9.1: 405 is for a known method that is not allowed on this path.
            error = NotImplementedHere(f"got the method {method!r}, expected one of {_METHODS}")
        elif isinstance(error, HTTPError) and error.status_code == 405:
            error = MethodNotAllowed(f"got {method!r}, expected one of {self.allowed_methods}")
            self.set_header("Allow", self.allowed_methods)
        if isinstance(error, QgstreamError):
            self.set_status(error.status)
            body: dict[str, object] = {"code": error.code, "message": str(error)}
            for name in ("field", "docs"):
                if getattr(error, name, None) is not None:
                    body[name] = getattr(error, name)
            retry_after = getattr(error, "retry_after_seconds", None)
            if retry_after is not None:
                self.set_header("Retry-After", str(math.ceil(retry_after)))
            if error.status == 401:
                self.set_header("WWW-Authenticate", 'Bearer realm="qgstream"')
            if isinstance(error, UnsupportedContentCoding):
                self.set_header("Accept-Encoding", error.accepted)
        else:
            message = getattr(error, "log_message", None) or responses.get(status_code, "error")
            args = getattr(error, "args", ())
            code = _CODES.get(status_code, "bad_request" if status_code < 500 else "server_error")
            body = {"code": code, "message": message % args if args and "%" in message else message}
        self.answer({"error": body})

    def see_failure(self, error: BaseException) -> None:
        """The request ends with this error: log a refusal. Handlers of streams and publishes log their own refusals."""
        if getattr(error, "status", None) in _REFUSING:
            self.see_refusal("request.refused", error)

    def see_refusal(self, event: Literal["request.refused", "admin.refused"], error: BaseException) -> None:
        """Log the refusal of a request that is neither a stream nor a publish."""
        reason = "unknown_host" if isinstance(error, UnknownHost) else result_of(error)
        asker = self.asker
        self.service.hub.talkers.refused_other(asker, reason, time.monotonic())
        self.service.refusals.see(event, asker, reason, error)

    def log_exception(self, *exc_info: Any) -> None:
        """Log an exception: nothing for a client's mistake, which only gets its response; one line with all details for
        a fault of the server."""
        error = exc_info[1]
        self.see_failure(error)
        if isinstance(error, QgstreamError) or (isinstance(error, HTTPError) and error.status_code < 500):
            return
        log.error(
            "request.failed",
            exc_info=exc_info,
            extra={
                "method": (self.request.method or "")[:MAX_METHOD_CHARACTERS],
                "path": quote(self.request.path, MAX_PATH_CHARACTERS),
                "remote_ip": self.remote_ip,
            },
        )


@stream_request_body
class NotFoundHandler(BaseHandler):
    """Any path without another handler: the response has JSON and CORS too. `docs` is the path of the page that
    describes the paths, or None without such a page."""

    def __init__(self, *args: Any, docs: str | None = None, **kwargs: Any) -> None:
        self.docs = docs
        super().__init__(*args, **kwargs)

    @property
    def allowed_methods(self) -> str:
        """Return the allowed methods. A preflight always succeeds; `OPTIONS *` asks about the server as a whole (RFC
        9110, 9.3.7)."""
        return _METHODS if self.request.path == "*" else "OPTIONS"

    def prepare(self) -> None:
        """Refuse a publish to a wrong path before its body is read."""
        self.read_body_up_to(self.service.limits.max_body_bytes)

    def data_received(self, chunk: bytes) -> None:
        """Ignore the body."""

    def get(self) -> None:
        """Respond with 404."""
        where = f"that {self.docs} describes" if self.docs else "in the documentation"
        raise NotFound(f"got {self.request.path[:200]!r}, expected one of the paths {where}", docs=self.docs)

    post = put = patch = delete = get
