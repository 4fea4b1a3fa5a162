"""What one client costs that comes back: with nothing missed, with some events missed, refused, cut at accept.

`python benchmarks/reconnects.py`. The constants of benchmarks/reconnect_storm.py and docs/scale.md come from here. All
clients come as fast as the load can open them, 256 at a time.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

from experiment import Experiment

from qgstream.bench.crew import Crew
from qgstream.bench.errors import BenchError
from qgstream.bench.session import Figures
from qgstream.bench.stamps import stamped
from qgstream.bench.subjects import Subject, start_qgstream

COLUMNS = {"cpu_us": "CPU us/client"}
PAYLOAD_BYTES = 100
HISTORY = 1000


def measure(subject: Subject, clients: int, do: Callable[[], None]) -> Figures:
    """The server's CPU for each of the clients that `do` sends."""
    before = subject.usage()
    do()
    time.sleep(1)  # what the server does behind its answers
    after = subject.usage()
    if before is None or after is None:
        raise BenchError("the server's CPU cannot be read")
    return {"cpu_us": (after.cpu_seconds - before.cpu_seconds) * 1e6 / clients}


def ask(subject: Subject, request: bytes) -> bytes:
    """One request on a connection of its own, and all of its answer."""
    with socket.create_connection((subject.host, subject.port), timeout=20) as connection:
        connection.sendall(request.replace(b"Accept: text/event-stream", b"Connection: close"))
        answer = b""
        while more := connection.recv(65536):
            answer += more
        return answer


def publish(subject: Subject, events: int) -> list[str]:
    """Events into the history; their ids."""
    request = subject.batch_request([stamped(PAYLOAD_BYTES, 0)] * events)
    head, _, body = request.partition(b"\r\n\r\n")
    answer = ask(subject, head + b"\r\nConnection: close\r\n\r\n" + body)
    ids: list[str] = json.loads(answer.partition(b"\r\n\r\n")[2])["ids"]
    return ids


def opens(experiment: Experiment, *, missed: int | None) -> Figures:
    """Streams that open, with an id behind which there are so many events, or with none."""
    with (
        start_qgstream(experiment.cores, streams=experiment.streams) as subject,
        Crew(subject, experiment.cores) as crew,
    ):
        ids = publish(subject, HISTORY)
        headers = [] if missed is None else [f"Last-Event-ID: {ids[HISTORY - 1 - missed]}"]
        request = subject.get_request(headers=headers)

        def open_all() -> None:
            crew.open(experiment.streams, request)
            expected = experiment.streams * (missed or 0)
            deadline = time.monotonic() + 30
            while crew.status().deliveries < expected:
                if time.monotonic() > deadline:
                    raise BenchError(f"{crew.status().deliveries} of {expected} events came")
                time.sleep(0.02)

        crew.begin(sample_every=1_000_000)
        return measure(subject, experiment.streams, open_all)


def refused(experiment: Experiment) -> Figures:
    """Streams over `limits.max_connections`: 200, `rejected`, and the end."""
    settings = {"limits.max_connections": 0, "limits.max_sockets": 2000}
    with (
        start_qgstream(experiment.cores, streams=1, settings=settings) as subject,
        Crew(subject, experiment.cores) as crew,
    ):
        return measure(subject, experiment.streams, lambda: _open(crew, experiment.streams, subject))


def cut(experiment: Experiment) -> Figures:
    """Sockets over `limits.max_sockets`: closed at accept."""
    # One socket is allowed, and held by a client that says nothing.
    settings = {"limits.max_connections": 1, "limits.max_sockets": 1}
    with (
        start_qgstream(experiment.cores, streams=1, settings=settings) as subject,
        socket.create_connection((subject.host, subject.port)),
    ):

        def knock() -> None:
            for _ in range(experiment.streams):
                with socket.create_connection((subject.host, subject.port), timeout=20) as connection:
                    if connection.recv(1):
                        raise BenchError("it was not cut")

        return measure(subject, experiment.streams, knock)


def _open(crew: Crew, streams: int, subject: Subject) -> None:
    crew.open(streams, subject.get_request())


def main() -> None:
    """Measure all kinds."""
    experiment = Experiment(__doc__ or "", streams=5000, seconds=0)
    variants: dict[str, Callable[[], Figures]] = {"opens, without an id": lambda: opens(experiment, missed=None)}
    for missed in (0, 5, 50):
        variants[f"comes back, {missed} events of {PAYLOAD_BYTES} bytes missed"] = lambda missed=missed: opens(  # type: ignore[misc]
            experiment, missed=missed
        )
    variants["refused: rejected, retry, end"] = lambda: refused(experiment)
    variants["cut at accept"] = lambda: cut(experiment)
    experiment.compare(variants, COLUMNS)


if __name__ == "__main__":
    main()
