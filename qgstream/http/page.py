"""HTML pages: each is one file, and may load nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import ClassVar

from qgstream.http.base import BaseHandler

_BODY = b"<body"
_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def load(name: str) -> bytes:
    """Load a file of qgstream/web."""
    return files("qgstream").joinpath("web", name).read_bytes()


# There are few pages, and each is one object for the lifetime of the process.
@cache
def _policy(page: bytes, connect: Sequence[str]) -> str:
    """Return the policy that allows only the page's own script and style, identified by their hashes (CSP 3, 2.3.1)."""
    hashes, none = {"script": "", "style": ""}, " 'none'"
    for kind, text in _INLINE.findall(page):
        hashes[kind.decode()] += f" 'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
    return "; ".join([
        "default-src 'none'",
        f"script-src{hashes['script'] or none}",
        f"style-src{hashes['style'] or none}",
        "img-src data:",
        f"connect-src {' '.join(connect)}",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ])  # fmt: skip


class PageHandler(BaseHandler):
    """Serves the file `page` of qgstream/web. The page may `connect` to these sources (CSP) and to no others."""

    page: ClassVar[str]
    connect: ClassVar[Sequence[str]] = ("'self'",)

    def content(self) -> bytes:
        """Return the content of the page, the same object each time."""
        return load(self.page)

    def facts(self) -> Mapping[str, str]:
        """What the page has to know of this server: attributes of its body, `data-` and the name. Anybody can read
        them."""
        return {}

    def get(self) -> None:
        """Send the page."""
        page = self.content()
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("Content-Security-Policy", _policy(page, self.connect))
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        facts = "".join(f' data-{name}="{escape(value)}"' for name, value in self.facts().items())
        self.write(page.replace(_BODY, _BODY + facts.encode(), 1))


class LinkedPageHandler(PageHandler):
    """A page that leads to another one. `neighbour` is the address of that page, relative to this one; empty where this
    port does not serve it."""

    def initialize(self, *, neighbour: str = "") -> None:
        """Called by Tornado with what the rule in `app` says."""
        self.neighbour = neighbour

    def facts(self) -> Mapping[str, str]:
        """The address of the other page."""
        return {"neighbour": self.neighbour}
