"""Readers that do not read: each hurts only itself, and what it holds is bounded."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.observing import Watch, ask, data_of, metrics, resident_bytes, until_data
from tests.publishing import publish
from tests.serving import RawClient, ServerProcess, wait_until

KIB = 1024
MIB = 1024 * KIB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(
        tmp_path_factory.mktemp("server"),
        heartbeat__interval_seconds=0.2,
        limits__max_backlog_bytes=MIB,
        limits__backlog_grace_seconds=0,
        limits__tcp_user_timeout_seconds=600,  # only the server itself ends them, while a test waits for it
    ) as server:
        yield server


def stall(server: ServerProcess, topic: str, *headers: str) -> RawClient:
    """A reader that will not read any more."""
    client = RawClient(server.port, receive_buffer=4096).get(f"/events?topic={topic}", *headers)
    client.until(b'"connected"')
    return client


def test_a_stalled_reader_among_live_ones(server: ServerProcess) -> None:
    watch = Watch(server)
    stalled = stall(server, "one")
    live = [RawClient(server.port).get("/events?topic=one") for _ in range(10)]
    for client in live:
        client.until(b'"connected"')
    before = resident_bytes(server)
    largest = held = 0.0
    number = 0
    took = []

    def publish_one() -> None:
        nonlocal number
        began = time.monotonic()
        publish(server, "one", f"{number:04}" + "x" * 20_000)
        for client in live:
            client.until(f"data: {number:04}x".encode())
        took.append(time.monotonic() - began)
        number += 1

    while held or not largest:  # until it has been let fall
        publish_one()
        held = metrics(server)["backlog_largest_bytes"]
        largest = max(largest, held)
        assert number < 200
    # It was let fall behind as far as the limit, and no further.
    assert MIB - 50_000 < largest <= MIB + 50_000
    assert resident_bytes(server) - before < 8 * MIB
    # It reads on: what was on its way, whole, and then why.
    stalled.until(b'"reason": "slow_consumer"}\n\n')
    assert stalled.to_end().endswith(b"\r\n0\r\n\r\n")
    received = [int(data[:4]) for data in data_of(stalled)]
    assert received == list(range(len(received)))
    assert 0 < len(received) < number - 40
    *_, closing = stalled.received.removesuffix(b"\n\n\r\n0\r\n\r\n").split(b"\n\n")
    retry = int(closing.partition(b"retry: ")[2].partition(b"\n")[0])
    assert 10_000 <= retry <= 20_000  # it would only fall behind again
    stalled.close()
    (line,) = watch.expect(slow_consumer=1, left=10)
    assert line["events"] == len(received)
    publish_one()
    assert statistics.median(took) < 2  # of any single one the machine may be the reason
    for client in live:
        assert [int(data[:4]) for data in data_of(client)] == list(range(number))
        client.close()
    watch.expect(slow_consumer=1, client=10)


def test_it_comes_back_and_has_missed_nothing(server: ServerProcess) -> None:
    stalled = stall(server, "back")
    for number in range(80):
        publish(server, "back", f"{number:04}" + "x" * 20_000)
    stalled.until(b'"reason": "slow_consumer"')
    received = [int(data[:4]) for data in data_of(stalled)]
    ids = [line for line in stalled.received.split(b"\n") if line.startswith(b"id: ")]
    stalled.close()
    last_id = ids[-1].removeprefix(b"id: ").decode()
    back = RawClient(server.port).get("/events?topic=back", f"Last-Event-ID: {last_id}")
    back.until(b'"replay": "complete"')
    received += [int(data[:4]) for data in until_data(back, "0079")]
    assert received == list(range(80))
    back.close()


def test_a_reader_that_never_reads_on_is_closed_all_the_same(server: ServerProcess) -> None:
    watch = Watch(server)
    stalled = stall(server, "never")
    for _ in range(90):
        publish(server, "never", "x" * 20_000)
    # Its goodbye is waited for for five seconds, and not as long as TCP would wait.
    watch.expect(slow_consumer=1)
    assert metrics(server)["backlog_bytes"] == 0
    stalled.close()


def test_a_reader_that_is_only_slow_gets_everything(server: ServerProcess) -> None:
    watch = Watch(server)
    slow = stall(server, "only")
    for number in range(40):
        publish(server, "only", f"{number:04}" + "x" * 20_000)
        slow.received += slow.socket.recv(10_000)
    assert [int(data[:4]) for data in until_data(slow, "0039")] == list(range(40))
    slow.close()
    watch.expect(client=1)
    assert metrics(server)["backlog_bytes"] == 0


def test_a_reader_that_stalls_in_its_replay(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, history__max_bytes=2 * MIB, limits__tcp_user_timeout_seconds=60) as server:
        watch = Watch(server)
        for number in range(45):
            publish(server, "replay", f"{number:04}" + "x" * 20_000)
        stalled = RawClient(server.port, receive_buffer=4096).get("/events?topic=replay", "Last-Event-ID: earliest")
        stalled.until(b'"replay": "complete"')
        live = RawClient(server.port).get("/events?topic=replay")
        live.until(b'"connected"')
        # The log forgets what it has not read yet: a gap that cannot be filled any more.
        for number in range(45, 120):
            publish(server, "replay", f"{number:04}" + "x" * 20_000)
            live.until(f"data: {number:04}x".encode())
        stalled.until(b'"reason": "slow_consumer"')
        numbers = [int(data[:4]) for data in data_of(stalled)]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        stalled.close()
        live.close()
        watch.expect(slow_consumer=1, client=1)


def test_others_keep_their_heartbeats_and_health_its_answers(server: ServerProcess) -> None:
    stalled = [stall(server, "beats") for _ in range(30)]
    quiet = RawClient(server.port).get("/events?topic=quiet")
    quiet.until(b'"connected"')
    for _ in range(30):
        publish(server, "beats", "x" * 20_000)
    quiet.received = b""
    for _ in range(5):
        quiet.until(b'"heartbeat"')
        quiet.received = quiet.received.partition(b'"heartbeat"')[2]
        assert ask(server, "GET", "/health")[0].status == 200
    for client in [*stalled, quiet]:
        client.close()
    wait_until(lambda: metrics(server)["connections"] == 0, what="no stream")


def test_the_furthest_behind_go_first(tmp_path: Path) -> None:
    with ServerProcess(
        tmp_path,
        limits__max_total_backlog_bytes=1500 * KIB,
        limits__max_backlog_bytes=100 * MIB,
        limits__tcp_user_timeout_seconds=60,
        limits__backlog_grace_seconds=0,
    ) as server:
        watch = Watch(server)
        readers = {topic: stall(server, topic) for topic in ("far", "near")}
        live = RawClient(server.port).get("/events?topic=far&topic=near")
        live.until(b'"connected"')
        for number, topic in enumerate(["far"] * 60 + ["near"] * 40):
            publish(server, topic, f"{number:04}" + "x" * 20_000)
            live.until(f"data: {number:04}x".encode())
        assert metrics(server)["backlog_bytes"] < 1500 * KIB + 50_000
        readers["far"].until(b'"reason": "slow_consumer"')
        watch.expect(slow_consumer=1, left=2)
        publish(server, "near", "still here")
        readers["near"].until(b"still here")
        for client in (*readers.values(), live):
            client.close()
        watch.expect(slow_consumer=1, client=2)


def test_a_peer_that_acknowledges_nothing_is_gone(tmp_path: Path) -> None:
    with ServerProcess(
        tmp_path,
        limits__tcp_user_timeout_seconds=1,
        limits__max_backlog_bytes=100 * MIB,
        heartbeat__interval_seconds=0.2,
    ) as server:
        watch = Watch(server)
        stalled = stall(server, "gone")
        live = RawClient(server.port).get("/events?topic=gone")
        live.until(b'"connected"')
        for number in range(40):
            publish(server, "gone", f"{number:04}" + "x" * 20_000)
            live.until(f"data: {number:04}x".encode())
        # Without this timeout TCP gives it up after a quarter of an hour, and nobody waits that long here.
        (line,) = watch.expect(timeout=1, left=1)
        assert line["seconds"] >= 1
        assert metrics(server)["backlog_bytes"] == 0
        live.close()
        watch.expect(timeout=1, client=1)
        stalled.close()


def test_publishing_more_than_can_be_sent_slows_the_publisher_not_the_readers(tmp_path: Path) -> None:
    """Nothing is lost and memory is bounded when somebody publishes faster than the loop can send."""
    with ServerProcess(
        tmp_path, limits__max_total_backlog_bytes=64 * KIB, limits__max_backlog_bytes=16 * MIB, history__max_bytes=MIB
    ) as server:
        clients = [RawClient(server.port).get("/events?topic=flood") for _ in range(4)]
        for client in clients:
            client.until(b'"connected"')
        batch = [json.dumps({"topic": "flood", "data": f"{number:04}" + "x" * 500}) for number in range(100)]
        headers = {"Authorization": "Bearer test-key", "Content-Type": "application/x-ndjson"}
        for _ in range(5):
            answer, _body = ask(server, "POST", "/events", body="\n".join(batch).encode(), headers=headers)
            assert answer.status == 200
            for client in clients:
                assert [int(data[:4]) for data in until_data(client, "0099")] == list(range(100))
                client.received = b"\r\n\r\n"
        for client in clients:
            client.close()


def test_the_counters_agree_with_the_log(tmp_path: Path) -> None:
    """Also for what went out in pieces, was replayed, or was cut short."""
    with ServerProcess(tmp_path, limits__max_backlog_bytes=100 * MIB, limits__tcp_user_timeout_seconds=60) as server:
        watch = Watch(server)
        slow, cut = stall(server, "a"), stall(server, "a")
        quick = RawClient(server.port).get("/events?topic=a")
        quick.until(b'"connected"')
        for number in range(40):
            publish(server, "a", f"{number:04}" + "x" * 20_000)
        late = RawClient(server.port, receive_buffer=4096).get("/events?topic=a", "Last-Event-ID: earliest")
        half = RawClient(server.port, receive_buffer=4096).get("/events?topic=a", "Last-Event-ID: earliest")
        half.until(b"data: 0003x")
        for client in (quick, slow, late):
            until_data(client, "0039")
        for client in (slow, cut, quick, late, half):
            client.close()
        lines = watch.expect(client=5)
        now = metrics(server)
        assert sorted(line["events"] for line in lines)[2:] == [40, 40, 40]
        assert now["events_delivered_total"] == sum(line["events"] for line in lines)
        assert now["bytes_sent_total"] == sum(line["bytes"] for line in lines)
