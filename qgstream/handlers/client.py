"""`GET /client.js`: the JavaScript client, for pages of every origin that may read a stream; and its types."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import ClassVar

from qgstream.handlers.base import BaseHandler


@cache
def _load(name: str) -> tuple[bytes, str]:
    content = files("qgstream").joinpath("web", name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'


class ClientHandler(BaseHandler):
    """Serves the file `name` of qgstream/web as `content_type`."""

    name: ClassVar = "client.js"
    content_type: ClassVar = "text/javascript; charset=utf-8"

    def get(self) -> None:
        """The file. Browsers keep it and ask each time whether it is still the one: 304 with a matching ETag."""
        self.set_header("Content-Type", self.content_type)
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.write(_load(self.name)[0])

    def head(self) -> None:
        """The same without its body."""
        self.get()

    def compute_etag(self) -> str | None:
        """Of the file: this is the one answer that a cache may keep."""
        return _load(self.name)[1]


class ClientTypesHandler(ClientHandler):
    """The same for TypeScript."""

    name = "client.d.ts"
    content_type = "text/plain; charset=utf-8"
