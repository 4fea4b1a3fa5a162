"""The changes that a configuration would make, compared with another file or with the running server."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgstream.cli import _settings
from qgstream.errors import QgstreamError

if TYPE_CHECKING:
    from qgstream.process.config import Config, Loaded

KEY_VARIABLE = "QGSTREAM_ADMIN_KEY"
# The value of --diff without a file.
RUNNING = ""
_HIDDEN = "(not shown)"
_TIMEOUT_SECONDS = 10.0
_MAX_CHARACTERS = 10_000  # of a text from a server


@dataclass(frozen=True)
class Diff:
    """The differences, for people and for programs."""

    lines: list[str] = field(default_factory=list)
    document: dict[str, object] = field(default_factory=dict)


def compare(args: argparse.Namespace, loaded: Loaded, old: str) -> Diff:
    """Return the changes that `loaded` makes. Raises `QgstreamError` when there is nothing to compare with."""
    return _with_running(loaded, args.url) if old == RUNNING else _with_file(args, loaded, Path(old))


def _with_file(args: argparse.Namespace, loaded: Loaded, path: Path) -> Diff:
    from qgstream.auth.authenticator import Authenticator
    from qgstream.process.config_diff import Side, between

    # Both configurations have the same environment and flags.
    before = _settings.load(argparse.Namespace(**vars(args) | {"config": path})).config
    config = loaded.config
    changes = between(Side.of(before, Authenticator(before.auth)), Side.of(config, Authenticator(config.auth)))
    return Diff(list(changes.lines()), changes.document())


def _with_running(loaded: Loaded, url: str | None) -> Diff:
    from qgstream.logs import printable
    from qgstream.process.config_diff import Change

    running = _ask(url or _url_of(loaded.config), _key(loaded.config))
    # As JSON, so that both sides are compared in the form in which they are shown.
    ours = json.loads(json.dumps({key: value for key, value, _ in loaded.effective()}))
    changes, hidden = [], []
    for key in sorted(ours.keys() | running.keys()):
        old, new = running.get(key), ours.get(key)
        if old != new:
            changes.append(Change(key, old, new))
        elif _HIDDEN in json.dumps(old):
            hidden.append(key)
    document: dict[str, object] = {
        "changes": {
            change.key: {"old": change.old, "new": change.new, "needs_restart": change.needs_restart}
            for change in changes
        },
        "not_compared": hidden,
    }
    lines = [printable(str(change), _MAX_CHARACTERS) for change in changes]  # a part of it comes from a server
    lines += [f"{key}: not compared, because a server shows no secret" for key in hidden]
    return Diff(lines, document)


def _url_of(config: Config) -> str:
    host, port = (
        (config.admin.host, config.admin.port) if config.admin.port else (config.server.host, config.server.port)
    )
    # A server that listens on all addresses is reached on this one.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    scheme = "https" if config.server.certfile is not None and not config.admin.port else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _key(config: Config) -> str:
    from qgstream.auth.authenticator import secrets_of
    from qgstream.auth.secrets import load_secret, read_file

    given = os.environ.get(KEY_VARIABLE)
    if given:
        return given
    for where, secret in secrets_of(config.auth):
        if where.startswith("auth.admin_keys."):
            return load_secret(secret, where=where, read_file=read_file).decode(errors="replace")
    raise QgstreamError(f"--diff asks the running server with an admin key: set {KEY_VARIABLE}, or auth.admin_keys")


def _ask(url: str, key: str) -> dict[str, Any]:
    import httpx

    from qgstream.client.responses import bearer, sentence
    from qgstream.client.transport import client
    from qgstream.logs import printable

    target, headers = f"{url.rstrip('/')}/admin/config", {"Authorization": bearer(key)}
    try:
        with client(True, target) as asking:
            response = asking.get(target, headers=headers, timeout=_TIMEOUT_SECONDS)
    except httpx.InvalidURL as error:
        raise QgstreamError(f"--url: got {url!r}, expected http://HOST:PORT: {error}") from error
    except httpx.HTTPError as error:
        raise QgstreamError(f"--diff: {target}: request failed: {sentence(error)}") from error
    try:
        document = response.json()
    except (ValueError, RecursionError):
        document = None
    config = _at(document, "config")
    if response.status_code != 200 or not isinstance(config, dict):
        message = _at(document, "error", "message")
        said = printable(message, _MAX_CHARACTERS) if isinstance(message, str) else "no configuration"
        hint = f"; the key comes from the environment: {KEY_VARIABLE}" if response.status_code in (401, 403) else ""
        raise QgstreamError(f"--diff: {target}: got status {response.status_code}: {said}{hint}")
    return {printable(name, _MAX_CHARACTERS): _at(entry, "value") for name, entry in config.items()}


def _at(document: object, *names: str) -> Any:
    """Return the value at a place in a document from an untrusted server, or None without one."""
    for name in names:
        document = document.get(name) if isinstance(document, dict) else None
    return document
