"""An OpenAPI description as rows."""

from __future__ import annotations

from typing import Any

import pytest

from qgstream.http.api_reference import Row, anchor, read, to_html


def described(schema: dict[str, Any], **operation: Any) -> dict[str, Any]:
    responses = {"200": {"description": "Fine.", "content": {"application/json": {"schema": schema}}}}
    return {
        "info": {"title": "t", "version": "1", "description": "One.\n\nTwo."},
        "tags": [{"name": "a"}, {"name": "empty"}],
        "paths": {"/x": {"get": {"tags": ["a"], "summary": "Get", "responses": responses} | operation}},
        "components": {"securitySchemes": {}, "schemas": {"Thing": {"type": "object"}}},
    }


KINDS: list[tuple[dict[str, Any], str]] = [
    ({}, "any JSON"),
    ({"type": "string"}, "string"),
    ({"type": "string", "minLength": 1, "maxLength": 256}, "string (1 to 256 characters)"),
    ({"type": "string", "maxLength": 9}, "string (at most 9 characters)"),
    ({"type": "integer", "minimum": 0}, "integer (at least 0)"),
    ({"type": "integer", "minimum": 0, "maximum": 5}, "integer (at most 5)"),
    ({"type": "number", "minimum": 1, "maximum": 5}, "number (1 to 5)"),
    ({"type": ["string", "null"]}, "string or null"),
    ({"type": "array", "items": {"type": "boolean"}, "maxItems": 3}, "array of boolean (at most 3)"),
    ({"type": "array"}, "array"),
    ({"const": "ok"}, '`"ok"`'),
    ({"enum": ["a", 1, None]}, '`"a"`, `1`, `null`'),
    ({"$ref": "#/components/schemas/Thing"}, "[Thing](#thing)"),
    ({"allOf": [{"$ref": "#/components/schemas/Thing"}, {"properties": {}}]}, "[Thing](#thing)"),
    ({"anyOf": [{"type": "string"}, {"type": "string"}, {"type": "null"}]}, "string or null"),
]


@pytest.mark.parametrize(("schema", "kind"), KINDS, ids=[kind for _, kind in KINDS])
def test_a_value_is_said_in_one_line(schema: dict[str, Any], kind: str) -> None:
    (group,) = read(described(schema)).groups
    assert group.operations[0].responses[0].contents[0].shape.kind == kind


def test_nested_fields_are_rows_with_dots() -> None:
    schema = {
        "type": "object",
        "required": ["a"],
        "properties": {
            "a": {"type": "object", "properties": {"b": {"type": "string", "default": "x", "description": "B."}}},
            "list": {"type": "array", "items": {"type": "object", "properties": {"c": {"type": "null"}}}},
            "thing": {"$ref": "#/components/schemas/Thing"},
        },
    }
    (group,) = read(described(schema)).groups
    assert group.operations[0].responses[0].contents[0].shape.rows == (
        Row("a", "object", True, ""),
        Row("a.b", "string", False, 'B. Default: `"x"`.'),
        Row("list", "array of object", False, ""),
        Row("list[].c", "null", False, ""),
        Row("thing", "[Thing](#thing)", False, ""),
    )


def test_objects_to_choose_from_are_variants() -> None:
    schema = {"oneOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": {}}}]}
    (group,) = read(described(schema)).groups
    shape = group.operations[0].responses[0].contents[0].shape
    assert [variant.rows[0].name for variant in shape.variants] == ["a", "b"]


def test_credentials_are_needed_or_may_be_had() -> None:
    for security, names, required in (
        ([], (), False),
        ([{"key": []}], ("key",), True),
        ([{}, {"key": []}, {"query": []}], ("key", "query"), False),
    ):
        (group,) = read(described({}, security=security)).groups
        operation = group.operations[0]
        assert (operation.credentials, operation.credentials_required) == (names, required)


def test_an_anchor_is_as_on_github() -> None:
    assert anchor("GET /admin/bans/{id}") == "get-adminbansid"
    assert anchor("Last-Event-ID") == "last-event-id"


def test_a_text_as_html_is_escaped() -> None:
    assert to_html("a < `b & <c>` and [T](#t) & *") == (
        'a &lt; <code>b &amp; &lt;c&gt;</code> and <a href="#t">T</a> &amp; *'
    )
    assert to_html("[x](javascript:alert)") == "[x](javascript:alert)"
