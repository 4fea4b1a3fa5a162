"""npm's libraries, installed once."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import copy

import pytest

from tests.interop.clients import HERE


@pytest.fixture(scope="session")
def node_modules(require_program: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the clients of package.json in it."""
    require_program("node")
    npm = require_program("npm")
    folder = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "package-lock.json"):
        copy(HERE / name, folder)
    command: list[str | Path] = [
        npm,
        "ci",
        "--prefix",
        folder,
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--loglevel=error",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder
