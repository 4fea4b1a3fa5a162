"""The sentences of `validation`: one for each type of error that a setting can produce."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import AnyHttpUrl, BaseModel, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from qgstream.brokers.nats.stream import Options as NatsOptions
from qgstream.brokers.options import TlsOptions
from qgstream.brokers.rabbitmq.options import Options as RabbitmqOptions
from qgstream.brokers.redis.broker import RedisOptions
from qgstream.limits import KeyLimits, LimitSettings
from qgstream.process.config import Config
from qgstream.settings import Section
from qgstream.sources import clock, file, process, url
from qgstream.sources.options import _model
from qgstream.validation import EXPECTED, describe

SOURCES = (clock.clock, file.file, process.process, url.url)
# Values of every type, the ends of each range, and what no setting can be.
WRONG: tuple[object, ...] = (
    None, True, -1, 0, 10**400, -(10**30), 1.5, 1e300, math.nan, math.inf, "", "x", "\0", "x" * 100_000, "1" * 5000,
    "http://", "ftp://x", "http://a b", b"\xff", [], {}, ["x"] * 1000, [None], [{}], {"x": None}, {"x": {}}, {"x": []},
    {"": "x"}, {5: 5}, object(),
)  # fmt: skip


def errors(type_: Any, value: object, *, strict: bool = False) -> list[ErrorDetails]:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(type_).validate_python(value, strict=strict)
    return caught.value.errors(include_url=False)


def sections(root: type[BaseModel] = Section) -> Iterator[type[BaseModel]]:
    for section in root.__subclasses__():
        if section.__module__.startswith("qgstream."):
            yield section
            yield from sections(section)


def produced() -> dict[str, ErrorDetails]:
    """An error of each type that a wrong value of a setting or of a source's option produces."""
    assert {LimitSettings, KeyLimits, TlsOptions, NatsOptions, RabbitmqOptions, RedisOptions} <= {*sections()}
    found: dict[str, ErrorDetails] = {}
    models: list[type[BaseModel]] = [Config, *sections(), *(_model(source)[0] for source in SOURCES)]
    for model in models:
        for name, info in model.model_fields.items():
            for value in WRONG:
                for strict in (False, True):
                    try:
                        model.model_validate({info.alias or name: value, "nonsense": 1}, strict=strict)
                    except ValidationError as error:
                        found |= {details["type"]: details for details in error.errors(include_url=False)}
    return found


def test_every_error_of_a_setting_has_a_sentence_of_its_own() -> None:
    found = produced()
    assert found.keys() - EXPECTED.keys() == {"missing", "extra_forbidden", "value_error"}
    for details in found.values():
        said = describe(details, "5")
        assert details["msg"] not in said or details["type"] == "value_error"
        assert "(s)" not in said
    # The battery finds what it is for: a bound, a wrong type and a list that is too short.
    assert {"greater_than_equal", "int_parsing", "finite_number", "string_too_short", "too_short"} <= found.keys()


@pytest.mark.parametrize(
    ("type_", "value", "kind", "said"),
    [
        (int, "x", "int_parsing", "a valid integer"),
        (int, "1" * 5000, "int_parsing_size", "a shorter integer"),
        (int, 1.5, "int_from_float", "a valid integer"),
        (int, None, "int_type", "a valid integer"),
        (float, "x", "float_parsing", "a valid number"),
        (float, None, "float_type", "a valid number"),
        (Annotated[float, Field(allow_inf_nan=False)], math.nan, "finite_number", "a finite number"),
        (Annotated[int, Field(gt=0)], 0, "greater_than", "greater than 0"),
        (Annotated[float, Field(gt=0.5)], 0, "greater_than", "greater than 0.5"),
        (Annotated[int, Field(ge=1)], 0, "greater_than_equal", "greater than or equal to 1"),
        (Annotated[int, Field(lt=5)], 5, "less_than", "less than 5"),
        (Annotated[float, Field(le=10**9)], 1e300, "less_than_equal", "less than or equal to 1000000000"),
        (bool, "x", "bool_parsing", "true or false"),
        (bool, None, "bool_type", "true or false"),
        (None, 5, "none_required", "no value"),
        (str, 5, "string_type", "a valid string"),
        (str, b"\xff", "string_unicode", "text in UTF-8"),
        (Annotated[str, Field(min_length=1)], "", "string_too_short", "at least 1 character"),
        (Annotated[str, Field(min_length=2)], "x", "string_too_short", "at least 2 characters"),
        (Annotated[str, Field(max_length=3)], "long", "string_too_long", "at most 3 characters"),
        (Annotated[str, StringConstraints(pattern="^a$")], "b", "string_pattern_mismatch", "text that matches ^a$"),
        (Literal["a", "b"], "c", "literal_error", "'a' or 'b'"),
        (Path, 5, "path_type", "a valid path"),
        (tuple[str, ...], "x", "tuple_type", "a valid list"),
        (list[str], "x", "list_type", "a valid list"),
        (Annotated[tuple[str, ...], Field(min_length=1)], (), "too_short", "at least 1 item"),
        (Annotated[list[str], Field(min_length=2)], ["x"], "too_short", "at least 2 items"),
        (Annotated[list[str], Field(max_length=1)], ["x", "y"], "too_long", "at most 1 item"),
        (dict[str, str], "x", "dict_type", "a table"),
        (KeyLimits, "x", "model_type", "a table"),
        (AnyHttpUrl, 5, "url_type", "a URL"),
        (AnyHttpUrl, "x", "url_parsing", "a URL"),
        (AnyHttpUrl, "ftp://x", "url_scheme", "a URL that begins with 'http' or 'https'"),
    ],
)
def test_an_error_says_what_was_expected(type_: Any, value: object, kind: str, said: str) -> None:
    (details,) = errors(type_, value)
    assert details["type"] == kind
    assert describe(details, "it") == f"got it, expected {said}"
    assert describe(details) == f"expected {said}"
    # Whatever a version of pydantic says of it:
    assert describe({**details, "msg": "other words"}, "it") == f"got it, expected {said}"


def test_names_that_are_missing_or_unknown_have_no_value() -> None:
    (missing,) = errors(_model(file.file)[0], {})
    assert describe(missing, "{}") == "not set, expected a value"
    (unknown,) = errors(KeyLimits, {"rate": 1})
    assert describe(unknown, "1") == "unknown key"
    assert describe(unknown, "1", unknown="unknown limit") == "unknown limit"


def test_a_type_that_is_not_known_has_the_message_of_pydantic() -> None:
    (details,) = errors(complex, "x")
    assert details["type"] not in EXPECTED
    assert describe(details) == details["msg"]
    assert describe(details, "'x'") == f"got 'x', which is refused: {details['msg']}"
