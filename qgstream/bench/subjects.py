"""Subjects: servers to be measured, and how each is spoken to."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from qgstream.bench.errors import BenchError
from qgstream.bench.processes import Cores, Program, Usage, usage
from qgstream.net.addresses import is_loopback

START_SECONDS = 20.0
# Sockets of a server that are not streams: publishers, probes, and what lingers.
OTHER_SOCKETS = 200


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a server wants to be asked. `{topic}` is a topic's name, `{n}` the number of a stream."""

    name: str
    subscribe: str = "/events?topic={topic}"
    publish: str = "/events"
    # What is put around a payload, which is ASCII without quotes: the body is prefix + payload + suffix.
    prefix: str = '{"topic":"{topic}","data":"'
    suffix: str = '"}'
    headers: Sequence[str] = ("Content-Type: application/json",)
    health: str = "/health"


QGSTREAM = Dialect("qgstream")
FLOOR = Dialect("bare send loop", prefix="", suffix="", headers=())
PLAIN = Dialect("plain Tornado", prefix="", suffix="", headers=())
# Asked exactly as the server under test is: parsing a query is part of what is compared.
HEADERS_ONLY = Dialect("Tornado, headers only", "/headers?topic={topic}", prefix="", suffix="", headers=())


@dataclass
class Subject:
    """A server that runs: where it is, how it is spoken to, and which processes' time and memory count."""

    dialect: Dialect
    host: str
    port: int
    key: str | None = None
    pids: Sequence[int] = ()
    programs: Sequence[Program] = ()
    metrics_url: str | None = None
    family: socket.AddressFamily = socket.AF_INET
    _head: str = field(init=False, default="")

    def __post_init__(self) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"Host: {host}:{self.port}"]
        if self.key is not None:
            lines.append(f"Authorization: Bearer {self.key}")
        self._head = "\r\n".join(lines)

    @property
    def name(self) -> str:
        """What the tables call it."""
        return self.dialect.name

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine for sure."""
        return is_loopback(self.host)

    def get_request(self, topic: str = "bench", *, headers: Sequence[str] = ()) -> str:
        """The request that opens a stream."""
        target = self.dialect.subscribe.replace("{topic}", topic)
        return "\r\n".join([f"GET {target} HTTP/1.1", self._head, "Accept: text/event-stream", *headers, "", ""])

    def publish_request(self, payload: bytes, topic: str = "bench") -> bytes:
        """The request that publishes a payload."""
        body = self.event(payload, topic)
        return self._post(topic, body, self.dialect.headers)

    def batch_request(self, payloads: Sequence[bytes], topic: str = "bench") -> bytes:
        """The request that publishes many payloads at once, as newline-delimited JSON."""
        body = b"\n".join(self.event(payload, topic) for payload in payloads)
        return self._post(topic, body, ("Content-Type: application/x-ndjson",))

    def event(self, payload: bytes, topic: str) -> bytes:
        """One event as this server takes it."""
        return self.dialect.prefix.replace("{topic}", topic).encode() + payload + self.dialect.suffix.encode()

    def _post(self, topic: str, body: bytes, headers: Sequence[str]) -> bytes:
        target = self.dialect.publish.replace("{topic}", topic)
        lines = [f"POST {target} HTTP/1.1", self._head, *headers, f"Content-Length: {len(body)}", "", ""]
        return "\r\n".join(lines).encode() + body

    def health_request(self) -> bytes:
        """A request as a supervisor's probe makes it."""
        lines = [f"GET {self.dialect.health} HTTP/1.1", self._head, "Connection: close", "", ""]
        return "\r\n".join(lines).encode()

    def usage(self) -> Usage | None:
        """CPU time and memory: from /proc for processes of this machine, else from the server's own /metrics."""
        if self.pids:
            return usage(self.pids)
        return _usage_by_metrics(self.metrics_url) if self.metrics_url is not None else None

    def check(self) -> None:
        """Raise `BenchError` when a process that was started here has ended."""
        for program in self.programs:
            if not program.is_running:
                raise program.ended()

    def stop(self) -> None:
        """End what was started here."""
        for program in self.programs:
            program.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def start_module(dialect: Dialect, module: str, cores: Cores, *arguments: str) -> Subject:
    """Start a Python module that prints the port it serves on."""
    program = Program([sys.executable, "-m", module, *arguments], cores=cores.server)
    return Subject(dialect, "127.0.0.1", int(program.hear()), pids=(program.pid,), programs=(program,))


def start_qgstream(
    cores: Cores,
    *,
    streams: int,
    settings: Mapping[str, Any] | None = None,
    command: Sequence[str] = ("-m", "qgstream"),
    name: str | None = None,
) -> Subject:
    """Start a server of ours on a free port of the loopback, with room for `streams`.

    `settings` are dotted keys; they travel in the environment, because a broker's URL may hold a password. `command`
    is what Python runs instead of the package, for experiments.
    """
    key = secrets.token_urlsafe(16)
    wanted: dict[str, Any] = {
        "server.host": "127.0.0.1",
        "server.port": 0,
        "limits.max_connections": streams,
        "limits.max_sockets": streams + OTHER_SOCKETS,
        "auth.publish_keys": {"bench": key},
        "drain.seconds": 0,
        "log.env": "bench",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QGSTREAM_")}
    for setting, value in (wanted | dict(settings or {})).items():
        name_ = f"QGSTREAM_{setting.replace('.', '__').upper()}"
        environment[name_] = value if isinstance(value, str) else json.dumps(value)
    program = Program([sys.executable, *command, "serve"], cores=cores.server, environment=environment)
    try:
        port = _port_from_log(program)
    except BaseException:
        program.stop()
        raise
    dialect = QGSTREAM if name is None else Dialect(name)
    return Subject(dialect, "127.0.0.1", port, key=key, pids=(program.pid,), programs=(program,))


def _port_from_log(program: Program) -> int:
    deadline = time.monotonic() + START_SECONDS
    while program.is_running and time.monotonic() < deadline:
        for line in program.said().splitlines():
            if '"server.started"' in line:
                return int(json.loads(line)["port"])
        time.sleep(0.02)
    if program.is_running:
        raise BenchError(f"the server did not start within {START_SECONDS:g} s:\n{program.said()[-2000:]}")
    raise program.ended()


def at(url: str, *, key: str | None, pid: int | None, metrics_url: str | None, allow_remote: bool) -> Subject:
    """A server of ours that runs already. Raises `BenchError` for one that is not on this machine, unless allowed."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
        raise BenchError(f"--url: got {url!r}, expected http://HOST:PORT (the plain port: the load does not speak TLS)")
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise BenchError(f"--url: {parts.hostname} cannot be resolved: {error}") from error
    family, _, _, _, address = found[0]
    host, port = str(address[0]), int(address[1])
    if not allow_remote and not is_loopback(host):
        raise BenchError(
            f"--url: {parts.hostname} is {host}, which is not this machine; "
            "what is sent there may look like an attack: give --allow-remote if it is yours"
        )
    pids = () if pid is None else (pid,)
    subject = Subject(QGSTREAM, host, port, key=key, pids=pids, metrics_url=metrics_url, family=family)
    if not pids and metrics_url is None:
        subject.metrics_url = f"{parts.scheme}://{parts.netloc}/metrics"
        if subject.usage() is None:
            subject.metrics_url = None  # they are on another port, or not for us
    return subject


def _usage_by_metrics(url: str) -> Usage | None:
    try:
        # As the load goes: never through a proxy that the environment names.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(url, timeout=10) as answer:
            text = answer.read().decode()
    except (OSError, HTTPException, ValueError):  # nobody there, or something that does not speak HTTP
        return None
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("process_"))
    try:
        return Usage(float(values["process_cpu_seconds_total"]), int(float(values["process_resident_memory_bytes"])))
    except KeyError:
        return None
