"""Ten incidents: how soon metrics, log and `/admin` say that something is wrong, who does it, and what to do.

Two processes share a Redis behind HAProxy, with our files; a third one has its log on a disk. Prometheus with our rules
scrapes all of them, every half second. `INCIDENTS_PACE=real` leaves its intervals as they are, and waits until an alert
fires, not only until its expression holds: that takes minutes, and gives the figures of docs/incidents.md. Each
incident tells its seconds (`pytest -s`); none is asserted, for they are those of a machine.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.brokers.machines import REDIS, REDIS_HELLO, Machine
from tests.deploy.edges import Edge
from tests.deploy.programs import DEPLOY, Program, free_port, rewritten
from tests.deploy.test_prometheus import RUNBOOKS, Scraped
from tests.hostile.certificates import make_certificate
from tests.hostile.test_faults import Clock, environment
from tests.serving import KEY, ServerProcess, wait_until

ADMIN_KEY, IMPORTER_KEY = "admin-key", "importer-key"
MAX_SOCKETS = 150
MIB = 1024 * 1024
IN_REAL_TIME = os.environ.get("INCIDENTS_PACE") == "real"
LOOKS_SECONDS = 0.5 if IN_REAL_TIME else 0.02
SECONDS = 240.0 if IN_REAL_TIME else 60.0  # how long a failure takes

pytestmark = pytest.mark.timeout(900 if IN_REAL_TIME else 600)


class Process(ServerProcess):
    """A process with the admin interface on a port of its own. A line that is cut, by a full disk too, is no line."""

    def lines(self) -> list[dict[str, Any]]:
        found = []
        for text in self.log_path.read_text().splitlines():
            try:
                found.append(json.loads(text))
            except ValueError:
                continue
        return found

    def said(self, event: str, **fields: object) -> dict[str, Any] | None:
        """The last such line of the log."""
        found = [line for line in self.lines() if line["event"] == event and fields.items() <= line.items()]
        return found[-1] if found else None

    def asks(self, method: str, path: str, body: object = None) -> Any:
        """As an operator does with curl."""
        answer = httpx.request(
            method, f"http://127.0.0.1:{self.admin_port}{path}", json=body, timeout=60, trust_env=False,
            headers={"Authorization": f"Bearer {ADMIN_KEY}"},
        )  # fmt: skip
        assert answer.is_success, answer.text
        return answer.json()

    @property
    def instance(self) -> str:
        """Its label in Prometheus."""
        return f"127.0.0.1:{self.admin_port}"

    @contextmanager
    def bounded(self, limit: int, most: int) -> Iterator[None]:
        """With a limit of the kernel."""
        before = resource.prlimit(self.process.pid, limit)
        resource.prlimit(self.process.pid, limit, (most, before[1]))
        try:
            yield
        finally:
            resource.prlimit(self.process.pid, limit, before)


@dataclass
class Incident:
    """Since when, and what was known after how many seconds."""

    name: str
    began: float = field(default_factory=time.monotonic)

    def knows(self, what: str, look: Callable[[], Any], *, meanwhile: Callable[[], object] = lambda: None) -> Any:
        """Look until there is an answer, and note the seconds. `meanwhile` goes on with what is wrong."""
        while not (found := look()):
            assert time.monotonic() - self.began < SECONDS, f"{self.name}: nobody knows {what}"
            meanwhile()
            time.sleep(LOOKS_SECONDS)
        print(f"\n{self.name} | {what} | {time.monotonic() - self.began:.1f} s", end="")
        return found


@dataclass
class Scene:
    """All that is there."""

    redis: Machine
    one: Process
    two: Process
    alone: Process  # with a file as its log, and a certificate of its own
    clock: Clock  # of the second
    edge: Edge
    folder: Path
    scraped: Scraped

    @property
    def both(self) -> tuple[Process, Process]:
        return self.one, self.two

    def alert(self, name: str, *, said: str = "", **labels: str) -> Callable[[], dict[str, Any] | None]:
        """The alert with these labels and words, once Prometheus has it. It must say where its runbook is."""

        def look() -> dict[str, Any] | None:
            for alert in self.scraped.ask("alerts")["alerts"]:
                if alert["labels"]["alertname"] == name and labels.items() <= alert["labels"].items():
                    assert alert["annotations"]["runbook_url"].startswith(RUNBOOKS)
                    is_on = alert["state"] == "firing" or not IN_REAL_TIME
                    if is_on and said in alert["annotations"]["summary"]:
                        return dict(alert)
            return None

        return look

    def shows(self, query: str) -> Callable[[], list[float]]:
        """What Prometheus has scraped: something, once it is there."""
        return lambda: self.scraped.values(query)

    def line(self, event: str, **fields: object) -> Callable[[], dict[str, Any] | None]:
        """In the log of one of the two."""
        return lambda: self.one.said(event, **fields) or self.two.said(event, **fields)

    def talker(self, table: str, name: str) -> Callable[[], dict[str, Any] | None]:
        """The first row of a table of `/admin/talkers` of one of the two, if it is this one."""

        def look() -> dict[str, Any] | None:
            for process in self.both:
                rows = process.asks("GET", "/admin/talkers?limit=5")[table]
                if rows and rows[0]["name"] == name:
                    return dict(rows[0])
            return None

        return look

    def browser(self, address: str, **options: Any) -> httpx.Client:
        """What speaks to the edge from an address of its own."""
        tls = ssl.create_default_context(cafile=self.edge.certificate[0])
        transport = httpx.HTTPTransport(local_address=address, verify=tls, http1=True, http2=False)
        return httpx.Client(
            base_url=f"https://localhost:{self.edge.port}", transport=transport, trust_env=False, timeout=60, **options
        )


@contextmanager
def watching(program: Path, folder: Path, targets: tuple[Process, ...]) -> Iterator[Scraped]:
    """Prometheus with the files of deploy/. In a hurry its intervals are short, what is usual is of a moment ago, and
    fewer events are a flood."""
    port = free_port()
    rules, config = folder / "qgstream.rules.yml", folder / "prometheus.yml"
    source = {"- qgstream.rules.yml": f"- {rules}", '"127.0.0.1:9000"': ", ".join(f'"{p.instance}"' for p in targets)}
    quick: dict[str, str] = {}
    if not IN_REAL_TIME:
        quick = {
            "interval: 15s": "interval: 500ms", "interval: 1m": "interval: 500ms", "offset 10m": "offset 8s",
            "rate2m > 100": "rate2m > 10",
        }  # fmt: skip
        source |= {
            "scrape_interval: 15s": "scrape_interval: 500ms", "scrape_timeout: 5s": "scrape_timeout: 500ms",
            "evaluation_interval: 15s": "evaluation_interval: 500ms",
        }  # fmt: skip
    rules.write_text(rewritten(DEPLOY / "prometheus" / "qgstream.rules.yml", quick))
    config.write_text(rewritten(DEPLOY / "prometheus" / "prometheus.yml", source))
    command: list[str | Path] = [
        program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with Program(command, folder / "prometheus.log") as running:
        running.wait_for_port(port)
        scraped = Scraped(f"http://127.0.0.1:{port}")
        wait_until(scraped.is_ready, seconds=60, what="Prometheus")
        wait_until(lambda: scraped.scrapes() >= 2 * len(targets), seconds=60, what="the first scrapes")
        yield scraped


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], Path]) -> Iterator[Scene]:
    haproxy, program = require_program("haproxy"), require_program("prometheus")
    for name in ("faketime", "redis-server"):
        require_program(name)
    folder = tmp_path_factory.mktemp("incidents")
    (own := folder / "own").mkdir()
    redis, clock = Machine(REDIS, folder, hello=REDIS_HELLO), Clock(folder / "clock")
    certfile, keyfile = make_certificate(own, days=1.5)
    common: dict[str, Any] = {
        "auth__admin_keys": {"boss": ADMIN_KEY}, "auth__publish_keys": {"shop": KEY, "importer": IMPORTER_KEY},
        "drain__seconds": 0,
    }  # fmt: skip
    settings = common | {
        "server__trusted_proxies": ["127.0.0.1"], "limits__max_connections": 100, "limits__max_sockets": MAX_SOCKETS,
        "limits__connect_rate_per_ip": 1, "limits__connect_burst_per_ip": 30, "limits__max_backlog_bytes": MIB // 4,
        "history__max_bytes": 32 * MIB,
    }  # fmt: skip
    with ExitStack() as stack:
        redis.start()
        stack.callback(redis.kill)

        def start(**more: Any) -> Process:
            process = Process(folder, admin__port=free_port(), **more)
            stack.callback(process.kill)
            return process

        one = start(broker__url=f"redis://127.0.0.1:{redis.port}", **settings)
        with environment(clock.environment):
            two = start(broker__url=f"redis://127.0.0.1:{redis.port}", **settings)
        alone = start(
            broker__url=f"sqlite://{own / 'events.db'}", server__certfile=str(certfile), server__keyfile=str(keyfile),
            **common,
        )  # fmt: skip
        edge = Edge(
            "haproxy", haproxy, folder / "edge", make_certificate(folder), to=[one.port, two.port],
            check=[one.admin_port or 0, two.admin_port or 0], check_seconds=1 if IN_REAL_TIME else 0.2,
        )  # fmt: skip
        stack.enter_context(edge)
        scraped = stack.enter_context(watching(program, folder, (one, two, alone)))
        yield Scene(redis, one, two, alone, clock, edge, own, scraped)
        loud = ("broker.down", "broker.trim_failed", "log.lines_lost")
        for process in (one, two, alone):
            process.stop(expect=loud)


def event(topic: str, data: str) -> dict[str, str]:
    return {"topic": topic, "data": data}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# The incidents.


def test_twenty_stalled_clients(scene: Scene) -> None:
    address = "127.0.0.7"
    tls = ssl.create_default_context(cafile=scene.edge.certificate[0])
    stalled = []
    for _ in range(20):
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.bind((address, 0))
        plain.settimeout(60)
        plain.connect(("127.0.0.1", scene.edge.port))
        client = tls.wrap_socket(plain, server_hostname="localhost")
        client.sendall(b"GET /events?topic=prices HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
        received = b""
        while b'"connected"' not in received:
            received += client.recv(1000)
        stalled.append(client)
    incident = Incident("stalled clients")
    with scene.browser("127.0.0.6") as shop:

        def publish() -> None:
            answer = shop.post("/events", json=event("prices", "x" * 100_000), headers=bearer(KEY))
            assert answer.status_code == 200, answer.text

        incident.knows("that (metric)", scene.shows("max(qgstream_backlog_largest_bytes) > 0"), meanwhile=publish)

        def furthest_behind() -> Any:
            found = [
                one for process in scene.both
                for one in process.asks("GET", "/admin/connections?sort=backlog&limit=1")["connections"]
            ]  # fmt: skip
            return found and found[0]["backlog_bytes"] and found[0]

        who = incident.knows("who (/admin/connections)", furthest_behind, meanwhile=publish)
        assert (who["ip"], who["topics"]) == (address, ["prices"])
        line = incident.knows("who (log)", scene.line("events.disconnected", reason="slow_consumer"), meanwhile=publish)
        assert line["remote_ip"] == address
        alert = incident.knows("that (alert)", scene.alert("QgstreamSlowConsumers"), meanwhile=publish)
        assert "could not keep up" in alert["annotations"]["summary"]
    kicked = sum(process.asks("DELETE", f"/admin/connections?ip={address}")["kicked"] for process in scene.both)
    assert kicked < 20  # the others were closed already
    for client in stalled:
        client.close()
    wait_until(lambda: not any(p.asks("GET", f"/admin/connections?ip={address}")["matching"] for p in scene.both))


def test_a_wrong_key_in_a_loop(scene: Scene) -> None:
    address, agent = "127.0.0.8", "old-importer/1.0"
    incident = Incident("wrong key")
    with scene.browser(address, headers={"User-Agent": agent}) as client:

        def publish() -> None:
            for _ in range(20):
                assert client.post("/events", json=event("a", "b"), headers=bearer("of-last-year")).status_code == 401

        publish()
        line = incident.knows("who (log)", scene.line("publish.refused", remote_ip=address))
        assert (line["code"], line["user_agent"]) == ("unknown_key", agent)
        talker = scene.talker("address", address)

        def often_refused() -> dict[str, Any] | None:
            row = talker()
            return row if row and row["publishes_refused"] >= 10 else None

        who = incident.knows("who (/admin/talkers)", often_refused, meanwhile=publish)
        assert who["last_refusal"] == "unauthorized"
        alert = incident.knows("that (alert)", scene.alert("QgstreamUnauthorized", kind="publishes"), meanwhile=publish)
        assert "invalid credentials" in alert["annotations"]["summary"]
        for process in scene.both:
            process.asks("POST", "/admin/bans", {"address": address, "reason": "a key of last year"})
        assert client.post("/events", json=event("a", "b"), headers=bearer("of-last-year")).status_code == 403
    lift(scene)


def lift(scene: Scene) -> None:
    for process in scene.both:
        for ban in process.asks("GET", "/admin/bans")["bans"]:
            process.asks("DELETE", f"/admin/bans/{ban['id']}")


def test_one_address_in_a_loop(scene: Scene) -> None:
    address = "127.0.0.9"
    incident = Incident("one address in a loop")
    with scene.browser(address, headers={"Accept": "text/event-stream"}) as client:

        def connect() -> None:
            for _ in range(40):
                with client.stream("GET", "/events?topic=loop") as answer:
                    assert answer.status_code == 200
                    next(answer.iter_raw())

        line = incident.knows(
            "who (log)", scene.line("events.rejected", reason="connect_rate_per_ip"), meanwhile=connect
        )
        assert line["remote_ip"] == address
        who = incident.knows("who (/admin/talkers)", scene.talker("address", address), meanwhile=connect)
        assert who["streams_refused"] > 0
        alert = incident.knows(
            "that (alert)", scene.alert("QgstreamClientsOverLimits", reason="connect_rate_per_ip"), meanwhile=connect
        )
        assert "a single client exceeds its limit" in alert["annotations"]["summary"]
        for process in scene.both:
            process.asks("POST", "/admin/bans", {"address": address, "reason": "a loop"})
        with client.stream("GET", "/events?topic=loop") as answer:
            assert b'"reason": "banned"' in b"".join(answer.iter_raw())
    lift(scene)


def test_a_frozen_engine(scene: Scene) -> None:
    """Nobody publishes meanwhile: the processes must find out by themselves."""
    incident = Incident("frozen engine")
    scene.redis.hang()
    try:
        for process in scene.both:
            line = incident.knows("that, and who (log)", lambda: process.said("broker.down"))  # noqa: B023
            assert f"127.0.0.1:{scene.redis.port}" in line["place"]
            assert line["reason"]
            status = process.asks("GET", "/admin/overview")["status"]
            answer = httpx.get(f"http://127.0.0.1:{process.admin_port}/ready", trust_env=False, timeout=60)
            assert (status, answer.status_code, answer.json()["status"]) == ("degraded", 200, "degraded")
        incident.knows("that (metric)", scene.shows("sum(qgstream_broker_up) == 1"))
        alert = incident.knows("that (alert)", scene.alert("QgstreamBrokerDown", said="lost their broker: 2"))
        assert "degraded, with status 200" in alert["annotations"]["summary"]
    finally:
        scene.redis.go_on()
    for process in scene.both:
        incident.knows("it is over (log)", lambda: process.said("broker.up"))  # noqa: B023


def test_the_disk_of_the_log_is_full(scene: Scene) -> None:
    process = scene.two
    with process.bounded(resource.RLIMIT_FSIZE, process.log_path.stat().st_size):
        incident = Incident("full disk of the log")

        def talk() -> None:  # two lines
            with httpx.stream("GET", f"{process.url}/events?topic=log", trust_env=False, timeout=60) as answer:
                next(answer.iter_raw())

        query = f'qgstream_log_lines_lost_total{{instance="{process.instance}",reason="disk_full"}} > 0'
        incident.knows("that, and who (metric)", scene.shows(query), meanwhile=talk)
        alert = incident.knows(
            "that, and who (alert)", scene.alert("QgstreamLogLinesLost", instance=process.instance), meanwhile=talk
        )
        assert alert["labels"]["reason"] == "disk_full"
        assert process.asks("GET", "/admin/overview")["status"] == "ready"  # it serves on
    talk()
    line = incident.knows("it is over (log)", lambda: process.said("log.lines_lost"))
    assert (line["lines"] > 0, line["reason"]) == (True, "disk_full")


def test_the_disk_of_the_events_is_full(scene: Scene) -> None:
    process, file = scene.alone, scene.folder / "events.db"
    with (
        httpx.Client(verify=False, trust_env=False, timeout=60, base_url=f"https://127.0.0.1:{process.port}") as shop,
        process.bounded(resource.RLIMIT_FSIZE, MIB),
    ):

        def publish() -> int:
            return shop.post("/events", json=event("a", "x" * 50_000), headers=bearer(KEY)).status_code

        def go_on() -> None:
            for _ in range(20):
                publish()

        while publish() == 200:
            pass
        incident = Incident("full disk of the events")
        line = incident.knows("that, and who (log)", lambda: process.said("broker.down"))
        assert (line["broker"], line["place"]) == ("sqlite", str(file))
        assert re.search("disk|full", line["reason"])
        # As long as something short still fits, the log comes and goes. So it is not the only thing to look at.
        refused = scene.alert("QgstreamPublishesRefused", result="unavailable")
        assert "unavailable" in incident.knows("that (alert)", refused, meanwhile=go_on)["annotations"]["summary"]

        def status() -> bool:
            return bool(process.asks("GET", "/admin/overview")["status"] == "degraded")

        incident.knows("that, and who (/admin/overview)", status, meanwhile=go_on)
        query = f'qgstream_broker_up{{instance="{process.instance}"}} == 0'
        incident.knows("that, and who (metric)", scene.shows(f"count({query})"), meanwhile=go_on)
    incident.knows("it is over (log)", lambda: process.said("broker.up"))


def test_an_expiring_certificate(scene: Scene) -> None:
    process = scene.alone
    incident = Incident("expiring certificate")
    alert = incident.knows("that (alert)", scene.alert("QgstreamCertificateExpires", certificate="server"))
    assert re.search(r"expires in 1d 1[12]h", alert["annotations"]["summary"])
    query = f'qgstream_certificate_expiry_timestamp_seconds{{instance="{process.instance}"}}'
    incident.knows("who (metric)", scene.shows(query))
    file = process.asks("GET", "/admin/config")["config"]["server.certfile"]["value"]
    assert file == str(scene.folder / "localhost.crt")
    make_certificate(scene.folder, days=90)
    answer = process.asks("POST", "/admin/reload")
    assert answer["files_changed"] == ["server.certfile", "server.keyfile"]
    incident.knows("it is over (metric)", scene.shows(f"{query} - time() > 80 * 86400"))


def test_a_wrong_clock(scene: Scene) -> None:
    process = scene.two
    incident = Incident("wrong clock")
    scene.clock.step(-120)
    try:
        alert = incident.knows("that, and who (alert)", scene.alert("QgstreamClockWrong", instance=process.instance))
        assert re.search("differ by (1m 5|2m )", alert["annotations"]["summary"])
        times = [one.asks("GET", "/admin/overview")["timestamp"] for one in (process, scene.one)]
        assert times[0] < times[1]
    finally:
        scene.clock.step(0)
    incident.knows("it is over (alert)", lambda: scene.alert("QgstreamClockWrong")() is None)


def test_a_hung_process(scene: Scene) -> None:
    process = scene.two
    name = f"Server qgstream/s{process.port}"
    incident = Incident("hung process")
    process.process.send_signal(signal.SIGSTOP)
    try:
        incident.knows("that, and who (log of HAProxy)", lambda: f"{name} is DOWN" in scene.edge.log)
        query = f'up{{instance="{process.instance}"}} == 0'
        incident.knows("that, and who (metric)", scene.shows(f"count({query})"))
        alert = incident.knows("that, and who (alert)", scene.alert("QgstreamDown", instance=process.instance))
        assert "or hangs. The other processes do not notice" in alert["annotations"]["summary"]
        assert scene.one.asks("GET", "/admin/overview")["status"] == "ready"
        with scene.browser("127.0.0.6", headers={"Accept": "text/event-stream"}) as browser:
            for _ in range(3):  # newcomers do not meet it
                with browser.stream("GET", "/events?topic=hung") as answer:
                    assert b'"connected"' in next(answer.iter_raw())
    finally:
        process.process.send_signal(signal.SIGCONT)
    incident.knows("it is over (metric)", lambda: not scene.scraped.values(query))
    incident.knows("it is over (log of HAProxy)", lambda: f"{name} is UP" in scene.edge.log)


def test_too_few_sockets(scene: Scene) -> None:
    """Clients that connect and ask nothing, straight to a process."""
    process, address = scene.one, "127.0.0.5"
    idle = []

    def connect() -> None:
        idle.append(socket.create_connection(("127.0.0.1", process.port), 60, source_address=(address, 0)))

    incident = Incident("too few sockets")
    while len(idle) < MAX_SOCKETS - 8:
        connect()
    alert = incident.knows(
        "that, and who (alert)", scene.alert("QgstreamDescriptorsNearLimit", instance=process.instance)
    )
    assert "of its descriptors or sockets" in alert["annotations"]["summary"]
    assert process.said("events.rejected", reason="max_sockets") is None  # it has come before the first refusal
    assert process.asks("GET", "/admin/overview")["live"]["connections"] < 50  # so it is not the streams

    def connect_more() -> None:  # those that have asked nothing for long are closed meanwhile
        for _ in range(40):
            connect()

    refused = scene.line("events.rejected", reason="max_sockets")
    line = incident.knows("who (log)", refused, meanwhile=connect_more)
    assert line["remote_ip"] == address
    alert = incident.knows("what (alert)", scene.alert("QgstreamRejecting", reason="max_sockets"), meanwhile=connect)
    (row,) = [one for one in process.asks("GET", "/admin/talkers?limit=5")["address"] if one["name"] == address]
    assert (row["streams_refused"] > 0, row["last_refusal"]) == (True, "max_sockets")
    process.asks("PATCH", "/admin/limits", {"max_sockets": 2 * MAX_SOCKETS})
    for client in idle:
        client.close()


def test_too_few_descriptors_at_the_start(tmp_path: Path) -> None:
    """The process does not start, and says what is missing."""
    incident = Incident("too few descriptors at the start")
    done = subprocess.run(
        ["sh", "-c", f"ulimit -n 500; exec {sys.executable} -m qgstream serve --port 0"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    said = incident.knows("that, and what (last line)", done.stderr.strip)
    assert "needs 11" in said
    assert "LimitNOFILE=" in said


def test_a_flooding_key(scene: Scene) -> None:
    """The last one: what is usual must be known before."""
    address = "127.0.0.4"
    usual = f"qgstream:events_published:rate2m offset {'10m' if IN_REAL_TIME else '8s'}"
    wait_until(scene.shows(usual), seconds=10 * SECONDS, what="what is usual")
    incident = Incident("flooding key")
    batch = "\n".join(json.dumps(event("imports", f"row {number}")) for number in range(500))
    with scene.browser(address) as client:
        headers = {**bearer(IMPORTER_KEY), "Content-Type": "application/x-ndjson"}

        def publish() -> httpx.Response:
            return client.post("/events", content=batch, headers=headers)

        def publisher() -> Any:
            rows = [row for process in scene.both for row in process.asks("GET", "/admin/publishers")["publishers"]]
            first = max(rows, key=lambda row: row["events_per_second"])
            return first["events_per_second"] > 100 and first

        who = incident.knows("who (/admin/publishers)", publisher, meanwhile=publish)
        assert (who["kind"], who["name"]) == ("key", "importer")
        topic = scene.one.asks("GET", "/admin/topics?limit=5")["published"][0]
        assert topic["topic"] == "imports"
        alert = incident.knows("that (alert)", scene.alert("QgstreamPublishFlood"), meanwhile=publish)
        assert "three times the usual rate" in alert["annotations"]["summary"]
        for process in scene.both:
            process.asks("PATCH", "/admin/limits", {"publish_rate_per_key": 10, "publish_burst_per_key": 500})

        def refused() -> bool:
            return publish().status_code == 429

        incident.knows("it is over (429)", refused)
        line = incident.knows("who (log)", scene.line("publish.refused", key="importer"))
        assert (line["reason"], line["remote_ip"]) == ("rate_limited", address)
        alert = incident.knows(
            "that (alert, of what is refused)", scene.alert("QgstreamPublishesRefused", result="rate_limited"),
            meanwhile=lambda: [publish() for _ in range(20)],
        )  # fmt: skip
        assert "rate_limited" in alert["annotations"]["summary"]
