from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import cast

import pytest

from qgstream import __version__
from qgstream.cli import check_config, main


def run(*argv: str) -> int:
    """The exit status, whether the command returned it or argparse exited with it."""
    try:
        return main(argv)
    except SystemExit as ended:
        return cast("int", ended.code)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"qgstream {__version__}\n"


def test_python_m_qgstream_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qgstream", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"qgstream {__version__}\n"


@pytest.mark.parametrize("command", ["serve", "check-config", "default-config", "token", "doctor", "tail", "publish"])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run("--help") == 0
    assert command in capsys.readouterr().out
    assert run(command, "--help") == 0
    assert f"usage: qgstream {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "qgstream: the following arguments are required: COMMAND"),
        (["serv"], "qgstream: argument COMMAND: invalid choice: 'serv'"),
        (["--verson"], "qgstream: the following arguments are required: COMMAND"),
        (["serve", "--confg", "x"], "qgstream serve: unknown flag --confg; did you mean --config?"),
        (["serve", "--conf", "x"], "qgstream serve: unknown flag --conf; did you mean --config?"),
        (["serve", "--prot=1", "--xyzzy"], "unknown flag --prot; did you mean --port?; unknown flag --xyzzy\n"),
        (["serve", "--limits.max_sockets", "4"], "; did you mean --set limits.max_sockets=VALUE?"),
        (["default-config", "--limits.x", "4"], "qgstream default-config: unknown flag --limits.x\n"),
        (["serve", "conf/dev.toml"], "qgstream serve: unexpected argument 'conf/dev.toml'"),
        (["serve", "--port"], "qgstream serve: argument --port: expected one argument"),
        (["serve", "--set", "limits"], "qgstream serve: argument --set: got no '=', expected section.key=value"),
    ],
)
def test_a_command_line_that_cannot_be_understood(
    capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    assert run(*argv) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert "--help" in output.err
    assert output.out == ""


@pytest.mark.parametrize(
    "argv",
    [
        ["serve", "--auth.publish_keys", "hush"],
        ["serve", "--auth.publish_keys=hush"],
        ["check-config", "--auth=hush"],
        ["check-config", "--auth-publish-keys=hush"],
    ],
)
def test_secrets_do_not_come_by_flag(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert run(*argv) == 2
    said = capsys.readouterr().err
    assert "do not come by flag" in said
    assert "use the configuration file or the environment" in said
    assert "hush" not in said


def test_the_value_of_a_flag_that_cannot_be_understood_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--set", "auth.publish_keys:hush") == 2
    assert "hush" not in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(check_config, "run", interrupt)
    assert run("check-config") == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_has_left_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "qgstream", "check-config", "--offline", "--show"]
    keys = {"QGSTREAM_AUTH__PUBLISH_KEYS": "k", "QGSTREAM_AUTH__ADMIN_KEYS": "a"}  # or there are warnings
    environ = os.environ | keys | {"PYTHONUNBUFFERED": ""}  # what is still buffered at the end is the hard part
    done = subprocess.run(
        command, env=environ, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_command_line_imports_little() -> None:
    # `qgstream --help` answers at once; what serves is imported by `serve`.
    code = "import sys; from qgstream.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "qgstream.cli.serve" in loaded
    assert loaded & {"tornado", "pydantic", "asyncio", "jwt", "prometheus_client"} == set()
