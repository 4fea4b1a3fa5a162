"""What is wrong with a value, in the words of every problem of this server: what was got, and what was expected.

The sentences are made from an error's type and its context, which are pydantic's interface; the wording of pydantic's
own messages is not, and changes between versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# By the type of the error. The names in braces are those of the error's context.
EXPECTED: Mapping[str, str] = {
    "none_required": "no value",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a valid integer",
    "int_parsing": "a valid integer",
    "int_parsing_size": "a shorter integer",
    "int_from_float": "a valid integer",
    "float_type": "a valid number",
    "float_parsing": "a valid number",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "greater than or equal to {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "less than or equal to {le}",
    "string_type": "a valid string",
    "string_unicode": "text in UTF-8",
    "string_too_short": "at least {min_length} character(s)",
    "string_too_long": "at most {max_length} character(s)",
    "string_pattern_mismatch": "text that matches {pattern}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "path_type": "a valid path",
    "tuple_type": "a valid list",
    "list_type": "a valid list",
    "set_type": "a valid list",
    "frozen_set_type": "a valid list",
    "iterable_type": "a valid list",
    "too_short": "at least {min_length} item(s)",
    "too_long": "at most {max_length} item(s)",
    "invalid_key": "a name",
    "dict_type": "a table",
    "mapping_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "is_instance_of": "an instance of {class}",
    "url_type": "a URL",
    "url_parsing": "a URL",
    "url_syntax_violation": "a URL",
    "url_too_long": "a URL of at most {max_length} character(s)",
    "url_scheme": "a URL that begins with {expected_schemes}",
}


def describe(error: ErrorDetails, got: str | None = None, *, unknown: str = "unknown key") -> str:
    """The sentence for one error. `got` is the value as the sentence may repeat it; with None the sentence leaves the
    value out. `unknown` is said of a name that means nothing.

    A validator of this server's own writes its whole sentence itself. An error of a type that is not in `EXPECTED` has
    pydantic's message.
    """
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "not set, expected a value"
    if kind == "extra_forbidden":
        return unknown
    if kind == "value_error":
        return str(context["error"])
    said = "" if got is None else f"got {got}, "
    if kind not in EXPECTED:
        return f"{said}which is refused: {error['msg']}" if said else error["msg"]
    expected = EXPECTED[kind].format_map({name: _number(value) for name, value in context.items()})
    plural = "" if 1 in (context.get("min_length"), context.get("max_length")) else "s"
    return f"{said}expected {expected.replace('(s)', plural)}"


def _number(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value
