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
    properties = LimitSettings.model_json_schema()["properties"]
    changes = {"type": "object", "additionalProperties": False, "properties": properties}
    described["components"]["schemas"] |= {
        "LimitChanges": changes,
        "Limits": {**changes, "required": list(properties)},
    }
    return described
