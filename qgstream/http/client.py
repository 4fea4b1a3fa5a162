"""`GET /client.js`: the JavaScript client and its types, for pages of every origin that may read a stream."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import ClassVar

from qgstream.http.base import BaseHandler
from qgstream.net.content_codings import prefers_gzip

MINIFIED = "client.min.js"
# One year, the usual maximum for caches (RFC 9111 has no maximum; older standards had this one).
_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class _File:
    content: bytes
    gzipped: bytes
    digest: str


@cache
def _load(name: str) -> _File:
    """Load a file of qgstream/web. It is compressed once here, and not for each request."""
    content = files("qgstream").joinpath("web", name).read_bytes()
    # mtime: all processes and machines produce the same bytes for the same ETag.
    return _File(content, gzip.compress(content, 9, mtime=0), hashlib.sha256(content).hexdigest()[:32])


def minified_version() -> str:
    """Return the part of the minified client's URL that changes with its content: 16 hexadecimal digits."""
    return _load(MINIFIED).digest[:16]


class ClientHandler(BaseHandler):
    """Serves the file `name` of qgstream/web as `content_type`."""

    name: ClassVar = "client.js"
    content_type: ClassVar = "text/javascript; charset=utf-8"

    def get(self) -> None:
        """Send the file. Browsers store it and revalidate it each time: 304 for a matching ETag."""
        self._give(cache_control="no-cache")

    def compute_etag(self) -> str | None:
        """Return the ETag of the file: a cache may store this response. Each content coding has its own ETag (RFC 9110,
        8.8.3.3)."""
        digest = _load(self.name).digest
        return f'"{digest}-gzip"' if self._is_gzipped else f'"{digest}"'

    @property
    def _is_gzipped(self) -> bool:
        return prefers_gzip(self.request.headers.get("Accept-Encoding", ""))

    def _give(self, *, cache_control: str) -> None:
        file = _load(self.name)
        self.set_header("Content-Type", self.content_type)
        self.set_header("Cache-Control", cache_control)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.add_header("Vary", "Accept-Encoding")
        if self._is_gzipped:
            self.set_header("Content-Encoding", "gzip")
            self.write(file.gzipped)
        else:
            self.write(file.content)


class MinifiedClientHandler(ClientHandler):
    """Serves the same client, minified. `Content-Location` is the URL whose content never changes."""

    name = MINIFIED

    def get(self) -> None:
        """Send the file."""
        self.set_header("Content-Location", f"client-{minified_version()}.min.js")
        super().get()


class VersionedClientHandler(ClientHandler):
    """The minified client of one version: caches may store it for ever."""

    name = MINIFIED

    def get(self, version: str) -> None:  # type: ignore[override]  # Tornado calls it with the groups of the path
        """Send the file. For another version, redirect to this server's version, so that a page still works after an
        upgrade."""
        if version == minified_version():
            self._give(cache_control=_FOR_EVER)
        else:
            self.set_header("Cache-Control", "no-cache")
            self.redirect(f"client-{minified_version()}.min.js", status=307)


class ClientTypesHandler(ClientHandler):
    """The types of the client for TypeScript."""

    name = "client.d.ts"
    content_type = "text/plain; charset=utf-8"
