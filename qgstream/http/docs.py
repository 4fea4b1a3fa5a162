"""`GET /docs` and `GET /openapi.json`: the public interface, described for people and for programs."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from tornado.httputil import HTTPServerRequest
from tornado.web import Application

from qgstream.http import openapi
from qgstream.http.base import BaseHandler
from qgstream.http.page import PageHandler, load

# The page is a template, and these are the parts that it repeats.
_TEMPLATES = ("page.html", "rows.html", "shape.html")


@cache
def _page(with_operator_paths: bool) -> bytes:
    """Made once, when somebody asks for it: that takes 20 to 40 ms."""
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
    """`with_operator_paths`: whether the port that this handler is on serves `/ready` and `/metrics`, too."""

    def __init__(
        self, application: Application, request: HTTPServerRequest, *, with_operator_paths: bool, **kwargs: Any
    ) -> None:
        self.with_operator_paths = with_operator_paths
        super().__init__(application, request, **kwargs)


class DocsHandler(_DescriptionHandler, PageHandler):
    """The page. It has no script, and needs nothing from anywhere."""

    connect = ("'none'",)

    def content(self) -> bytes:
        """The description, in the words of the template."""
        return _page(self.with_operator_paths)


class PublicOpenApiHandler(_DescriptionHandler):
    """The description for programs."""

    def get(self) -> None:
        """OpenAPI 3.1."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        self.write(_document(self.with_operator_paths))

    def head(self) -> None:
        """The same without its body."""
        self.get()
