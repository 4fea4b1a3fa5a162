"""The answer to a request that no handler sees, because HTTP itself was not kept to. Pure: the time is an argument."""

from __future__ import annotations

import json
from collections.abc import Iterable
from http.client import responses

from tornado.httputil import format_timestamp

from qgstream.errors import QgstreamError


def refusal(error: QgstreamError, headers: Iterable[tuple[str, str]], now: float, *, with_body: bool = True) -> bytes:
    """The whole answer, with the JSON of every error, behind which the connection closes.

    `headers` are those of CORS. `with_body` is False for a HEAD.
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
