"""What each process pays for an event on the engine that nobody hears there: it reads, checks and keeps it.

`python benchmarks/engine_tail.py nats://127.0.0.1:4222`; it needs `pip install 'qgstream[nats]'`. Another program puts
the events into the stream, so that publishing is not in the figure. It also says what an event takes of the stream, and
what it and a heartbeat take of a subscriber's line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import urllib.request

import nats

from qgstream.bench.processes import Cores
from qgstream.bench.subjects import Subject, start_qgstream

PAYLOAD = b"x" * 100
EVENTS = 20_000
STREAM = "qgstream-benchmark"


async def fill(url: str, events: int) -> None:
    """Events by a plain client, none lost."""
    client = await nats.connect(url)
    try:
        for number in range(events):
            await client.publish(f"{STREAM}.topic-{number % 1000}", PAYLOAD)
        await client.flush(timeout=60)
    finally:
        await client.close()


async def stored(url: str) -> float:
    """Bytes of the stream for an event; the stream is deleted."""
    client = await nats.connect(url)
    try:
        manager = client.jsm()
        state = (await manager.stream_info(STREAM)).state
        await manager.delete_stream(STREAM)
        return state.bytes / state.messages
    finally:
        await client.close()


def publish(subject: Subject) -> None:
    """One event through the server: it is answered when everything before it has come."""
    body = json.dumps({"topic": "line", "data": PAYLOAD.decode()}).encode()
    headers = {"Authorization": f"Bearer {subject.key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{subject.port}/events", body, headers)
    urllib.request.urlopen(request, timeout=60).close()


def cpu_us(subject: Subject, url: str) -> float:
    """CPU for each event."""
    publish(subject)
    before = subject.usage()
    asyncio.run(fill(url, EVENTS))
    publish(subject)
    after = subject.usage()
    assert before is not None
    assert after is not None
    return (after.cpu_seconds - before.cpu_seconds) * 1e6 / EVENTS


def line(subject: Subject) -> tuple[int, int]:
    """Bytes of an event and of a heartbeat on a stream, chunk headers included."""
    with socket.create_connection(("127.0.0.1", subject.port), timeout=30) as stream:
        stream.sendall(b"GET /events?topic=line HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while b'"connected"' not in stream.recv(65536):
            pass
        publish(subject)
        event = stream.recv(65536)
        while PAYLOAD not in event:
            event = stream.recv(65536)
        heartbeat = stream.recv(65536)
        return len(event), len(heartbeat)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("url", help="a NATS server with JetStream; its stream qgstream-benchmark is deleted")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    settings = {"broker.url": f"{args.url}/{STREAM}?prefix={STREAM}&max_events=1000000"}
    with start_qgstream(Cores.divide(), streams=10, settings=settings) as subject:
        found = sorted(cpu_us(subject, args.url) for _ in range(args.repeat))
        event, heartbeat = line(subject)
    all_of_them = ", ".join(f"{figure:.0f}" for figure in found)
    print(f"CPU for an event that nobody hears: {found[len(found) // 2]:.0f} us (of {all_of_them})")
    in_engine = asyncio.run(stored(args.url))
    print(f"an event of {len(PAYLOAD)} bytes: {event} bytes on a stream, {in_engine:.0f} in the engine")
    print(f"a heartbeat: {heartbeat} bytes")


if __name__ == "__main__":
    main()
