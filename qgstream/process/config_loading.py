"""The origins of configuration values: a TOML file, the environment, flags. Text in, one checked model out.

All problems are found at once. Each problem names its origin and its dotted key, and says what was got and what was
expected. No problem shows a secret: the values of secret keys, of unknown keys and of whole tables are never repeated.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from qgstream.errors import ConfigError
from qgstream.suggestions import did_you_mean, nearest
from qgstream.validation import describe

M = TypeVar("M", bound=BaseModel)

# The names of URL parameters that are credentials: `access_token`, `password`, `api_key`, `sig`.
_PARAMETER = re.compile(r"([?&][^=&#?\s]+=)([^&#\s]+)")
_SECRET_NAME = re.compile(r"(?i)token|secret|passw|pwd|api[_-]?key|signature|credential|[?&](?:key|sig)=")


@dataclass(frozen=True)
class Key:
    """One option: its dotted name, its field, and whether its value may be shown."""

    name: str
    info: FieldInfo
    secret: bool

    @property
    def item(self) -> type[BaseModel] | None:
        """The section that this list of tables contains; None for a plain value."""
        return item_model(self.info.annotation)

    def visible(self, value: object) -> object:
        """Return the value as plain JSON that may be shown: without keys, tokens and passwords in URLs."""
        return "(not shown)" if self.secret and value else _visible(value)

    def hides(self, place: str = "") -> bool:
        """Return whether the value at a place must be hidden. In a list of tables with a secret field, only the other
        fields may be shown."""
        if self.secret or self.item is None:
            return self.secret
        secret = _secret_fields(self.item)
        return bool(secret) and (place in secret or place not in field_names(self.item))

    def shown(self, value: object) -> str:
        """Return the value in the form for a sentence."""
        text = repr(self.visible(value))
        return text if len(text) <= 100 else f"{text[:100]}..."

    @property
    def is_table_of_tables(self) -> bool:
        """Whether the option contains a section for each name that an operator chose."""
        kinds = get_args(self.info.annotation)
        is_table = get_origin(self.info.annotation) is dict and len(kinds) == 2
        return is_table and isinstance(kinds[1], type) and issubclass(kinds[1], BaseModel)

    @property
    def is_many(self) -> bool:
        """Whether the option accepts a list or a table."""
        return any(issubclass(kind, tuple | list | set | frozenset | dict) for kind in _kinds(self.info.annotation))

    @property
    def is_number(self) -> bool:
        """Whether the option accepts a number but no boolean, which is a number in Python too."""
        kinds = set(_kinds(self.info.annotation))
        return bool(kinds & {int, float}) and bool not in kinds

    @property
    def is_optional(self) -> bool:
        """Whether the option may be unset."""
        return type(None) in _kinds(self.info.annotation)


def _kinds(annotation: object) -> Iterator[type]:
    """Return the classes that a field's annotation allows, one level deep: for `tuple[str, ...] | None`, tuple and
    None."""
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, tuple | list | set | frozenset | dict):
        yield origin
    elif origin is not None:
        for argument in get_args(annotation):
            yield from _kinds(argument)
    elif isinstance(annotation, type):
        yield annotation


def table_model(annotation: object) -> type[BaseModel] | None:
    """Return the section of a field, alone or optional; None for a plain value."""
    kinds = [kind for kind in _kinds(annotation) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and issubclass(kinds[0], BaseModel) else None


def item_model(annotation: object) -> type[BaseModel] | None:
    """Return the section of a list of tables; None for any other field."""
    first = (get_args(annotation) or (None,))[0] if get_origin(annotation) is tuple else None
    return first if isinstance(first, type) and issubclass(first, BaseModel) else None


def field_names(model: type[BaseModel]) -> dict[str, str]:
    """Return the names of a section's keys, both as written and as attributes."""
    return {info.alias or name: name for name, info in model.model_fields.items()}


def _secret_fields(model: type[BaseModel]) -> frozenset[str]:
    secret: frozenset[str] = getattr(model, "secret_fields", frozenset())
    return secret


def _visible(value: object) -> object:
    if isinstance(value, BaseModel):
        held = {key: (name, getattr(value, name)) for key, name in field_names(type(value)).items()}
        secret = _secret_fields(type(value))
        return {key: "(not shown)" if name in secret and v else _visible(v) for key, (name, v) in held.items()}
    if isinstance(value, tuple | list):
        return [_visible(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _visible(item) for name, item in value.items()}
    if isinstance(value, str | Path):
        without_userinfo = re.sub(r"//[^/?#]*@", "//(not shown)@", str(value))
        return _PARAMETER.sub(
            lambda found: f"{found[1]}(not shown)" if _SECRET_NAME.search(found[1]) else found[0], without_userinfo
        )
    return value


class Catalogue:
    """Every key of a model, and suggestions for misspelt names."""

    def __init__(self, model: type[BaseModel], *, environment_prefix: str) -> None:
        self.environment_prefix = environment_prefix
        self.tables: dict[str, type[BaseModel]] = {}
        self.keys: dict[str, Key] = {}
        self._collect(model, "", secret=False)
        self.environment = {self.environment_name(name): key for name, key in self.keys.items()}

    def _collect(self, model: type[BaseModel], prefix: str, *, secret: bool) -> None:
        for name, info in model.model_fields.items():
            hidden = secret or name in _secret_fields(model)
            nested = table_model(info.annotation)
            if nested is None:
                self.keys[prefix + name] = Key(prefix + name, info, hidden)
            else:
                self.tables[prefix + name] = nested
                self._collect(nested, f"{prefix}{name}.", secret=hidden)

    def environment_name(self, key: str) -> str:
        """Return the environment variable of a key: `limits.max_connections` is QGSTREAM_LIMITS__MAX_CONNECTIONS."""
        return self.environment_prefix + key.replace(".", "__").upper()

    def names_below(self, name: str) -> bool:
        """Return whether a part after this name is the name of an option or an operator's name, and not a secret."""
        for known, key in self.keys.items():
            if name == known or name.startswith((f"{known}.", f"{known}[")):
                return not key.secret and (key.is_table_of_tables or name != known)
        return True

    def nearest(self, name: str) -> str | None:
        """Return the table or key that a dotted name may mean: a correct name in a wrong place, or a misspelt one."""
        names = [*self.tables, *self.keys]
        by_last = {known.rpartition(".")[2]: known for known in reversed(names)}
        last = name.rpartition(".")[2]
        if last in by_last:
            return by_last[last]
        near = nearest(name, names)
        if near is None:
            near = by_last.get(nearest(last, by_last) or "")
        return near

    def did_you_mean(self, name: str) -> str:
        """Return `; did you mean ...?` for an unknown dotted name, or nothing if no name is near."""
        near = self.nearest(name)
        return f"; did you mean {near}?" if near else ""


@dataclass(frozen=True)
class Found:
    """A value and its origin: "file conf/x.toml", "environment QGSTREAM_...", "flag --port"."""

    value: object
    source: str


@dataclass
class Reading(Generic[M]):
    """The values found so far; a later value replaces an earlier one."""

    model: type[M]
    catalogue: Catalogue
    found: dict[str, Found] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def read_file(self, path: Path) -> None:
        """Read a TOML file."""
        source = f"file {path}"
        text = ""
        try:
            # Editors on Windows start the file with a byte order mark, which TOML does not allow.
            text = path.read_bytes().decode("utf-8-sig")
            table = tomllib.loads(text)
        except OSError as error:
            self.problems.append(f"{source}: cannot be read: {error.strerror}")
        except UnicodeDecodeError as error:
            self.problems.append(f"{source}: got a byte that is not UTF-8 at offset {error.start}, expected UTF-8 text")
        except tomllib.TOMLDecodeError as error:
            last_line = text.rpartition("\n")[2]
            end = f"at line {text.count(chr(10)) + 1}, column {len(last_line) + 1}, the end"
            self.problems.append(f"{source}: not TOML: {str(error).replace('at end of document', end)}")
        else:
            self._read_table(table, "", source)

    def _read_table(self, table: Mapping[str, object], prefix: str, source: str) -> None:
        for name, value in table.items():
            key = prefix + name
            if key in self.catalogue.keys:
                self._keep(self.catalogue.keys[key], value, source)
            elif key not in self.catalogue.tables:
                what = "key" if prefix or not isinstance(value, Mapping) else "section"
                self.problems.append(f"{source}: {key}: unknown {what}{self.catalogue.did_you_mean(key)}")
            elif isinstance(value, Mapping):
                if prefix and not value:
                    self.found[key] = Found({}, source)  # an optional table that is set, with all defaults
                self._read_table(value, f"{key}.", source)
            else:
                self.problems.append(f"{source}: {key}: got {type(value).__name__}, expected a table [{key}]")

    def read_environment(self, environ: Mapping[str, str], *, ignore: Iterable[str] = ()) -> None:
        """Read every variable with the prefix except those in `ignore`; an unknown one is a warning."""
        catalogue = self.catalogue
        for name in sorted(environ.keys() - set(ignore)):
            if not name.startswith(catalogue.environment_prefix):
                continue
            source = f"environment {name}"
            if name in catalogue.environment:
                self._read_text(catalogue.environment[name], environ[name], source)
            else:
                guess = name.removeprefix(catalogue.environment_prefix).lower().replace("__", ".")
                near = catalogue.nearest(guess)
                hint = f"; did you mean {catalogue.environment_name(near)}?" if near in catalogue.keys else ""
                self.warnings.append(f"{source}: unknown name, ignored{hint}")

    def read_flag(self, key: str, value: object, flag: str) -> None:
        """Read one flag that sets a dotted key. Text is parsed as a TOML value if possible."""
        source = f"flag {flag}"
        known = self.catalogue.keys.get(key)
        if known is None:
            self.problems.append(f"{source}: {key}: unknown key{self.catalogue.did_you_mean(key)}")
        elif isinstance(value, str):
            quoted = value[:1] in ('"', "'") and not known.is_many
            self._read_text(known, _toml(value, value) if quoted else value, source)
        else:
            self._keep(known, value, source)

    def _read_text(self, key: Key, text: str, source: str) -> None:
        """Parse text from outside a file. Lists and tables are JSON or TOML, and a list may also be `a,b,c`."""
        if not key.is_many:
            unset = not text and key.is_optional
            self._keep(key, None if unset else text, source)
        elif text.lstrip()[:1] in ("[", "{"):
            try:
                self._keep(key, _structure(text), source)
            except ValueError:
                got = "'(not shown)'" if key.hides() else key.shown(text)
                expected = "JSON, TOML, or values separated by commas" if key.item is None else "JSON or TOML"
                self.problems.append(f"{source}: {key.name}: got {got}, expected {expected}")
        else:
            self._keep(key, [part.strip() for part in text.split(",") if part.strip()], source)

    def _keep(self, key: Key, value: object, source: str) -> None:
        if key.item is not None and isinstance(value, Mapping):
            self.problems.append(f"{source}: {key.name}: got one table, expected a list of them: [[{key.name}]]")
            return
        if isinstance(value, bool) and key.is_number:
            value = str(value).lower()  # otherwise pydantic would accept `true` as 1
        self.found[key.name] = Found(value, source)

    def finish(self) -> M:
        """Check all values together. Raises `ConfigError` with all problems, those of the parsing first."""
        nested: dict[str, Any] = {}
        for name, found in self.found.items():
            *tables, last = name.split(".")
            table = nested
            for part in tables:
                table = table.setdefault(part, {})
            table[last] = found.value
        try:
            model = self.model.model_validate(nested)
        except ValidationError as error:
            self.problems += [self._problem(details) for details in error.errors(include_url=False)]
        if self.problems:
            raise ConfigError(self.problems)
        return model

    def _problem(self, details: ErrorDetails) -> str:
        name = ""
        for part in details["loc"]:
            # Below a key, words are the members of a union that pydantic tried, or a secret: the name in a pair that
            # was written the wrong way round.
            if isinstance(part, int):
                name += f"[{part}]"
            elif self.catalogue.names_below(name):
                name += f".{part}" if name else part
        key, source = self._origin(name)
        last = name.rpartition(".")[2]
        got = "a value that is not shown" if key is None or key.hides(last) else key.shown(details["input"])
        said = describe(details, got)
        if details["type"] == "extra_forbidden" and key is not None and key.item is not None:
            said += did_you_mean(last, field_names(key.item))
        return f"{source}: {name}: {said}"

    def _origin(self, name: str) -> tuple[Key | None, str]:
        """Return the key to which an error belongs, and its origin. An error of a table belongs to all keys set in the
        table."""
        for known, found in self.found.items():
            if name == known or name.startswith((f"{known}.", f"{known}[")):
                return self.catalogue.keys.get(known), found.source
        parts = name.split(".")
        tables = [".".join([*parts[:depth], ""]) for depth in range(len(parts), -1, -1)]
        sources = [{found.source: None for known, found in self.found.items() if known.startswith(t)} for t in tables]
        return None, ", ".join(next(filter(None, sources), ()))


def _toml(text: str, default: str) -> str:
    """Return the text of a quoted TOML string, or the default for any other text."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return default
    return value if isinstance(value, str) else default


def _structure(text: str) -> object:
    """Parse a list or a table in JSON or TOML. Raises `ValueError` for any other text."""
    try:
        return json.loads(text)
    except ValueError:
        return tomllib.loads(f"value = {text}")["value"]
