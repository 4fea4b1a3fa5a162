"""What `serve` will need is tried: each check with what is well and what is not, on real files, ports and engines."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qgstream.process import preflight
from qgstream.process.capacity import Finding
from qgstream.process.config import Config, Loaded, load, values
from qgstream.process.machine import listener
from tests.conftest import ExpectLog
from tests.deploy.programs import free_port
from tests.hostile.certificates import make_certificate
from tests.serving import ServerProcess

KEYS = {"publish_keys": {"ci": "k" * 40}, "admin_keys": {"ops": "a" * 40}}
DAY = 86_400
NOW = time.time()


def loaded(**sections: Any) -> Loaded:
    config = Config.model_validate({"auth": KEYS} | sections)
    return Loaded(config, (), {key.name: "default" for key, _ in values(config)})


def of_files(
    path: Path | None = None, *, now: float | None = None, lenient: bool = False, **sections: Any
) -> dict[str, Finding]:
    # Not the time at which this module was imported: in a long run a file that a test has just written is from its
    # future.
    found = preflight.configuration(loaded(**sections), path, now or time.time(), lenient=lenient)
    return {finding.check: finding for finding in found}


def of_network(**sections: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in preflight.network(loaded(**sections).config)}


def odd(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.verdict for name, finding in findings.items() if finding.verdict != "ok"}


def test_a_good_one() -> None:
    assert odd(of_files()) == {}
    assert odd(of_network(server={"port": 0})) == {}


def test_every_problem_of_the_files_is_found_at_once(tmp_path: Path) -> None:
    """What `serve` refuses is found where it refuses it, and none of them hides another."""
    findings = of_files(
        auth={"publish_keys": {"ci": {"file": str(tmp_path / "none")}}},
        server={"certfile": str(tmp_path / "none"), "keyfile": str(tmp_path / "none")},
        broker={"url": "foo://x"},
        sources=[{"use": "nothing-of-this-name"}],
    )  # fmt: skip
    failing = {name for name, verdict in odd(findings).items() if verdict == "fails"}
    assert failing >= {"auth.publish_keys.ci.file", "server.certfile, server.keyfile", "broker.url"}
    assert any(name.startswith("sources") for name in failing)
    # What cannot be used is not tried.
    assert "broker.url" not in {
        finding.check for finding in preflight.network(
            loaded(broker={"url": "foo://x"}, server={"port": 0}).config, list(findings.values())
        )
    }  # fmt: skip


@pytest.mark.parametrize(
    ("days", "verdict", "said"),
    [
        (0.0, "ok", "valid until"),
        (-20.0, "fails", "is valid from"),
        (90 - 13.5, "warning", "13 days"),
        (90 - 14.5, "ok", "14 days"),
        (90.5, "fails", "expired on"),
    ],
)
def test_the_certificate(tmp_path: Path, days: float, verdict: str, said: str) -> None:
    certfile, keyfile = make_certificate(tmp_path, days=90)
    server = {"certfile": str(certfile), "keyfile": str(keyfile)}
    now = NOW + days * DAY
    finding = of_files(now=now, server=server)["server.certfile"]
    assert (finding.verdict, said in finding.found) == (verdict, True), finding
    # Before a start or a reload nothing is in the way that `serve` itself would take.
    lenient = of_files(now=now, lenient=True, server=server)["server.certfile"]
    assert lenient.verdict == ("warning" if verdict == "fails" else verdict)


def test_a_certificate_and_the_key_of_another(tmp_path: Path) -> None:
    certfile, _ = make_certificate(tmp_path)
    _, keyfile = make_certificate(tmp_path, name="other")
    findings = of_files(lenient=True, server={"certfile": str(certfile), "keyfile": str(keyfile)})
    assert findings["server.certfile, server.keyfile"].verdict == "fails"


def test_the_chain_is_as_old_as_its_oldest(tmp_path: Path) -> None:
    certfile, keyfile = make_certificate(tmp_path, days=90)
    above, _ = make_certificate(tmp_path, name="above", days=5.5)
    certfile.write_bytes(certfile.read_bytes() + above.read_bytes())
    finding = of_files(server={"certfile": str(certfile), "keyfile": str(keyfile)})["server.certfile"]
    assert (finding.verdict, "5 days" in finding.found) == ("warning", True)


def test_keys_that_are_missing() -> None:
    assert odd(of_files(auth={})) == {"auth.publish_keys": "warning", "auth.admin_keys": "warning"}
    jwt = {"algorithms": ["HS256"], "secret": "x" * 40}
    assert odd(of_files(auth={"jwt": jwt})) == {"auth.admin_keys": "warning"}


@pytest.mark.parametrize(
    ("sections", "verdict"),
    [
        ({}, "fails"),
        ({"broker": {"url": "sqlite:////nowhere/log"}}, "fails"),
        ({"broker": {"url": "redis://127.0.0.1:6379/0"}}, "warning"),
        ({"sources": [{"use": "clock"}]}, "warning"),
    ],
)
def test_a_file_by_which_no_event_can_come(tmp_path: Path, sections: dict[str, Any], verdict: str) -> None:
    path = tmp_path / "qgstream.toml"
    path.write_text("")
    sections = sections | {"auth": {"admin_keys": KEYS["admin_keys"]}}
    assert odd(of_files(path, **sections)) == {"auth.publish_keys": verdict}
    assert odd(of_files(path, lenient=True, **sections)) == {"auth.publish_keys": "warning"}


@pytest.mark.parametrize(
    ("sections", "check"),
    [
        ({"cors": {"allow_origins": ["https://www.example.com"]}}, "cors.allow_origins"),
        ({"server": {"allowed_hosts": ["events.example.org"]}}, "server.allowed_hosts"),
        ({"log": {"env": "CHANGE"}}, "log.env"),
        ({"auth": KEYS | {"publish_keys": {"x": "change-me-please"}}}, "auth.publish_keys.x"),
        ({"auth": KEYS | {"admin_keys": {"x": ["a-long-random-string", "k" * 30]}}}, "auth.admin_keys.x[0]"),
        ({"auth": KEYS | {"publish_keys": {"x": "dev"}}, "server": {"host": "0.0.0.0"}}, "auth.publish_keys.x"),
    ],
)
def test_placeholders(sections: dict[str, Any], check: str) -> None:
    assert odd(of_files(**sections)) == {check: "fails"}
    assert odd(of_files(lenient=True, **sections)) == {check: "warning"}


def test_what_is_no_placeholder() -> None:
    """The key of conf/dev.toml is for the loopback, and a name that only looks alike is somebody's own."""
    assert odd(of_files(auth=KEYS | {"publish_keys": {"x": "dev"}})) == {}
    assert odd(of_files(cors={"allow_origins": ["https://counterexample.com", "https://example.company"]})) == {}


def test_marks_of_the_shipped_file(tmp_path: Path) -> None:
    shipped = (Path(__file__).parents[2] / "conf" / "production.toml").read_text()
    path = tmp_path / "qgstream.toml"
    path.write_text(shipped)

    def marked(*, lenient: bool = False) -> set[str]:
        found = preflight.configuration(load(path), path, time.time(), lenient=lenient)
        marks = [finding for finding in found if "still marked CHANGE" in finding.found]
        assert {finding.verdict for finding in marks} == {"warning" if lenient else "fails"}
        return {finding.check for finding in marks}

    expected = {"server.trusted_proxies", "cors.allow_origins", "admin.host", "log.env"}
    assert marked() == marked(lenient=True) == expected, "each mark of the file stands above the key that it is about"
    assert shipped.count("# CHANGE") == len(expected)
    path.write_text(shipped.replace("# CHANGE: the origins", "# The origins"))
    assert marked() == expected - {"cors.allow_origins"}


def test_a_clock_that_is_behind_its_own_files(tmp_path: Path) -> None:
    path = tmp_path / "qgstream.toml"
    path.write_text("")
    os.utime(path, (NOW + 2 * DAY, NOW + 2 * DAY))
    assert odd(of_files(path)) == {"clock": "warning"}
    os.utime(path, (NOW + 60, NOW + 60))
    assert odd(of_files(path)) == {}


# The network.


def test_a_port_that_is_taken_says_by_whom() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        holder = listener(port)
        assert holder is not None
        assert holder[0] == os.getpid()
        assert Path(sys.executable).name.split(".")[0][:6] in holder[1]
    assert listener(port) is None


def test_the_command_of_another_process_does_nothing_to_the_terminal() -> None:
    listening = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    )
    other = subprocess.Popen(
        ["\x1b[2J\u202e", "-c", listening], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    with other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        finding = of_network(server={"port": port})["server.port"]
        other.kill()
    assert f"is in use by the process {other.pid} (" in finding.found
    assert finding.found.isprintable()


def test_one_port_for_two_listeners() -> None:
    port = free_port()
    findings = of_network(server={"port": port}, admin={"port": port})
    assert odd(findings) == {"admin.port": "fails"}
    assert "is server.port, too" in findings["admin.port"].found


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_cannot_be_listened_on(host: str) -> None:
    assert odd(of_network(server={"port": 0, "host": host})) == {"server.port": "fails"}


def test_a_server_that_runs_already_is_no_problem_for_its_own_configuration(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    with ServerProcess(tmp_path, broker__url=f"sqlite://{path}") as server:
        findings = of_network(server={"port": server.port}, broker={"url": f"sqlite://{path}"})
        assert odd(findings) == {}
        for check in ("server.port", "broker.url"):
            assert f"the process {server.process.pid}" in findings[check].found
            assert "a qgstream server that is already running" in findings[check].found


@pytest.mark.parametrize("scheme", ["redis", "nats", "amqp"])
def test_an_engine_that_does_not_answer(scheme: str) -> None:
    port = free_port()
    broker = {"url": f"{scheme}://user:hunter2@127.0.0.1:{port}", "timeout_seconds": 2}
    findings = of_network(server={"port": 0}, broker=broker)
    assert odd(findings) == {"broker.url": "fails"}
    assert str(port) in findings["broker.url"].found
    assert "hunter2" not in repr(findings)


def test_an_engine_that_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        broker = {"url": f"redis://127.0.0.1:{silent.getsockname()[1]}", "timeout_seconds": 0.3}
        findings = of_network(server={"port": 0}, broker=broker)
    assert odd(findings) == {"broker.url": "fails"}


def test_a_log_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "here" / "events.db"
    server: dict[str, object] = {"port": 0}
    broker = {"url": f"sqlite://{path}"}
    assert "is not a directory" in of_network(server=server, broker=broker)["broker.url"].found
    path.parent.mkdir()
    assert odd(of_network(server=server, broker=broker)) == {}
    assert list(path.parent.iterdir()) == [], "a check makes nothing: root's files would be in the server's way"
    path.write_text("something else")
    assert "is not a SQLite database" in of_network(server=server, broker=broker)["broker.url"].found


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # root may write everywhere, so access(2) says no here for whoever runs this.
    monkeypatch.setattr(os, "access", lambda *_: False)
    finding = of_network(server={"port": 0}, broker={"url": f"sqlite://{tmp_path}/events.db"})["broker.url"]
    assert (finding.verdict, "cannot be written" in finding.found) == ("fails", True)


def test_an_issuer_that_does_not_answer(expect_log: ExpectLog) -> None:
    expect_log("jwks.failed")
    url = f"http://127.0.0.1:{free_port()}/jwks.json"
    auth = KEYS | {"jwt": {"algorithms": ["RS256"], "jwks_url": url}}
    findings = of_network(server={"port": 0}, auth=auth)
    assert odd(findings) == {"auth.jwt.jwks_url": "fails"}
    assert url in findings["auth.jwt.jwks_url"].found
