"""The resources of this machine and process: limits, memory, kernel settings, clocks. Read from /proc and /sys, or
measured.

Sources: proc(5), cgroups(7), Documentation/networking/ip-sysctl.rst of Linux. A value that cannot be read is None.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_KERNEL = "proc/sys/"
_TIME_ERROR = 5


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts. Memory is in bytes; `tcp_mem_bytes` is the amount from which the kernel limits the memory of all
    sockets."""

    soft_descriptors: int
    hard_descriptors: int
    cores: int
    somaxconn: int | None = None
    syn_backlog: int | None = None
    ports: int | None = None
    memory_available: int | None = None
    cgroup_available: int | None = None
    tcp_mem_bytes: int | None = None
    tcp_retries: int | None = None
    clock_source: str | None = None
    clock_is_kept: bool | None = None  # whether a time service keeps the clock


@dataclass(frozen=True, slots=True)
class Held:
    """The measurement: `held` of `asked` loopback connections were open at once; the time in seconds; why there were no
    more."""

    asked: int
    held: int
    seconds: float
    wall_seconds: float
    reason: str = ""


def read_machine(root: Path = Path("/")) -> Machine:
    """Return the facts of this process and machine; `root` contains `proc` and `sys`."""
    soft, hard = (_bounded(limit, root) for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    ports, tcp_mem = (
        _numbers(root, f"{_KERNEL}net/ipv4/ip_local_port_range"),
        _numbers(root, f"{_KERNEL}net/ipv4/tcp_mem"),
    )
    return Machine(
        soft_descriptors=soft,
        hard_descriptors=hard,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        somaxconn=_number(root, f"{_KERNEL}net/core/somaxconn"),
        syn_backlog=_number(root, f"{_KERNEL}net/ipv4/tcp_max_syn_backlog"),
        ports=ports[1] - ports[0] + 1 if len(ports) == 2 else None,
        memory_available=_meminfo(root),
        cgroup_available=_cgroup_available(root),
        tcp_mem_bytes=tcp_mem[1] * resource.getpagesize() if len(tcp_mem) == 3 else None,
        tcp_retries=_number(root, f"{_KERNEL}net/ipv4/tcp_retries2"),
        clock_source=_text(root, "sys/devices/system/clocksource/clocksource0/current_clocksource"),
        clock_is_kept=_clock_is_kept(),
    )


def _clock_is_kept() -> bool | None:
    """Return whether a time service keeps the clock, by adjtimex(2): the time service tells the kernel. The call
    changes nothing: the first field of `struct timex`, which has 208 bytes, says what to change."""
    try:
        state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):  # not Linux
        return None
    return None if state < 0 else state != _TIME_ERROR


def hold(count: int) -> Held:
    """Open `count` connections over loopback, hold all of them, and close them."""
    began, wall = time.monotonic(), time.time()
    held, reason = 0, ""
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
            listener.settimeout(5)
            for _ in range(count):
                stack.enter_context(socket.create_connection(listener.getsockname(), timeout=5))
                stack.enter_context(listener.accept()[0])
                held += 1
        except OSError as error:
            reason = error.strerror or str(error)
        seconds, wall_seconds = time.monotonic() - began, time.time() - wall
    return Held(count, held, seconds, wall_seconds, reason)


def listener(port: int, root: Path = Path("/")) -> tuple[int, str] | None:
    """Return the process that listens on a TCP port, and its command line; None without one, or if only another user
    may see it."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in (_text(root, f"proc/net/{table}") or "").splitlines()[1:]:
            words = line.split()
            # local_address is ADDRESS:PORT in hexadecimal digits; state 0A is TCP_LISTEN.
            if len(words) > 9 and words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{words[9]}]")
    for folder in (root / "proc").glob("[0-9]*") if inodes else ():
        with contextlib.suppress(OSError):  # of another user, or it has ended meanwhile
            if any(os.readlink(link) in inodes for link in (folder / "fd").iterdir()):  # noqa: PTH115
                command = (_text(root, f"proc/{folder.name}/cmdline") or "").replace("\0", " ").strip()
                return int(folder.name), command
    return None


def raise_soft_descriptors() -> None:
    """Raise the soft limit on descriptors, as the server does at its start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _bounded(limit: int, root: Path) -> int:
    # "Unlimited" ends at fs.nr_open.
    return (_number(root, f"{_KERNEL}fs/nr_open") or 1024 * 1024) if limit == resource.RLIM_INFINITY else limit


def _text(root: Path, path: str) -> str | None:
    try:
        return (root / path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _numbers(root: Path, path: str) -> list[int]:
    return [int(word) for word in (_text(root, path) or "").split() if word.isdecimal()]


def _number(root: Path, path: str) -> int | None:
    return next(iter(_numbers(root, path)), None)


def _meminfo(root: Path) -> int | None:
    return _field(root, "proc/meminfo", "MemAvailable:", 1024)


def _field(root: Path, path: str, name: str, unit: int = 1) -> int | None:
    for line in (_text(root, path) or "").splitlines():
        words = line.split()
        if words[:1] == [name] and len(words) > 1 and words[1].isdecimal():
            return int(words[1]) * unit
    return None


def _cgroup_available(root: Path) -> int | None:
    """Return the memory that the tightest limit around this process leaves. The page cache counts as free, because the
    kernel can reclaim it."""
    left = []
    for folder, names in _cgroups(root):
        limit = _number(root, f"{folder}/{names[0]}")  # "max" is not a number
        used = _number(root, f"{folder}/{names[1]}")
        if limit is None or used is None or limit >= 1 << 60:  # version 1 writes this for no limit
            continue
        cache = _field(root, f"{folder}/memory.stat", names[2]) or 0
        left.append(max(0, limit - max(0, used - cache)))
    return min(left, default=None)


def _cgroups(root: Path) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Return the memory cgroup folders of this process, from inner to outer; in a container they start at the top."""
    for line in (_text(root, "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            top, names = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield "/".join([top, *parts[:depth]]), names
