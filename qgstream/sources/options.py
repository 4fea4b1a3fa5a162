"""Checks the options of a source against the parameters of its function, before the function is called. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError

from qgstream.errors import ConfigError
from qgstream.suggestions import did_you_mean
from qgstream.validation import describe


def check_options(function: Callable[..., object], options: Mapping[str, object], place: str) -> dict[str, object]:
    """Return the options as the function's arguments: all names known, none missing, with the annotated types.

    Raises `ConfigError` with the names of the options below `place`. No value is shown, because it may be a secret.
    """
    model, names = _model(function)
    try:
        checked = model.model_validate(options)
    except ValidationError as error:
        problems = []
        for details in error.errors(include_url=False, include_input=False):
            first, *rest = details["loc"] or ("",)
            deeper = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)
            unknown = f"unknown option{did_you_mean(str(first), list(names.values()))}"
            said = describe(details, unknown=unknown if not rest else "unknown key")
            problems.append(f"{place}.{first}{deeper}: {said}")
        raise ConfigError(problems) from None
    given = {names[field]: getattr(checked, field) for field in checked.model_fields_set & names.keys()}
    return given | (checked.model_extra or {})


def _model(function: Callable[..., object]) -> tuple[type[BaseModel], dict[str, str]]:
    """Return a model of the function's parameters, and their names by field."""
    try:
        annotations = inspect.get_annotations(function, eval_str=True)
    except Exception:  # noqa: BLE001  # for names that only a type checker imports: then the types are not checked
        annotations = {}
    definitions: dict[str, Any] = {}
    names: dict[str, str] = {}
    extra: Literal["forbid", "allow"] = "forbid"
    for number, parameter in enumerate(inspect.signature(function).parameters.values()):
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = "allow"
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            default = ... if parameter.default is parameter.empty else parameter.default
            # The fields have other names, because pydantic reserves some good parameter names.
            names[f"option{number}"] = parameter.name
            kind = annotations.get(parameter.name, Any)
            definitions[f"option{number}"] = (kind, Field(default, alias=parameter.name))
    config = ConfigDict(extra=extra, arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        return create_model("Options", __config__=config, **definitions), names
    except PydanticUserError:
        untyped: dict[str, Any] = {field: (Any, info) for field, (_, info) in definitions.items()}
        return create_model("Options", __config__=config, **untyped), names
