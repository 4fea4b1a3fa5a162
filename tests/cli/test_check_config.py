from __future__ import annotations

from pathlib import Path

import pytest

from qgstream.cli import main


def test_a_good_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[server]\nport = 1\n")
    assert main(["check-config", "--config", str(path)]) == 0
    assert capsys.readouterr() == ("ok\n", "")


def test_says_what_is_odd(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QGSTREAM_PORT", "tcp://10.0.0.11:80")
    assert main(["check-config"]) == 0
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
    assert main(["check-config", "--show", "--host", "::1", "--set", "cors.allow_origins=https://a.example"]) == 0
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
