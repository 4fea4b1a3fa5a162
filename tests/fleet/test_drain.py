"""The server leaves slowly: told, spread, complete, and on time."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from qgstream.wire.sse import Event, Parser
from tests.deploy.programs import free_port
from tests.fleet.clients import Post, Stream
from tests.fleet.judge import Rules, Sent, Witness
from tests.fleet.ledger import Intent, Ledger, Place, Spec
from tests.serving import KEY, RawClient, ServerProcess, wait_until

STREAMS = 2000
STALLED = 24
PUBLISHES = 48
WINDOW_SECONDS = 6.0
RETRY_SECONDS = 1.0
TOPICS = ("orders/1", "orders/2", "news")
SPECS = (
    Spec(("orders/*", "news")),
    Spec(("orders/*",)),
    Spec(("news", "orders/1")),
    Spec(("orders/2",), envelope=True),
    Spec(("quiet",)),
    Spec(("orders/*",), http="1.0"),
)


@dataclass(frozen=True)
class Engine:
    """What joins two servers: their settings, and what a client that moves from one to the other may be told."""

    settings: dict[str, Any] = field(default_factory=dict)
    resets: frozenset[str] = frozenset()


@pytest.fixture(params=["memory"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Nothing joins two servers with the memory broker: a client that moves must be told so."""
    return {"memory": Engine(resets=frozenset({"epoch_changed"}))}[request.param]


class Listener(Stream):
    """A well-behaved client, or one that is stalled. It knows when it was told to go, and for how long."""

    def __init__(self, witness: Witness, last_event_id: str = "") -> None:
        super().__init__(witness, Parser(last_event_id=last_event_id))
        self.judge = witness
        self.told_at: float | None = None
        self.retry_ms: int | None = None

    async def listen(self, url: str, sent: Sent = "none", *, receive_buffer: int | None = None) -> None:
        """Open the stream; returns when its head is there."""
        spec, id = self.judge.spec, self.parser.last_event_id
        self.judge.connects(sent, id, url)
        headers = [f"Last-Event-ID: {id}"] if id else []
        await self.open(url, f"/events?{spec.query()}", *headers, http=spec.http, receive_buffer=receive_buffer)
        await self.opened

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if event.data.startswith('{"event": "closing"'):
            self.told_at = datetime.fromisoformat(json.loads(event.data)["timestamp"]).timestamp()
            self.retry_ms = event.retry_ms


class Writer:
    """Publishes now and then, and remembers when each answer came.

    It keeps connections for the drain: the listener is closed by then, and an answer closes the connection behind it.
    """

    def __init__(self, url: str, ledger: Ledger, first: int = 0) -> None:
        self._url = url
        self._kept: list[Post] = []
        self._ledger = ledger
        self._made = first
        self.answers: list[tuple[float, Place]] = []

    async def publish(self, *topics: str, padding: int = 50, post: Post | None = None) -> Post:
        """Publish one event and see it answered. Returns the connection, a new one unless it is given."""
        self._made += 1
        intent = Intent(f"~0.{self._made}~", topics or (TOPICS[self._made % 3],), padding=padding)
        self._ledger.intend(intent)
        if post is None:
            post = Post(self._url, KEY)
            self._kept.append(post)
        status, document = await post(json.dumps(intent.document()).encode())
        assert status == 200, document
        self.answers.append((time.time(), self._ledger.acknowledge(intent, str(document["id"]))))
        return post

    async def publish_over(self, posts: list[Post], seconds: float) -> None:
        """Publish once over each of the connections, at an even pace, as many as that time allows."""
        began = time.monotonic()
        for number, post in enumerate(posts):
            await asyncio.sleep(began + seconds / len(posts) * number - time.monotonic())
            if time.monotonic() < began + seconds:
                await self.publish(post=post)

    def close(self) -> None:
        for post in self._kept:
            post.close()


def fullest_tenth(values: list[float], window: float) -> float:
    """The share of the values in the fullest tenth of the window, which begins at 0."""
    tenths = Counter(int(value / window * 10) for value in values)
    return max(tenths.values()) / len(values)


def seconds_since(line: dict[str, str], at: float) -> float:
    return at - datetime.fromisoformat(line["timestamp"]).timestamp()


async def in_groups(listeners: list[Listener], url: str, sent: Sent = "none", **options: int) -> None:
    """Open many streams, not all at once: a burst is not what is shown here."""
    for first in range(0, len(listeners), 100):
        group = listeners[first : first + 100]
        await asyncio.wait_for(asyncio.gather(*(one.listen(url, sent, **options) for one in group)), 60)


async def fill(writer: Writer, stalled: list[Listener]) -> None:
    """Let the stalled ones' buffers overflow, so that their goodbyes cannot get through."""
    for listener in stalled:
        listener.stall()
    for _ in range(20):
        await writer.publish("heavy", padding=30_000)


def test_two_thousand_streams_leave_one_by_one_and_miss_nothing(tmp_path: Path, engine: Engine) -> None:
    settings = engine.settings | {"limits__send_buffer_bytes": 8192, "heartbeat__interval_seconds": 2}
    server = ServerProcess(
        tmp_path, **settings, drain__seconds=WINDOW_SECONDS, limits__retry_seconds=RETRY_SECONDS,
        limits__max_backlog_bytes=8 * 1024 * 1024,
        # On a busy machine the drain may begin late, and those who stalled are to be there then.
        limits__tcp_user_timeout_seconds=600,
    )  # fmt: skip
    elsewhere = ServerProcess(tmp_path, **settings)
    with elsewhere, server:
        asyncio.run(leave_and_resume(server, elsewhere, engine))


async def leave_and_resume(server: ServerProcess, elsewhere: ServerProcess, engine: Engine) -> None:
    ledger, rules, counts = Ledger(), Rules(resets=engine.resets), Counter[str]()
    judges = [Witness(f"listener {n}", SPECS[n % len(SPECS)], ledger, rules, counts) for n in range(STREAMS - STALLED)]
    listeners = [Listener(judge) for judge in judges]
    heavy = Spec(("heavy",))
    stalled = [Listener(Witness(f"stalled {n}", heavy, ledger, rules, counts)) for n in range(STALLED)]
    writers = [Writer(server.url, ledger), Writer(elsewhere.url, ledger, first=10**6)]
    resumed: list[Listener] = []
    try:
        await in_groups(listeners, server.url)
        await in_groups(stalled, server.url, receive_buffer=4096)
        await fill(writers[0], stalled)
        posts = [await writers[0].publish() for _ in range(PUBLISHES)]
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait_for_log, "drain.started")
        await writers[0].publish_over(posts, WINDOW_SECONDS * 0.8)
        assert await asyncio.to_thread(server.process.wait, 60) == 0
        await asyncio.wait_for(asyncio.gather(*(listener.closed for listener in listeners)), 60)
        check_spread(server, listeners)
        check_log(server)
        check_received(writers[0], ledger, listeners, server)
        assert not [listener for listener in stalled if listener.told_at or listener.violation]
        resumed += [Listener(one.judge, one.parser.last_event_id) for one in listeners]
        await in_groups(resumed, elsewhere.url, "own")
        await check_resumed(writers[1], resumed)
        assert counts["reset:epoch_changed" if engine.resets else "complete"] == len(resumed)
    finally:
        for writer in writers:
            writer.close()
        for listener in (*listeners, *stalled, *resumed):
            listener.cut()
        await asyncio.sleep(0)  # the turn in which transports close


async def check_resumed(writer: Writer, resumed: list[Listener]) -> None:
    await writer.publish("orders/1", "orders/2", "news", "quiet")
    at, mark = writer.answers[-1]
    behind = [listener.judge for listener in resumed]
    while behind := [judge for judge in behind if not judge.reached(mark)]:
        assert time.time() < at + 60, behind[0].never_arrived(mark)
        await asyncio.sleep(0.02)
    for listener in resumed:
        assert listener.violation is None, listener.violation
        listener.judge.settle()


def check_spread(server: ServerProcess, listeners: list[Listener]) -> None:
    started = server.wait_for_log("drain.started")
    for listener in listeners:
        assert listener.violation is None, listener.violation
    times = [seconds_since(started, listener.told_at) for listener in listeners if listener.told_at is not None]
    assert len(times) == len(listeners), "everybody who reads is told"
    assert min(times) >= -0.01
    # Those whose turn it was while a busy machine had no time for the server are told together. Where all are told
    # together it is 1, where half of them are 0.5.
    assert fullest_tenth(times, WINDOW_SECONDS) < 0.5, sorted(times)[:: len(times) // 20]
    # In random order: who came first does not go first.
    assert abs(statistics.correlation(range(len(times)), times)) < 0.15
    retries = [listener.retry_ms / 1000 - RETRY_SECONDS for listener in listeners if listener.retry_ms is not None]
    assert min(retries) >= 0
    assert max(retries) <= WINDOW_SECONDS
    assert fullest_tenth(retries, WINDOW_SECONDS) <= 0.2


def check_log(server: ServerProcess) -> None:
    finished = server.wait_for_log("drain.finished")
    assert 0 < finished["cut"] <= STALLED
    assert finished["seconds"] >= WINDOW_SECONDS
    lines = server.lines()
    ended = Counter(line["reason"] for line in lines if line["event"] == "events.disconnected")
    assert ended == {"drain": STREAMS}
    left = [line["left"] for line in lines if line["event"] == "drain.progress"]
    assert len(left) >= 2
    assert left == sorted(left, reverse=True)
    assert STREAMS > left[0] > left[-1] > 0


def check_received(writer: Writer, ledger: Ledger, listeners: list[Listener], server: ServerProcess) -> None:
    started = server.wait_for_log("drain.started")
    during = [place.offset for at, place in writer.answers if seconds_since(started, at) > 0]
    assert during
    received_during = 0
    for listener in listeners:
        judge, told_at, place = listener.judge, listener.told_at, listener.judge.place
        assert told_at is not None
        assert place is not None
        judge.settle()
        answered_before = [answer.offset for at, answer in writer.answers if at < told_at]
        missed = ledger.between(judge.spec, place.epoch, place.offset, max(answered_before, default=0))
        assert not missed, judge.never_arrived(Place(place.epoch, missed[0]))
        received_during += len(ledger.between(judge.spec, place.epoch, during[0] - 1, place.offset))
    # About half of all streams are there at any of them, and about half of those want it; fewer on a busy machine,
    # where the publishers are late.
    assert received_during > STREAMS / 8


def status_of(port: int, path: str) -> tuple[int, dict[str, str]] | None:
    """The answer of a path, or None where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except OSError:
        return None
    finally:
        connection.close()


@pytest.fixture
def admin_port() -> int:
    """0 would mean no admin port."""
    return free_port()


def test_ready_says_so_first_then_the_door_closes_then_the_streams_end(tmp_path: Path, admin_port: int) -> None:
    with ServerProcess(tmp_path, admin__port=admin_port, drain__seconds=300, drain__notice_seconds=5) as server:
        clients = [RawClient(server.port).get("/events") for _ in range(3)]
        for client in clients:
            client.until(b'"connected"')
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: status_of(admin_port, "/ready") == (503, {"status": "draining"}), what="/ready 503")
        # The balancer has not noticed yet: who comes now is sent away in words that an EventSource obeys.
        refused = RawClient(server.port).get("/events", "Accept: text/event-stream")
        answer = refused.to_end()
        assert b" 200 OK" in answer
        assert b'"event": "rejected"' in answer
        assert b'"reason": "draining"' in answer
        assert b"retry: " in answer
        refused.close()
        assert status_of(server.port, "/health") == (200, {"status": "ok"})
        assert not any(b"closing" in client.received for client in clients)
        wait_until(lambda: status_of(server.port, "/health") is None, what="the listener closed")
        # The admin port stays to the end, or nobody could see the drain.
        assert status_of(admin_port, "/ready") == (503, {"status": "draining"})
        server.wait_for_log("events.disconnected", reason="drain")  # the first of them was told
        server.process.send_signal(signal.SIGTERM)  # or the others have five minutes; they are cut
        assert sum(b'"reason": "drain"' in client.to_end() for client in clients) >= 1
        for client in clients:
            client.close()
        assert server.process.wait(60) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, second: signal.Signals) -> None:
    with ServerProcess(tmp_path, drain__seconds=300) as server:
        clients = [RawClient(server.port).get("/events") for _ in range(20)]
        for client in clients:
            client.until(b'"connected"')
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("drain.started", connections=20)
        server.process.send_signal(second)
        assert server.process.wait(60) == 0
        for client in clients:
            client.to_end()
            client.close()
        assert server.wait_for_log("drain.finished")["cut"] >= 15, "only few were due by then"
        assert server.wait_for_log("server.stopped")


def test_a_second_signal_ends_the_notice_too(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, drain__seconds=300, drain__notice_seconds=300) as server:
        client = RawClient(server.port).get("/events")
        client.until(b'"connected"')
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: status_of(server.port, "/ready") == (503, {"status": "draining"}), what="/ready 503")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        client.to_end()
        client.close()
