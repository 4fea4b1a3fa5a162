"""What an operator can see of a server from outside: its metrics, its log, its memory."""

from __future__ import annotations

import http.client
import ssl
from pathlib import Path
from typing import Any

from qgstream.wire.sse import Parser
from tests.serving import RawClient, ServerProcess, wait_until


def ask(
    server: ServerProcess, method: str, target: str, *, body: bytes | None = None,
    headers: dict[str, str] | None = None, tls: ssl.SSLContext | None = None, port: int | None = None,
) -> tuple[http.client.HTTPResponse, bytes]:  # fmt: skip
    """One request and its answer."""
    port = port or server.port
    if tls is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    else:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=tls)
    try:
        connection.request(method, target, body, headers or {})
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def metrics(server: ServerProcess, *, tls: ssl.SSLContext | None = None) -> dict[str, float]:
    """Every sample by its name and labels, as they stand in the text format."""
    answer, body = ask(server, "GET", "/metrics", tls=tls, port=server.admin_port)
    assert answer.status == 200, body
    lines = [line.rpartition(" ") for line in body.decode().splitlines() if line and not line.startswith("#")]
    return {name.removeprefix("qgstream_"): float(value) for name, _, value in lines}


def resident_bytes(server: ServerProcess) -> int:
    """The memory of the process."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * 4096


def descriptors(server: ServerProcess) -> int:
    """How many files and sockets the process has open."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def cpu_seconds(server: ServerProcess) -> float:
    """What the process has used of processors."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def body_of(client: RawClient) -> bytes:
    """The body of a stream, as far as it was received in whole chunks."""
    body, rest = b"", client.received.partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if len(rest) < int(size, 16) + 2:
            break
        body += rest[: int(size, 16)]
        assert rest[int(size, 16) :].startswith(b"\r\n")
        rest = rest[int(size, 16) + 2 :]
    return body


def data_of(client: RawClient) -> list[str]:
    """The data of the published events that a stream has received whole."""
    return [event.data for event in Parser().feed(body_of(client)) if not event.data.startswith('{"event": ')]


def until_data(client: RawClient, prefix: str) -> list[str]:
    """`data_of`, as soon as there is an event among it whose data begins with `prefix`."""
    while True:
        received = data_of(client)
        if any(data.startswith(prefix) for data in received):
            return received
        more = client.socket.recv(1024 * 1024)
        assert more, f"the server closed before {prefix!r}"
        client.received += more


class Watch:
    """What ended, was refused and is open, since this was made.

    It begins when the streams of earlier tests have ended: the server may notice their end later than they do.
    """

    def __init__(self, server: ServerProcess, *, tls: ssl.SSLContext | None = None) -> None:
        self.server = server
        self.tls = tls
        wait_until(lambda: metrics(server, tls=tls)["connections"] == 0, what="the end of earlier streams")
        self.before = metrics(server, tls=tls)
        ended = sum(value for name, value in self.before.items() if name.startswith("connections_closed_total{"))
        wait_until(lambda: len(self._ends()) >= ended, what="their lines in the log")
        self._lines_before = len(self._ends())

    def _grown(self, name: str) -> dict[str, int]:
        now = metrics(self.server, tls=self.tls)
        grown = {key: round(now[key] - self.before[key]) for key in now if key.startswith(f"{name}_total{{")}
        return {key.split('"')[1]: number for key, number in grown.items() if number}

    @property
    def closed(self) -> dict[str, int]:
        """How many streams ended, by reason."""
        return self._grown("connections_closed")

    @property
    def rejected(self) -> dict[str, int]:
        """How many streams were refused, by reason."""
        return self._grown("connections_rejected")

    @property
    def open(self) -> int:
        """How many more streams are open."""
        return round(metrics(self.server, tls=self.tls)["connections"] - self.before["connections"])

    def disconnected(self) -> list[dict[str, Any]]:
        """The lines of the log about streams that ended."""
        return self._ends()[self._lines_before :]

    def _ends(self) -> list[dict[str, Any]]:
        return [line for line in self.server.lines() if line["event"] == "events.disconnected"]

    def expect(self, *, left: int = 0, **closed: int) -> list[dict[str, Any]]:
        """Wait until exactly these streams have ended and so many are left; the log says the same."""
        wait_until(
            lambda: self.open <= left and sum(self.closed.values()) >= sum(closed.values()),
            what=f"{closed}, {left} open",
        )
        assert (self.closed, self.open) == (closed, left)
        wait_until(lambda: len(self.disconnected()) >= sum(closed.values()), what="the lines in the log")
        lines = self.disconnected()
        reasons = [line["reason"] for line in lines]
        assert {reason: reasons.count(reason) for reason in reasons} == closed
        return lines
