"""Subjects: the servers to be measured, and their dialects."""

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
# Sockets of a server that are not streams: publishers, probes, and sockets that are closing.
OTHER_SOCKETS = 200


@dataclass(frozen=True, slots=True)
class Dialect:
    """The requests of a server. `{topic}` is a topic's name, `{n}` the number of a stream."""

    name: str
    subscribe: str = "/events?topic={topic}"
    publish: str = "/events"
    # The body is prefix + payload + suffix; the payload is ASCII without quotes.
    prefix: str = '{"topic":"{topic}","data":"'
    suffix: str = '"}'
    headers: Sequence[str] = ("Content-Type: application/json",)
    health: str = "/health"


QGSTREAM = Dialect("qgstream")
FLOOR = Dialect("bare send loop", prefix="", suffix="", headers=())
PLAIN = Dialect("plain Tornado", prefix="", suffix="", headers=())
# The same requests as for the server under test: parsing a query is part of the comparison.
HEADERS_ONLY = Dialect("Tornado, headers only", "/headers?topic={topic}", prefix="", suffix="", headers=())


@dataclass
class Subject:
    """A running server: its address, its dialect, and the processes whose time and memory count."""

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
        """Its name in the tables."""
        return self.dialect.name

    @property
    def is_loopback(self) -> bool:
        """Whether the server is known to be on this machine."""
        return is_loopback(self.host)

    def get_request(self, topic: str = "bench", *, headers: Sequence[str] = ()) -> str:
        """Return the request that opens a stream."""
        target = self.dialect.subscribe.replace("{topic}", topic)
        return "\r\n".join([f"GET {target} HTTP/1.1", self._head, "Accept: text/event-stream", *headers, "", ""])

    def publish_request(self, payload: bytes, topic: str = "bench") -> bytes:
        """Return the request that publishes a payload."""
        body = self.event(payload, topic)
        return self._post(topic, body, self.dialect.headers)

    def batch_request(self, payloads: Sequence[bytes], topic: str = "bench") -> bytes:
        """Return the request that publishes many payloads at once, as newline-delimited JSON."""
        return self.mixed_request([(topic, payload) for payload in payloads])

    def mixed_request(self, events: Sequence[tuple[str, bytes]]) -> bytes:
        """Return the same request with a topic for each payload, for servers that read the topic from the body."""
        body = b"\n".join(self.event(payload, topic) for topic, payload in events)
        return self._post(events[0][0], body, ("Content-Type: application/x-ndjson",))

    def event(self, payload: bytes, topic: str) -> bytes:
        """Return one event in the server's format."""
        return self.dialect.prefix.replace("{topic}", topic).encode() + payload + self.dialect.suffix.encode()

    def _post(self, topic: str, body: bytes, headers: Sequence[str]) -> bytes:
        target = self.dialect.publish.replace("{topic}", topic)
        lines = [f"POST {target} HTTP/1.1", self._head, *headers, f"Content-Length: {len(body)}", "", ""]
        return "\r\n".join(lines).encode() + body

    def health_request(self) -> bytes:
        """Return the request of a supervisor's probe."""
        lines = [f"GET {self.dialect.health} HTTP/1.1", self._head, "Connection: close", "", ""]
        return "\r\n".join(lines).encode()

    def usage(self) -> Usage | None:
        """Return CPU time and memory: from /proc for processes of this machine, otherwise from the server's own
        /metrics."""
        if self.pids:
            return usage(self.pids)
        return _usage_by_metrics(self.metrics_url) if self.metrics_url is not None else None

    def check(self) -> None:
        """Raise `BenchError` when a process that this bench started has ended."""
        for program in self.programs:
            if not program.is_running:
                raise program.ended()

    def stop(self) -> None:
        """Stop the processes that this bench started."""
        for program in self.programs:
            program.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def start_module(dialect: Dialect, module: str, cores: Cores, *arguments: str) -> Subject:
    """Start a Python module that prints the port on which it serves."""
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
    """Start a qgstream server on a free loopback port, with capacity for `streams`.

    `settings` are dotted keys; they are passed in the environment, because a broker's URL may contain a password.
    `command` is what Python runs instead of the package, for experiments.
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
    """Return a running qgstream server as the subject. Raises `BenchError` for a server that is not on this machine,
    unless allowed."""
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
            "what is sent there may look like an attack: pass --allow-remote if the machine is yours"
        )
    pids = () if pid is None else (pid,)
    subject = Subject(QGSTREAM, host, port, key=key, pids=pids, metrics_url=metrics_url, family=family)
    if not pids and metrics_url is None:
        subject.metrics_url = f"{parts.scheme}://{parts.netloc}/metrics"
        if subject.usage() is None:
            subject.metrics_url = None  # they are on another port, or not accessible
    return subject


def _usage_by_metrics(url: str) -> Usage | None:
    try:
        # Directly, as the load: never through a proxy of the environment.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(url, timeout=10) as response:
            text = response.read().decode()
    except (OSError, HTTPException, ValueError):  # no server there, or a server that does not speak HTTP
        return None
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("process_"))
    try:
        return Usage(float(values["process_cpu_seconds_total"]), int(float(values["process_resident_memory_bytes"])))
    except KeyError:
        return None
