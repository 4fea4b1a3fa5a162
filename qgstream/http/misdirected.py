"""The response to a request whose `Host` this server does not accept, for every path and method."""

from __future__ import annotations

from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.web import Application, stream_request_body

from qgstream.errors import UnknownHost
from qgstream.http.base import BaseHandler


@stream_request_body
class MisdirectedHandler(BaseHandler):
    """Refuses every request, preflights included."""

    def __init__(self, application: Application, request: HTTPServerRequest, **kwargs: Any) -> None:
        super().__init__(application, request, **kwargs)
        self.SUPPORTED_METHODS = (request.method or "",)  # any: Tornado refuses unknown ones before `prepare`

    def prepare(self) -> None:
        """Respond with 421, as in RFC 9110, 15.5.20."""
        self.read_body_up_to(self.service.limits.max_body_bytes)
        raise UnknownHost(
            f"Host: got {self.request.host[:200]!r}, expected localhost or a name in server.allowed_hosts; "
            "if clients reach this server by that name, add the name to server.allowed_hosts"
        )

    def data_received(self, chunk: bytes) -> None:
        """Ignore the body."""
