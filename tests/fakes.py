"""What stands in for the kernel and the loop: sockets that take what they are told to, and slices run by hand."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

from tornado.iostream import IOStream, StreamClosedError

from qgstream.delivery.connection import Connection
from qgstream.delivery.slices import Slices
from qgstream.events.subscription import Subscription
from qgstream.hub import Hub
from qgstream.wire.framing import Framing

ENDLESS = 1 << 60


class Clock:
    """A clock that only moves when it is told to. It passes for the `time` module. `step` is by how much somebody has
    set it."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now
        self.step = 0.0

    def time(self) -> float:
        return self.now + self.step

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


class ManualSlices(Slices):
    """Slices that run when they are told to, and that raise what a job raises."""

    def add(self, job: Iterator[None], *, is_awaited: bool = False) -> None:
        self._jobs.append(job)

    def step(self) -> None:
        """Run the next job until it could be interrupted."""
        job = self._jobs.popleft()
        for _ in job:
            self._jobs.append(job)
            return

    def run(self, steps: int = 100_000) -> None:
        """Run until there is nothing to do."""
        for _ in range(steps):
            if not self._jobs:
                return
            self.step()
        raise AssertionError(f"still busy after {steps} slices")


class FakeSocket:
    """Takes `room` bytes, then says that it is full; dead once `error` is set."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.error: OSError | None = None
        self.received = bytearray()
        self.pending: Callable[[], bool] = bool
        self.is_shut = False

    def setsockopt(self, *_: object) -> None:
        pass

    def shutdown(self, how: int) -> None:
        assert how == socket.SHUT_WR
        self.is_shut = True

    def send(self, data: bytes | memoryview) -> int:
        assert not self.pending(), "sent past what is still pending: the bytes would be out of order"
        return self.take(data)

    def take(self, data: bytes | memoryview) -> int:
        assert len(data), "nothing to send"
        if self.error is not None:
            raise self.error
        if not self.room:
            raise BlockingIOError
        taken = min(self.room, len(data))
        self.received += data[:taken]
        self.room -= taken
        return taken


class FakeStream:
    """As much of an IOStream as a Connection needs, with the same order of calls and callbacks."""

    def __init__(self, room: int = ENDLESS) -> None:
        self.socket = FakeSocket(room)
        self.socket.pending = self.writing
        self.pending = b""
        self.error: BaseException | None = None
        self._closed = False
        self._written = self._sent = 0
        self._writes: list[tuple[int, asyncio.Future[None]]] = []
        self._reading: asyncio.Future[Any] | None = None
        self._close_callback: Callable[[], None] | None = None

    # What a Connection calls.

    def set_nodelay(self, value: bool) -> None:
        pass

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        self._close_callback = callback

    def writing(self) -> bool:
        return bool(self.pending)

    def closed(self) -> bool:
        return self._closed

    def read_into(self, buffer: bytearray, partial: bool = False) -> asyncio.Future[int]:
        if self._closed:
            raise StreamClosedError
        self._reading = asyncio.get_running_loop().create_future()
        return self._reading

    def read_bytes(self, count: int, partial: bool = False) -> asyncio.Future[bytes]:
        if self._closed:
            raise StreamClosedError
        self._reading = asyncio.get_running_loop().create_future()
        return self._reading

    def write(self, data: bytes | memoryview) -> asyncio.Future[None]:
        if self._closed:
            raise StreamClosedError(self.error)
        self.pending += data
        self._written += len(data)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writes.append((self._written, future))
        self._flush()
        return future

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.pending = b""
        self.socket.error = self.socket.error or OSError(errno.EBADF, "closed")
        futures = [future for _, future in self._writes]
        if self._reading is not None:
            futures.append(cast("asyncio.Future[None]", self._reading))
        for future in futures:
            if not future.done():
                future.set_exception(StreamClosedError(self.error))
                future.exception()
        if self._close_callback is not None:
            asyncio.get_running_loop().call_soon(self._close_callback)

    def _flush(self) -> None:
        try:
            while self.pending:
                taken = self.socket.take(self.pending)
                self.pending = self.pending[taken:]
                self._sent += taken
        except BlockingIOError:
            pass
        except OSError as error:
            self.error = error
            self.close()
            return
        while self._writes and self._writes[0][0] <= self._sent:
            _, future = self._writes.pop(0)
            if not future.done():
                future.set_result(None)

    # What happens to it.

    def give_room(self, room: int) -> None:
        """The peer reads."""
        self.socket.room += room
        if not self._closed:
            self._flush()

    def receive(self, count: int) -> None:
        """The peer sends stray bytes."""
        self._read(count)

    def hear(self, data: bytes) -> None:
        """The peer says something, on a WebSocket."""
        self._read(data)

    def _read(self, result: int | bytes) -> None:
        assert self._reading is not None
        reading, self._reading = self._reading, None
        reading.set_result(result)

    def peer_closes(self) -> None:
        """FIN."""
        self.close()

    def peer_resets(self, error: OSError | None = None, *, noticed: bool) -> None:
        """RST: noticed at once, or by the next send."""
        self.socket.error = error or ConnectionResetError(errno.ECONNRESET, "reset")
        if noticed and not self._closed:
            self.error = self.socket.error
            self.close()


def connect(
    hub: Hub, subscription: Subscription | None = None, last_event_id: str | None = None, *, room: int = ENDLESS,
    latest: bool = False, ip: str = "192.0.2.1",
) -> tuple[Connection, FakeStream]:  # fmt: skip
    """A stream as the handler opens it: its first bytes are written before the hub has it."""
    subscription = subscription or Subscription(framing=Framing.RAW)
    start = hub.open(subscription, last_event_id, latest=latest)
    stream = FakeStream(room)
    stream.write(b"".join([subscription.framing.frame(message) for message in start.first]))
    adopted = hub.adopt(cast(IOStream, stream), subscription, start, ip=ip, client_key=ip, user_agent="fake")
    return adopted, stream


async def turns(count: int = 3) -> None:
    """Let the loop run the callbacks that are due, and those that they make due."""
    for _ in range(count):
        await asyncio.sleep(0)


def counter(metrics: Any, name: str, **labels: str) -> float:
    """A sample of the metrics, by its full name."""
    value = metrics.registry.get_sample_value(name, labels)
    assert value is not None, f"no sample {name} {labels}"
    return cast(float, value)
