from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import pytest

from qgstream.auth.authenticator import Authenticator, Credentials
from qgstream.cli import main
from qgstream.process.config import load
from tests.signing import SECRET, payload, public_pem, sign


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "c.toml"
    path.write_text(
        f'[auth]\npublish_keys = {{ ci = "a-publish-key" }}\nadmin_keys = {{ ops = "an-admin-key" }}\n'
        f'[auth.jwt]\nalgorithms = ["HS256"]\nsecret = "{SECRET}"\naudience = "here"\n'
    )
    return str(path)


def run(*argv: str) -> int:
    try:
        return main(["token", *argv])
    except SystemExit as ended:
        return cast("int", ended.code)


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    """What was printed, by check: ok or failed, and the detail."""
    split = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    return {check: (outcome, detail) for outcome, check, detail in split}


def test_what_it_mints_is_accepted(capsys: pytest.CaptureFixture[str], config: str) -> None:
    grants = ["--publish", "orders/*", "--publish", "news", "--subscribe", "orders/1"]
    before = time.time()
    assert run("--config", config, "--subject", "ann", "--ttl", "60", *grants) == 0
    token, end = capsys.readouterr().out.split("\n")
    assert end == ""
    authenticator = Authenticator(load(Path(config)).config.auth)
    principal = authenticator.authenticate(Credentials(f"Bearer {token}"), time.time())
    assert (principal.name, principal.kind) == ("ann", "token")
    assert (principal.publish, principal.subscribe) == (("orders/*", "news"), ("orders/1",))
    assert principal.expires_at is not None
    leeway = 10
    assert before + 60 <= principal.expires_at <= time.time() + 61 + leeway


def test_an_hour_and_no_grants_unless_asked(capsys: pytest.CaptureFixture[str], config: str) -> None:
    assert run("--config", config, "--subject", "ann") == 0
    token = capsys.readouterr().out.strip()
    authenticator = Authenticator(load(Path(config)).config.auth)
    principal = authenticator.authenticate(Credentials(f"Bearer {token}"), time.time())
    assert (principal.publish, principal.subscribe) == ((), ())
    assert authenticator.explain(token, time.time() + 3500)[-1].ok
    assert not all(check.ok for check in authenticator.explain(token, time.time() + 3620))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ttl", "0"], "ttl_seconds: got 0.0, expected more than 0"),
        (["--ttl", "nan"], "ttl_seconds: got nan"),
        (["--ttl", "inf"], "ttl_seconds: got inf"),
        (["--publish", "a*b"], "publish: "),
        (["--subscribe", ""], "subscribe: "),
        (["--subject", ""], "subject: "),
    ],
)
def test_what_would_be_refused_is_not_minted(
    capsys: pytest.CaptureFixture[str], config: str, flags: list[str], said: str
) -> None:
    assert run("--config", config, "--subject", "ann", *flags) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_only_the_issuer_mints_for_a_public_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(public_pem("p256"))
    path = tmp_path / "c.toml"
    path.write_text(f'[auth.jwt]\nalgorithms = ["ES256"]\npublic_key_file = "{tmp_path}/key.pem"\n')
    assert run("--config", str(path), "--subject", "ann") == 1
    assert capsys.readouterr().err.startswith("auth.jwt.algorithms: got ES256, expected HS256")


def test_without_a_secret_nothing_is_minted(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--subject", "ann") == 1
    assert capsys.readouterr() == ("", "auth.jwt: not set, expected algorithms and a secret to mint a token\n")


def test_explains_a_good_one(capsys: pytest.CaptureFixture[str], config: str) -> None:
    run("--config", config, "--subject", "ann", "--publish", "news")
    token = capsys.readouterr().out.strip()
    assert run("--config", config, "--explain", token) == 0
    said = lines(capsys)
    assert {outcome for outcome, _ in said.values()} == {"ok"}
    assert {"form", "algorithm", "key", "signature"} < said.keys()
    assert said["algorithm"] == ("ok", "HS256")


def test_says_every_check_that_fails(capsys: pytest.CaptureFixture[str], config: str) -> None:
    token = sign(payload(exp=time.time() - 60), "another secret, and it is long enough, too")
    assert run("--config", config, "--explain", token) == 1
    output = capsys.readouterr().out
    failed = [line.split()[1] for line in output.splitlines() if line.startswith("failed")]
    assert failed[0] == "signature"
    assert len(failed) == 3  # and that it has expired, and is not for this audience
    assert "expired" in output
    assert "aud" in output
    assert token not in output
    assert SECRET not in output


@pytest.mark.parametrize(
    ("key", "status", "line"),
    [
        ("a-publish-key", 0, "ok      key  publish_key 'ci'\n"),
        ("an-admin-key", 0, "ok      key  admin_key 'ops'\n"),
        ("no-key", 1, "failed  form  token: got another form, expected three base64url parts with dots between them\n"),
    ],
)
def test_explains_keys(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    config: str,
    key: str,
    status: int,
    line: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{key}\n".encode())))
    assert run("--config", config, "--explain", "-") == status
    assert capsys.readouterr().out == line


@pytest.mark.parametrize("given", [b"\xff\xfe\x00", b"", b"x" * 200_000])
def test_what_is_no_token_is_no_traceback(config: str, given: bytes) -> None:
    command = [sys.executable, "-m", "qgstream", "token", "--config", config, "--explain", "-"]
    done = subprocess.run(command, input=given, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout.startswith(b"failed  form  token: ")


def test_an_endless_input_is_not_read_to_its_end(config: str) -> None:
    command = [sys.executable, "-m", "qgstream", "token", "--config", config, "--explain", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"x" * 65536)
        process.stdin.flush()  # and left open
        try:
            assert process.wait(60) == 1
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "expected --subject NAME to mint a token, or --explain TOKEN"),
        (["--explain", "-", "--subject", "ann"], "--explain takes no --subject"),
        (["--subject", "ann", "--ttl", "soon"], "argument --ttl: invalid float value: 'soon'"),
    ],
)
def test_a_command_line_that_cannot_be_understood(
    capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert run(*flags) == 2
    assert said in capsys.readouterr().err


def test_help_says_why_to_use_standard_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "every user of the machine can read a command line" in " ".join(capsys.readouterr().out.split())
