from __future__ import annotations

import errno
import itertools
import json
import re
import resource
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qgstream.errors import ConfigError
from qgstream.net.sockets import raise_descriptor_limit
from qgstream.process.capacity import MIB, Finding, capacity, examine
from qgstream.process.config import Config
from qgstream.process.machine import Held, Machine, hold, read_machine

NOW = 1_800_000_000.0
HELD = Held(100, 100, 0.01, 0.01)
MACHINE = Machine(
    soft_descriptors=1024,
    hard_descriptors=524288,
    cores=4,
    somaxconn=4096,
    syn_backlog=4096,
    ports=28232,
    memory_available=8192 * MIB,
    tcp_mem_bytes=1000 * MIB,
    tcp_retries=15,
    clock_source="tsc",
)


def found(
    machine: Machine = MACHINE, held: Held = HELD, now: float = NOW, **sections: dict[str, object]
) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(Config.model_validate(sections), machine, held, now)}


def odd(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.verdict for name, finding in findings.items() if finding.verdict != "ok"}


def test_a_host_that_is_large_enough() -> None:
    findings = found()
    assert odd(findings) == {}
    assert all(finding.found and not finding.change for finding in findings.values())


@pytest.mark.parametrize("limits", [{}, {"max_sockets": 5000}, {"max_connections": 100}])
def test_descriptors_are_counted_as_the_server_counts_them(limits: dict[str, object]) -> None:
    """What the doctor says fits is what the server starts with, and one more is refused by both."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    machine = replace(MACHINE, hard_descriptors=hard)
    key = "max_sockets" if "max_sockets" in limits else "max_connections"
    fits = found(machine, limits=limits)["descriptors"].fits
    assert fits is not None
    for value, verdict in ((fits, "ok"), (fits + 2, "fails")):
        config = Config.model_validate({"limits": limits | {key: value}})
        assert found(machine, limits=limits | {key: value})["descriptors"].verdict == verdict
        if verdict == "ok":
            raise_descriptor_limit(config.limits)
        else:
            with pytest.raises(ConfigError):
                raise_descriptor_limit(config.limits)


def test_descriptors_that_do_not_fit_say_what_to_write() -> None:
    finding = found(replace(MACHINE, hard_descriptors=4096))["descriptors"]
    assert (finding.verdict, finding.fits) == ("fails", 3574)  # as in docs/tuning-limits.md
    assert "LimitNOFILE=11164" in finding.change


def test_memory() -> None:
    # 53 and 1.25 x (64 + 256 + 64) MiB, and 12 KiB for each of 10 000 streams: 650.2 MiB
    assert found(replace(MACHINE, memory_available=651 * MIB))["memory"].verdict == "ok"
    short = found(replace(MACHINE, memory_available=650 * MIB))["memory"]
    assert (short.verdict, short.fits) == ("fails", (650 - 533) * MIB // 12288)
    assert "raise the memory by 1 MiB" in short.change
    assert found(replace(MACHINE, memory_available=100 * MIB))["memory"].fits == 0
    tls: dict[str, object] = {"certfile": "a", "keyfile": "b"}
    assert found(replace(MACHINE, memory_available=651 * MIB), server=tls)["memory"].verdict == "fails"
    # Replays from before the window: 1.25 x (16 + 64) MiB.
    redis: dict[str, object] = {"url": "redis://127.0.0.1"}
    assert found(replace(MACHINE, memory_available=751 * MIB), broker=redis)["memory"].verdict == "ok"
    assert found(replace(MACHINE, memory_available=750 * MIB), broker=redis)["memory"].verdict == "fails"


def test_the_memory_of_a_group_counts_when_it_is_less() -> None:
    finding = found(replace(MACHINE, cgroup_available=300 * MIB))["memory"]
    assert finding.verdict == "fails"
    assert "MemoryMax=" in finding.change
    assert found(replace(MACHINE, cgroup_available=16384 * MIB))["memory"].verdict == "ok"


@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        ({"somaxconn": 128}, "somaxconn", "sysctl -w net.core.somaxconn=1024"),
        ({"syn_backlog": 1023}, "tcp_max_syn_backlog", "sysctl -w net.ipv4.tcp_max_syn_backlog=1024"),
        ({"ports": 9999}, "ports", "net.ipv4.ip_local_port_range='1024 65535'"),
        ({"tcp_mem_bytes": 117 * MIB}, "tcp_mem", "raise net.ipv4.tcp_mem"),
        ({"clock_source": "hpet"}, "clock source", "use tsc"),
    ],
)
def test_what_could_be_better_is_a_warning_with_its_remedy(change: dict[str, Any], check: str, said: str) -> None:
    findings = found(replace(MACHINE, **change))
    assert odd(findings) == {check: "warning"}
    assert said in findings[check].change


def test_dead_peers() -> None:
    assert odd(found(limits={"tcp_user_timeout_seconds": 0})) == {"dead peers": "warning"}


def test_the_clock() -> None:
    assert odd(found(now=0.0)) == {"clock": "warning"}
    assert odd(found(held=Held(100, 100, 0.01, 3600.0))) == {"clock": "warning"}
    assert found()["clock"].found == "2027-01-15 08:00:00 UTC"
    assert odd(found(replace(MACHINE, clock_is_kept=False))) == {"clock": "warning"}
    assert odd(found(replace(MACHINE, clock_is_kept=True))) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_the_kernel_says_whether_the_clock_is_kept_and_nothing_is_changed() -> None:
    kept = read_machine().clock_is_kept
    assert kept in (True, False)
    asked = ["timedatectl", "show", "-p", "NTPSynchronized"]
    if shutil.which(asked[0]):
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
        # It needs systemd, which is not everywhere where the program is.
        assert done.stdout.strip() in ("", f"NTPSynchronized={'yes' if kept else 'no'}")


def test_what_cannot_be_read_is_unknown_and_no_failure() -> None:
    assert set(odd(found(Machine(1024, 524288, 4))).values()) == {"unknown"}


def test_sockets_that_cannot_be_had() -> None:
    findings = found(held=Held(100, 40, 0.01, 0.01, "Too many open files"))
    assert odd(findings) == {"measured": "fails"}
    assert "Too many open files" in findings["measured"].found
    least = capacity(list(findings.values()))
    assert least is not None
    assert (least.check, least.fits) == ("measured", 40)


# What is read and measured.


def write(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def test_reads_a_kernel(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/sys/net/core/somaxconn": "4096\n",
            "proc/sys/net/ipv4/tcp_max_syn_backlog": "512\n",
            "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
            "proc/sys/net/ipv4/tcp_mem": "100\t200\t300\n",
            "proc/sys/net/ipv4/tcp_retries2": "15\n",
            "proc/meminfo": "MemTotal: 9 kB\nMemAvailable:     2048 kB\n",
            "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
        },
    )
    machine = read_machine(tmp_path)
    assert (machine.somaxconn, machine.syn_backlog, machine.ports, machine.tcp_retries) == (4096, 512, 28232, 15)
    assert (machine.memory_available, machine.clock_source) == (2 * MIB, "tsc")
    assert machine.tcp_mem_bytes == 200 * resource.getpagesize()
    assert machine.cgroup_available is None


def test_the_tightest_memory_group_counts(tmp_path: Path) -> None:
    inner, outer = "sys/fs/cgroup/a.slice/b.service", "sys/fs/cgroup/a.slice"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a.slice/b.service\n",
            f"{inner}/memory.max": "max\n",
            f"{inner}/memory.current": "1\n",
            f"{outer}/memory.max": "1000\n",
            f"{outer}/memory.current": "700\n",
            f"{outer}/memory.stat": "anon 5\ninactive_file 200\n",
        },
    )
    assert read_machine(tmp_path).cgroup_available == 500
    (tmp_path / f"{inner}/memory.max").write_text("100\n")
    assert read_machine(tmp_path).cgroup_available == 99


def test_memory_groups_of_version_1(tmp_path: Path) -> None:
    top = "sys/fs/cgroup/memory"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/not/seen/from/inside\n1:cpu:/\n0::/\n",
            f"{top}/memory.limit_in_bytes": "1000\n",
            f"{top}/memory.usage_in_bytes": "400\n",
            f"{top}/memory.stat": "total_inactive_file 100\n",
        },
    )
    assert read_machine(tmp_path).cgroup_available == 700
    (tmp_path / f"{top}/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert read_machine(tmp_path).cgroup_available is None


def test_a_machine_without_any_of_it(tmp_path: Path) -> None:
    machine = read_machine(tmp_path)
    assert (machine.somaxconn, machine.ports, machine.memory_available, machine.clock_source) == (
        None,
        None,
        None,
        None,
    )


def test_connections_are_really_held_and_closed() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    held = hold(50)
    assert (held.asked, held.held, held.reason) == (50, 50, "")
    assert 0 < held.seconds < 10
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_ends_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    connect, tries = socket.create_connection, itertools.count()

    def refuse_the_fourth(*args: Any, **options: Any) -> socket.socket:
        if next(tries) == 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return connect(*args, **options)

    monkeypatch.setattr(socket, "create_connection", refuse_the_fourth)
    held = hold(50)
    assert (held.asked, held.held, held.reason) == (50, 3, "Too many open files")


# The command.


def doctor(*flags: str, descriptors: int = 2048) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors // 2, descriptors))

    return subprocess.run(
        [sys.executable, "-m", "qgstream", "doctor", *flags],
        capture_output=True, text=True, timeout=60, check=False, preexec_fn=limit,
    )  # fmt: skip


def test_says_that_all_is_well(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        "[server]\nport = 0\n[limits]\nmax_connections = 1000\nmax_total_backlog_bytes = 16777216\n"
        "[auth]\npublish_keys = ['a-key-for-the-test']\n"
    )
    done = doctor("--config", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "fails" not in done.stdout
    assert "992 of 992 connections" in done.stdout  # (2048 - 64) / 2: above the soft limit of 1024
    last = done.stdout.splitlines()[-1]
    assert last.startswith("limits.max_connections is 1000; this machine can hold 1712 (limited by: descriptors")


def test_says_what_will_not_hold_and_what_to_change() -> None:
    done = doctor()
    assert done.returncode == 1
    assert "fails    descriptors" in done.stdout
    assert "LimitNOFILE=11164" in done.stdout


def test_json_for_programs() -> None:
    done = doctor("--json")
    said = json.loads(done.stdout)
    assert done.returncode == 1
    assert said["holds"] is False
    assert said["max_connections"] == {"configured": 10000, "fits": 1712, "bounded_by": "descriptors"}
    assert {"check", "verdict", "found", "change", "fits"} == said["checks"][0].keys()


def test_says_what_serve_will_not_find(tmp_path: Path) -> None:
    broker = ("--set", f"broker.url=sqlite://{tmp_path}/none/events.db")
    done = doctor("--port", "0", "--set", "limits.max_connections=100", *broker)
    assert done.returncode == 1
    assert re.search(r"^fails +broker\.url .*is not a directory", done.stdout, re.MULTILINE)
    assert re.search(r"^warning +auth\.admin_keys ", done.stdout, re.MULTILINE)
    done = doctor("--port", "0", "--set", "limits.max_connections=100", *broker, "--offline")
    assert (done.returncode, "broker.url" in done.stdout) == (0, False)


def test_a_command_line_or_configuration_that_is_wrong() -> None:
    assert doctor("--jsn").returncode == 2
    done = doctor("--set", "limits.max_connections=none")
    assert (done.returncode, done.stdout) == (1, "")
    assert "limits.max_connections: got 'none'" in done.stderr
