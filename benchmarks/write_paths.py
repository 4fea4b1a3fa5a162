"""Ways to hand the same bytes to many sockets: what `Connection` and the hot loop of fanout.py chose between.

`python benchmarks/write_paths.py`. Each variant is a Tornado server that differs in one line; the floor has no Tornado
at all. One chunk is encoded once and written to every stream.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Callable

from experiment import Experiment
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from qgstream.bench.processes import Program
from qgstream.bench.session import Figures, Session
from qgstream.bench.subjects import FLOOR, PLAIN, Subject, start_module
from qgstream.wire import sse

COLUMNS = {
    "cpu_us_per_delivery": "CPU us/delivery",
    "latency_p99_ms": "p99 ms",
    "publish_p50_ms": "publish p50 ms",
    "lost": "lost",
}
RATE = 40_000  # deliveries a second of all streams together: no variant is at its limit


class Streams(RequestHandler):
    """GET opens a stream and detaches, POST writes to all of them."""

    streams: list[IOStream] = []  # noqa: RUF012  # one server a process
    writes: list[Callable[[bytes], object]] = []  # noqa: RUF012
    variant = ""

    def get(self) -> None:
        """A stream."""
        self.set_header("Content-Type", "text/event-stream")
        self.flush()
        stream = self.detach()
        self.ui = None  # type: ignore[assignment]
        stream.set_nodelay(True)
        self.streams.append(stream)
        self.writes.append(VARIANTS[self.variant](stream))

    def post(self) -> None:
        """An event."""
        chunk = sse.chunk(sse.encode(self.request.body))
        for write in self.writes:
            write(chunk)


def _send(stream: IOStream) -> Callable[[bytes], object]:
    return stream.socket.send


def _write(stream: IOStream) -> Callable[[bytes], object]:
    return stream.write


def _write_to_fd(stream: IOStream) -> Callable[[bytes], object]:
    def write(chunk: bytes) -> None:
        if not stream.writing():
            stream.write_to_fd(memoryview(chunk))

    return write


VARIANTS = {"socket.send": _send, "IOStream.write_to_fd": _write_to_fd, "IOStream.write": _write}


async def serve(variant: str) -> None:
    """Serve one variant on a free port, which is printed."""
    Streams.variant = variant
    sockets = bind_sockets(0, "127.0.0.1", backlog=1024)
    HTTPServer(Application([("/events", Streams)], log_function=lambda _: None)).add_sockets(sockets)
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Measure all variants."""
    experiment = Experiment(__doc__ or "", streams=5000, seconds=3)

    def measure(start: Callable[[], Subject]) -> Callable[[], Figures]:
        def run() -> Figures:
            with start() as subject, Session(subject, experiment.cores) as session:
                session.open(experiment.streams)
                return session.fan_out(RATE / experiment.streams, experiment.seconds, 100)

        return run

    def variant(name: str) -> Callable[[], Subject]:
        def start() -> Subject:
            program = Program([sys.executable, __file__, "--serve", name], cores=experiment.cores.server)
            return Subject(PLAIN, "127.0.0.1", int(program.hear()), pids=(program.pid,), programs=(program,))

        return start

    variants = {
        "floor: send, no Tornado": measure(lambda: start_module(FLOOR, "qgstream.bench.floor", experiment.cores))
    }
    variants |= {name: measure(variant(name)) for name in VARIANTS}
    variants["write and flush of handlers"] = measure(
        lambda: start_module(PLAIN, "qgstream.bench.plain", experiment.cores)
    )
    experiment.compare(variants, COLUMNS)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        asyncio.run(serve(sys.argv[2]))
    else:
        main()
