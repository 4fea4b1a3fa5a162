from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import pytest

from qgstream.cli import _tail, main
from qgstream.client.stream import State
from tests.deploy.programs import free_port
from tests.publishing import publish
from tests.serving import KEY, ServerProcess

TAIL = [sys.executable, "-m", "qgstream", "tail"]


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def run(*argv: str) -> int:
    try:
        return main(["tail", *argv])
    except SystemExit as ended:
        return cast("int", ended.code)


@contextmanager
def tailing(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([*TAIL, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[bytes]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def test_into_a_pipe_it_is_json_lines(server: ServerProcess, topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = publish(server, topic, "a\r\nb")["id"]
    second = publish(server, topic, {"order": 7}, event="created")["id"]
    third = publish(server, topic, 3, event="paid")["id"]
    argv = ("--url", server.url, "--topic", topic)
    assert run(*argv, "--since", "earliest", "--count", "2") == 0
    assert run(*argv, "--since", first, "--count", "1", "--event", "paid") == 0
    assert run(*argv, "--latest", "--count", "1") == 0
    out, err = capsys.readouterr()
    assert [json.loads(each) for each in out.splitlines()] == [
        {"id": first, "topic": topic, "event": "message", "data": "a\r\nb"},
        {"id": second, "topic": topic, "event": "created", "data": {"order": 7}},
        {"id": third, "topic": topic, "event": "paid", "data": 3},
        {"id": third, "topic": topic, "event": "paid", "data": 3},
    ]
    assert err == ""


def test_what_was_missed_is_a_line_as_well(
    server: ServerProcess, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(server, topic, "newest")
    assert run("--url", server.url, "--topic", topic, "--since", "0000000000-7", "--latest", "--count", "1") == 0
    reset, event = map(json.loads, capsys.readouterr().out.splitlines())
    assert reset == {"event": "reset", "reason": "epoch_changed", "id": ""}
    assert event["data"] == "newest"


def test_it_comes_back_and_goes_on_until_ctrl_c(server: ServerProcess, topic: str) -> None:
    publish(server, topic, 1)
    with tailing("--url", server.url, "--topic", topic, "--since", "earliest") as process:
        assert line(process)["data"] == 1
        kick = urllib.request.Request(f"{server.url}/admin/connections?topic={topic}", method="DELETE")
        kick.add_header("Authorization", "Bearer admin-key")
        urllib.request.urlopen(kick, timeout=60).close()
        publish(server, topic, 2)
        assert line(process)["data"] == 2
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert err.startswith(f"{server.url}: kicked; again in 0.".encode())
    assert err.count(b"\n") == 1


def test_it_ends_with_whoever_reads_it_and_not_with_the_next_event(server: ServerProcess, topic: str) -> None:
    publish(server, topic, 1)
    with tailing("--url", server.url, "--topic", topic, "--since", "earliest") as process:
        assert line(process)["data"] == 1
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


def test_on_a_terminal_it_is_for_people_and_nothing_moves_the_cursor(server: ServerProcess, topic: str) -> None:
    publish(server, topic, {"order": 7}, event="created")
    publish(server, topic, "two\r\nlines \x1b[31m\x9b")
    ours, theirs = pty.openpty()
    command = [*TAIL, "--url", server.url, "--topic", topic, "--since", "earliest", "--count", "2"]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"})
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # that is how a terminal ends
        while more := os.read(ours, 4096):
            shown += more
    os.close(ours)
    assert process.wait(60) == 0
    connected, first, second, *lines = shown.decode().split("\r\n")
    assert connected == f"connected to {server.url}, replay: complete"
    assert first.endswith(f'\x1b[0m \x1b[1m{topic}\x1b[0m created {{"order": 7}}')
    assert second.endswith(f"{topic}\x1b[0m message ")
    assert lines == ["    two", "    lines \\x1b[31m\\x9b", ""]


def test_a_reset_on_a_terminal(
    server: ServerProcess, topic: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, topic, 1)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert run("--url", server.url, "--topic", topic, "--since", "0-7", "--latest", "--count", "1") == 0
    reset, event = capsys.readouterr().out.splitlines()
    assert reset.startswith("events were missed: ")
    assert event.endswith(f" {topic} message 1")


def test_who_may_not_look_is_told_where_keys_come_from(
    server: ServerProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QGSTREAM_TOKEN", "wrong")
    assert run("--url", server.url) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{server.url}: 401 unknown_key: ")
    assert err.endswith("a key or token comes from the environment: QGSTREAM_TOKEN\n")
    monkeypatch.setenv("QGSTREAM_TOKEN", KEY)
    publish(server, "who-may-look", 1)
    assert run("--url", server.url, "--topic", "who-may-look", "--latest", "--count", "1") == 0


def test_a_token_that_no_header_can_carry_is_said_with_its_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QGSTREAM_TOKEN", "hüsh")
    assert run("--url", "http://127.0.0.1:1") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "no HTTP header can contain" in err
    assert err.endswith("a key or token comes from the environment: QGSTREAM_TOKEN\n")
    assert "hüsh" not in err


def test_it_gives_up_when_it_was_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert run("--url", f"{url}?access_token=hush", "--give-up", "0.1") == 1
    assert capsys.readouterr().err == f"no stream from {url} for 0.1 s: Connection refused\n"


def test_it_names_the_server_that_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    server = f"http://127.0.0.1:{free_port()}"
    _tail.say_state(server, State("waiting", reason="drain\x1b", seconds=1.26))
    assert capsys.readouterr().err == f"{server}: drain\\x1b; again in 1.3 s\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--count", "0"], "argument --count: got 0, expected 1 or more"),
        (["--count", "many"], "argument --count: got many, expected 1 or more"),
        (["--give-up", "nan"], "give_up_seconds: got nan, expected 0 or more"),
        (["--since", "\udc80"], "last_event_id: got '\\udc80', expected the id of an event"),
        (["--url", "ftp://host"], "url: got the scheme 'ftp', expected http://"),
        (["--url", "http://host:99999/?access_token=hush"], "url: got something that is not a URL, expected http://"),
        (["--token", "hush"], "unknown flag --token"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    assert run(*argv) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "hush" not in err
