"""Checks whether `streams` streams fit into the available descriptors and ports; an error shows the arithmetic.
Pure."""

from __future__ import annotations

from dataclasses import dataclass

from qgstream.bench.errors import BenchError
from qgstream.bench.load import STREAMS_PER_SOURCE
from qgstream.bench.subjects import OTHER_SOCKETS
from qgstream.net.sockets import RESERVED_DESCRIPTORS


@dataclass(frozen=True, slots=True)
class Room:
    """The resources of this system: descriptors of one process (its hard limit), and ports for outgoing connections."""

    descriptors: int
    ports: int


def crew_size(streams: int, room: Room, *, processes: int) -> int:
    """Return the number of load processes: at least `processes`, and enough to hold all streams."""
    each = max(1, room.descriptors - RESERVED_DESCRIPTORS)
    return max(processes, -(-streams // each))


def check(streams: int, room: Room, *, starts_server: bool, is_loopback: bool) -> None:
    """Raise `BenchError` when `streams` streams are not possible; the message says what to raise."""
    if starts_server:
        needed = streams + OTHER_SOCKETS + RESERVED_DESCRIPTORS
        if needed > room.descriptors:
            fits = max(0, room.descriptors - OTHER_SOCKETS - RESERVED_DESCRIPTORS)
            raise BenchError(
                f"--streams: got {streams}, which needs {needed} descriptors in the server's process "
                f"({streams} streams + {OTHER_SOCKETS} other sockets + {RESERVED_DESCRIPTORS} reserved), "
                f"but the hard limit is {room.descriptors}; expected at most {fits}, "
                f"or raise it: ulimit -Hn {needed} (as root), LimitNOFILE={needed} in a systemd unit, "
                "nofile in /etc/security/limits.conf"
            )
    # Loopback has as many source addresses as are needed (see load.STREAMS_PER_SOURCE); another network has one.
    per_source = min(streams, STREAMS_PER_SOURCE) if is_loopback else streams
    if per_source > room.ports:
        raise BenchError(
            f"--streams: got {streams}, but there are {room.ports} ports for outgoing connections; expected at most "
            f"{room.ports}, or widen the range: sysctl net.ipv4.ip_local_port_range='1024 65535'"
        )
