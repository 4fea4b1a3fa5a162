"""systemd's unit files, as far as ours go: sections, and keys that may come more than once."""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.deploy.programs import DEPLOY

SYSTEMD = DEPLOY / "systemd"
INSTALLED = "/opt/qgstream/bin/qgstream"


def read(path: Path) -> dict[str, list[str]]:
    """Every key of the unit with its values, in order. Our keys are of one section each."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def command(line: str, *, instance: str = "") -> list[str]:
    """The words of an Exec line, as systemd would split them."""
    return shlex.split(line.replace("%i", instance))
