"""The OpenAPI descriptions as pages of the documentation site: Markdown, so that the search finds what is in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from qgstream.http import api_reference, openapi
from qgstream.http.api_reference import Content, Operation, Reference, Response, Row, Shape


def _markdown(document: dict[str, Any]) -> str:
    return "\n".join(_page(api_reference.read(document))) + "\n"


def _page(reference: Reference) -> Iterator[str]:
    for group in reference.groups:
        yield f"\n## {group.name.capitalize()}\n\n{group.description}\n"
        for operation in group.operations:
            yield from _operation(operation)
    yield "\n## Credentials\n"
    yield from _table(reference.credentials, "name", "where")
    yield "\n## Schemas"
    for schema in reference.schemas:
        yield f"\n### {schema.title}\n"
        yield from _shape(schema)


def _operation(operation: Operation) -> Iterator[str]:
    yield f"\n### {operation.title}\n\n**{operation.summary}.** {operation.description}\n"
    if operation.credentials:
        names = " or ".join(f"`{name}`" for name in operation.credentials)
        yield f"{'Needs' if operation.credentials_required else 'Takes'} [credentials](#credentials): {names}.\n"
    if operation.parameters:
        yield from _table(operation.parameters, "parameter", "value")
    if operation.contents:
        yield f"**Body.** {operation.body}\n"
        for content in operation.contents:
            yield from _content(content, with_description=True)
    yield "| status | response |\n|---|---|"
    yield from (f"| {response.status} | {_cells(response)} |" for response in operation.responses)
    yield ""
    for response in operation.responses:
        for content in response.contents:
            if content.shape.rows or content.shape.variants:
                yield f"**{response.status}**, `{content.media_type}`:\n"
                yield from _shape(content.shape)


def _cells(response: Response) -> str:
    parts = [_cell(response.description)]
    if response.codes:
        parts.append(" ".join(f"`{code}`" for code in response.codes))
    parts += [f"`{content.media_type}`: {_cell(content.shape.kind)}" for content in response.contents]
    parts += [f"`{header.name}`: {_cell(header.description)}" for header in response.headers]
    return "<br>".join(parts)


def _content(content: Content, *, with_description: bool) -> Iterator[str]:
    said = f". {content.shape.description}" if with_description and content.shape.description else ""
    yield f"`{content.media_type}`: {content.shape.kind}{said}\n"
    if content.shape.rows:
        yield from _table(content.shape.rows, "field", "value")
    if content.example:
        yield f"```json\n{content.example.rstrip()}\n```\n"


def _shape(shape: Shape) -> Iterator[str]:
    if shape.description:
        yield f"{shape.description}\n"
    if shape.rows:
        yield from _table(shape.rows, "field", "value")
    elif not shape.variants:
        yield f"{shape.kind}\n"
    for variant in shape.variants:
        yield from _shape(variant)


def _table(rows: tuple[Row, ...], first: str, second: str) -> Iterator[str]:
    yield f"| {first} | {second} | |\n|---|---|---|"
    for row in rows:
        notes = [word for word in (row.place, "required" if row.required else "") if word]
        name = f"`{row.name}`" + (f" ({', '.join(notes)})" if notes else "")
        yield f"| {name} | {_cell(row.kind)} | {_cell(row.description)} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


PAGES: dict[str, Callable[[], str]] = {
    "docs/site/public-paths": lambda: _markdown(openapi.public_document()),
    "docs/site/admin-paths": lambda: _markdown(openapi.admin_document()),
}
