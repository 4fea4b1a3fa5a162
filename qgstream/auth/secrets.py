"""Secrets in the configuration: as text, or in separate files. Pure except `read_file`.

A section wraps a secret in `SecretStr` before validation, so no validation error, dump or repr shows the secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, SecretStr, Tag, model_validator

from qgstream.errors import ConfigError
from qgstream.settings import Section

ReadFile = Callable[[str], bytes]

# An environment variable holds only text. A file reference written as text must not become the secret: anybody could
# guess it.
_FILE_AS_TEXT = re.compile(r"""\s*\{\s*"?file"?\s*[:=]\s*(["'])(?P<path>[^"'\\]+)\1\s*\}\s*""")


def read_file(path: str) -> bytes:
    """Read a whole file; raises `OSError` if the file cannot be read."""
    return Path(path).read_bytes()


class SecretFile(Section):
    """A secret in a separate file, like systemd credentials and Kubernetes secrets."""

    file: str = Field(
        min_length=1, description="Path of the file. The server ignores one line end at the end of the file."
    )


# In brackets, so that a validation error's path does not look as if it named a key.
def _form_of(value: object) -> str:
    return "(file)" if isinstance(value, Mapping | SecretFile) else "(text)"


Secret = Annotated[
    Annotated[SecretStr, Tag("(text)")] | Annotated[SecretFile, Tag("(file)")],
    Discriminator(_form_of),
]


class SecretSection(Section):
    """A section with secrets: `secret_fields` and unknown keys are hidden before validation.

    Validation errors carry their input. The error for a misspelt `publish_key = "..."` must name the key without
    showing the value.
    """

    secret_fields: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _veil_secrets(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return _veil(values)
        shown = cls.model_fields.keys() - cls.secret_fields
        return {name: value if name in shown else _veil(value) for name, value in values.items()}


def _veil(value: Any) -> Any:
    if isinstance(value, str):
        table = _FILE_AS_TEXT.fullmatch(value)
        return {"file": table["path"]} if table else SecretStr(value)
    if isinstance(value, list | tuple):
        return [_veil(item) for item in value]
    if isinstance(value, Mapping):
        return {name: item if name == "file" else _veil(item) for name, item in value.items()}
    return value


def load_secret(secret: SecretStr | SecretFile, *, where: str, read_file: ReadFile) -> bytes:
    """Return the bytes of the secret. Raises `ConfigError` naming `where` if the file cannot be read."""
    if isinstance(secret, SecretStr):
        return secret.get_secret_value().encode("utf-8", "surrogatepass")
    content = load_file(secret.file, where=f"{where}.file", read_file=read_file)
    # Editors and `echo` add a line end, which users do not see.
    return content[:-2] if content.endswith(b"\r\n") else content.removesuffix(b"\n")


def load_file(path: str, *, where: str, read_file: ReadFile) -> bytes:
    """Return the bytes of the file that the setting `where` names. Raises `ConfigError` if the file cannot be read."""
    try:
        return read_file(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise ConfigError([f"{where}: cannot read {path!r}: {reason}"]) from None
