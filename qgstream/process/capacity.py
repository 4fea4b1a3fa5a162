"""Checks whether a machine can hold the configured limits, and says what to change. Pure: facts in, findings out.

The memory constants were measured; docs/tuning-limits.md has the table.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qgstream.net.sockets import BACKLOG, RESERVED_DESCRIPTORS, max_sockets
from qgstream.process.config import Config
from qgstream.process.machine import Held, Machine
from qgstream.replay.log_reader import CACHED_BYTES
from qgstream.replay.runner import MAX_HELD_BYTES

MIB = 1024 * 1024
PROCESS_BYTES = 53 * MIB
STREAM_BYTES = 5 * 1024
TLS_STREAM_BYTES = 22 * 1024
KERNEL_BYTES = 7 * 1024
STALLED_BYTES = 120 * 1024

# Freed memory that the allocator cannot reuse, as a share of the memory in use: an eighth to a quarter was measured
# (tests/hostile/test_memory.py).
_GAPS_SHARE = 4
# The share of clients that are assumed to stall at once, as in the arithmetic of the documentation.
_STALLED_SHARE = 10
# No correct clock of a machine that runs this can show an earlier time: 2025-01-01.
_EARLIEST = 1_735_689_600
_SLOW_CLOCKS = frozenset({"hpet", "acpi_pm", "jiffies", "refined-jiffies"})
_SYSCTL_FILE = "/etc/sysctl.d/90-qgstream.conf"

Verdict = Literal["ok", "warning", "fails", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, what to change, and the max_connections that it allows (None: it sets no limit)."""

    check: str
    verdict: Verdict
    found: str
    change: str = ""
    fits: int | None = None


def examine(config: Config, machine: Machine, held: Held, now: float) -> list[Finding]:
    """Return every finding; `fails` means that the configured limits cannot be held. `now` is in Unix seconds."""
    return [
        descriptors(config, machine),
        _memory(config, machine),
        _tcp_memory(config, machine),
        *_queues(machine),
        _ports(config, machine),
        _cores(machine),
        _dead_peers(config, machine),
        *_clock(machine, held, now),
        _measured(held),
    ]


def capacity(findings: list[Finding]) -> Finding | None:
    """Return the finding that allows the fewest streams."""
    bounds = [finding for finding in findings if finding.fits is not None]
    return min(bounds, key=lambda finding: finding.fits or 0, default=None)


def descriptors(config: Config, machine: Machine) -> Finding:
    """Check whether the process may open as many descriptors as the server needs. With too few, the server does not
    start."""
    sockets = max_sockets(config.limits)
    needed, hard = sockets + RESERVED_DESCRIPTORS, machine.hard_descriptors
    room = hard - RESERVED_DESCRIPTORS
    fits = max(0, room if config.limits.max_sockets else (room - 100) * 10 // 11)
    found = (
        f"{hard} (soft {machine.soft_descriptors}, raised at start); {sockets} sockets + {RESERVED_DESCRIPTORS} needed"
    )
    if needed <= hard:
        return Finding("descriptors", "ok", found, fits=fits)
    change = f"LimitNOFILE={needed} in the systemd unit, --ulimit nofile={needed} for a container"
    return Finding("descriptors", "fails", found, change, fits)


def fixed_bytes(config: Config) -> int:
    """Return the most memory that the process may need without its streams, in bytes."""
    limits = config.limits
    # An event counts in `history.max_bytes` with all its memory (`Publication.size_bytes`).
    held = config.history.max_bytes + limits.max_total_backlog_bytes + limits.max_inflight_body_bytes
    if not config.broker.url.startswith("memory:"):  # where the log is the history
        held += CACHED_BYTES + MAX_HELD_BYTES
    return PROCESS_BYTES + held + held // _GAPS_SHARE


def resident_bytes(config: Config) -> int:
    """Return the most memory that the process may need with all its streams, without the kernel's memory, in bytes."""
    return fixed_bytes(config) + config.limits.max_connections * _stream_bytes(config)


def _stream_bytes(config: Config) -> int:
    return TLS_STREAM_BYTES if config.server.certfile else STREAM_BYTES


def _memory(config: Config, machine: Machine) -> Finding:
    known = [bound for bound in (machine.memory_available, machine.cgroup_available) if bound is not None]
    if not known:
        return Finding("memory", "unknown", "MemAvailable cannot be read")
    available, streams = min(known), config.limits.max_connections
    of_group = available == machine.cgroup_available
    fixed = fixed_bytes(config)
    each = _stream_bytes(config) + KERNEL_BYTES
    needed = fixed + streams * each
    found = (
        f"{available // MIB} MiB {'left by the cgroup' if of_group else 'available'}; {needed // MIB} MiB needed at "
        f"worst ({fixed // MIB} for process, history, backlogs, bodies and replays + {streams} x {each // 1024} KiB)"
    )
    if needed <= available:
        return Finding("memory", "ok", found, fits=(available - fixed) // each)
    where = "the memory limit (MemoryMax= in the unit, limits.memory in Kubernetes)" if of_group else "the memory"
    change = f"raise {where} by {-(-(needed - available) // MIB)} MiB, or lower history.max_bytes or "
    change += "limits.max_total_backlog_bytes"
    return Finding("memory", "fails", found, change, max(0, (available - fixed) // each))


def _tcp_memory(config: Config, machine: Machine) -> Finding:
    if machine.tcp_mem_bytes is None:
        return Finding("tcp_mem", "unknown", "net.ipv4.tcp_mem cannot be read")
    stalled = config.limits.max_connections // _STALLED_SHARE
    needed = stalled * STALLED_BYTES
    found = f"pressure at {machine.tcp_mem_bytes // MIB} MiB; {stalled} stalled readers hold {needed // MIB} MiB"
    if needed <= machine.tcp_mem_bytes:
        return Finding("tcp_mem", "ok", found)
    return Finding("tcp_mem", "warning", found, f"raise net.ipv4.tcp_mem in {_SYSCTL_FILE}")


def _queues(machine: Machine) -> Iterator[Finding]:
    for name, value in (
        ("net.core.somaxconn", machine.somaxconn),
        ("net.ipv4.tcp_max_syn_backlog", machine.syn_backlog),
    ):
        check = name.rpartition(".")[2]
        if value is None:
            yield Finding(check, "unknown", f"{name} cannot be read")
        elif value < BACKLOG:
            change = f"sysctl -w {name}={BACKLOG}, and {name} = {BACKLOG} in {_SYSCTL_FILE}"
            yield Finding(check, "warning", f"{value}; a storm of reconnects queues up to {BACKLOG}", change)
        else:
            yield Finding(check, "ok", f"{value}; {BACKLOG} asked for")


def _ports(config: Config, machine: Machine) -> Finding:
    if machine.ports is None:
        return Finding("ports", "unknown", "net.ipv4.ip_local_port_range cannot be read")
    found = f"{machine.ports} for outgoing connections: a proxy on this host needs one for each stream"
    if machine.ports >= config.limits.max_connections:
        return Finding("ports", "ok", found)
    name = "net.ipv4.ip_local_port_range"
    change = f"with such a proxy: sysctl -w {name}='1024 65535', and the same in {_SYSCTL_FILE}, or more addresses"
    return Finding("ports", "warning", found, change)


def _cores(machine: Machine) -> Finding:
    return Finding("cores", "ok", f"{machine.cores}; a process uses one")


def _dead_peers(config: Config, machine: Machine) -> Finding:
    seconds = config.limits.tcp_user_timeout_seconds
    if seconds:
        return Finding("dead peers", "ok", f"noticed after {seconds:g} s without an acknowledgement")
    found = f"noticed by the kernel's net.ipv4.tcp_retries2 ({machine.tcp_retries}): 15 is about a quarter of an hour"
    return Finding("dead peers", "warning", found, "set limits.tcp_user_timeout_seconds")


def _clock(machine: Machine, held: Held, now: float) -> Iterator[Finding]:
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    drift = abs(held.wall_seconds - held.seconds)
    # A correction of the clock slews at most 0.05 % of the time; a larger difference was a jump.
    if now < _EARLIEST or drift > 0.1:
        found = f"{said}" + (f", and it jumped by {drift:.1f} s while this ran" if drift > 0.1 else "")
        yield Finding(
            "clock",
            "warning",
            found,
            "set the clock (timedatectl): the expiry of tokens and the age of the history depend on it",
        )
    elif machine.clock_is_kept is False:
        yield Finding("clock", "warning", f"{said}; no time service keeps it (systemd-timesyncd, chrony)")
    else:
        yield Finding("clock", "ok", said)
    if machine.clock_source is None:
        yield Finding("clock source", "unknown", "cannot be read")
    elif machine.clock_source in _SLOW_CLOCKS:
        yield Finding("clock source", "warning", f"{machine.clock_source}: each reading is a system call", "use tsc")
    else:
        yield Finding("clock source", "ok", machine.clock_source)


def _measured(held: Held) -> Finding:
    each = 1e6 * held.seconds / max(1, held.held)
    found = f"{held.held} of {held.asked} connections over loopback held at once, {each:.0f} us each"
    if held.held == held.asked:
        return Finding("measured", "ok", found)
    return Finding("measured", "fails", f"{found}: {held.reason}", "find out what limits the sockets here", held.held)
