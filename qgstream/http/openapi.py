"""The description of the HTTP interface: OpenAPI 3.1, from web/openapi.json and the limits' own declaration. Pure."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from qgstream.limits import LimitSettings
from qgstream.version import __version__


@cache
def document() -> dict[str, Any]:
    """The whole document; not to be changed."""
    text = files("qgstream").joinpath("web", "openapi.json").read_text(encoding="utf-8")
    described: dict[str, Any] = json.loads(text)
    described["info"]["version"] = __version__
    # What a limit may be is said once, where it is declared.
    schema = LimitSettings.model_json_schema(ref_template="#/components/schemas/{model}")
    properties = schema["properties"]
    limits = {"type": "object", "additionalProperties": False, "properties": properties}
    # Null takes the limits of a key away.
    per_key = properties["per_key"] | {
        "additionalProperties": {"anyOf": [properties["per_key"]["additionalProperties"], {"type": "null"}]}
    }
    described["components"]["schemas"] |= schema["$defs"] | {
        "LimitChanges": limits | {"properties": properties | {"per_key": per_key}},
        "Limits": limits | {"required": list(properties)},
    }
    return described
