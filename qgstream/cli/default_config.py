"""`qgstream default-config`: a configuration file with every option, made from the declarations of the settings."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

HEADER = """\
qgstream: every option with its default, as `qgstream default-config` prints it. To change an option, remove the #
before the option and edit its value. You may delete all other lines. `qgstream check-config --config FILE` checks a
file without starting the server.

Precedence: defaults < this file < environment < flags.

Environment: QGSTREAM_, the section, two underscores and the key, all in capitals:
    QGSTREAM_LIMITS__MAX_CONNECTIONS=20000
A list is JSON or separated by commas:
    QGSTREAM_CORS__ALLOW_ORIGINS=https://www.example.com,https://*.example.org
QGSTREAM_CONFIG names the configuration file.

Flags: --host, --port, and --set for every other key except those of [auth] and [[sources]]:
    qgstream serve --config FILE --port 8001 --set limits.max_connections=20000
"""
WIDTH = 118
# Of annotated_types, by the name of their only attribute.
_BOUNDS = {"ge": "{} or more", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "default-config",
        help="print a configuration file with every option",
        description=__doc__,
        examples=[
            "qgstream default-config > qgstream.toml",
        ],
    )
    parser.set_defaults(run=run, parser=parser)


def run(_args: argparse.Namespace) -> int:
    """Print the file."""
    print(default_config(), end="")
    return 0


def default_config() -> str:
    """Return the text of conf/qgstream.toml."""
    from qgstream.process.config import Config

    lines = [f"# {line}".rstrip() for line in HEADER.splitlines()]
    lines += _table("", Config)
    return "\n".join(lines) + "\n"


def _table(name: str, model: type[BaseModel], header: str = "") -> Iterator[str]:
    from qgstream.process.config_loading import item_model, table_model

    if name:
        yield ""
        yield from _comment(_about(model))
        yield header
    tables: list[tuple[str, type[BaseModel], str]] = []
    for key, info in model.model_fields.items():
        full = f"{name}.{key}".lstrip(".")
        if (nested := table_model(info.annotation)) is not None:
            # A table that may be missing is a comment itself: if it were present, its required keys would be needed.
            tables.append((full, nested, f"#[{full}]  # not set by default" if info.default is None else f"[{full}]"))
        elif (item := item_model(info.annotation)) is not None:
            tables.append((full, item, f"#[[{full}]]  # none by default; one block for each"))
        else:
            yield from _option(info.alias or key, info)
    for table in tables:
        yield from _table(*table)


def _option(key: str, info: FieldInfo) -> Iterator[str]:
    yield ""
    yield from _comment(" ".join(filter(None, [info.description, _bounds(info)])))
    if info.default is None or info.is_required():
        example = info.examples[0] if info.examples else _example(info.annotation)
        yield f"#{key} = {_toml(example)}  # not set by default"
    else:
        mib, rest = divmod(info.default, 1024**2) if key.endswith("_bytes") else (0, 0)
        line = f"#{key} = {_toml(info.default)}" + (f"  # {mib} MiB" if mib and not rest else "")
        yield from [line] if len(line) <= WIDTH else _long_list(key, info.default)


def _long_list(key: str, values: Sequence[object]) -> Iterator[str]:
    yield f"#{key} = ["
    lines = textwrap.wrap(
        ", ".join(map(_toml, values)) + ",", WIDTH - len("#    "), break_long_words=False, break_on_hyphens=False
    )
    yield from [f"#    {line}" for line in lines]
    yield "#]"


def _about(model: type[BaseModel]) -> str:
    """Return the first sentence of the section's docstring, without the name that the table's header has."""
    text = (model.__doc__ or "").split("\n\n")[0]
    about = text.partition(": ")[2] or text
    return about[:1].upper() + about[1:]


def _bounds(info: FieldInfo) -> str:
    """Return the bounds that the description leaves out: `(1 to 64)`, `(more than 0, at most 3600)`, `(one of "a",
    "b")`."""
    choices = [str(choice) for choice in get_args(info.annotation)] if get_origin(info.annotation) is Literal else []
    if any(choice not in (info.description or "") for choice in choices):
        return f"(one of {', '.join(map(_toml, choices))})"
    bounds: dict[str, float] = {}
    for item in info.metadata:
        bounds |= {name: getattr(item, name) for name in _BOUNDS if hasattr(item, name)}
    if "ge" in bounds and "le" in bounds:
        return f"({bounds['ge']} to {bounds['le']})"
    if bounds == {"ge": 0}:
        return ""
    said = [words.format(bounds[name]) for name, words in _BOUNDS.items() if name in bounds]
    return f"({', '.join(said)})" if said else ""


def _example(annotation: object) -> object:
    """Return a value for an option that has no default and no example."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    return [_example(get_args(annotation)[0])] if get_origin(annotation) is tuple else "..."


def _comment(text: str) -> Iterator[str]:
    for line in textwrap.wrap(" ".join(text.split()), WIDTH - 2, break_long_words=False, break_on_hyphens=False):
        yield f"# {line}"


def _toml(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)  # strings, integers and booleans have the same form in TOML
