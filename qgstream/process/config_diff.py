"""The differences between two configurations: settings, keys, and the contents of files. Secrets are never shown.

Pure, except that it reads the files that the settings name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from qgstream.auth.authenticator import Authenticator
from qgstream.auth.secrets import SecretFile
from qgstream.process.config import Config, values

# The settings that a reload cannot change.
FIXED = (
    "server.host", "server.port", "server.certfile", "server.keyfile", "server.reuse_port", "broker.url",
    "broker.timeout_seconds", "admin.host", "admin.port", "sources",
)  # fmt: skip

# A value in the log is cut after this many characters of JSON. A list of origins may be long.
_MAX_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Change:
    """A setting and its two values, as plain JSON. `is_hidden`: the values differ in a part that is not shown."""

    key: str
    old: object
    new: object
    is_hidden: bool = False

    @property
    def needs_restart(self) -> bool:
        """Whether the change needs a restart."""
        return self.key in FIXED

    def __str__(self) -> str:
        text = f"{self.key}: "
        both = f"{_json(self.old)} -> {_json(self.new)}"
        text += f"{_json(self.new)} (they differ in a part that is not shown)" if self.is_hidden else both
        return text + ("  [needs a restart]" if self.needs_restart else "")


@dataclass(frozen=True, slots=True)
class Changes:
    """All differences. Keys and files are named by their settings, such as `auth.publish_keys.orders`.

    `files` are the settings that name the same file as before, whose contents have changed.
    """

    settings: tuple[Change, ...] = ()
    keys_added: tuple[str, ...] = ()
    keys_revoked: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.settings or self.keys_added or self.keys_revoked or self.files)

    def document(self) -> dict[str, object]:
        """Return the changes as JSON, for the log and for the admin interface."""
        return {
            "changes": {
                change.key: {"old": _cut(change.old), "new": _cut(change.new)}
                | ({"secret_changed": True} if change.is_hidden else {})
                for change in self.settings
            },
            "keys_added": list(self.keys_added),
            "keys_revoked": list(self.keys_revoked),
            "files_changed": list(self.files),
        }

    def lines(self) -> Iterator[str]:
        """Return the changes as sentences for people."""
        yield from map(str, self.settings)
        yield from (f"{name}: a key was revoked" for name in self.keys_revoked)
        yield from (f"{name}: a key was added" for name in self.keys_added)
        yield from (f"{name}: the contents of the file have changed" for name in self.files)


@dataclass(frozen=True)
class Side:
    """One of the two configurations, with its keys, and digests of the contents of its files."""

    config: Config
    keys: Mapping[tuple[str, bytes], str] = field(default_factory=dict, repr=False)
    files: Mapping[str, tuple[str, bytes]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, config: Config, auth: Authenticator) -> Side:
        """Read the files that the configuration names; an unreadable file has no contents."""
        return cls(config, auth.key_names(), dict(_files(config)))


def between(old: Side, new: Side) -> Changes:
    """Return the changes from `old` to `new`."""
    added = sorted(name for key, name in new.keys.items() if key not in old.keys)
    revoked = sorted(name for key, name in old.keys.items() if key not in new.keys)
    told = {".".join(name.split(".")[:2]) for name in (*added, *revoked)}  # a name may contain dots itself
    before = {key.name: value for key, value in values(old.config)}
    settings = []
    for key, value in values(new.config):
        was = before[key.name]
        if was != value and key.name not in told:
            shown = key.visible(was), key.visible(value)
            settings.append(Change(key.name, *shown, is_hidden=shown[0] == shown[1]))
    return Changes(
        tuple(settings),
        tuple(added),
        tuple(revoked),
        tuple(
            name
            for name, (path, digest) in new.files.items()
            if name in old.files and old.files[name][0] == path and old.files[name][1] != digest
        ),
    )


def _files(config: Config) -> Iterator[tuple[str, tuple[str, bytes]]]:
    """Return the files other than those of the keys, which `Authenticator.key_names` covers: setting, path, digest."""
    jwt = config.auth.jwt
    named: dict[str, object] = {"server.certfile": config.server.certfile, "server.keyfile": config.server.keyfile}
    if jwt is not None:
        named["auth.jwt.public_key_file"], named["auth.jwt.jwks_file"] = jwt.public_key_file, jwt.jwks_file
        named["auth.jwt.secret"] = jwt.secret.file if isinstance(jwt.secret, SecretFile) else None
    for name, path in named.items():
        if path is not None:
            yield name, (str(path), _digest(str(path)))


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # a Path raises the same errors
            return hashlib.file_digest(file, "sha256").digest()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return b""


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _cut(value: object) -> object:
    text = _json(value)
    return value if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."
