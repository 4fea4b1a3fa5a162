from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from qgstream import __version__
from qgstream.cli import check_config, completion, main, make_parser
from qgstream.cli._parser import commands


def run(*argv: str) -> int:
    """The exit status, whether the command returned it or argparse exited with it."""
    try:
        return main(argv)
    except SystemExit as ended:
        return cast("int", ended.code)


ROOT = make_parser()
COMMANDS = commands(ROOT)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert run(flag) == 0
    assert capsys.readouterr().out == f"qgstream {__version__}\n"


def test_the_name_alone_says_what_there_is_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    shown = capsys.readouterr().out
    assert run("help") == 0
    assert capsys.readouterr().out == shown
    assert all(f"    {name}" in shown for name in COMMANDS)
    assert "qgstream serve --dev" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run("help", command) == 0
    shown = capsys.readouterr().out
    assert run(command, "--help") == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_has_examples_that_can_be_typed(command: str) -> None:
    parser = COMMANDS[command] if command else ROOT
    assert parser.examples
    for example in parser.examples:
        assert example in parser.format_help()
        words = shlex.split(example.replace("<(", "").replace(")", ""))
        typed = words[words.index("qgstream") + 1 :]
        end = next((n for n, word in enumerate(typed) if word in ("|", ">", "<")), len(typed))
        args = ROOT.parse_args(typed[:end])
        assert args.run.__module__ == f"qgstream.cli.{(command or typed[0]).replace('-', '_')}"


def test_short_flags() -> None:
    args = ROOT.parse_args(["serve", "-c", "x.toml", "-p", "8001", "--log-level", "debug"])
    assert (str(args.config), args.port, args.log_level) == ("x.toml", "8001", "debug")


@pytest.mark.parametrize("argv", [["--dev"], ["--dev", "--log-level", "debug", "-p", "1"]])
def test_a_configuration_of_flags(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert run("check-config", "--offline", "--show", *argv) == 0
    shown = capsys.readouterr().out
    assert 'log.env = "development"  # flag --dev\n' in shown
    if len(argv) > 1:
        assert 'log.level = "debug"  # flag --log-level\n' in shown


def test_a_level_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--log-level", "loud") == 1
    assert "flag --log-level: log.level: got 'loud', expected 'debug', 'info'" in capsys.readouterr().err


# The manual page and the shells.


def test_the_manual_page_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("help", "--man") == 0
    page = capsys.readouterr().out
    assert page.startswith(".TH QGSTREAM 1 ")
    for name, parser in COMMANDS.items():
        section = page.partition(f".SS qgstream {name}\n".replace("-", "\\-"))[2].partition("\n.SS ")[0]
        assert section, name
        flags = [flag for action in parser._actions for flag in action.option_strings]
        assert flags
        assert all(f"\\fB{flag}\\fR".replace("-", "\\-") in section for flag in flags)
        assert all(example.replace("\\", "\\e").replace("-", "\\-") in section for example in parser.examples)
    # Each line is text, or a request that man(7) knows.
    requests = {line.split()[0] for line in page.splitlines() if line.startswith((".", "'"))}
    assert requests <= {".TH", ".SH", ".SS", ".TP", ".PP", ".nf", ".fi", ".B"}


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
def test_the_manual_page_is_good_roff(capsys: pytest.CaptureFixture[str]) -> None:
    run("help", "--man")
    page = capsys.readouterr().out
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-P-c"], input=page, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    assert "qgstream serve" in done.stdout


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_shell_knows_all_commands(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert run("completion", shell) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in [*COMMANDS, "--log-level", "--give-up"])


def test_bash_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run("completion", "bash")
    script = tmp_path / "qgstream.bash"
    script.write_text(capsys.readouterr().out)
    ask = (
        f". {script}; complete -p qgstream; COMP_WORDS=(qgstream serve --log); COMP_CWORD=2; "
        "$(complete -p qgstream | sed 's/.*-F \\([^ ]*\\) .*/\\1/') qgstream --log serve; echo \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1].split() == ["--log-level"], done


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
        (["serv"], "qgstream: unknown command 'serv'; did you mean serve?\n"),
        (["strat"], "qgstream: unknown command 'strat'; did you mean serve?\n"),
        (["run"], "qgstream: unknown command 'run'; did you mean serve?\n"),
        (["pulbish", "a"], "qgstream: unknown command 'pulbish'; did you mean publish?\n"),
        (["xyzzy"], "qgstream: unknown command 'xyzzy'\n"),
        (["--verson"], "qgstream: unknown flag --verson; did you mean --version?\n"),
        (["--dev"], "qgstream: expected a command before --dev, for instance qgstream serve --dev\n"),
        (["-p", "8001"], "qgstream: expected a command before -p, for instance qgstream serve -p\n"),
        (["--port=8001"], "qgstream: expected a command before --port, for instance qgstream serve --port\n"),
        (["--topic", "a"], "qgstream: expected a command before --topic, for instance qgstream tail --topic\n"),
        (["--key-file", "a"], "qgstream: unknown flag --key-file\n"),
        (["--workers", "4"], "qgstream: unknown flag --workers: this version serves with one process"),
        (["--auth.publish_keys", "a"], "qgstream: the keys of auth cannot be set by a flag"),
        (["help", "serv"], "qgstream help: unknown command 'serv'; did you mean serve?\n"),
        (["help", "--man", "serve"], "qgstream help: got --man with COMMAND"),
        (["completion", "fsh"], "qgstream completion: argument SHELL: invalid choice: 'fsh'"),
        (
            ["serve", "--workers", "4"],
            "unknown flag --workers: this version serves with one process; to use",
        ),
        (["serve", "-w", "4"], "unknown flag -w: this version serves with one process"),
        (["serve", "--bind", ":80"], "unknown flag --bind: use --host and --port"),
        (["serve", "--debug"], "unknown flag --debug: use --log-level debug"),
        (["tail", "--workers", "4"], "qgstream tail: unknown flag --workers\n"),
        (["serve", "--confg", "x"], "qgstream serve: unknown flag --confg; did you mean --config?"),
        (["serve", "--conf", "x"], "qgstream serve: unknown flag --conf; did you mean --config?"),
        (["serve", "--prot=1", "--xyzzy"], "unknown flag --prot; did you mean --port?; unknown flag --xyzzy\n"),
        (["serve", "--limits.max_sockets", "4"], "; did you mean --set limits.max_sockets=VALUE?"),
        (["default-config", "--limits.x", "4"], "qgstream default-config: unknown flag --limits.x\n"),
        (["serve", "conf/dev.toml"], "qgstream serve: unexpected argument 'conf/dev.toml'"),
        (["serve", "--port"], "qgstream serve: argument -p/--port: expected one argument"),
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
    assert "cannot be set by a flag" in said
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
