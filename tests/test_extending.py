"""docs/extending.md: what tests/test_docs.py does not run of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.deploy.programs import free_port
from tests.documents import ROOT, blocks_of
from tests.serving import wait_until
from tests.test_docs import is_open

PAGE = ROOT / "docs" / "extending.md"


def test_https_is_three_commands(tmp_path: Path, require_program: Callable[[str], Path]) -> None:
    require_program("openssl")
    require_program("curl")
    (block,) = [block for block in blocks_of(PAGE) if block.language == "sh"]
    certify, serve, ask = block.text.splitlines()
    port = str(free_port())
    subprocess.run(["/bin/bash", "-c", certify], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    command = [sys.executable, "-m", "qgstream", *serve.replace("8443", port).split()[1:]]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: is_open(int(port)), seconds=30, what="the port")
            command = ask.replace("8443", port).split()
            with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as client:
                assert client.stdout is not None
                try:
                    assert client.stdout.readline().startswith("retry: 3")
                finally:
                    client.terminate()
        finally:
            server.kill()
