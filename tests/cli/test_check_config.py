from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from qgstream.cli import main
from tests.deploy.programs import free_port
from tests.hostile.certificates import make_certificate
from tests.process.test_server import Reloadable
from tests.serving import ServerProcess

KEYS = '[auth]\npublish_keys = { ci = "publish-hush" }\nadmin_keys = { ops = "admin-hush" }\n'


def test_a_good_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[server]\nport = 0\n[limits]\nmax_connections = 10\n" + KEYS)
    assert main(["check-config", "--config", str(path)]) == 0
    assert capsys.readouterr() == ("ok\n", "")


def test_says_what_is_odd(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QGSTREAM_PORT", "tcp://10.0.0.11:80")
    monkeypatch.setenv("QGSTREAM_AUTH__PUBLISH_KEYS", "hush")
    monkeypatch.setenv("QGSTREAM_AUTH__ADMIN_KEYS", "hush-hush")
    assert main(["check-config", "--offline"]) == 0
    out, err = capsys.readouterr()
    assert out == "ok\n"
    assert err == "warning: environment QGSTREAM_PORT: unknown name, ignored; did you mean QGSTREAM_SERVER__PORT?\n"


def test_says_everything_that_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[limits]\nmax_conections = 1\n[heartbeat]\nformat = "xml"\n')
    assert main(["check-config", "--config", str(path), "--port", "x", "--set", "drain.second=3"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"file {path}: limits.max_conections: unknown key; did you mean limits.max_connections?",
        "flag --set drain.second: drain.second: unknown key; did you mean drain.seconds?",
        "flag --port: server.port: got 'x', expected a valid integer",
        f"file {path}: heartbeat.format: got 'xml', expected 'data' or 'comment'",
    ]


def test_reads_the_files_that_the_keys_are_in(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f"[auth]\npublish_keys = {{ ci = {{ file = '{tmp_path}/none' }} }}\n")
    assert main(["check-config", "--config", str(path)]) == 1
    assert "auth.publish_keys.ci" in capsys.readouterr().err


def test_shows_what_is_in_effect(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QGSTREAM_AUTH__PUBLISH_KEYS", "hush")
    assert (
        main(["check-config", "--offline", "--show", "--host", "::1", "--set", "cors.allow_origins=https://a.example"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert 'server.host = "::1"  # flag --host' in lines
    assert 'cors.allow_origins = ["https://a.example"]  # flag --set cors.allow_origins' in lines
    assert 'auth.publish_keys = "(not shown)"  # environment QGSTREAM_AUTH__PUBLISH_KEYS' in lines
    assert "limits.max_connections = 10000  # default" in lines


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"broker.url": "foo://x"}, "broker.url: got the scheme 'foo', expected one of"),
        ({"server.certfile": "/none.crt", "server.keyfile": "/none.key"}, "server.certfile, server.keyfile: cannot be"),
    ],
)
def test_what_serve_would_refuse_is_refused_here(
    settings: dict[str, str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """systemd's ExecStartPre relies on it."""
    flags = [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]
    assert main(["check-config", *flags]) == 1
    assert problem in capsys.readouterr().err


# What serve will need. Each check has its own tests in test_preflight.py.


def check(*flags: str, descriptors: int | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    return subprocess.run(
        [sys.executable, "-m", "qgstream", "check-config", *flags],
        capture_output=True, text=True, timeout=60, check=False, preexec_fn=limit, env=environ,
    )  # fmt: skip


def settings(**values: object) -> list[str]:
    pairs = ((key.replace("__", "."), value) for key, value in values.items())
    return [word for key, value in pairs for word in ("--set", f"{key}={value}")]


def test_everything_that_is_wrong_with_a_start_is_said_at_once(tmp_path: Path) -> None:
    certfile, _ = make_certificate(tmp_path)
    _, keyfile = make_certificate(tmp_path, name="other")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = settings(
            server__certfile=certfile, server__keyfile=keyfile, server__port=port, limits__max_connections=5000,
            broker__url=f"redis://user:hunter2@127.0.0.1:{free_port()}", cors__allow_origins="https://www.example.com",
            broker__timeout_seconds=2,
        )  # fmt: skip
        done = check(*flags, descriptors=1000)
        assert (done.returncode, done.stdout) == (1, "")
        problems = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
        assert [line.partition(": ")[0] for line in problems] == [
            "server.certfile, server.keyfile", "cors.allow_origins", "broker.url", "server.port", "descriptors"
        ]  # fmt: skip
        assert f"127.0.0.1:{port} is in use by the process " in done.stderr
        assert "hunter2" not in done.stderr
        # Before a start or a reload, and for another machine, only what the files say counts.
        done = check("--offline", *flags, descriptors=1000)
    assert done.returncode == 1
    (problem,) = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert problem.startswith("server.certfile, server.keyfile: cannot be used")


def test_warnings_count_when_they_are_asked_to() -> None:
    assert check("--offline").returncode == 0
    done = check("--offline", "--strict")
    assert (done.returncode, done.stdout) == (1, "not ok: there are warnings, and --strict was given\n")


def test_json_for_programs(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[server]\nport = 0\n[limits]\nmax_connections = 10\n" + KEYS)
    done = check("--json", "--show", "--config", str(path))
    said = json.loads(done.stdout)
    assert (done.returncode, done.stderr, said["ok"], said["problems"], said["warnings"]) == (0, "", True, [], [])
    assert {"check", "verdict", "found", "change", "fits"} == said["checks"][0].keys()
    assert said["config"]["limits.max_connections"] == {"value": 10, "source": f"file {path}"}
    done = check("--json", "--set", "server.port=x")
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (1, False)
    assert json.loads(done.stdout)["problems"] == ["flag --port: server.port: got 'x', expected a valid integer"]


# What it would change.


def test_the_changes_between_two_files(tmp_path: Path) -> None:
    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    old.write_text("[server]\nport = 1\n" + KEYS)
    new.write_text("[server]\nport = 2\n[limits]\nmax_connections = 5\n" + KEYS.replace("publish-hush", "hush-2"))
    done = check("--offline", "--config", str(new), "--diff", str(old))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "ok",
        "server.port: 1 -> 2  [needs a restart]",
        "limits.max_connections: 10000 -> 5",
        "auth.publish_keys.ci: a key was revoked",
        "auth.publish_keys.ci: a key was added",
    ]
    assert check("--offline", "--config", str(old), "--diff", str(old)).stdout == "ok\nno changes\n"
    said = json.loads(check("--offline", "--json", "--config", str(new), "--diff", str(old)).stdout)["diff"]
    assert said["changes"]["limits.max_connections"] == {"old": 10000, "new": 5}
    done = check("--offline", "--config", str(new), "--diff", str(tmp_path / "none.toml"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "none.toml: cannot be read" in done.stderr


AUTH = {"publish_keys": {"tests": "publish-hush"}, "admin_keys": {"ops": "admin-hush"}}


def test_what_it_changes_of_the_server_that_runs(tmp_path: Path) -> None:
    admin_port = free_port()
    sections: dict[str, Any] = {"auth": AUTH, "admin": {"port": admin_port}}
    reloadable = Reloadable(tmp_path, **sections)
    path = str(reloadable.path)
    port = ["--port", "0"]  # as the server was started
    with reloadable.server as server:
        # The key and the port are those of the configuration.
        done = check("--config", path, "--diff", *port)
        assert (done.returncode, done.stderr) == (0, "")
        unseen = [f"auth.{name}_keys: not compared, because a server shows no secret" for name in ("publish", "admin")]
        assert done.stdout.splitlines() == ["ok", *sorted(unseen)]
        reloadable.write(sections | {
            "limits": {"max_connections": 5}, "broker": {"url": "memory://there"}, "admin": {"port": 1},
            "auth": AUTH | {"admin_keys": {"ops": "another"}},
        })  # fmt: skip
        url = f"http://127.0.0.1:{admin_port}"
        done = check("--offline", "--config", path, "--diff", "--url", url, *port)
        assert (done.returncode, done.stdout) == (1, "")
        assert "got status 401" in done.stderr
        assert "QGSTREAM_ADMIN_KEY" in done.stderr
        done = check("--offline", "--config", path, "--diff", "--url", url, *port, QGSTREAM_ADMIN_KEY="admin-hush")
        assert (done.returncode, done.stderr) == (0, "")
        assert [line for line in done.stdout.splitlines() if "not compared" not in line] == [
            "ok",
            f"admin.port: {admin_port} -> 1  [needs a restart]",
            'broker.url: "memory://" -> "memory://there"  [needs a restart]',
            "limits.max_connections: 10000 -> 5",
        ]
        assert "hush" not in done.stdout
        # As the reload says it, which also sees the secrets.
        server.process.send_signal(signal.SIGHUP)
        line = server.wait_for_log("config.reloaded")
        assert set(line["changes"]) == {"admin.port", "broker.url", "limits.max_connections"}


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = check("--offline", "--diff", "--url", url, QGSTREAM_ADMIN_KEY="admin-hush")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"--diff: {url}/admin/config: request failed: " in done.stderr
    done = check("--offline", "--diff", "--url", url)
    assert done.returncode == 1
    assert "set QGSTREAM_ADMIN_KEY, or auth.admin_keys" in done.stderr
    assert check("--url", url).returncode == 2
    with ServerProcess(tmp_path) as server:  # without an admin key
        done = check("--offline", "--diff", "--url", server.url, QGSTREAM_ADMIN_KEY="admin-hush")
        assert "got status 403" in done.stderr


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b'{"error": "no"}', "got status 200: no configuration"),
        (403, b'{"error": {"code": "x"}}', "got status 403: no configuration; the key comes from"),
        (403, b'{"error": {"message": "a\\u001b[2Jb\\u202e"}}', r"got status 403: a\x1b[2Jb\u202e; the key comes from"),
        (403, b'{"error": {"message": 5}}', "got status 403: no configuration; the key comes from"),
        (200, b"[" * 100_000, "got status 200: no configuration"),
        (200, b"\xff", "got status 200: no configuration"),
        (200, b'{"config": 5}', "got status 200: no configuration"),
        (302, b"", "got status 302: no configuration"),
        (200, b'{"config": {"limits.max_sockets": 5, "a\\u001b": {"value": "\\u009b\\u202e"}}}', ""),
    ],
)
def test_an_answer_of_something_else_is_one_sentence(
    status: int, body: bytes, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QGSTREAM_ADMIN_KEY", "admin-hush")
    asked: list[str] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            done = main(["check-config", "--offline", "--diff", "--url", f"http://127.0.0.1:{server.server_port}"])
        finally:
            server.shutdown()
            thread.join()
    out, err = capsys.readouterr()
    assert done == int(bool(said))
    assert said in err
    assert (out + err).replace("\n", "").isprintable()
    assert "hush" not in out + err
    assert asked == ["/admin/config"]  # a redirect is not followed: the key would go along


@pytest.mark.parametrize("key", ["hush\n", "hush\u044e", "hush\x7f"])
def test_an_admin_key_that_no_header_can_carry_is_not_repeated(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QGSTREAM_ADMIN_KEY", key)
    assert main(["check-config", "--offline", "--diff", "--url", "http://127.0.0.1:1"]) == 1
    out, err = capsys.readouterr()
    assert "the key or token has a character that no HTTP header can contain" in err
    assert "hush" not in out + err
