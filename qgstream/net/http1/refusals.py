"""The response to a request that is refused before a handler receives the request. Pure: the time is an argument."""

from __future__ import annotations

import json
from collections.abc import Iterable
from http.client import responses

from tornado.httputil import format_timestamp

from qgstream.errors import QgstreamError


def refusal(error: QgstreamError, headers: Iterable[tuple[str, str]], now: float, *, with_body: bool = True) -> bytes:
    """Return the complete response, with the JSON of an error. The connection closes after the response.

    `headers` are the CORS headers. `with_body` is False for a HEAD request.
    """
    body = json.dumps({"error": {"code": error.code, "message": str(error)}}).encode() + b"\n"
    lines = [
        f"HTTP/1.1 {error.status} {responses[error.status]}",
        "Server: qgstream",
        f"Date: {format_timestamp(now)}",
        "Content-Type: application/json; charset=utf-8",
        "Cache-Control: no-store",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers),
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body if with_body else b"")
