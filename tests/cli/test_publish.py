from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from qgstream.cli import _lines, main
from qgstream.cli import publish as command
from qgstream.wire.sse import Event, Parser
from tests.serving import KEY, RawClient, ServerProcess
from tests.terminals import Terminal

PUBLISH = [sys.executable, "-m", "qgstream", "publish"]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QGSTREAM_PUBLISH_KEY", KEY)


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def run(*argv: str) -> int:
    try:
        return main(["publish", *argv])
    except SystemExit as ended:
        return cast("int", ended.code)


def history(server: ServerProcess, topic: str, until: str) -> list[Event]:
    """All that was published to the topic, up to an event with this data."""
    client = RawClient(server.port).get(f"/events?topic={topic}&last_event_id=earliest", version="1.0")
    found = list(Parser().feed(client.until(f"data: {until}\n\n".encode()).partition(b"\r\n\r\n")[2]))
    client.close()
    return found[1:]


def data(events: list[Event]) -> list[str]:
    return [event.data for event in events]


def test_one_argument_is_one_event(server: ServerProcess, topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--url", server.url, topic, '{"n": 1.10}', "--event", "created", "--retry-ms", "7") == 0
    (event,) = history(server, topic, '{"n": 1.10}')
    assert json.loads(capsys.readouterr().out) == {"id": event.id, "subscribers": 0}
    assert (event.event, event.retry_ms) == ("created", 7)


def test_what_is_json_goes_as_json_and_the_rest_as_it_is(
    server: ServerProcess, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["plain", "7", "[1,  2]", "NaN", '"quoted"', "", "{", "[" * 100_000]
    assert run("--url", server.url, topic, *texts) == 0
    assert run("--url", server.url, topic, '"quoted"', "end", "--text") == 0
    found = data(history(server, topic, "end"))
    assert found == ["plain", "7", "[1,  2]", "NaN", "quoted", "", "{", "[" * 100_000, '"quoted"', "end"]
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first)["published"] == 8
    assert json.loads(second)["published"] == 2


def test_the_same_key_twice_is_one_event(server: ServerProcess, topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run("--url", server.url, topic, "once", "--idempotency-key", topic) == 0
    one, two = capsys.readouterr().out.splitlines()
    assert one == two


def test_lines_of_files_and_of_standard_input(server: ServerProcess, topic: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffeins\r\n\n  \nzw\u2028ei\x0b\n".encode())
    (tmp_path / "b").write_bytes(b"drei")
    files = [argument for name in ("a", "-", "b") for argument in ("--file", name)]
    done = subprocess.run(
        [*PUBLISH, "--url", server.url, topic, *files], input=b"x\n" * 3, capture_output=True, timeout=60, check=True,
        cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(done.stdout)["published"] == 6
    assert done.stderr == b""
    assert data(history(server, topic, "drei")) == ["eins", "zw\u2028ei\x0b", "x", "x", "x", "drei"]


def test_long_input_goes_in_batches_and_in_order(
    server: ServerProcess, topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "many").write_text("".join(f"{n}\n" for n in range(7000)) + "end")
    assert run("--url", server.url, topic, "--file", str(tmp_path / "many")) == 0
    assert data(history(server, topic, "end")) == [*map(str, range(7000)), "end"]
    assert json.loads(capsys.readouterr().out)["published"] == 7001


def test_a_slow_pipe_is_published_as_it_comes_and_ends_without_a_traceback(server: ServerProcess, topic: str) -> None:
    with subprocess.Popen(
        [*PUBLISH, "--url", server.url, topic], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"first\n")
        process.stdin.flush()
        stream = RawClient(server.port).get(f"/events?topic={topic}&last_event_id=earliest")
        stream.until(b"data: first\n\n")
        stream.close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    # The stream may have shown it before its publisher had the answer.
    assert err in (b"stopped; published before: 0\n", b"stopped; published before: 1\n")


def test_whole_events_as_ndjson(
    server: ServerProcess, topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[dict[str, Any]] = [
        {"topic": topic, "data": {"a": 1}, "event": "created"},
        {"topic": [topic, "other"], "data": "end", "retry": 5, "idempotency_key": topic},
    ]
    (tmp_path / "events").write_text("\ufeff" + "\n\ufeff".join(map(json.dumps, lines)))  # as if joined on Windows
    for _ in range(2):
        assert run("--url", server.url, "--ndjson", "--file", str(tmp_path / "events")) == 0
    events = history(server, topic, "end")
    assert [event.event for event in events] == ["created", "message"]
    assert events[0].retry_ms is not None
    assert 3000 <= events[0].retry_ms <= 3600  # that of the stream
    assert events[1].retry_ms == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"topic": "%b", "data": 1}\n\n{"topic": "a", "dat": 1}\n', "line 3: dat: "),
        (b'{"topic": "%b", "data": 1}\n[]\n', "line 2: "),
        (
            b'{"topic": "%b", "data": 1}\n{"topic": "a", "data": "\xff"}\n',
            "line 2: got byte 0xff at 24, expected UTF-8",
        ),
        (b'{"topic": "%b", "data": 1}\n' + b"x" * (_lines.MAX_LINE_BYTES + 2**16), "line 2: longer than 8388608 bytes"),
    ],
    ids=["a field", "no object", "no UTF-8", "no end"],
)
def test_a_wrong_line_ends_it(
    server: ServerProcess, topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    path = tmp_path / "events"
    path.write_bytes(content.replace(b"%b", b"t"))
    assert run("--url", server.url, "--ndjson", "--file", str(path)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{path}, {said}" in err
    assert "stopped; published before: 1\n" in err


def test_a_key_that_no_header_can_carry_is_said_with_its_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QGSTREAM_PUBLISH_KEY", "hush\n")
    assert run("--url", "http://127.0.0.1:1", "t", "1") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "no HTTP header can contain" in err
    assert err.endswith("the publish key comes from the environment: QGSTREAM_PUBLISH_KEY\n")
    assert "hush" not in err


def test_what_the_server_refuses_is_said_with_the_lines(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lines"
    path.write_text("fine\n" + "x" * 300_000 + "\n")
    assert run("--url", server.url, "t", "--file", str(path)) == 1
    said = capsys.readouterr().err
    assert re.search("413 too_large: line [12]: data: got 300000 bytes", said)
    assert f"{path}, line 1 to 2: " in said or f"{path}, line 2: " in said


def test_without_a_key_it_says_where_keys_come_from(
    server: ServerProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QGSTREAM_PUBLISH_KEY")
    assert run("--url", server.url, "t", "x") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{server.url}: 401 unauthorized: got no credentials")
    assert err.endswith("the publish key comes from the environment: QGSTREAM_PUBLISH_KEY\n")


def test_no_server_and_no_file(capsys: pytest.CaptureFixture[str], server: ServerProcess) -> None:
    assert run("--url", "http://127.0.0.1:1", "t", "x", "--deadline", "0.2") == 1
    first, last = capsys.readouterr().err.splitlines()
    assert first == "no answer from http://127.0.0.1:1: Connection refused; trying again for up to 0.2 s (--deadline)"
    assert last == "no answer from http://127.0.0.1:1: Connection refused"
    assert run("--url", server.url, "t", "--file", "/nowhere") == 1
    assert "/nowhere: No such file or directory\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "expected TOPIC, or --ndjson"),
        (["--ndjson", "t"], "got TOPIC with --ndjson"),
        (["--ndjson", "--retry-ms", "5"], "got --retry-ms with --ndjson"),
        (["t", "x", "--file", "y"], "got DATA and --file"),
        (["t", "--idempotency-key", "k"], "--idempotency-key is for one DATA"),
        (["t", "x", "--deadline", "300"], "deadline_seconds: got 300"),
        (["t", "x", "--url", "localhost:8000"], "url: got the scheme 'localhost', expected http://"),
        (["t", "x", "--key", "hush"], "unknown flag --key"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    assert run(*argv) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "hush" not in err


def test_progress_is_for_terminals(server: ServerProcess, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setattr(command, "_PROGRESS_SECONDS", 0)
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        progress = command._Progress()
        progress.add(1000)
        progress.end("done")
        terminal.flush()
        shown = b""
        while not shown.endswith(b"done\r\n"):
            shown += os.read(ours, 1000)
    os.close(ours)
    assert shown.startswith(b"\r\x1b[K1000 events, ")
    assert b"a second\r\x1b[Kdone" in shown


@pytest.mark.parametrize(
    ("done", "total", "seconds", "said"),
    [
        (0, None, 0.0, "10 events"),
        (100, None, 2.0, "10 events, 5 a second"),
        (100, 400, 2.0, "25%, 10 events, 5 a second, 6 s left"),
        (100, 10_000, 2.0, "1%, 10 events, 5 a second, 3 min 18 s left"),
        (500, 400, 2.0, "100%, 10 events, 5 a second, 0 s left"),  # it grew meanwhile
        (100, 0, 2.0, "10 events, 5 a second"),
    ],
)
def test_progress_has_a_share_where_the_end_is_known(done: int, total: int | None, seconds: float, said: str) -> None:
    assert command.progress(10, done, total, seconds) == said


def test_the_size_of_what_is_read(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("12345")
    other.write_text("123")
    assert _lines.size([str(one), str(other)]) == 8
    os.mkfifo(tmp_path / "pipe")
    assert _lines.size([str(one), str(tmp_path / "pipe")]) is None
    assert _lines.size([str(tmp_path / "nowhere")]) is None


def test_at_a_terminal(server: ServerProcess, tmp_path: Path) -> None:
    """It says that it waits for lines; of a file, how long it takes; of a server, which one it is."""
    environ = {"QGSTREAM_PUBLISH_KEY": KEY}
    with Terminal("publish", "--url", server.url, "typed", environ=environ) as terminal:
        terminal.read_until(rf"publishing lines to 'typed' to {server.url}, .* Ctrl-D ends\n")
        terminal.enter("one\n\x04")
        assert terminal.read_to_end() == 0
        assert '{"published": 1, ' in terminal.shown
    (tmp_path / "lines").write_text("x" * 1000 + "\n")
    flags = ("--url", server.url, "file", "--file", str(tmp_path / "lines"))
    slow = "import qgstream.cli.publish as p, qgstream.cli as c; p._PROGRESS_SECONDS = 0; raise SystemExit(c.main())"
    with Terminal("publish", *flags, command=(sys.executable, "-c", slow), environ=environ) as terminal:
        assert terminal.read_to_end() == 0
        assert re.search(r"100%, 1 events, \d+ a second, 0 s left", terminal.shown)
