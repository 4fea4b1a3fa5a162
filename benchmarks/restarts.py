"""What clients notice of restarts: two processes behind nginx or HAProxy; rolling, kill -9, reload of the proxy.

`python benchmarks/restarts.py` prints rows of the table of docs/behind-a-proxy.md. It needs redis-server, nginx and
haproxy. The proxies run with the files of deploy/, the processes with the drain of conf/production.toml. `--checkout`
takes all of them, and the server, from another checkout of this repository: that is how "before" was measured. With
`--shared-port` the processes share one port (SO_REUSEPORT) and the proxy has one line for both. `--proxies none` is for
clients that come to the (first) process itself.

Each client is an EventSource by the standard: it comes back after the `retry:` that it heard last, and any status but
200 stops it for good. A gap begins when a stream ends, and ends with the `connected` of the next.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from qgstream.wire.sse import Parser

ROOT = Path(__file__).resolve().parent.parent
SETTLE_SECONDS = 90.0  # after the last restart; what has not come back by then counts as away
START_SECONDS = 30.0
HEADINGS = (
    "", "ends", "median without a stream", "99 %", "longest", "came back in the busiest second (0.1 s)",
    "away at the end", "stopped for good",
)  # fmt: skip


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def program(command: list[str], log: Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run it until the end of the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def port_opens(port: int, log: Path) -> None:
    """Wait until somebody listens there."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        if time.monotonic() > deadline:
            sys.exit(f"nobody listens on {port}:\n{await asyncio.to_thread(log.read_text)}")
        await asyncio.sleep(0.02)


# The clients.


@dataclass
class Seen:
    """What all clients have seen, in seconds of the monotonic clock."""

    gaps: list[float] = field(default_factory=list)
    came_back: list[float] = field(default_factory=list)
    stopped: Counter[str] = field(default_factory=Counter)


class Client:
    """One EventSource."""

    def __init__(self, port: int, seen: Seen) -> None:
        self._port = port
        self._seen = seen
        self._id = ""
        self._retry_seconds = 3.0
        self.lost_at: float | None = None
        self.is_open = False

    async def live(self) -> None:
        """Until it is cancelled, or stopped for good."""
        while True:
            try:
                await self._stream()
            except ValueError as stopped:
                self._seen.stopped[str(stopped)] += 1
                return
            except (OSError, EOFError):
                pass
            if self.is_open:
                self.is_open, self.lost_at = False, time.monotonic()
            await asyncio.sleep(self._retry_seconds)

    async def _stream(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        parser = Parser(last_event_id=self._id)
        try:
            resume = f"Last-Event-ID: {self._id}\r\n" if self._id else ""
            # HTTP/1.0: no chunks, and the end of the connection ends the stream.
            head = f"GET /events HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n{resume}\r\n"
            writer.write(head.encode())
            status = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode()
            if " 200" not in status:
                raise ValueError(status)
            while piece := await reader.read(65536):
                for event in parser.feed(piece):
                    if '"event": "connected"' in event.data:
                        self._opened()
        finally:
            self._id = parser.last_event_id
            if parser.retry_ms is not None:
                self._retry_seconds = parser.retry_ms / 1000
            writer.close()

    def _opened(self) -> None:
        self.is_open = True
        if self.lost_at is not None:
            now = time.monotonic()
            self._seen.gaps.append(now - self.lost_at)
            self._seen.came_back.append(now)
            self.lost_at = None


# What they are connected to.


class Site:
    """Redis, two processes, and a proxy in front of them."""

    def __init__(self, args: argparse.Namespace, kind: str, folder: Path, stack: contextlib.ExitStack) -> None:
        self.port = free_port()
        self._checkout = Path(args.checkout).resolve()
        self._kind, self._folder, self._stack = kind, folder, stack
        self._shared = bool(args.shared_port)
        first = free_port()
        self._ports = [(first if self._shared else free_port(), free_port()) for _ in range(args.processes)]
        self._settings = dict(setting.split("=", 1) for setting in args.set)
        self._redis_port = free_port()
        production = tomllib.loads((self._checkout / "conf" / "production.toml").read_text())
        self._drain: Mapping[str, object] = production["drain"]
        self.processes: list[subprocess.Popen[bytes]] = []

    async def start(self) -> None:
        """Start everything."""
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self._redis_port), "--save", ""]
        self._stack.enter_context(program(command, self._folder / "redis.log", cwd=self._folder))
        await port_opens(self._redis_port, self._folder / "redis.log")
        for number in range(len(self._ports)):
            self.processes.append(await self._process(number))
        if self._kind == "none":
            self.port = self._ports[0][0]
            return
        command = self._nginx() if self._kind == "nginx" else self._haproxy()
        log = self._folder / "proxy.log"
        self.proxy = self._stack.enter_context(program(command, log))
        self._stack.callback(self.proxy.wait)
        self._stack.callback(self.proxy.terminate)
        await port_opens(self.port, log)

    async def _process(self, number: int) -> subprocess.Popen[bytes]:
        port, admin_port = self._ports[number]
        settings: dict[str, object] = {
            "server.port": port, "server.reuse_port": self._shared, "admin.port": admin_port,
            "broker.url": f"redis://127.0.0.1:{self._redis_port}/0", "server.trusted_proxies": ["127.0.0.1"],
            **{f"drain.{name}": value for name, value in self._drain.items()}, **self._settings,
        }  # fmt: skip
        names = {f"QGSTREAM_{key.upper().replace('.', '__')}": json.dumps(value) for key, value in settings.items()}
        texts = {name: value.strip('"') for name, value in names.items()}
        process = self._stack.enter_context(
            program(
                [sys.executable, "-m", "qgstream", "serve"], self._folder / f"server-{number}.log",
                cwd=self._checkout, env={**os.environ, "PYTHONPATH": str(self._checkout), **texts},
            )
        )  # fmt: skip
        await port_opens(admin_port, self._folder / f"server-{number}.log")
        return process

    def _lines(self, line: str) -> str:
        """The line of a server in the file, once for each process."""
        found = re.search(r"127\.0\.0\.1:\d+", line)
        assert found
        lines = []
        for number, (port, admin_port) in enumerate(self._ports[: 1 if self._shared else None]):
            here = line.replace(found[0], f"127.0.0.1:{port}")
            here = re.sub(r" port \d+", f" port {admin_port}", here)
            lines.append(re.sub(r"server \w+ ", f"server s{number} ", here) if " port " in here else here)
        return "".join(lines)

    def _with_servers(self, text: str, pattern: str) -> str:
        found = re.findall(pattern, text, re.MULTILINE)
        text = text.replace(found[0], self._lines(found[0]))
        for line in found[1:]:
            text = text.replace(line, "")
        return text

    def _nginx(self) -> list[str]:
        folder = self._folder
        text = (self._checkout / "deploy" / "nginx" / "qgstream.conf").read_text()
        text = self._with_servers(text, r"^    server 127\.0\.0\.1:\d+[^;]*;.*\n")
        text = re.sub(r"listen 443 ssl.*", f"listen 127.0.0.1:{self.port};", text)
        text = re.sub(r".*(?:listen \[::\]|ssl_certificate).*\n", "", text)
        text = re.sub(r"access_log .* qgstream;", f"access_log {folder}/access.log qgstream;", text)
        paths = "".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root; " if os.geteuid() == 0 else ""
        path = folder / "nginx.conf"
        path.write_text(
            f"{user}daemon off; worker_processes 2; pid {folder}/nginx.pid; error_log stderr crit;\n"
            f"events {{ worker_connections 8192; }}\nhttp {{ {paths}\n{text} }}\n"
        )
        return ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(path)]

    def _haproxy(self) -> list[str]:
        text = (self._checkout / "deploy" / "haproxy" / "haproxy.cfg").read_text()
        text = self._with_servers(text, r"^    server \w+ 127\.0\.0\.1:\d+ port \d+.*\n")
        text = re.sub(r"bind :443 .*", f"bind 127.0.0.1:{self.port}", text)
        text = text.replace("/run/haproxy/stats.sock mode", f"{self._folder}/stats.sock mode")
        text = text.replace("maxconn 40000", "maxconn 4000")  # or it asks for 80 000 descriptors
        path = self._folder / "haproxy.cfg"
        path.write_text(text)
        return ["haproxy", "-W", "-db", "-f", str(path)]

    # What happens to it.

    async def rolling_restart(self) -> None:
        """One after the other, as systemctl restart does."""
        for number in range(len(self.processes)):
            self.processes[number].send_signal(signal.SIGTERM)
            await asyncio.to_thread(self.processes[number].wait)
            self.processes[number] = await self._process(number)

    async def kill(self) -> None:
        """kill -9 of one of them; it is started again 2 s later (RestartSec of the unit)."""
        self.processes[0].kill()
        await asyncio.to_thread(self.processes[0].wait)
        await asyncio.sleep(2)
        self.processes[0] = await self._process(0)

    async def kill_both(self) -> None:
        """kill -9 of all."""
        for process in self.processes:
            process.kill()
            await asyncio.to_thread(process.wait)
        await asyncio.sleep(2)
        self.processes = [await self._process(number) for number in range(len(self._ports))]

    async def reload(self) -> None:
        """Have the proxy read its file again, three times."""
        for _ in range(3):
            self.proxy.send_signal(signal.SIGHUP if self._kind == "nginx" else signal.SIGUSR2)
            await asyncio.sleep(3)


CASES: Mapping[str, Callable[[Site], Awaitable[None]]] = {
    "rolling restart": Site.rolling_restart,
    "`kill -9` of one": Site.kill,
    "`kill -9` of all": Site.kill_both,
    "reload of the proxy": Site.reload,
}


async def measure(args: argparse.Namespace, kind: str, case: str) -> list[str]:
    """One row."""
    folder = Path(tempfile.mkdtemp(prefix="restarts-"))
    seen = Seen()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        site = Site(args, kind, folder, stack)
        await site.start()
        clients = [Client(site.port, seen) for _ in range(args.streams)]
        tasks = []
        for client in clients:
            tasks.append(asyncio.create_task(client.live()))
            await asyncio.sleep(0.005)
        await settled(clients, START_SECONDS)
        if not all(client.is_open for client in clients):
            sys.exit("not all streams opened")
        await CASES[case](site)
        await settled(clients, SETTLE_SECONDS)
        now = time.monotonic()
        away = [client for client in clients if not client.is_open]
        seen.gaps += [now - client.lost_at for client in away if client.lost_at is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    gaps = sorted(seen.gaps)
    in_a_second = Counter(int(at) for at in seen.came_back)
    in_a_tenth = Counter(int(at * 10) for at in seen.came_back)
    more = "> " if away else ""
    times = ["-"] * 3
    if gaps:
        times = [f"{at(gaps, 0.5):.1f} s", f"{at(gaps, 0.99):.1f} s", f"{more}{gaps[-1]:.1f} s"]
    return [
        str(len(gaps)), *times,
        f"{max(in_a_second.values(), default=0)} ({max(in_a_tenth.values(), default=0)})",
        str(len(away)), str(seen.stopped.total()),
    ]  # fmt: skip


async def settled(clients: list[Client], seconds: float) -> None:
    """Wait until all have a stream, at most so long; and a little, for what is still to come."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if all(client.is_open for client in clients):
            await asyncio.sleep(5)
            if all(client.is_open for client in clients):
                return
        await asyncio.sleep(0.1)


def at(values: list[float], share: float) -> float:
    """A quantile of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Measure, print rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--streams", type=int, default=400, help="clients (400)")
    parser.add_argument("--checkout", default=str(ROOT), help="where server and files are taken from (this one)")
    parser.add_argument("--shared-port", action="store_true", help="both processes on one port, one line in the proxy")
    parser.add_argument("--processes", type=int, default=2, help="how many processes (2)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting: drain.retry=spread")
    parser.add_argument("--proxies", nargs="+", default=["nginx", "haproxy"], choices=["nginx", "haproxy", "none"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    args = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {args.streams} streams", file=sys.stderr)
    print("| " + " | ".join(HEADINGS) + " |\n|---|" + "--:|" * (len(HEADINGS) - 1))
    for kind in args.proxies:
        for case in args.cases:
            print(f"| {kind}, {case} | " + " | ".join(asyncio.run(measure(args, kind, case))) + " |", flush=True)


if __name__ == "__main__":
    main()
