from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from qgstream.bench import scenarios, users
from qgstream.bench.callers import Caller
from qgstream.bench.descriptors import Room, check, crew_size
from qgstream.bench.errors import BenchError
from qgstream.bench.histogram import Histogram
from qgstream.bench.processes import Cores, Program, usage
from qgstream.bench.report import TABLES, document, ratio, rows, tables
from qgstream.bench.scenarios import Bench, Options, Result
from qgstream.bench.session import Session
from qgstream.bench.stamps import MARK, MIN_BYTES, ages, stamped
from qgstream.bench.subjects import FLOOR, PLAIN, Dialect, Subject, at, start_module
from qgstream.cli import main
from tests.deploy.programs import free_port
from tests.proxying import set_environment
from tests.serving import KEY, ServerProcess, wait_until

CORES = Cores(frozenset(), frozenset())
BENCH = [sys.executable, "-m", "qgstream", "bench"]


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BENCH, *arguments], capture_output=True, text=True, timeout=150, check=False, env=os.environ | environment
    )


def processes_with(mark: str) -> list[str]:
    """The command lines of all processes that have `mark` in their environment: whoever was started by who had it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_text())
        except OSError:
            continue
    return found


# What it counts.


def test_a_percentile_is_right_to_one_per_cent() -> None:
    histogram = Histogram()
    for milliseconds in range(1, 1001):
        histogram.add(milliseconds / 1000)
    assert histogram.percentile(0.5) == pytest.approx(0.5, rel=0.01)
    assert histogram.percentile(0.99) == pytest.approx(0.99, rel=0.01)
    assert histogram.percentile(1) == pytest.approx(1, rel=0.01)
    assert Histogram().percentile(0.5) is None


def test_histograms_merge_and_travel() -> None:
    slow, fast = Histogram(), Histogram()
    for _ in range(3):
        slow.add(2)
        fast.add(0.001)
    slow.merge(Histogram(dict(json.loads(json.dumps(fast.to_json())))))
    assert len(slow) == 6
    assert slow.percentile(0.4) == pytest.approx(0.001, rel=0.01)
    assert slow.percentile(0.6) == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("size", [MIN_BYTES, 100, 5000])
def test_a_payload_says_when_it_was_sent(size: int) -> None:
    payload = stamped(size, 5_000_000_000)
    assert len(payload) == size
    assert payload.count(MARK) == 1
    wire = b"id: a-1\ndata: %b\n\nid: a-2\ndata: %b\n\n" % (payload, stamped(size, 5_200_000_000))
    assert ages(wire, 5_250_000_000) == [0.25, 0.05]


def test_a_stamp_that_was_cut_is_left_out() -> None:
    assert ages(b"00123@ data: " + stamped(20, 1_000_000)[:-1], 2_000_000) == []


def test_the_clock_of_the_stamps_wraps() -> None:
    assert ages(stamped(MIN_BYTES, 999_999_999_000), 1_000_000_001_000) == [2e-6]


# Whether it fits.


def test_too_many_streams_are_refused_with_the_arithmetic() -> None:
    room = Room(descriptors=1000, ports=28_000)
    check(736, room, starts_server=True, is_loopback=True)
    with pytest.raises(BenchError) as refused:
        check(737, room, starts_server=True, is_loopback=True)
    assert str(refused.value) == (
        "--streams: got 737, which needs 1001 descriptors in the server's process "
        "(737 streams + 200 other sockets + 64 reserved), but the hard limit is 1000; expected at most 736, "
        "or raise it: ulimit -Hn 1001 (as root), LimitNOFILE=1001 in a systemd unit, "
        "nofile in /etc/security/limits.conf"
    )


def test_the_load_is_spread_over_as_many_processes_as_hold_it() -> None:
    room = Room(descriptors=1064, ports=28_000)
    assert crew_size(1000, room, processes=1) == 1
    assert crew_size(1001, room, processes=1) == 2
    assert crew_size(10, room, processes=3) == 3


def test_only_loopback_has_more_than_one_source_address() -> None:
    room = Room(descriptors=100_000, ports=28_000)
    check(60_000, room, starts_server=False, is_loopback=True)
    with pytest.raises(BenchError, match="there are 28000 ports"):
        check(60_000, room, starts_server=False, is_loopback=False)


def test_the_limit_of_this_process_counts() -> None:
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400)); {IN_PROCESS}"
    argv = [sys.executable, "-c", limited, "bench", "--streams", "300"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "needs 564 descriptors" in done.stderr
    assert "the hard limit is 400; expected at most 136" in done.stderr
    assert done.stdout == ""


IN_PROCESS = "import sys; from qgstream.cli import main; sys.exit(main())"


# The command line.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fanot"], "got 'fanot'; did you mean fanout?"),
        (["--streams", "0"], "--streams: got 0, expected 1 or more"),
        (["--payload", "9"], "--payload: got 9, expected at least 10"),
        (["--rate", "0"], "--rate: got 0, expected more than 0"),
        (["--pid", "1"], "--pid is about the server at --url"),
        (["--url", "http://127.0.0.1:1", "--broker", "memory://"], "--broker is for a server that is started"),
    ],
)
def test_what_cannot_be_meant_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://192.0.2.1:80", "192.0.2.1 is 192.0.2.1, which is not this machine"),
        ("https://127.0.0.1:1", "expected http://HOST:PORT"),
        ("127.0.0.1:1", "expected http://HOST:PORT"),
        ("http://127.0.0.1:1/events", "expected http://HOST:PORT"),
    ],
)
def test_a_server_elsewhere_is_not_loaded_by_mistake(capsys: pytest.CaptureFixture[str], url: str, said: str) -> None:
    assert main(["bench", "--url", url]) == 1
    assert said in capsys.readouterr().err


def test_a_server_elsewhere_needs_a_word() -> None:
    subject = at("http://192.0.2.1:81", key=None, pid=os.getpid(), metrics_url=None, allow_remote=True)
    assert (subject.host, subject.port, subject.is_loopback) == ("192.0.2.1", 81, False)


# What it measures, on real servers.


def test_it_asks_for_metrics_as_directly_as_the_load_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, http_proxy="http://127.0.0.1:1")
    with ServerProcess(tmp_path) as server:
        used = at(server.url, key=None, pid=None, metrics_url=None, allow_remote=False).usage()
        assert used is not None
        assert used.rss_bytes > 0


def test_what_is_no_http_has_no_metrics() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"220 smtp.example.com ESMTP\r\n")

        thread = Thread(target=answer)
        thread.start()
        subject = at(f"http://127.0.0.1:{port}", key=None, pid=None, metrics_url=None, allow_remote=False)
        thread.join()
    assert subject.metrics_url is None


def test_it_measures_a_server_it_starts(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    arguments = ["--streams", "40", "--seconds", "0.5", "--rate", "20", "--json", str(path), "--compare"]
    done = bench("handshakes", "memory", "fanout", "health", *arguments)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"fanout: 40 streams, 20 events/s of 100 bytes\n +deliveries/s +lost .* x floor's CPU\n", done.stdout
    )
    written = json.loads(path.read_text())
    assert written["finished"] is True
    assert written["options"]["streams"] == 40
    found = {(result["scenario"], result["server"]): result for result in written["results"]}
    for server in ("qgstream", "bare send loop", "plain Tornado"):
        figures = found["fanout", server]["figures"]
        # A busy machine publishes fewer, and delivers late.
        assert 0 < figures["published"] <= 10
        assert figures["deliveries"] == 40 * figures["published"]
        assert figures["lost"] == 0
        assert 0 < figures["latency_p50_ms"] < 60_000
        assert figures["cpu_us_per_delivery"] is not None
    assert found["fanout", "bare send loop"]["ratio"] == 1
    assert found["handshakes", "Tornado, headers only"]["ratio"] == 1
    assert found["memory", "qgstream"]["figures"]["kib_per_stream"] is not None
    assert found["health", "qgstream"]["figures"]["probes_failed"] == 0


def test_it_measures_a_server_that_runs(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        path = tmp_path / "figures.json"
        arguments = ["--url", server.url, "--streams", "20", "--seconds", "0.5", "--json", str(path)]
        done = bench("flatout", "topics", "ndjson", *arguments, QGSTREAM_PUBLISH_KEY=KEY)
    assert done.returncode == 0, done.stderr
    found = {(r["scenario"], r["server"]): r["figures"] for r in json.loads(path.read_text())["results"]}
    assert found["flatout", "qgstream"]["lost"] == 0
    assert found["flatout", "qgstream"]["cpu_us_per_delivery"] is not None  # from /metrics
    assert found["topics", "20 streams, a topic each"]["cpu_us_per_publish"] > 0
    assert found["ndjson", "qgstream"]["events_per_second"] > 0


def test_stalled_readers_are_set_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "STALLED_SECONDS", 1.0)
    options = Options(frozenset({"stalled"}), streams=30, seconds=1)
    found = {result.server: result.figures for result in Bench(options, CORES, lambda _: None).run()}
    for name in ("none stalled", "3 more, stalled"):
        assert found[name]["lost"] == 0
        # A busy machine publishes fewer in that second.
        published = found[name]["published"]
        assert published
        assert 0 < published <= 20
        assert found[name]["deliveries"] == published * 27


def test_users_are_measured_beside_one_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[str] = []
    fill = users.fill

    def watched(on: Session, topics: Sequence[str], payload_bytes: int) -> str:
        filled.extend(topics)
        return fill(on, topics, payload_bytes)

    monkeypatch.setattr(users, "fill", watched)
    monkeypatch.setattr(users, "BEHIND", 50)
    monkeypatch.setattr(users, "HEALTH_BATCH_EVENTS", 20)
    for module in ("session", "users"):
        monkeypatch.setattr(f"qgstream.bench.{module}.SETTLE_SECONDS", 0.05)
    options = Options(frozenset({"users"}), streams=12, rate=20, seconds=0.3)
    results = list(Bench(options, CORES, lambda _: None).run())
    found = {(result.scenario, result.server): result.figures for result in results}

    for row in (users.ONE_TOPIC, users.OWN_TOPICS):
        shared, single, health = (found[f"users-{name}", row] for name in ("shared", "single", "health"))
        assert shared["published"]
        assert shared["deliveries"] == 12 * shared["published"]
        assert single["published"]
        assert single["deliveries"] == single["published"]
        assert health["batches"]
        assert health["deliveries"] == 12 * 20 * health["batches"]
        assert (shared["lost"], single["lost"], health["lost"], health["probes_failed"]) == (0, 0, 0, 0)
        assert found["users-memory", row]["kib_per_stream"] is not None
    came = {row: figures["deliveries"] for (scenario, row), figures in found.items() if scenario == "users-resume"}
    assert came == {users.BACK_ON_ONE: 12, users.NEW: 0, users.BACK_ON_OWN: 12, users.BACK_WITH_PREFIX: 12}
    for row in (users.FEW_HELD, users.MANY_HELD):
        assert found["users-latest", row]["deliveries"] == 12 * users.PREFIXES
    # All of it was in the history, and the events of others came last.
    remembered = [topic for topic in filled if topic != users.SHARED]
    assert len(remembered) + 2 == users.history_events(12)
    assert {topic.partition("-")[0] for topic in remembered[-50:]} == {"held"}

    # Each row has its ratio, and one row of each table is the base. (So few streams may take no memory at all.)
    all_rows = [row for row in rows(results) if row.scenario != "users-memory"]
    ratios = {(row.scenario, row.server): ratio(TABLES[row.scenario], row, all_rows) for row in all_rows}
    assert None not in ratios.values()
    based = {scenario for (scenario, _), value in ratios.items() if value == 1}
    assert based >= {name for name in TABLES if name.startswith("users-")} - {"users-memory"}
    assert "users-memory" in {result.scenario for result in results}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_prints_what_there_is(tmp_path: Path, number: signal.Signals) -> None:
    path, mark = tmp_path / "figures.json", f"STARTED_BY={tmp_path}"
    argv = [*BENCH, "handshakes", "idle", "--streams", "10", "--seconds", "600", "--json", str(path)]
    environment = os.environ | dict([mark.split("=")])
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    assert process.stderr.readline() == "handshakes: qgstream done\n"
    wait_until(lambda: len(processes_with(mark)) >= 3, what="itself, a server, a load")
    process.send_signal(number)
    out, err = process.communicate(timeout=150)
    assert process.returncode == 130
    assert err == "stopped; these are the results so far\n"
    assert "handshakes: 10 streams opened" in out
    assert "idle" not in out
    assert json.loads(path.read_text())["finished"] is False
    wait_until(lambda: not processes_with(mark), what="the end of all that it started")


def test_a_server_that_refuses_streams_is_no_measurement(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, limits__max_connections=5) as server:
        done = bench("fanout", "--url", server.url, "--streams", "8", QGSTREAM_PUBLISH_KEY=KEY)
    assert done.returncode == 1
    assert "the server closed 3 of 8 streams right after it opened them: check its limits" in done.stderr


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    port = free_port()
    done = bench("fanout", "--url", f"http://127.0.0.1:{port}", "--streams", "8")
    assert done.returncode == 1
    assert re.search(r"0 of 8 streams opened: 8 x Connection refused \(127\.0\.0\.1 port \d+\)", done.stderr)


def test_publishing_without_a_key_is_said(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        done = bench("fanout", "--url", server.url, "--streams", "2", "--seconds", "0.5")
    assert done.returncode == 1
    assert "nothing was published: {'401': 2}" in done.stderr


class Lossy(Thread):
    """A server that sends every event to every second stream only, in two pieces cut within the stamp."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.streams: list[socket.socket] = []
        self.targets: list[str] = []

    def run(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock: socket.socket) -> None:
        with sock, suppress(OSError):
            while request := sock.recv(65536):
                if request.startswith(b"GET"):
                    self.targets.append(request.split()[1].decode())
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                    self.streams.append(sock)
                    continue
                event = b"data: " + request.partition(b"\r\n\r\n")[2] + b"\n\n"
                for stream in self.streams[::2]:
                    stream.sendall(event[:-6])
                    stream.sendall(event[-6:])
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture
def lossy_server() -> Iterator[Lossy]:
    server = Lossy()
    server.start()
    yield server
    server.listener.close()


@pytest.fixture
def lossy(lossy_server: Lossy) -> Subject:
    return Subject(Dialect("lossy", prefix="", suffix="", headers=()), "127.0.0.1", lossy_server.port)


def test_every_stream_has_a_number_of_its_own(lossy: Subject, lossy_server: Lossy) -> None:
    with Session(lossy, CORES, size=2) as session:
        session.open(5, topic="own-{n}")
    assert sorted(lossy_server.targets) == [f"/events?topic=own-{number}" for number in range(5)]


def test_what_is_lost_is_counted(lossy: Subject) -> None:
    with Session(lossy, CORES) as session:
        session.open(10)
        figures = session.fan_out(20, 0.5, 50)
    published = figures["published"]
    assert published
    assert 0 < published <= 10  # a busy machine publishes fewer
    assert figures["deliveries"] == 5 * published
    assert figures["lost"] == 5 * published
    assert figures["cpu_us_per_delivery"] is None  # of whom?


@pytest.mark.parametrize(("dialect", "module"), [(FLOOR, "floor"), (PLAIN, "plain")])
def test_the_servers_to_compare_with_survive_who_leaves(dialect: Dialect, module: str) -> None:
    with start_module(dialect, f"qgstream.bench.{module}", CORES) as subject:
        with Session(subject, CORES) as session:
            session.open(5)
        with Session(subject, CORES, size=2) as session:
            session.open(5)
            assert session.fan_out(20, 0.5, 50)["lost"] == 0


# What it says.


def result(scenario: str, server: str, **figures: float | None) -> Result:
    return Result(scenario, server, dict(figures))


def test_a_table_shows_medians_and_ratios() -> None:
    results = [
        result("fanout", "qgstream", cpu_us_per_delivery=value, lost=0, latency_p50_ms=None) for value in (12, 99, 15)
    ] + [result("fanout", "bare send loop", cpu_us_per_delivery=10.0, lost=12345)]
    text = tables(results, Options(frozenset({"fanout"}), streams=7))
    title, head, ours, floor = text.splitlines()
    assert title == "fanout: 7 streams, 4 events/s of 100 bytes"
    headings = ["deliveries/s", "lost", "p50 ms", "p99 ms", "CPU us/delivery", "load's core %", "x floor's CPU"]
    assert re.split("  +", head.strip()) == headings
    assert ours.split() == ["qgstream", "-", "0", "-", "-", "15", "-", "1.50"]
    assert floor.split()[-3:] == ["10", "-", "1"]
    assert "12 345" in floor
    assert len({len(line) for line in (head, ours, floor)}) == 1


def test_the_document_has_the_runs_and_no_password() -> None:
    results = [result("idle", "qgstream", percent_of_core=value) for value in (1.0, 3.0)]
    options = Options(frozenset({"idle"}), broker="redis://:hush@localhost")
    written: dict[str, Any] = document(results, options, cores=CORES, started_at="now", finished=True)
    assert "hush" not in json.dumps(written)
    (row,) = written["results"]
    assert row["figures"] == {"percent_of_core": 2.0}
    assert row["runs"] == [{"percent_of_core": 1.0}, {"percent_of_core": 3.0}]
    assert rows(results)[0].server == "qgstream"


# Processes.


def test_a_program_that_ends_says_its_last_words() -> None:
    with (
        Program([sys.executable, "-c", "import sys; sys.exit('no luck')"]) as program,
        pytest.raises(BenchError) as end,
    ):
        program.hear()
    assert "ended with status 1:\nno luck" in str(end.value)


def test_what_a_process_uses_is_read() -> None:
    busy = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\nsys.stdin.read()"
    with Program([sys.executable, "-c", busy]) as program:
        assert program.hear() == "done"
        used = usage([program.pid])
    assert 0.28 <= used.cpu_seconds < 2
    assert 2**20 < used.rss_bytes < 2**30
    with pytest.raises(BenchError, match="cannot be read: "):
        usage([program.pid])


def test_a_caller_keeps_its_rate_and_counts_refusals(lossy: Subject) -> None:
    sent: list[float] = []

    def request() -> bytes:
        sent.append(time.monotonic())
        return lossy.publish_request(b"x")

    caller = Caller(lossy, request, rate=50, seconds=0.4, keep_alive=False)
    began = time.monotonic()
    caller.start()
    caller.join(60)
    # None is sent before it is due; a busy machine sends some late, and fewer in that time.
    assert 0 < len(sent) <= 20
    assert all(at >= began + number / 50 for number, at in enumerate(sent))
    assert caller.answered == len(sent)
    refused = Caller(Subject(FLOOR, "127.0.0.1", 1), lambda: b"", rate=20, seconds=0.1)
    refused.start()
    refused.join(60)
    assert refused.failures.keys() == {"Connection refused"}
    assert 0 < refused.failed <= 2


# The experiments.

ROOT = Path(__file__).parent.parent.parent
EXPERIMENTS = [
    path for path in sorted((ROOT / "benchmarks").rglob("*.py")) if "= Experiment(" in path.read_text(encoding="utf-8")
]


def test_every_experiment_that_is_named_exists() -> None:
    pages = [*(ROOT / "qgstream").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    named = {name for page in pages for name in re.findall(r"benchmarks/[\w/]+\.py", page.read_text(encoding="utf-8"))}
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_is_one_command(path: Path) -> None:
    done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--repeat" in done.stdout
