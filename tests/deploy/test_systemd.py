"""The units: what systemd itself says of them, and what their command lines do."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qgstream.brokers.base import _ENGINES
from qgstream.process.capacity import descriptors
from qgstream.process.config import Config, load
from qgstream.process.machine import Machine
from tests.deploy.programs import DEPLOY, free_port
from tests.deploy.units import INSTALLED, SYSTEMD, command, read
from tests.serving import wait_until

ONE, MANY = SYSTEMD / "qgstream.service", SYSTEMD / "qgstream@.service"
SHARED = SYSTEMD / "shared-port.conf"  # a drop-in of the second
# The program of this run, by a name that systemd can look at.
PROGRAM = str(Path(sys.executable).with_name("qgstream"))

both = pytest.mark.parametrize("unit", [ONE, MANY], ids=lambda unit: unit.name)


def keys_of(unit: Path) -> dict[str, list[str]]:
    """The keys of a unit; of the drop-in, those of the template with what it replaces."""
    if unit != SHARED:
        return read(unit)
    replaced = read(SHARED)
    assert all(values[0] == "" for values in replaced.values()), "else systemd would add to the list"
    return read(MANY) | {key: values[1:] for key, values in replaced.items()}


@pytest.fixture
def installed(tmp_path: Path) -> Callable[[Path], Path]:
    """The unit as it would be installed here; of the template, its first instance."""

    def install(unit: Path) -> Path:
        text = unit.read_text().replace(INSTALLED, PROGRAM)
        if unit == SHARED:
            folder = tmp_path / f"{MANY.name}.d"
            folder.mkdir()
            (folder / unit.name).write_text(text)
            return install(MANY)
        (tmp_path / unit.name).write_text(text)
        path = tmp_path / unit.name.replace("@", "@1")
        path.write_text(text)
        return path

    return install


@pytest.mark.parametrize("unit", [ONE, MANY, SHARED], ids=lambda unit: unit.name)
def test_systemd_has_nothing_to_say_against_it(
    unit: Path, installed: Callable[[Path], Path], require_program: Callable[[str], Path]
) -> None:
    done = subprocess.run(
        [require_program("systemd-analyze"), "verify", "--man=no", installed(unit)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@both
def test_systemd_calls_it_well_confined(
    unit: Path, installed: Callable[[Path], Path], require_program: Callable[[str], Path]
) -> None:
    # In tenths, 0 is best. Of Debian 12's own units, nginx has 96 and Prometheus 40.
    done = subprocess.run(
        [require_program("systemd-analyze"), "security", "--offline=true", "--threshold=20", installed(unit)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_the_user_of_the_units_is_made(tmp_path: Path, require_program: Callable[[str], Path]) -> None:
    (tmp_path / "etc").mkdir()
    subprocess.run(
        [require_program("systemd-sysusers"), f"--root={tmp_path}", SYSTEMD / "qgstream.sysusers"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (entry,) = (tmp_path / "etc" / "passwd").read_text().splitlines()
    assert entry.split(":")[0] == read(ONE)["User"][0] == read(MANY)["User"][0]
    assert entry.endswith("nologin")


def test_the_template_differs_only_where_it_must() -> None:
    one, many = read(ONE), read(MANY)
    assert {key for key in one if one[key] != many.get(key)} == {
        "Description", "ExecStartPre", "ExecStart", "ExecReload"
    }  # fmt: skip
    assert one.keys() == many.keys()


@pytest.mark.parametrize("unit", [ONE, MANY, SHARED], ids=lambda unit: unit.name)
def test_what_is_checked_is_what_is_started(unit: Path) -> None:
    keys = keys_of(unit)
    (start,), (pre,), (check, kill) = keys["ExecStart"], keys["ExecStartPre"], keys["ExecReload"]
    assert start.replace(" serve ", " check-config --offline ") == pre == check
    assert command(kill) == ["/bin/kill", "-HUP", "$MAINPID"]


# What the unit makes of an end, by the table in systemd.service(5), "Restart=".


def starts_again(unit: Path, status: int) -> bool:
    """Whether systemd starts a service again that ended so by itself. Below 0: by that signal."""
    keys = read(unit)
    assert not {"SuccessExitStatus", "RestartForceExitStatus", "RestartPreventExitStatus"} & keys.keys()
    clean = status == 0 or -status in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
    return {"always": True, "on-failure": not clean, "no": False}[keys["Restart"][0]]


@both
@pytest.mark.parametrize(("how", "again"), [("drain", False), ("kill", True), ("abort", True)])
def test_who_is_told_to_leave_stays_away_and_who_crashes_comes_back(
    unit: Path, how: str, again: bool, tmp_path: Path, config: Callable[..., Path], stack: ExitStack
) -> None:
    admin_port = free_port()
    path = config(port=free_port(), admin_port=admin_port)
    path.write_text(path.read_text() + '[auth]\nadmin_keys = ["admin-key"]\n')
    service = Service(unit, path, tmp_path, instance="1", admin_port=admin_port)
    stack.callback(service.stop)
    assert service.said() == "READY=1"
    if how == "drain":
        request = urllib.request.Request(
            f"http://127.0.0.1:{admin_port}/admin/drain", method="POST", headers={"Authorization": "Bearer admin-key"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 202
    else:
        service.process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGABRT)
    assert starts_again(unit, service.process.wait(60)) == again
    said = " ".join((DEPLOY.parent / "docs" / "production.md").read_text().split())
    assert ("leaves the unit stopped until `systemctl start`" in said) == (not starts_again(unit, 0))


@both
def test_the_journal_takes_two_lines_for_each_stream_that_fits(unit: Path) -> None:
    keys = read(unit)
    machine = Machine(soft_descriptors=1024, hard_descriptors=int(keys["LimitNOFILE"][0]), cores=1)
    streams = descriptors(Config(), machine).fits
    assert streams is not None
    assert int(keys["LogRateLimitBurst"][0]) >= 2 * streams
    assert keys["LogRateLimitIntervalSec"] == ["30s"]


# The page for operators, followed.


def test_the_steps_of_the_page_lead_to_a_configuration_that_is_well(tmp_path: Path) -> None:
    """The commands of docs/production.md as they stand there, below another root. What needs the machine itself is left
    out: packages, users, and systemd."""
    page = (DEPLOY.parent / "docs" / "production.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", page.partition("## Start")[0], re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    left_out = [line for line in lines if re.match(r"apt-get |systemd-sysusers|\S+/python3 -m venv|\S+/pip ", line)]
    assert len(left_out) == 4, left_out
    script = "\n".join(line for line in lines if line not in left_out)
    script = re.sub(r" -o \w+| -g \w+", "", re.sub(r"(?<= )/etc/", f"{tmp_path}/etc/", script))
    (tmp_path / "etc" / "systemd" / "system").mkdir(parents=True)
    subprocess.run(["sh", "-euc", script], cwd=DEPLOY.parent, check=True, capture_output=True, timeout=60)
    installed = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert installed == {
        "etc/sysusers.d/qgstream.conf", "etc/qgstream/qgstream.toml", "etc/systemd/system/qgstream.service",
        "etc/qgstream/keys/orders", "etc/qgstream/keys/ops",
    }  # fmt: skip
    path = tmp_path / "etc" / "qgstream" / "qgstream.toml"
    check = [PROGRAM, "check-config", "--config", str(path), "--port", "0", "--set", f"admin.port={free_port()}"]
    check += ["--set", "limits.max_connections=500"]  # this machine may have few descriptors

    def checked() -> tuple[int, list[str]]:
        done = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stderr.splitlines()

    status, said = checked()
    assert status == 1
    assert any(line.startswith("cors.allow_origins: has 'example.com', which is a placeholder") for line in said)
    # The keys as the page writes them, and what is marked.
    (keys,) = re.findall(r"^```toml\n\[auth\]\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    text = path.read_text().replace("[auth]\n", "[auth]\n" + keys.replace("/etc/", f"{tmp_path}/etc/"))
    path.write_text(text.replace("CHANGE", "Decided").replace("www.example.com", "www.mine.test"))
    assert checked() == (0, [])


def test_the_page_installs_the_library_of_each_broker_that_it_names() -> None:
    page = (DEPLOY.parent / "docs" / "production.md").read_text()
    extras = {extra for _, _, extra in _ENGINES.values() if extra is not None}
    (installed,) = re.findall(r"bin/pip install '\.\[([\w,]+)\]'", page)
    assert set(installed.split(",")) <= extras
    (sentence,) = re.findall(r"The extra in brackets installs (.*?), or several", page, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", sentence)) == extras


# The command lines, run.


class Service:
    """What systemd would do with a unit: its check, its start, and the socket that it listens at."""

    def __init__(
        self, unit: Path, config: Path, folder: Path, *, instance: str = "", port: int = 0, admin_port: int
    ) -> None:  # fmt: skip
        keys = keys_of(unit)
        self._config = config

        def words(line: str) -> list[str]:
            # The ports that the template counts up from 8001 and 9001 may be taken on this machine.
            here = line.replace("admin.port=900%i", f"admin.port={admin_port}")
            here = here.replace("server.port=800%i", f"server.port={port}")
            found = command(here.replace("/etc/qgstream/qgstream.toml", str(config)), instance=instance)
            return [PROGRAM if word == INSTALLED else word for word in found]

        self.check = words(keys["ExecStartPre"][0])
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(60)
        path = folder / f"notify-{instance}"
        self.socket.bind(str(path))
        self.admin_port = admin_port
        environment = os.environ | {
            "NOTIFY_SOCKET": str(path),
            "WATCHDOG_USEC": str(int(keys["WatchdogSec"][0]) * 1_000_000),
        }
        subprocess.run(self.check, check=True, timeout=60, capture_output=True)
        self.log_path = folder / f"log-{instance}"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(words(keys["ExecStart"][0]), env=environment, stderr=log)

    def said(self) -> str:
        """The next message to systemd. That the process lives comes now and then between the others."""
        while (message := self.socket.recv(4096).decode()) == "WATCHDOG=1":
            pass
        return message

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=60) as answer:
            body: bytes = answer.read()
            return body

    def streams_opened(self) -> int:
        found = re.search(rb"^qgstream_connections_opened_total (\S+)$", self.get("/metrics"), re.MULTILINE)
        assert found
        return int(float(found[1]))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.socket.close()


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    def write(*, port: int, admin_port: int = 9000) -> Path:
        path = tmp_path / "qgstream.toml"
        path.write_text(
            f'[server]\nhost = "127.0.0.1"\nport = {port}\n[admin]\nport = {admin_port}\n'
            "[drain]\nseconds = 0\n[limits]\nmax_connections = 100\n"
        )
        return path

    return write


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def test_one_process_starts_reloads_and_stops(tmp_path: Path, config: Callable[..., Path], stack: ExitStack) -> None:
    admin_port = free_port()
    path = config(port=free_port(), admin_port=admin_port)
    service = Service(ONE, path, tmp_path, admin_port=admin_port)
    stack.callback(service.stop)
    assert service.said() == "READY=1"
    assert json.loads(service.get("/ready")) == {"status": "ready"}
    # `systemctl reload` checks first, and says so when the file is no good; the server has heard nothing.
    good = path.read_text()
    path.write_text(good.replace("max_connections", "max_conections"))
    refused = subprocess.run(service.check, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "did you mean limits.max_connections" in refused.stderr
    path.write_text(good.replace("= 100", "= 50"))
    subprocess.run(service.check, check=True, capture_output=True, timeout=60)
    service.process.send_signal(signal.SIGHUP)
    assert service.said().startswith("RELOADING=1")
    assert service.said() == "READY=1"
    assert b"qgstream_connections_limit 50.0" in service.get("/metrics")
    service.process.terminate()
    assert service.said().startswith("STOPPING=1")
    assert service.process.wait(60) == 0


def test_two_instances_have_ports_of_their_own(tmp_path: Path, config: Callable[..., Path], stack: ExitStack) -> None:
    path = config(port=free_port())
    services, ports = [], [free_port(), free_port()]
    for instance, port in zip("12", ports, strict=True):
        service = Service(MANY, path, tmp_path, instance=instance, port=port, admin_port=free_port())
        stack.callback(service.stop)
        assert service.said() == "READY=1"
        services.append(service)
    for number, port in enumerate(ports):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
        assert [service.streams_opened() for service in services] == [1, number]


def test_two_instances_may_share_a_port(tmp_path: Path, config: Callable[..., Path], stack: ExitStack) -> None:
    port = free_port()
    path = config(port=port)
    services = []
    for instance in ("1", "2"):
        service = Service(SHARED, path, tmp_path, instance=instance, admin_port=free_port())
        stack.callback(service.stop)
        assert service.said() == "READY=1"
        services.append(service)

    def open_streams_until_both_have_one() -> bool:
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
        # The kernel chooses by a hash of the client's address and port.
        return all(service.streams_opened() for service in services)

    wait_until(open_streams_until_both_have_one, what="a stream at each instance")
    # One may go: who comes now, comes to the other.
    services[0].process.terminate()
    assert services[0].process.wait(60) == 0
    before = services[1].streams_opened()
    for number in range(1, 6):
        open_streams = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        open_streams.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert open_streams.recv(12) == b"HTTP/1.1 200"
        assert services[1].streams_opened() == before + number


def test_the_ports_of_an_instance_are_8000_and_9000_and_its_number() -> None:
    for key in ("ExecStartPre", "ExecStart", "ExecReload"):
        words = command(keys_of(MANY)[key][0], instance="3")
        assert words[-4:] == ["--set", "server.port=8003", "--set", "admin.port=9003"]
        words = command(keys_of(SHARED)[key][0], instance="3")
        assert words[-4:] == ["--set", "server.reuse_port=true", "--set", "admin.port=9003"]
    # One service has what its file says, and none of them takes the other's port.
    assert "--set" not in read(ONE)["ExecStart"][0]
    assert load(DEPLOY.parent / "conf" / "production.toml").config.admin.port == 9000
