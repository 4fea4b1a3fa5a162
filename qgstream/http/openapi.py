"""The description of the HTTP interface: OpenAPI 3.1, from web/openapi.json and the declaration of the limits. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from qgstream.limits import LimitSettings
from qgstream.version import __version__

# The operator paths outside of /admin: on `admin.port` when that is set.
_OPERATOR_PATHS = ("/ready", "/metrics")


@cache
def document() -> dict[str, Any]:
    """Return the whole document, the public interface and `/admin`; do not change it."""
    text = files("qgstream").joinpath("web", "openapi.json").read_text(encoding="utf-8")
    described: dict[str, Any] = json.loads(text)
    described["info"]["version"] = __version__
    # The bounds of a limit are written once, in its declaration.
    schema = LimitSettings.model_json_schema(ref_template="#/components/schemas/{model}")
    properties = schema["properties"]
    limits = {"type": "object", "additionalProperties": False, "properties": properties}
    # Null removes the limits of a key.
    per_key = properties["per_key"] | {
        "additionalProperties": {"anyOf": [properties["per_key"]["additionalProperties"], {"type": "null"}]}
    }
    described["components"]["schemas"] |= schema["$defs"] | {
        "LimitChanges": limits | {"properties": properties | {"per_key": per_key}},
        "Limits": limits | {"required": list(properties)},
    }
    return described


@cache
def public_document(*, with_operator_paths: bool = True) -> dict[str, Any]:
    """Return the part that the public port serves, without `/admin`; do not change it. Without `with_operator_paths`,
    the part does not contain `/ready` and `/metrics` either, because `admin.port` serves these."""
    hidden = () if with_operator_paths else _OPERATOR_PATHS
    paths = {
        path: item for path, item in document()["paths"].items() if not path.startswith("/admin") and path not in hidden
    }
    return _part(paths)


@cache
def admin_document() -> dict[str, Any]:
    """Return the part below `/admin`; do not change it."""
    return _part({path: item for path, item in document()["paths"].items() if path.startswith("/admin")})


def _part(paths: dict[str, Any]) -> dict[str, Any]:
    whole = document()
    components: dict[str, dict[str, Any]] = {"schemas": {}, "responses": {}, "securitySchemes": {}}
    waiting = list(_references(paths))
    while waiting:
        kind, name = waiting.pop()
        if name not in components[kind]:
            components[kind][name] = whole["components"][kind][name]
            waiting += _references(components[kind][name])
    tags = {tag for item in paths.values() for operation in item.values() if "tags" in operation
            for tag in operation["tags"]}  # fmt: skip
    return whole | {
        "tags": [tag for tag in whole["tags"] if tag["name"] in tags],
        "paths": paths,
        # In the order of the whole document, whatever order they were found in.
        "components": {
            kind: {name: item for name, item in whole["components"][kind].items() if name in found}
            for kind, found in components.items()
        },
    }


def _references(value: object) -> Iterator[tuple[str, str]]:
    """Yield the components that a part of the document refers to, as kind and name."""
    if isinstance(value, list):
        for item in value:
            yield from _references(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref" and isinstance(item, str):
                kind, name = item.removeprefix("#/components/").split("/")
                yield kind, name
            elif key == "security":
                yield from (("securitySchemes", name) for way in item for name in way)
            else:
                yield from _references(item)
