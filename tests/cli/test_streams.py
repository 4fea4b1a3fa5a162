"""Standard streams that are closed, full, or read by nobody: no traceback, and an exit status that tells the truth."""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qgstream import cli
from tests.deploy.programs import free_port
from tests.publishing import publish
from tests.serving import KEY, RawClient, ServerProcess, wait_until

CLOSED, FULL, LEFT = ">&-", ">/dev/full", "| true"
# What the commands print on standard output; SERVER and FILE are replaced.
COMMANDS = {
    "--help": ["--help"],
    "--version": ["--version"],
    "bench": ["bench", "--help"],
    "check-config": ["check-config", "--offline", "--config", "FILE", "--show"],
    "completion": ["completion", "bash"],
    "default-config": ["default-config"],
    "doctor": ["doctor", "--offline", "--set", "limits.max_connections=10"],
    "help": ["help", "--man"],
    "publish": ["publish", "--help"],
    "serve": ["serve", "--help"],
    "tail": ["tail", "--url", "SERVER", "--since", "earliest", "--count", "1"],
    "token": ["token", "--config", "FILE", "--subject", "ann"],
}
CONFIG = '[auth]\nadmin_keys = ["a"]\n[auth.jwt]\nalgorithms = ["HS256"]\nsecret = "0123456789abcdef0123456789abcdef"\n'


def run(argv: list[str], redirection: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of the command with this redirection: its own exit status, and its standard error."""
    script = f'{{ "$@"; echo "status $?" >&3; }} {redirection}' if "|" in redirection else f'"$@" {redirection}'
    command = ["sh", "-c", f"exec 3>&2; {script}", "sh", sys.executable, "-m", "qgstream", *argv]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | environ
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    if "|" in redirection:
        done.stderr, _, status = done.stderr.rpartition("status ")
        done.returncode = int(status)
    return done


def test_every_command_is_tried() -> None:
    names = {module.name.replace("_", "-") for module in pkgutil.iter_modules(cli.__path__) if module.name[0] != "_"}
    assert names <= COMMANDS.keys()


@pytest.mark.parametrize(
    ("redirection", "environ", "status", "said"),
    [
        (CLOSED, {}, 1, "standard output: Bad file descriptor\n"),
        (FULL, {}, 1, "standard output: No space left on device\n"),
        (FULL, {"PYTHONUNBUFFERED": "1"}, 1, "standard output: No space left on device\n"),
        (f"{FULL} 2>&-", {}, 1, ""),
        (f"{FULL} 2{FULL}", {}, 1, ""),
        (f"{CLOSED} 2>&- <&-", {}, 1, ""),
        ("2>&- <&-", {}, 0, ""),
        (f"2>&1 {LEFT}", {}, 141, ""),
    ],
)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_printed_is_said(
    server: ServerProcess,
    tmp_path: Path,
    name: str,
    redirection: str,
    environ: dict[str, str],
    status: int,
    said: str,
) -> None:
    publish(server, "a", 1)
    (tmp_path / "c.toml").write_text(CONFIG)
    argv = [{"SERVER": server.url, "FILE": str(tmp_path / "c.toml")}.get(word, word) for word in COMMANDS[name]]
    done = run(argv, redirection, **environ)
    # `true` may still be there when the last word is written.
    assert done.returncode in {status} | ({0} if "|" in redirection else set())
    assert done.stderr == said


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&1 | true"])
@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["serv"], 2),
        (["check-config", "--set", "limits.max_conections=1"], 1),
        (["tail", "--url", "http://127.0.0.1:1", "--give-up", "0.1"], 1),
        (["publish", "--url", "http://127.0.0.1:1", "--deadline", "0.1", "a", "b"], 1),
    ],
)
def test_words_that_nobody_takes_change_no_status(argv: list[str], status: int, redirection: str) -> None:
    done = run(argv, redirection)
    # Of `tail` its reader is watched.
    assert done.returncode in {status} | ({141} if argv[0] == "tail" and "|" in redirection else set())
    assert done.stderr == ""


@pytest.mark.parametrize("redirection", [CLOSED, FULL, LEFT])
@pytest.mark.parametrize("data", [["1"], ["1", "2"], []])
def test_what_was_published_is_not_taken_for_a_failure(
    server: ServerProcess, tmp_path: Path, redirection: str, data: list[str]
) -> None:
    """A script that publishes again what failed would publish it twice."""
    (tmp_path / "lines").write_text("1\n2\n3\n")
    argv = ["publish", "--url", server.url, "printed-nowhere", *(data or ["--file", str(tmp_path / "lines")])]
    done = run(argv, redirection, QGSTREAM_PUBLISH_KEY=KEY)
    assert done.returncode == 0
    if redirection != LEFT:
        said, _, outcome = done.stderr.partition("; everything was published: ")
        assert said.startswith("standard output: ")
        assert json.loads(outcome)


@pytest.mark.parametrize("argv", [["publish", "a"], ["token", "--config", "FILE", "--explain", "-"]])
def test_standard_input_that_is_closed(server: ServerProcess, tmp_path: Path, argv: list[str]) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    argv = [str(tmp_path / "c.toml") if word == "FILE" else word for word in argv]
    done = run([*argv, *(["--url", server.url] if argv[0] == "publish" else [])], "<&-", QGSTREAM_PUBLISH_KEY=KEY)
    assert done.returncode == 1
    assert "standard input: Bad file descriptor" in done.stderr
    assert "Traceback" not in done.stderr


# The server.


@pytest.mark.parametrize(
    "redirection", ["<&- >&- 2>log", ">&- 2>&-", "<&- 2>&-", "<&- >&- 2>&-", "<&- >&- 2>/dev/full"]
)
def test_no_socket_gets_the_place_of_a_standard_stream(tmp_path: Path, redirection: str) -> None:
    """Or the log would be written into a client's stream."""
    port = free_port()
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "qgstream", "serve"]
    argv = ["--port", str(port), "--set", "drain.seconds=0"]
    with subprocess.Popen([*command, *argv], cwd=tmp_path) as process:
        try:
            # Not by trying to connect: that would be a connection to itself now and then.
            listening = f":{port:04X} 00000000:0000 0A "
            wait_until(lambda: listening in Path("/proc/net/tcp").read_text(), what="a server that listens")
            client = RawClient(port).get("/events")
            client.until(b'"connected"')
            targets = [str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in range(3)]
            assert not [target for target in targets if target.startswith(("socket:", "anon_inode:", "pipe:"))]
            process.send_signal(signal.SIGTERM)
            # The log has said by now that a client connected and that the drain began.
            assert b'"level"' not in client.to_end()
            client.close()
            assert process.wait(60) == 0
        finally:
            process.kill()
