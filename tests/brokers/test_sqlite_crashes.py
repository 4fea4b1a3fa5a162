"""The log on disk when the process is killed or the disk is full: what was acknowledged is there."""

from __future__ import annotations

import asyncio
import http.client
import json
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from qgstream.brokers.sqlite.broker import SqliteBroker
from qgstream.events.history import HistorySettings
from qgstream.events.publication import Publication
from tests.brokers.conftest import Tail
from tests.publishing import publish
from tests.serving import KEY, RawClient, ServerProcess, wait_until

ROUNDS = 8
PUBLISHERS = 8
AT_LEAST = 10  # acknowledged events of each


class Publisher(threading.Thread):
    """Publishes as fast as it is answered, one by one and in batches, and notes what was acknowledged, until its server
    is gone."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[str, str] = {}  # id: data
        self.sent: set[str] = set()
        self._name = name
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/x-ndjson"}
        turn = 0
        try:
            while True:
                turn += 1
                batch = [f"{self._name}.{turn}.{n}" for n in range(1 + 4 * (turn % 5 == 0))]
                self.sent.update(batch)
                body = "\n".join(json.dumps({"topic": "a", "data": data}) for data in batch).encode()
                self._connection.request("POST", "/events", body, headers)
                answer = self._connection.getresponse()
                document = json.loads(answer.read())
                assert answer.status == 200, document
                self.acknowledged.update(zip(document["ids"], batch, strict=True))
        except (OSError, http.client.HTTPException):
            self._connection.close()


def whole_log(path: Path) -> dict[str, Publication]:
    """Everything in the log, by id; what the server left behind is not touched by a server again before this."""

    async def read() -> dict[str, Publication]:
        broker = SqliteBroker(path)
        position = (await broker.open(Tail(broker), HistorySettings(max_events=10**9, max_bytes=2**40))).position
        found: dict[str, Publication] = {}
        after = 0
        while page := await broker.read(after, 1000):
            found |= {f"{position.epoch}-{p.offset}": p for p in page}
            after = page[-1].offset
        await broker.close()
        return found

    return asyncio.run(read())


def test_kill_9_at_any_instant_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path, random = tmp_path / "events.db", Random(1)
    acknowledged: dict[str, str] = {}
    sent: set[str] = set()
    unanswered = 0
    for turn in range(ROUNDS):
        server = ServerProcess(tmp_path, broker__url=f"sqlite://{path}", history__max_events=10**6)
        publishers = [Publisher(server.port, f"{turn}.{n}") for n in range(PUBLISHERS)]
        for publisher in publishers:
            publisher.start()
        wait_until(lambda publishers=publishers: all(len(p.acknowledged) >= AT_LEAST for p in publishers))
        time.sleep(random.uniform(0, 0.4))  # the instant
        server.kill()
        for publisher in publishers:
            publisher.join(60)
            assert not publisher.is_alive()
            acknowledged |= publisher.acknowledged
            sent |= publisher.sent
        found = whole_log(path)
        missing = acknowledged.keys() - found.keys()
        assert not missing, f"round {turn}: {len(missing)} of {len(acknowledged)} acknowledged events are gone"
        assert {id: p.data.decode() for id, p in found.items() if id in acknowledged} == acknowledged
        data = [publication.data.decode() for publication in found.values()]
        assert len(set(data)) == len(data), "an event is there twice"
        assert set(data) <= sent
        assert len({id.rpartition("-")[0] for id in found}) == 1, "one epoch"
        unanswered = len(found) - len(acknowledged)
    print(f"{len(acknowledged)} acknowledged, {unanswered} more in the log")


def test_what_is_acknowledged_was_synced_first(tmp_path: Path, require_program: Callable[[str], Path]) -> None:
    """kill -9 leaves the kernel's cache; a power cut does not. So look at the system calls."""
    strace, trace = require_program("strace"), tmp_path / "trace"
    program = "from tests.brokers.test_sqlite_crashes import append_some; append_some()"
    code = f"import sys; sys.argv = ['', {str(tmp_path / 'events.db')!r}]; {program}"
    arguments = [
        str(strace),
        "-f",
        "-e",
        "trace=write,pwrite64,fdatasync,fsync",
        "-o",
        str(trace),
        sys.executable,
        "-c",
        code,
    ]
    subprocess.run(arguments, check=True, timeout=60, cwd=Path(__file__).parents[2])
    steps = []
    for line in trace.read_text().splitlines():
        if "fdatasync(" in line or "fsync(" in line:
            steps.append("sync")
        elif '"acknowledged' in line:
            steps.append("acknowledged")
        elif '"begin' in line:
            steps.append("begin")
    begun = [n for n, step in enumerate(steps) if step == "begin"]
    assert len(begun) == 5
    for n in begun:
        assert "sync" in steps[n : steps.index("acknowledged", n)], steps


def append_some() -> None:
    """The program under strace: says when it begins a publish, and when it was acknowledged."""

    async def run() -> None:
        broker = SqliteBroker(sys.argv[1])
        await broker.open(Tail(broker), HistorySettings())
        for _ in range(5):
            sys.stdout.write("begin\n")
            sys.stdout.flush()
            await broker.append([Publication(("a",), b"{}")])
            sys.stdout.write("acknowledged\n")
            sys.stdout.flush()
        await broker.close()

    asyncio.run(run())


def ready(server: ServerProcess) -> dict[str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with closing(connection):
        connection.request("GET", "/ready")
        document: dict[str, str] = json.loads(connection.getresponse().read())
        return document


def test_a_full_disk_stops_publishing_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    server = ServerProcess(tmp_path, broker__url=f"sqlite://{path}")
    try:
        ids = [publish(server, "a", n)["id"] for n in range(20)]
        # No file of the process may grow beyond this: writes fail as they do on a full disk.
        unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1_000_000, unlimited[1]))
        while True:
            try:
                ids.append(publish(server, "a", "x" * 50_000)["id"])
            except AssertionError as error:
                refused = error.args[0]
                break
            assert len(ids) < 100
        assert refused["error"]["code"] == "broker_down", refused
        assert "cannot be written" in refused["error"]["message"]
        with pytest.raises(AssertionError, match="broker_down"):
            publish(server, "a", "x" * 50_000)
        assert ready(server) == {"status": "degraded", "reason": "broker_down"}
        server.wait_for_log("broker.down")
        client = RawClient(server.port).get("/events", f"Last-Event-ID: {ids[0]}")  # a new stream is served meanwhile
        client.until(b'"replay": "complete"')
        client.close()
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
        wait_until(lambda: ready(server) == {"status": "ready"}, what="recovery")
        server.wait_for_log("broker.up")
        ids.append(publish(server, "a", "there is room")["id"])
        server.stop(expect=("broker.down", "broker.trim_failed"))
    finally:
        if server.process.poll() is None:
            server.kill()
    assert list(whole_log(path)) == ids
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def refusal(server: ServerProcess) -> dict[str, str]:
    with pytest.raises(AssertionError) as caught:
        publish(server, "a", "refused")
    error: dict[str, str] = caught.value.args[0]["error"]
    return error


@pytest.mark.parametrize("publishing", [False, True])
def test_a_log_that_is_removed_is_not_written_on_while_another_server_begins_a_new_one(
    tmp_path: Path, publishing: bool
) -> None:
    path = tmp_path / "events.db"
    url = f"sqlite://{path}"
    first = second = None
    try:
        first = ServerProcess(tmp_path, broker__url=url)
        publish(first, "a", "lost")
        for name in tmp_path.glob("events.db*"):
            name.unlink()
        if publishing:
            assert refusal(first)["code"] == "broker_down"
        down = first.wait_for_log("broker.down")
        assert "events.db: was removed or moved" in down["reason"]
        assert down["level"] == "error"
        assert ready(first) == {"status": "degraded", "reason": "broker_down"}
        second = ServerProcess(tmp_path, broker__url=url)
        ids = [publish(second, "a", "new")["id"]]
        error = refusal(first)
        assert (error["code"], error["message"]) == ("broker_down", "the log on disk was removed or moved")
        assert ready(first) == {"status": "degraded", "reason": "broker_down"}
        first.stop(expect=("broker.down",))
        ids.append(publish(second, "a", "newer")["id"])
        second.kill()  # what is in the WAL alone is still there, whatever the first one did to files of that name
        assert list(whole_log(path)) == ids
    finally:
        for server in (first, second):
            if server is not None and server.process.poll() is None:
                server.kill()


def test_a_server_whose_log_is_in_use_ends_and_says_so(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/events.db"
    with ServerProcess(tmp_path, broker__url=url) as server:
        command = [sys.executable, "-m", "qgstream", "serve", "--port", "0"]
        second = subprocess.run(
            command, env=server.environment, capture_output=True, text=True, timeout=60, check=False
        )  # fmt: skip
        assert second.returncode == 1
        assert f"events.db: is in use by the process {server.process.pid};" in second.stderr
        publish(server, "a", 1)
