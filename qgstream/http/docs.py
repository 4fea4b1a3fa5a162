"""`GET /docs` and `GET /openapi.json`: the description of the public interface, for readers and for programs."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from tornado.httputil import HTTPServerRequest
from tornado.web import Application

from qgstream.http import openapi
from qgstream.http.base import BaseHandler
from qgstream.http.page import PageHandler, load

# The page is a template; these files are the parts that it repeats.
_TEMPLATES = ("page.html", "rows.html", "shape.html")


@cache
def _page(with_operator_paths: bool) -> bytes:
    """Make the page at the first request; this takes about 20 ms of CPU time."""
    from tornado.template import DictLoader

    from qgstream.http import api_reference

    described = api_reference.read(openapi.public_document(with_operator_paths=with_operator_paths))
    texts = {name: load(f"docs/{name}").decode() for name in _TEMPLATES}
    templates = DictLoader(texts, whitespace="single")
    page: bytes = templates.load("page.html").generate(
        reference=described, anchor=api_reference.anchor, text=api_reference.to_html
    )
    return page


@cache
def _document(with_operator_paths: bool) -> bytes:
    return msgspec.json.encode(openapi.public_document(with_operator_paths=with_operator_paths)) + b"\n"


class _DescriptionHandler(BaseHandler):
    """`with_operator_paths`: whether the port of this handler also serves `/ready` and `/metrics`."""

    def __init__(
        self, application: Application, request: HTTPServerRequest, *, with_operator_paths: bool, **kwargs: Any
    ) -> None:
        self.with_operator_paths = with_operator_paths
        super().__init__(application, request, **kwargs)


class DocsHandler(_DescriptionHandler, PageHandler):
    """Serves the page. The page has no script and loads nothing."""

    connect = ("'none'",)

    def content(self) -> bytes:
        """Return the page with the description."""
        return _page(self.with_operator_paths)


class PublicOpenApiHandler(_DescriptionHandler):
    """Serves the description for programs."""

    def get(self) -> None:
        """Send the OpenAPI 3.1 document."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        self.write(_document(self.with_operator_paths))
