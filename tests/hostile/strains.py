"""What strangers and publishers try against the bounds of docs/security.md: the rows of its table of measurements.

tests/hostile/test_bounds.py does each of them scaled down; `python benchmarks/bounds.py` measures them at full size.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import jwt

from tests.brokers.machines import REDIS, REDIS_HELLO, Machine
from tests.brokers.rabbitmq_server import RabbitmqServer
from tests.hostile.measuring import Scene, SlowlyReadServer, Steps, Strain
from tests.hostile.observing import metrics
from tests.serving import KEY, RawClient, wait_until
from tests.signing import SECRET

MIB = 1024 * 1024
STRAINS: dict[str, Strain] = {}
END = b"this is the end"


SETTINGS_OF_STRAINS = {field.name for field in fields(Strain)}


def strain(name: str, **options: Any) -> Callable[[Callable[[Scene], Steps]], Callable[[Scene], Steps]]:
    """Add one to the table. `options` are fields of `Strain`; all others are settings of its server."""
    own = {key: value for key, value in options.items() if key in SETTINGS_OF_STRAINS}
    settings = {key: value for key, value in options.items() if key not in SETTINGS_OF_STRAINS}

    def add(run: Callable[[Scene], Steps]) -> Callable[[Scene], Steps]:
        STRAINS[name] = Strain(name, run, settings, **own)
        return run

    return add


def event(topic: str | list[str], data: str, **more: Any) -> str:
    return json.dumps({"topic": topic, "data": data} | more, ensure_ascii=False)


def until_ended(scene: Scene, target: str, *headers: str, times: int = 1) -> None:
    """A stream that reads on until the event that all of them end with."""
    for _ in range(times):
        client = scene.client().get(target, *headers)
        scene.read_until(client, END)
        client.close()


# One request of a stranger: `replay=latest` with as many prefixes as there may be.


def _latest(events: int, part: int, topics: int) -> Callable[[Scene], Steps]:
    def run(scene: Scene) -> Steps:
        def line(number: int) -> str:
            names = [f"p{(number + other) % 64}/{number}.{other}" for other in range(topics)]
            return event(names, "x")

        scene.fill(scene.many(events, part), line)
        scene.publish(event("p0/end", END.decode()))
        yield
        query = "&".join(f"topic=p{prefix}/*" for prefix in range(64))
        until_ended(scene, f"/events?replay=latest&{query}", times=3)

    return run


strain("latest")(_latest(10_000, 3000, 1))
strain("latest, production", history__max_events=50_000, history__max_bytes=128 * MIB)(_latest(50_000, 6000, 1))
strain("latest, 64 topics", memory_mib=16)(_latest(10_000, 1000, 64))


# Publishers.


@strain("batch for many feeds", turn_seconds=0.05, wait_seconds=0.8, memory_mib=16)
def batch_for_many_feeds(scene: Scene) -> Steps:
    streams = [scene.client().get(f"/events?topic=own/{number}&topic=all") for number in range(scene.many(3000, 800))]
    for stream in streams:
        stream.until(b'"connected"')
    yield
    scene.publish(*(event("all", f"{number}") for number in range(299)), event("all", END.decode()))
    for stream in streams:
        scene.read_until(stream, END)


@strain("idempotency keys", turn_seconds=0.05, wait_seconds=0.3, memory_mib=32)
def idempotency_keys(scene: Scene) -> Steps:
    def line(number: int) -> str:
        return event("quiet", "x", idempotency_key=f"key-{number}")

    def batch(number: int) -> None:
        scene.publish(*map(line, range(number * 10_000, (number + 1) * 10_000)))

    # As many as are remembered: each more makes the server forget one.
    for number in range(11):
        batch(number)
    yield
    for number in range(11, 13):
        batch(number)


@strain("NDJSON with a bad last line", turn_seconds=0.05, memory_mib=24)
def bad_last_line(scene: Scene) -> Steps:
    yield
    size = 8 * MIB - 1000
    tiny, large = event("a", "x"), event("a", "x" * 790)
    for good, bad in [(tiny, "{"), (large, "{"), (large, '{"topic": "a", "data": "\\ud800"}')]:
        lines = [good] * (size // (len(good) + 1))
        scene.publish(*lines, bad, expect=400)


@strain("uploads that are reset", memory_mib=80)
def resets(scene: Scene) -> Steps:
    size = 8 * MIB - 1000
    head = (
        f"POST /events HTTP/1.1\r\nHost: tests\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/x-ndjson\r\nContent-Length: {size}\r\n\r\n"
    ).encode()
    body = (event("a", "x" * 790) + "\n").encode() * (size // 800)

    def upload(clients: list[RawClient]) -> None:
        client = RawClient(scene.server.port, timeout_seconds=60)
        clients.append(client)
        with suppress(OSError):  # refused
            client.socket.sendall(head + body[: size - 1000])

    yield
    for _ in range(scene.many(6, 2)):
        clients: list[RawClient] = []
        uploads = [threading.Thread(target=upload, args=(clients,)) for _ in range(30)]
        for thread in uploads:
            thread.start()
        for thread in uploads:
            thread.join()
        for client in clients:
            client.reset()
    wait_until(lambda: not metrics(scene.server).get("inflight_body_bytes"), what="the end of the last")
    scene.seen["memory afterwards, MiB"] = scene.server.memory("VmRSS") / MIB


# Heads of requests.


@strain("X-Forwarded-For", server__trusted_proxies=["127.0.0.1"])
def forwarded_for(scene: Scene) -> Steps:
    yield
    for size in (32 * 1024, MIB - 2000):
        for hop in ("127.0.0.1", "1.2.3.4"):
            header = "X-Forwarded-For: " + ", ".join([hop] * (size // (len(hop) + 2)))
            client = scene.client().get("/events?topic=a", header)
            client.until(b'"connected"')
            client.close()


@strain(
    "header lines and cookies",
    auth__jwt__algorithms=["HS256"], auth__jwt__secret=SECRET, auth__jwt__cookie="token",
)  # fmt: skip
def header_lines(scene: Scene) -> Steps:
    yield
    lines = [f"x{number}: y" for number in range(60_000)]
    cookies = "Cookie: " + "; ".join(f"c{number}=" for number in range(100_000))
    for headers in (lines, [cookies], [cookies[: 256 * 1024 - 100]]):
        _answered(scene, *headers)


def _answered(scene: Scene, *headers: str) -> None:
    """Whatever the answer is."""
    client = scene.client()
    with suppress(OSError):
        client.get("/events?topic=a", "Accept: text/event-stream", *headers).until(b"\r\n\r\n")
    client.close()


# Readers.


@strain(
    "slow readers dropped at once",
    limits__max_backlog_bytes=64 * 1024, limits__backlog_grace_seconds=0, limits__send_buffer_bytes=4096,
)  # fmt: skip
def slow_readers(scene: Scene) -> Steps:
    stalled = [scene.client(receive_buffer=4096) for _ in range(scene.many(4000, 1200))]
    for client in stalled:
        client.get("/events?topic=a").until(b'"connected"')
    yield
    for _ in range(8):
        scene.publish(*[event("a", "x" * 8000)] * 5)
    # They are told, and closed some seconds later.
    wait_until(lambda: metrics(scene.server)["connections"] <= 1, seconds=60, what="their end")


@strain("slow reader of the log", server=SlowlyReadServer, log__level="info")
def slow_log_reader(scene: Scene) -> Steps:
    def come_and_go(count: int) -> None:
        for _ in range(count):
            client = scene.client().get("/events?topic=a", "User-Agent: " + "x" * 200)
            client.until(b'"connected"')
            client.close()

    come_and_go(150)  # the pipe is full
    yield
    come_and_go(scene.many(150, 60))


@strain("many names of one stream")
def many_names(scene: Scene) -> Steps:
    yield
    for number in range(scene.many(500, 100)):
        # 255 characters each, of four bytes in memory; no two streams share a name.
        names = [
            f"{what}={number:03}.{part:02}.{'%F0%9F%98%80' * 248}" for what in ("topic", "event") for part in range(64)
        ]
        scene.client().get("/events?" + "&".join(names), "Accept: application/json").until(b"\r\n\r\n")


@strain("as many names as one stream may have", limits__max_subscription_characters=8192)
def allowed_names(scene: Scene) -> Steps:
    yield
    for number in range(scene.many(500, 100)):
        names = [f"{what}={number:03}.{part:02}.{'x' * 120}" for what in ("topic", "event") for part in range(32)]
        scene.client().get("/events?" + "&".join(names)).until(b'"connected"')


@strain("User-Agents")
def user_agents(scene: Scene) -> Steps:
    yield
    for number in range(scene.many(10_000, 1000)):
        client = RawClient(scene.server.port)
        client.get("/events?topic=a", f"User-Agent: {number:06}" + "x" * 190).until(b'"connected"')
        client.close()


@strain(
    "tokens with foreign grants",
    auth__jwt__algorithms=["HS256"], auth__jwt__secret=SECRET, auth__private_topics=["user/*"],
)  # fmt: skip
def foreign_grants(scene: Scene) -> Steps:
    streams = []
    for number in range(scene.many(1000, 200)):
        claims = {"exp": time.time() + 3600, "qgstream": {"subscribe": [f"user/{number}"]}}
        token = jwt.encode(claims, SECRET, "HS256")
        streams.append(scene.client().get("/events?topic=news", f"Authorization: Bearer {token}"))
    for stream in streams:
        stream.until(b'"connected"')
    scene.seen["feeds"] = metrics(scene.server)["topics"]
    yield
    scene.publish(*(event("news", f"{number}") for number in range(299)), event("news", END.decode()))
    for stream in streams:
        scene.read_until(stream, END)


# Work for a broker.


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis of its own."""
    machine = Machine(REDIS, folder, hello=REDIS_HELLO)
    machine.start()
    try:
        yield f"redis://127.0.0.1:{machine.port}?max_events=100000"
    finally:
        machine.kill()


@contextmanager
def rabbitmq(folder: Path) -> Iterator[str]:
    """A RabbitMQ of its own."""
    machine = RabbitmqServer(Path("/usr/sbin/rabbitmq-server"), folder)
    machine.start()
    try:
        yield f"amqp://127.0.0.1:{machine.port}"
    finally:
        machine.end()


@strain("refusals", has_stream=False, limits__max_connections=0, history__max_events=100, engine=redis)
def refusals(scene: Scene) -> Steps:
    answer = scene.publish(event("a", "x" * 100))
    epoch, _, first = json.loads(answer)["ids"][0].rpartition("-")
    yield
    for number in range(scene.many(1000, 200)):
        _answered(scene, f"Last-Event-ID: {epoch}-{int(first) + 10**9 + number}")


@strain("ids from the future", has_stream=False, engine=rabbitmq)
def future_ids(scene: Scene) -> Steps:
    def publish() -> tuple[str, int]:
        epoch, _, offset = json.loads(scene.publish(event("a", "x")))["ids"][0].rpartition("-")
        return epoch, int(offset)

    yield
    epoch, before = publish()
    for number in range(100):
        _answered(scene, f"Last-Event-ID: {epoch}-{before + 1000 + number}")
    scene.seen["entries written to the log"] = publish()[1] - before - 1


# The history.


@strain("long topics in the history", memory_mib=1.25 * 16 + 8, history__max_bytes=16 * MIB, history__max_events=2500)
def long_topics(scene: Scene) -> Steps:
    def line(number: int) -> str:
        return event([f"{number:05}.{part:02}." + "x" * 190 for part in range(64)], "x")

    scene.fill(2500, line, at_once=250)
    scene.publish(event("end", END.decode()))
    yield
    until_ended(scene, "/events?last_event_id=earliest&envelope=1")
    scene.seen["memory afterwards, MiB"] = scene.server.memory("VmRSS") / MIB


@strain(
    "Cyrillic text in the history", memory_mib=1.25 * 16 + 8, history__max_bytes=16 * MIB, history__max_events=100_000
)
def cyrillic(scene: Scene) -> Steps:
    scene.fill(5000, lambda number: event("a", f"{number:05} " + "ж" * 2040), at_once=500)
    scene.publish(event("a", END.decode()))
    yield
    until_ended(scene, "/events?last_event_id=earliest")
    until_ended(scene, "/events?last_event_id=earliest&envelope=1")
    upgrade = (
        "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )  # fmt: skip
    until_ended(scene, "/ws?last_event_id=earliest", *upgrade)


@strain(
    "old ids",
    memory_mib=32,
    turn_seconds=0.05,
    broker__url="sqlite://{folder}/events.db?max_events=100000&max_bytes=1000000000",
    history__max_events=1000,
)
def old_ids(scene: Scene) -> Steps:
    scene.fill(scene.many(30_000, 6000), lambda number: event("a", f"{number} " + "x" * 4000))
    first = scene.client().get("/events?topic=a&last_event_id=earliest")
    received = first.until(b"data: 1 ").decode()
    id = [line for line in received.splitlines() if line.startswith("id: ")][-1].removeprefix("id: ")
    first.close()
    epoch, _, offset = id.rpartition("-")
    yield
    # They do not read, so that all are under way at once; each begins at another place.
    clients = [
        scene.client(receive_buffer=4096).get("/events?topic=a", f"Last-Event-ID: {epoch}-{int(offset) + 13 * number}")
        for number in range(scene.many(2000, 200))
    ]
    for client in clients:
        client.until(b'"connected"')
    for client in clients[:20]:
        scene.read_until(client, b"x" * 1000)


@strain(
    "a replay that finds nothing",
    memory_mib=24,
    heartbeat__interval_seconds=1,
    broker__url="sqlite://{folder}/events.db?max_events=1000000",
)
def empty_replay(scene: Scene) -> Steps:
    scene.fill(scene.many(150_000, 20_000), lambda number: event(f"t/{number}", "x"), at_once=10_000)
    yield
    clients = [scene.client().get("/events?topic=nothing&last_event_id=earliest") for _ in range(scene.many(10, 5))]
    for client in clients:
        client.until(b'"connected"')
    longest = 0.0
    for _ in range(5):
        for client in clients:
            client.received = b""
            began = time.monotonic()
            client.until(b'"heartbeat"')
            longest = max(longest, time.monotonic() - began)
    scene.seen["longest silence, s"] = longest


@strain(
    "a reload of history.topics", memory_mib=16, turn_seconds=0.05, config="{folder}/qgstream.toml",
    broker__url="sqlite://{folder}/events.db?max_events=1000000",
)  # fmt: skip
def reload_of_shelves(scene: Scene) -> Steps:
    scene.fill(scene.many(300_000, 20_000), lambda number: event(f"t/{number}", "x"), at_once=10_000)
    shelves = '[[history.topics]]\npattern = "none"\n[[history.topics]]\npattern = "t/*"\nmax_age_seconds = 1800\n'
    (scene.folder / "qgstream.toml").write_text(shelves)
    yield
    scene.server.process.send_signal(signal.SIGHUP)
    with closing(sqlite3.connect(f"file:{scene.folder}/events.db?mode=ro", uri=True)) as file:

        def is_done() -> bool:
            scene.publish(event("more", "x"))
            return not file.execute("SELECT count(*) FROM log WHERE shelf = 0").fetchone()[0]

        wait_until(is_done, seconds=120, what="every row on the shelf of its topic")
