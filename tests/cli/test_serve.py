"""A real process: it starts, answers, takes a new configuration, and leaves when asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from qgstream.cli import main


@contextmanager
def serving(*flags: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "qgstream", "serve", "--port", "0", *flags]
    environ = os.environ | {"QGSTREAM_SIZE": "large"}
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """Wait for the line of this event (pytest-timeout bounds it)."""
    assert process.stderr is not None
    for line in process.stderr:
        fields = json.loads(line)
        if fields["event"] == event:
            return cast("dict[str, Any]", fields)
    raise AssertionError(f"the process ended without {event}")


def test_serves_reloads_and_leaves(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[drain]\nseconds = 0\n[log]\nenv = 'before'\n")
    with serving("--config", str(path)) as process:
        assert "QGSTREAM_SIZE" in json.dumps(said(process, "config.warning"))
        started = said(process, "server.started")
        assert started["env"] == "before"
        with urllib.request.urlopen(f"http://127.0.0.1:{started['port']}/health", timeout=60) as answer:
            assert json.load(answer) == {"status": "ok"}
        path.write_text("[drain]\nseconds = 0\n[log]\nenv = 'after'\n")
        process.send_signal(signal.SIGHUP)
        assert said(process, "config.reloaded")["env"] == "after"
        path.write_text("[drain]\nsecond = 0\n")
        process.send_signal(signal.SIGHUP)
        assert "did you mean drain.seconds?" in said(process, "config.rejected")["problems"][0]
        process.send_signal(signal.SIGTERM)
        assert said(process, "server.stopped")["level"] == "info"
        assert process.wait(60) == 0


def test_refuses_a_configuration_that_cannot_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--set", "limits.max_conections=1"]) == 1
    assert "did you mean limits.max_connections?" in capsys.readouterr().err
