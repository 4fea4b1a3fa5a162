"""Somebody who has done nothing: asks `/health`, and holds a stream that somebody publishes to.

`python others.py PORT PID KEY`, a process of its own, so that nothing that the tests do makes it wait. It writes one
line when it has begun. When its standard input ends, it writes how long it waited at most, in seconds, as JSON: for
`health`, and for `stream`, from the beginning of a publish until the event was there. `health_cpu` and `stream_cpu` are
the CPU time that the main thread of the server, PID, used in the meantime, at most. That does not depend on what other
programs do.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
import time
from pathlib import Path

PAUSE_SECONDS = 0.002
TIMEOUT_SECONDS = 120


class Others:
    """Counts its longest waits until `done`."""

    def __init__(self, port: int, pid: int, key: str) -> None:
        self.done = threading.Event()
        self.longest = {"health": 0.0, "health_cpu": 0.0, "stream": 0.0, "stream_cpu": 0.0}
        self._schedstat = Path(f"/proc/{pid}/task/{pid}/schedstat")
        self._port = port
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def ask(self) -> None:
        """GET /health, again and again."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)
        while not self.done.is_set():
            began = self._now()
            connection.request("GET", "/health")
            connection.getresponse().read()
            self._waited("health", began)

    def listen(self) -> None:
        """Publish to a stream, again and again. A server that is full refuses; that is no wait."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT_SECONDS) as stream:
            stream.sendall(b"GET /events?topic=others HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = self._until(stream, b"", b'"connected"')
            publisher = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)
            number = 0
            while not self.done.is_set():
                number += 1
                began = self._now()
                document = {"topic": "others", "data": f"number {number}."}
                publisher.request("POST", "/events", json.dumps(document), self._headers)
                answer = publisher.getresponse()
                answer.read()
                if answer.status == 200:
                    received = self._until(stream, received, f"number {number}.".encode())
                    self._waited("stream", began)

    def _now(self) -> tuple[float, float]:
        """Wall-clock time, and the CPU time of the server's main thread."""
        return time.monotonic(), int(self._schedstat.read_text().split()[0]) / 1e9

    def _waited(self, what: str, began: tuple[float, float]) -> None:
        for name, start, end in zip((what, f"{what}_cpu"), began, self._now(), strict=True):
            self.longest[name] = max(self.longest[name], end - start)
        time.sleep(PAUSE_SECONDS)

    @staticmethod
    def _until(stream: socket.socket, received: bytes, expected: bytes) -> bytes:
        while expected not in received:
            more = stream.recv(65536)
            if not more:
                raise ConnectionError("the stream of somebody else ended")
            received += more
        return received.partition(expected)[2]


def main() -> None:
    """Until the end of the standard input."""
    others = Others(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    threads = [threading.Thread(target=others.ask)]
    if sys.argv[4:] != ["health"]:
        threads.append(threading.Thread(target=others.listen))
    for thread in threads:
        thread.start()
    print("begun", flush=True)
    sys.stdin.read()
    others.done.set()
    for thread in threads:
        thread.join()
    print(json.dumps(others.longest), flush=True)


if __name__ == "__main__":
    main()
