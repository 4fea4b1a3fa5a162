"""What broke others, each by the name of its sufferer: here it must not."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from qgstream.delivery.subscriber import Subscriber
from qgstream.events.subscription import Subscription
from qgstream.hub import Hub
from qgstream.wire.sse import Event, Parser
from tests.fleet.clients import Body, Post, Stream
from tests.fleet.judge import Rules, Witness
from tests.fleet.ledger import Intent, Ledger, Spec
from tests.hostile.observing import Watch, ask, metrics
from tests.pacing import rate_is_kept
from tests.publishing import publish, publish_all
from tests.serving import KEY, RawClient, ServerProcess, wait_until
from tests.signing import SECRET, payload, sign


class Reader(RawClient):
    """An EventSource's view of one stream."""

    def __init__(self, port: int, query: str = "", *, id: str = "", receive_buffer: int | None = None) -> None:
        super().__init__(port, receive_buffer=receive_buffer)
        self._body = Body()
        self._parser = Parser(last_event_id=id)
        self._waiting: list[Event] = []
        headers = [f"Last-Event-ID: {id}"] if id else []
        self.get(f"/events?{query}", "Accept: text/event-stream", *headers)

    @property
    def last_event_id(self) -> str:
        return self._parser.last_event_id

    def next(self) -> Event:
        """The next event of any kind."""
        while not self._waiting:
            received = self.socket.recv(65536)
            assert received, "the server closed"
            for block in self._body.feed(received):
                self._waiting += self._parser.feed(block)
        return self._waiting.pop(0)

    def message(self, kind: str) -> dict[str, Any]:
        """The next event, which must be this message of the server's; heartbeats are passed over."""
        while (found := json.loads(self.next().data))["event"] == "heartbeat" != kind:
            pass
        assert found["event"] == kind, found
        return dict(found)

    def data(self, count: int) -> list[Any]:
        """The data of the next published events."""
        found: list[Any] = []
        while len(found) < count:
            event = self.next()
            if not event.data.startswith('{"event": "heartbeat"'):
                found.append(json.loads(event.data))
        return found


Open = Callable[..., Reader]


@pytest.fixture
def readers() -> Iterator[list[Reader]]:
    """What is appended is closed in the end."""
    opened: list[Reader] = []
    yield opened
    for reader in opened:
        reader.close()


@pytest.fixture
def connect(readers: list[Reader]) -> Open:
    """Open a stream and return it."""

    def open_(server: ServerProcess, query: str = "", **options: Any) -> Reader:
        readers.append(Reader(server.port, query, **options))
        return readers[-1]

    return open_


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server")) as server:
        yield server


def numbers(topic: str, first: int, last: int, **more: object) -> list[dict[str, Any]]:
    return [{"topic": topic, "data": number, **more} for number in range(first, last + 1)]


# Nchan


def test_nchan_an_id_from_the_future_does_not_wedge(server: ServerProcess, connect: Open) -> None:
    epoch, _, offset = publish(server, "future", 0)["id"].rpartition("-")
    reader = connect(server, "topic=future", id=f"{epoch}-{int(offset) + 1000}")
    assert reader.message("connected")["replay"] == "reset"
    assert reader.message("reset")["reason"] == "unknown_id"
    publish_all(server, numbers("future", 1, 6))
    assert reader.data(6) == [1, 2, 3, 4, 5, 6]
    again = connect(server, "topic=future", id=reader.last_event_id)
    assert again.message("connected")["replay"] == "complete"


def test_nchan_one_stalled_reader_and_the_publishes_of_others(tmp_path: Path, connect: Open) -> None:
    with ServerProcess(
        tmp_path, limits__max_backlog_bytes=256 * 1024, limits__send_buffer_bytes=8192, history__max_bytes=1024 * 1024
    ) as server:
        watch = Watch(server)
        stalled = connect(server, "topic=big", receive_buffer=4096)
        quick, other = connect(server, "topic=big"), connect(server, "topic=other")
        for reader in (stalled, quick, other):
            reader.message("connected")
        # 3 MB for one who reads nothing: ten times what the server holds for anybody, three times its history.
        for number in range(300):
            assert publish(server, "big", {"number": number, "padding": "x" * 10_000})["subscribers"] >= 1
            publish_all(server, numbers("other", 10 * number, 10 * number + 9))
            assert [data["number"] for data in quick.data(1)] == [number]
        assert other.data(3000) == list(range(3000))
        watch.expect(left=2, slow_consumer=1)
        now = metrics(server)
        assert now["backlog_bytes"] == 0
        assert now["history_bytes"] <= 1024 * 1024


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            "[limits]\nmax_connections = 77\n[history]\nmax_events = 500\n[heartbeat]\ninterval_seconds = 60\n",
            "reloaded",
        ),
        ("[limits]\nmax_connections = 'many'\n", "rejected"),
        ("[limits]\nmax_conections = 77\n", "rejected"),
    ],
    ids=["good", "bad value", "bad name"],
)
def test_nchan_a_reload_cuts_nobody_and_keeps_history(tmp_path: Path, connect: Open, changed: str, said: str) -> None:
    file = tmp_path / "qgstream.toml"
    file.write_text("[limits]\nmax_connections = 55\n[heartbeat]\ninterval_seconds = 600\n")
    server = ServerProcess(tmp_path, config=str(file))
    try:
        reload_and_resume(server, connect, file, changed, said)
        server.stop(expect=("config.rejected",) if said == "rejected" else ())
    finally:
        if server.process.poll() is None:
            server.kill()


def reload_and_resume(server: ServerProcess, connect: Open, file: Path, changed: str, said: str) -> None:
    readers = [connect(server, "topic=reload") for _ in range(20)]
    for reader in readers:
        reader.message("connected")
    publish_all(server, numbers("reload", 1, 100))
    ids = [readers[0].next().id for _ in range(100)]
    for reader in readers[1:]:
        reader.data(100)
    file.write_text(changed)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log(f"config.{said}")
    assert metrics(server)["connections_limit"] == (77 if said == "reloaded" else 55)
    publish(server, "reload", 101)
    assert [reader.data(1) for reader in readers] == [[101]] * 20
    late = connect(server, "topic=reload", id=ids[0])
    assert late.message("connected")["replay"] == "complete"
    assert late.data(100) == list(range(2, 102))
    assert metrics(server)["connections"] == 21


# Mercure


@pytest.fixture(scope="module")
def full_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, list[str]]]:
    """A server with 11 000 events in its history, and their ids."""
    with ServerProcess(tmp_path_factory.mktemp("full"), history__max_events=20_000) as server:
        ids: list[str] = []
        for first in range(1, 11_001, 1000):
            ids += publish_all(server, numbers("full", first, first + 999))["ids"]
        yield server, ids


@pytest.mark.parametrize("missed", [0, 1, 5, 999, 1000, 1001, 9_999, 10_000, 10_001, 10_999])
def test_mercure_every_id_is_found_and_everything_behind_it_is_replayed(
    full_server: tuple[ServerProcess, list[str]], connect: Open, missed: int
) -> None:
    server, ids = full_server
    reader = connect(server, "topic=full", id=ids[-1 - missed])
    assert reader.message("connected")["replay"] == "complete"
    assert reader.data(missed) == list(range(11_001 - missed, 11_001))
    publish(server, "mark", -1)  # nothing comes a second time before what is published now
    both = connect(server, "topic=full&topic=mark", id=reader.last_event_id)
    both.message("connected")
    assert both.data(1) == [-1]


def test_mercure_after_a_restart_the_gap_is_told_at_once(tmp_path: Path, connect: Open) -> None:
    with ServerProcess(tmp_path) as server:
        id = publish(server, "restart", 1)["id"]
    with ServerProcess(tmp_path) as server:
        # Nobody has published yet, and nobody needs to.
        reader = connect(server, "topic=restart", id=id)
        assert reader.message("connected")["replay"] == "reset"
        assert reader.message("reset")["reason"] == "epoch_changed"
        publish(server, "restart", 2)
        assert reader.data(1) == [2]


@pytest.mark.parametrize(
    ("id", "reason"),
    [
        ("urn:uuid:4d5b2d4c-5c0a-4b52-9e8a-0f6a2b1a7a11", "unknown_id"),
        ("0123456789-1", "epoch_changed"),
        ("-1", "unknown_id"),
        ("%C3%BC-1", "unknown_id"),
        ("0", "unknown_id"),
        ("latest", "unknown_id"),
    ],
)
def test_mercure_an_unknown_id_is_told(server: ServerProcess, connect: Open, id: str, reason: str) -> None:
    before = metrics(server)[f'replay_total{{result="{reason}"}}']
    publish(server, "unknown", 1)
    reader = connect(server, f"topic=unknown&last_event_id={id}")
    assert reader.message("connected")["replay"] == "reset"
    assert reader.message("reset")["reason"] == reason
    publish(server, "unknown", 2)
    assert reader.data(1) == [2]
    assert metrics(server)[f'replay_total{{result="{reason}"}}'] == before + 1


class Ear(Subscriber):
    """A subscriber without a socket."""

    __slots__ = ("heard",)

    def __init__(self, hub: Hub, topic: str) -> None:
        super().__init__(hub.router.feed(Subscription(frozenset({topic}))), self._hear)
        self.heard = 0
        self.join()

    def _hear(self, data: bytes) -> int:
        self.heard += 1
        return len(data)


def lines_run(function: Callable[[], object]) -> int:
    """How many lines of Python a call executes: work that is the same on any machine."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def cost_of_publishing(subscribers: int, topic: str) -> tuple[int, int]:
    """The lines executed by a publish among so many subscribers until it is delivered, and to how many it was."""
    hub = Hub()
    ears: list[Ear] = []

    async def subscribe() -> None:
        await hub.start()
        ears.extend(Ear(hub, f"user/{number}{'/*' if number % 2 else ''}") for number in range(subscribers))
        await hub.publish("warm", "up")

    async def publish() -> None:
        await hub.publish(topic, "x")
        for _ in range(20):  # turns of the loop, which are all that a round to one subscriber needs
            await asyncio.sleep(0)

    with asyncio.Runner() as runner:
        runner.run(subscribe())
        lines = lines_run(lambda: runner.run(publish()))
        assert not len(hub.slices)
        runner.run(hub.stop())
    return lines, sum(ear.heard for ear in ears)


def test_mercure_a_publish_looks_at_nobody_who_did_not_ask() -> None:
    few, reached_of_few = cost_of_publishing(10, "fresh")
    many, reached = cost_of_publishing(5000, "fresh")
    assert (reached_of_few, reached) == (0, 0)
    assert many <= few + 100
    for topic in ("user/4", "user/5/events"):
        lines, reached = cost_of_publishing(5000, topic)
        assert reached == 1
        assert lines <= few + 500


# Pushpin

PUBLISHES, PUBLISHERS, STREAMS = 3000, 6, 20


def test_pushpin_every_publish_that_is_answered_arrives(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        asyncio.run(publish_at_full_speed(server))
        wait_until(lambda: metrics(server)["events_delivered_total"] >= PUBLISHES * STREAMS, what="the counter")
        now = metrics(server)
        assert now["events_published_total"] == PUBLISHES
        assert now["events_delivered_total"] == PUBLISHES * STREAMS


async def publish_at_full_speed(server: ServerProcess) -> None:
    ledger = Ledger()
    judges = [Witness(f"listener {n}", Spec(("t/*",)), ledger, Rules(), Counter()) for n in range(STREAMS)]
    streams = [Stream(judge, Parser()) for judge in judges]
    posts = [Post(server.url, KEY) for _ in range(PUBLISHERS)]

    async def publish_all_of(number: int, post: Post) -> None:
        for each in range(PUBLISHES // PUBLISHERS):
            intent = Intent(f"~{number}.{each}~", (f"t/{each % 7}",))
            ledger.intend(intent)
            status, document = await post(json.dumps(intent.document()).encode())
            assert status == 200, document
            ledger.acknowledge(intent, str(document["id"]))

    try:
        for judge, stream in zip(judges, streams, strict=True):
            judge.connects("none", "", server.url)
            await stream.open(server.url, "/events?topic=t/*", http="1.1")
            await stream.opened
        await asyncio.gather(*(publish_all_of(number, post) for number, post in enumerate(posts)))
        deadline = time.monotonic() + 60
        while any(judge.place is None or judge.place.offset < PUBLISHES for judge in judges):
            assert time.monotonic() < deadline, [judge.place for judge in judges]
            await asyncio.sleep(0.02)
        for judge, stream in zip(judges, streams, strict=True):
            assert stream.violation is None, stream.violation
            judge.settle()
    finally:
        for post in posts:
            post.close()
        for stream in streams:
            stream.cut()
        await asyncio.sleep(0)


# Centrifugo


def test_centrifugo_the_connection_rate_is_the_configured_one(tmp_path: Path) -> None:
    rate, burst = 25, 30
    with ServerProcess(tmp_path, limits__connect_rate_per_ip=rate, limits__connect_burst_per_ip=burst) as server:

        def opens() -> bool:
            client = RawClient(server.port).get("/events", "Accept: text/event-stream")
            client.until(b"\n\n")
            is_open = b'"connected"' in client.received
            if not is_open:
                assert b'"reason": "connect_rate_per_ip"' in client.to_end()
            client.close()
            return is_open

        # All that it allows, and not one a second.
        _, refused = rate_is_kept(opens, rate=rate, burst=burst, events=50)
        assert Watch(server).before['connections_rejected_total{reason="connect_rate_per_ip"}'] == refused


def bad_tokens() -> dict[str, str]:
    now = time.time()
    return {
        "nonsense": "nonsense",
        "expired": sign(payload(exp=now - 3600)),
        "of another issuer's key": sign(payload(exp=now + 3600), SECRET[::-1]),
        "unsigned": sign(payload(exp=now + 3600), "", "none"),
    }


@pytest.mark.parametrize("where", ["header", "query"])
def test_centrifugo_a_bad_token_is_a_401_and_no_loop(tmp_path: Path, where: str) -> None:
    with ServerProcess(tmp_path, auth__jwt__secret=SECRET, auth__jwt__algorithms=["HS256"]) as server:
        watch = Watch(server)
        for name, token in bad_tokens().items():
            query = f"?access_token={token}" if where == "query" else ""
            headers = {"Accept": "text/event-stream"} | ({} if query else {"Authorization": f"Bearer {token}"})
            answer, body = ask(server, "GET", f"/events{query}", headers=headers)
            assert answer.status == 401, name
            assert answer.headers["Content-Type"].startswith("application/json")
            assert json.loads(body)["error"]["code"], name
            assert b"retry" not in body
        assert watch.rejected == {"unauthorized": len(bad_tokens())}
        good = sign(payload(exp=time.time() + 3600))
        client = RawClient(server.port).get("/events", f"Authorization: Bearer {good}")
        client.until(b'"connected"')
        client.close()


# Several


def leave(client: RawClient, how: int) -> None:
    if how % 3 == 0:
        client.reset()
    else:
        if how % 3 == 1:
            client.until(b'"connected"')
        client.close()


def test_gauges_do_not_drift(tmp_path: Path) -> None:
    limit, rounds = 12, 15
    with ServerProcess(tmp_path, limits__max_connections=limit) as server:
        watch = Watch(server)
        for number in range(rounds):
            clients = [RawClient(server.port).get("/events") for _ in range(limit)]
            for client in clients:
                client.until(b'"connected"')
            assert metrics(server)["connections"] == limit
            # One too many: refused, and no part of any gauge.
            refused = [RawClient(server.port).get("/events", "Accept: text/event-stream") for _ in range(3)]
            for client in refused:
                assert b'"rejected"' in client.to_end()
                client.close()
            assert metrics(server)["connections"] == limit
            for how, client in enumerate(clients):
                leave(client, how + number)
            # Twice on one socket, and gone: the second must take no slot for ever.
            pipelined = RawClient(server.port)
            pipelined.get("/events").get("/events").close()
            wait_until(lambda: metrics(server)["connections"] == 0, what="an empty server")
        now = metrics(server)  # of one moment: the last request of all may still be on its way
        opened = now["connections_opened_total"]
        closed = sum(value for name, value in now.items() if name.startswith("connections_closed_total{"))
        assert opened - closed == now["connections"]
        assert closed >= rounds * limit
        assert watch.rejected["max_connections"] >= rounds * 3
        assert now["connection_age_seconds_count"] == closed
        wait_until(lambda: metrics(server)["topics"] == 0, what="no topic")
        assert metrics(server)["backlog_bytes"] == 0


def test_no_label_comes_from_outside(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, server__trusted_proxies=["127.0.0.1"]) as server:
        before = metrics(server)
        for number in range(40):
            headers = [f"X-Forwarded-For: 203.0.113.{number}", f"User-Agent: agent-{number}"]
            client = RawClient(server.port).get(f"/events?topic=tenant-{number}&event=kind-{number}", *headers)
            client.until(b'"connected"')
            publish(server, f"tenant-{number}", number, event=f"kind-{number}")
            client.until(f"event: kind-{number}".encode())
            client.close()
        wait_until(lambda: metrics(server)["connections"] == 0, what="an empty server")
        _, body = ask(server, "GET", "/metrics")
        assert metrics(server).keys() == before.keys(), "as many series as at the start"
        for foreign in (b"tenant", b"kind-", b"203.0", b"127.0.0.1", b"agent-"):
            assert foreign not in body


# Our own: found beside the rivals' failures, and worse than any of them would have been.


def test_a_short_lived_topic_does_not_hide_what_is_stored(tmp_path: Path, connect: Open) -> None:
    chatter = [{"pattern": "chatter", "max_age_seconds": 0.2}]
    with ServerProcess(tmp_path, history__topics=chatter) as server:
        before = publish(server, "state", 0)["id"]
        publish_all(server, numbers("chatter", 1, 600))
        publish_all(server, numbers("state", 1, 700))

        def is_gone() -> bool:
            reader = connect(server, "topic=chatter", id=before)
            return bool(reader.message("connected")["replay"] == "reset")

        wait_until(is_gone, what="the end of the chatter")
        reader = connect(server, "topic=state", id=before)
        assert reader.message("connected")["replay"] == "complete"
        assert reader.data(700) == list(range(1, 701))


def test_an_event_of_two_topics_is_missed_by_the_readers_of_both(tmp_path: Path, connect: Open) -> None:
    chatter = [{"pattern": "chatter", "max_age_seconds": 60}]
    with ServerProcess(tmp_path, history__topics=chatter, history__max_events=10) as server:
        before = publish(server, "other", 0)["id"]
        publish_all(server, [{"topic": ["chatter", "state"], "data": 1}, *numbers("state", 2, 20)])
        for topic in ("chatter", "state"):
            reader = connect(server, f"topic={topic}", id=before)
            assert reader.message("connected")["replay"] == "reset"
            assert reader.message("reset")["reason"] == "too_old"
