"""An OpenAPI description for readers: operations and schemas as the rows of a page. Pure.

Its texts use only two kinds of Markdown: code in backticks, and links to an anchor of the same page. So the page at
`/docs` and the documentation site show the same texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_METHODS = ("get", "head", "post", "put", "patch", "delete")
_JSON = "application/json"
_INLINE = re.compile(r"`([^`]+)`|\[([^\]]+)\]\((#[\w-]+)\)")

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A parameter, a header or a field: `kind` is its type, and `name` contains dots for nested fields."""

    name: str
    kind: str
    required: bool
    description: str
    place: str = ""  # of a parameter or a header: query, path or header


@dataclass(frozen=True)
class Shape:
    """A body or a schema: `kind` is its type in one line, and `rows` are the fields of an object."""

    kind: str
    description: str = ""
    rows: tuple[Row, ...] = ()
    title: str = ""
    variants: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class Content:
    """A body of one media type."""

    media_type: str
    shape: Shape
    example: str | None


@dataclass(frozen=True)
class Response:
    """A response: `codes` are the values of its `error.code`, if the description lists them."""

    status: str
    description: str
    codes: tuple[str, ...]
    headers: tuple[Row, ...]
    contents: tuple[Content, ...]


@dataclass(frozen=True)
class Operation:
    """A method on a path."""

    method: str
    path: str
    summary: str
    description: str
    credentials: tuple[str, ...]  # the names of the accepted credentials; empty where none are needed
    credentials_required: bool
    parameters: tuple[Row, ...]
    body: str
    contents: tuple[Content, ...]
    responses: tuple[Response, ...]

    @property
    def title(self) -> str:
        """Method and path, such as `GET /events`."""
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Group:
    """The operations of a tag."""

    name: str
    description: str
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Reference:
    """A whole description."""

    title: str
    version: str
    description: tuple[str, ...]  # paragraphs
    groups: tuple[Group, ...]
    credentials: tuple[Row, ...]
    schemas: tuple[Shape, ...]


def read(document: Schema) -> Reference:
    """Return the description as rows. Raises `KeyError` for a reference without a target."""
    reader = _Reader(document)
    groups = [
        Group(tag["name"], tag.get("description", ""), tuple(reader.operations(tag["name"])))
        for tag in document["tags"]
    ]
    components = document["components"]
    return Reference(
        document["info"]["title"],
        document["info"]["version"],
        tuple(document["info"]["description"].split("\n\n")),
        tuple(group for group in groups if group.operations),
        tuple(_credential(name, scheme) for name, scheme in components["securitySchemes"].items()),
        tuple(reader.shape(schema, title=name) for name, schema in sorted(components["schemas"].items())),
    )


def anchor(title: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def to_html(text: str) -> str:
    """Return a text of this module as escaped HTML."""
    from tornado.escape import xhtml_escape

    parts, end = [], 0
    for match in _INLINE.finditer(text):
        parts.append(xhtml_escape(text[end : match.start()]))
        code, words, target = (xhtml_escape(group) if group else "" for group in match.groups())
        parts.append(f"<code>{code}</code>" if code else f'<a href="{target}">{words}</a>')
        end = match.end()
    return "".join([*parts, xhtml_escape(text[end:])])


def _credential(name: str, scheme: Schema) -> Row:
    how = "header `Authorization: Bearer`" if scheme["type"] == "http" else f"query parameter `{scheme['name']}`"
    return Row(name, how, False, scheme["description"])


class _Reader:
    def __init__(self, document: Schema) -> None:
        self._document = document

    def _follow(self, item: Schema) -> Schema:
        while "$ref" in item:
            found: Any = self._document
            for name in item["$ref"].removeprefix("#/").split("/"):
                found = found[name]
            item = found
        return item

    def operations(self, tag: str) -> Iterator[Operation]:
        for path, item in self._document["paths"].items():
            for method in _METHODS:
                if tag in item.get(method, {}).get("tags", ()):
                    yield self._operation(method.upper(), path, item, item[method])

    def _operation(self, method: str, path: str, item: Schema, operation: Schema) -> Operation:
        security = operation.get("security", [])
        body = self._follow(operation.get("requestBody", {}))
        parameters = [*item.get("parameters", ()), *operation.get("parameters", ())]
        return Operation(
            method,
            path,
            operation["summary"],
            operation.get("description", ""),
            tuple(name for way in security for name in way),
            bool(security) and {} not in security,
            tuple(map(self._parameter, parameters)),
            body.get("description", ""),
            tuple(self._contents(body)),
            tuple(self._response(*response) for response in sorted(operation["responses"].items())),
        )

    def _parameter(self, parameter: Schema) -> Row:
        found = self._follow(parameter)
        required = found.get("required", False)
        return self._row(found["name"], found["schema"], required, found.get("description"), found["in"])

    def _response(self, status: str, response: Schema) -> Response:
        found = self._follow(response)
        headers = [
            self._row(name, header["schema"], False, header.get("description"), "header")
            for name, header in found.get("headers", {}).items()
        ]
        contents, codes = tuple(self._contents(found)), self._codes(found)
        return Response(status, found["description"], codes, tuple(headers), contents)

    def _codes(self, response: Schema) -> tuple[str, ...]:
        schema = response.get("content", {}).get(_JSON, {}).get("schema", {})
        for part in schema.get("allOf", ()):
            code = part.get("properties", {}).get("error", {}).get("properties", {}).get("code")
            if code is not None:
                return tuple(code["enum"])
        return ()

    def _contents(self, holder: Schema) -> Iterator[Content]:
        for media_type, content in holder.get("content", {}).items():
            example = content.get("example")
            if example is not None and not isinstance(example, str):
                example = json.dumps(example)
            yield Content(media_type, self.shape(content["schema"]), example)

    # Schemas.

    def shape(self, schema: Schema, *, title: str = "") -> Shape:
        """Return a schema with its fields. A reference to another schema becomes a link."""
        variants = schema.get("oneOf", schema.get("anyOf", ()))
        if any("properties" in variant for variant in variants):
            shapes = tuple(self.shape(variant) for variant in variants)
            return Shape("one of", schema.get("description", ""), (), title, shapes)
        rows = tuple(self._rows(schema)) if "$ref" not in schema else ()
        return Shape(self.kind(schema), schema.get("description", ""), rows, title)

    def _rows(self, schema: Schema, prefix: str = "") -> Iterator[Row]:
        required = schema.get("required", ())
        for name, field in schema.get("properties", {}).items():
            yield self._row(prefix + name, field, name in required, field.get("description"))
            inner, mark = (field.get("items", {}), "[].") if "items" in field else (field, ".")
            if "$ref" not in inner:
                yield from self._rows(inner, f"{prefix}{name}{mark}")

    def _row(self, name: str, schema: Schema, required: bool, description: str | None, place: str = "") -> Row:
        said = description or self._follow(schema).get("description", "")
        if "default" in schema and schema["default"] not in ("", None, {}, []):
            said = f"{said} Default: `{json.dumps(schema['default'])}`.".strip()
        return Row(name, self.kind(schema), required, said, place)

    def kind(self, schema: Schema) -> str:
        """Return the type of a value in one line."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return f"[{name}](#{anchor(name)})"
        if "allOf" in schema:
            return self.kind(schema["allOf"][0])
        for word in ("oneOf", "anyOf"):
            if word in schema:
                return " or ".join(dict.fromkeys(map(self.kind, schema[word])))
        if "const" in schema:
            return f"`{json.dumps(schema['const'])}`"
        if "enum" in schema:
            return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
        if "type" not in schema:
            return "any JSON"
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        return " or ".join(self._type(kind, schema) for kind in types)

    def _type(self, kind: str, schema: Schema) -> str:
        if kind == "array" and "items" in schema:
            return f"array of {self.kind(schema['items'])}{_bounds(schema, 'minItems', 'maxItems')}"
        if kind == "string":
            return f"string{_bounds(schema, 'minLength', 'maxLength', ' characters')}"
        if kind in ("integer", "number"):
            return kind + _bounds(schema, "minimum", "maximum")
        return kind


def _bounds(schema: Schema, low: str, high: str, unit: str = "") -> str:
    least, most = schema.get(low), schema.get(high)
    if least and most is not None:
        return f" ({least} to {most}{unit})"
    if most is not None:
        return f" (at most {most}{unit})"
    return f" (at least {least}{unit})" if least is not None and (least or not unit) else ""
