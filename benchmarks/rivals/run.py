"""Rivals side by side: the same load, the same minute, each on one core.

`python benchmarks/rivals/run.py` measures those that are installed and says how to get the others:
`apt-get install nginx libnginx-mod-nchan`, and `pip install sse-starlette 'uvicorn[standard]' aiohttp-sse` into the
Python that runs this.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from experiment import Experiment

from qgstream.bench.errors import BenchError
from qgstream.bench.processes import Cores, Program
from qgstream.bench.session import Figures, Session
from qgstream.bench.subjects import FLOOR, PLAIN, Dialect, Subject, start_module, start_qgstream

COLUMNS = {
    "handshakes_per_second": "handshakes/s",
    "cpu_us_per_handshake": "CPU us/handshake",
    "kib_per_stream": "KiB/stream",
    "kib_per_stream_after": "after load",
    "cpu_us_per_delivery": "CPU us/delivery",
    "latency_p50_ms": "p50 ms",
    "latency_p99_ms": "p99 ms",
    "flat_deliveries_per_second": "flat out: deliveries/s",
    "flat_latency_p99_ms": "p99 ms",
    "flat_lost": "lost",
}
HERE = Path(__file__).parent
MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
STARLETTE = Dialect("sse-starlette on uvicorn", "/events", prefix="", suffix="", headers=())
AIOHTTP = Dialect("aiohttp-sse", "/events", prefix="", suffix="", headers=())
NCHAN = Dialect("Nchan", publish="/publish?topic={topic}", prefix="", suffix="", headers=())
START_SECONDS = 20.0
DELIVERIES_PER_SECOND = 40_000
FLAT_RATE = 200.0

Start = Callable[[Cores, int], Iterator[Subject]]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(program: Program, port: int) -> None:
    """Return when it listens."""
    deadline = time.monotonic() + START_SECONDS
    while program.is_running and time.monotonic() < deadline:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise program.ended() if not program.is_running else BenchError(f"{program.name} does not listen")


def workers(program: Program) -> list[str]:
    """The processes that a master has started: it listens before it has any."""
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
    deadline = time.monotonic() + START_SECONDS
    while program.is_running and time.monotonic() < deadline:
        if found := children.read_text().split():
            return found
        time.sleep(0.05)
    raise program.ended() if not program.is_running else BenchError(f"{program.name} starts no worker")


def nchan(cores: Cores, streams: int) -> Iterator[Subject]:
    """nginx with Nchan; its worker is what is measured."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        port = free_port()
        text = (HERE / "nchan.conf").read_text()
        values = {
            "PORT": port, "MODULE": MODULE, "DIRECTORY": directory, "CONNECTIONS": streams + 1000,
            "DESCRIPTORS": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        }  # fmt: skip
        for name, value in values.items():
            text = text.replace(name, str(value))
        conf = Path(directory) / "nginx.conf"
        conf.write_text(text)
        nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        with Program([nginx, "-p", directory, "-c", str(conf)], cores=cores.server) as program:
            wait_for(program, port)
            children = workers(program)
            try:
                yield Subject(NCHAN, "127.0.0.1", port, pids=[int(child) for child in children])
            finally:
                for child in map(int, children):
                    os.kill(child, 15)


def starlette(cores: Cores, _streams: int) -> Iterator[Subject]:
    """sse-starlette, with uvloop and httptools when uvicorn has them."""
    port = free_port()
    argv = [
        sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "sse_starlette_app:app", "--port", str(port),
        "--no-access-log", "--log-level", "warning", "--backlog", "4096",
    ]  # fmt: skip
    with Program(argv, cores=cores.server) as program:
        wait_for(program, port)
        yield Subject(STARLETTE, "127.0.0.1", port, pids=(program.pid,))


def aiohttp(cores: Cores, _streams: int) -> Iterator[Subject]:
    """aiohttp-sse, on uvloop when that is installed."""
    with Program([sys.executable, str(HERE / "aiohttp_sse_app.py")], cores=cores.server) as program:
        yield Subject(AIOHTTP, "127.0.0.1", int(program.hear()), pids=(program.pid,))


def ours(cores: Cores, streams: int) -> Iterator[Subject]:
    """This server."""
    with start_qgstream(cores, streams=streams) as subject:
        yield subject


def floor(cores: Cores, _streams: int) -> Iterator[Subject]:
    """The bare send loop."""
    with start_module(FLOOR, "qgstream.bench.floor", cores) as subject:
        yield subject


def plain(cores: Cores, _streams: int) -> Iterator[Subject]:
    """Tornado, write and flush of handlers."""
    with start_module(PLAIN, "qgstream.bench.plain", cores) as subject:
        yield subject


def main() -> None:
    """Measure everybody with 1 000 and with as many streams as were asked for."""
    experiment = Experiment(__doc__ or "", streams=10_000, seconds=3)
    servers: dict[str, Start] = {"qgstream": ours}
    if MODULE.exists() and (shutil.which("nginx") or Path("/usr/sbin/nginx").exists()):
        servers["Nchan"] = nchan
    else:
        print("not measured: Nchan (apt-get install nginx libnginx-mod-nchan)", file=sys.stderr)
    for name, module, start in (
        ("sse-starlette on uvicorn", "sse_starlette", starlette),
        ("aiohttp-sse", "aiohttp_sse", aiohttp),
    ):
        if importlib.util.find_spec(module):
            servers[name] = start
        else:
            print(f"not measured: {name} (pip install sse-starlette 'uvicorn[standard]' aiohttp-sse)", file=sys.stderr)
    servers |= {"plain Tornado": plain, "bare send loop": floor}

    def measure(start: Start, streams: int) -> Callable[[], Figures]:
        def run() -> Figures:
            with (
                contextmanager(start)(experiment.cores, streams) as subject,
                Session(subject, experiment.cores) as session,
            ):
                opened = session.open(streams)
                opened["kib_per_stream"] = session.memory(streams)
                even = session.fan_out(DELIVERIES_PER_SECOND / streams, experiment.seconds, 100)
                flat = session.fan_out(FLAT_RATE, experiment.seconds, 100)
                opened["kib_per_stream_after"] = session.memory(streams)
                return opened | even | {f"flat_{name}": value for name, value in flat.items()}

        return run

    for streams in (1000, experiment.streams):
        print(f"{streams} streams")
        variants = {name: measure(start, streams) for name, start in servers.items()}
        experiment.compare(variants, COLUMNS, name=f"rivals-{streams}")
        print()


if __name__ == "__main__":
    main()
