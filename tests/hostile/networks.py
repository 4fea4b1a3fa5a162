"""Two networks with a bad line between them: packets are late, lost, or vanish. Needs root, and /dev/net/tun.

Each network is a namespace of its own, held by a thread: sockets and processes that are made in the thread are in it.
The line is two TUN devices and a thread that carries packets, as netem would, on kernels without netem too.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_PACKET_BYTES = 65536


class NotPermittedHere(Exception):
    """The machine does not let us make networks."""


class Network:
    """A thread in a network namespace of its own, with a loopback."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        try:
            self.run(self._leave_the_hosts)
        except (OSError, subprocess.CalledProcessError, FileNotFoundError) as error:
            self._thread.shutdown()
            raise NotPermittedHere(str(error)) from error

    def _leave_the_hosts(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._ip("link", "set", "lo", "up")

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def run(self, function: Callable[..., T], *args: object) -> T:
        """What the function returns when it is called in this network."""
        return self._thread.submit(function, *args).result()

    def plug(self, address: str, peer: str) -> int:
        """A device with this address whose other end is at `peer`; the descriptor that its packets come out of."""
        return self.run(self._plug, address, peer)

    def _plug(self, address: str, peer: str) -> int:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", b"line", _IFF_TUN_NO_PI))
        self._ip("address", "add", address, "peer", peer, "dev", "line")
        self._ip("link", "set", "line", "up")
        return device

    def close(self) -> None:
        """The kernel takes the namespace down when nobody is in it any more."""
        self._thread.shutdown()


class Line:
    """Carries packets between two networks: each way after `delay_seconds`, a part `loss` of them never."""

    HERE, THERE = "10.99.0.1", "10.99.0.2"

    def __init__(self, *, delay_seconds: float = 0.0, loss: float = 0.0, seed: int = 1) -> None:
        self.delay_seconds = delay_seconds
        self.loss = loss
        self.is_cut = False
        self.lost = 0
        self._random = Random(seed)
        with contextlib.ExitStack() as stack:
            self.here, self.there = (stack.enter_context(contextlib.closing(Network())) for _ in range(2))
            try:
                self._devices = (self.here.plug(self.HERE, self.THERE), self.there.plug(self.THERE, self.HERE))
            except (OSError, subprocess.CalledProcessError) as error:
                raise NotPermittedHere(str(error)) from error
            for device in self._devices:
                stack.callback(os.close, device)
            self._stack = stack.pop_all()
        self._wake, self._woken = os.pipe()
        self._carrier = threading.Thread(target=self._carry)
        self._carrier.start()

    def _carry(self) -> None:
        first, second = self._devices
        other = {first: second, second: first}
        under_way: list[tuple[float, int, int, bytes]] = []
        number = 0
        while True:
            wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            readable, _, _ = select.select([first, second, self._wake], [], [], wait)
            if self._wake in readable:
                return
            for device in readable:
                with contextlib.suppress(BlockingIOError):
                    packet = os.read(device, _PACKET_BYTES)
                    if self.is_cut or self._random.random() < self.loss:
                        self.lost += 1
                        continue
                    number += 1
                    heapq.heappush(under_way, (time.monotonic() + self.delay_seconds, number, other[device], packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, device, packet = heapq.heappop(under_way)
                with contextlib.suppress(OSError):  # no room in its queue: lost
                    os.write(device, packet)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._woken)
        self._carrier.join()
        os.close(self._wake)
        self._stack.close()
