"""Alerts and dashboard: what Prometheus itself makes of our files, and what they show of a server that runs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import isfinite
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from qgstream.logs import LOST_REASONS
from qgstream.metrics import Metrics
from qgstream.reasons import CLOSE_REASONS, PUBLISH_RESULTS, REJECT_REASONS, REPLAY_RESULTS
from tests.deploy.programs import DEPLOY, Program, free_port, rewritten
from tests.deploy.units import SYSTEMD, command, read
from tests.documents import anchors, blocks
from tests.hostile.certificates import make_certificate
from tests.publishing import publish
from tests.serving import RawClient, ServerProcess, wait_until
from tests.signing import jwk

PROMETHEUS = DEPLOY / "prometheus"
RULES = PROMETHEUS / "qgstream.rules.yml"
CASES = Path(__file__).parent / "rules.test.yml"
GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
DOCUMENT: dict[str, Any] = yaml.safe_load(CASES.read_text())
DASHBOARD = json.loads((DEPLOY / "grafana" / "qgstream.json").read_text())


ALERTS = DEPLOY.parent / "docs" / "alerts.md"
# Where runbook_url leads until somebody has said where their copy is.
RUNBOOKS = "https://docs.example.com/qgstream/"


LABELS: dict[str, set[str]] = {
    "reason": {*CLOSE_REASONS, *REJECT_REASONS, *LOST_REASONS},
    "result": {*REPLAY_RESULTS, *PUBLISH_RESULTS},
}


def rules() -> list[dict[str, Any]]:
    return [rule for group in GROUPS for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def runbook(alert: str) -> str:
    return f"{RUNBOOKS}{ALERTS.name}#{alert.lower()}"


def series_in(expression: str) -> set[str]:
    """The series that an expression is about: scraped ones, recorded ones, and those that these are made of."""
    recorded = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    found = set(re.findall(r"qgstream:[\w:]+|\b(?:qgstream|process)_\w+|\bup\b", expression))
    return found.union(*(series_in(recorded[name]) for name in found if name.startswith("qgstream:")))


def exposed() -> set[str]:
    """The names of the series of a scrape, of metrics without a series at this moment too."""
    parts = ("", "_total", "_bucket", "_sum", "_count")
    names = {f"{family.name}{part}" for family in Metrics().registry.collect() for part in parts}
    return names | {"up"}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    return [
        (f"{panel['title']} {target['refId']}", target["expr"]) for panel in panels() for target in panel["targets"]
    ]


# The files by themselves.


@pytest.fixture(scope="module")
def promtool(require_program: Callable[[str], Path]) -> Callable[..., str]:
    program = require_program("promtool")

    def run(*arguments: str | Path) -> str:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_prometheus_takes_the_configuration_and_the_rules(promtool: Callable[..., str]) -> None:
    assert f"{len(rules())} rules found" in promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert "SUCCESS" in promtool("check", "rules", "--lint-fatal", RULES)


def test_several_processes_are_as_many_targets(promtool: Callable[..., str], tmp_path: Path) -> None:
    (shown,) = [block for block in blocks("yaml") if block.page.name == "production.md"]
    path = tmp_path / "prometheus.yml"
    path.write_text(shown.text)
    assert "SUCCESS" in promtool("check", "config", path)
    (job,) = yaml.safe_load(shown.text)["scrape_configs"]
    (start,) = read(SYSTEMD / "qgstream@.service")["ExecStart"]
    ports = [command(start, instance=instance)[-1].partition("=")[2] for instance in ("1", "2")]
    targets = [f"127.0.0.1:{port}" for port in ports]
    assert job == {"job_name": "qgstream", "static_configs": [{"targets": targets}]}
    # The file that is installed has the same, to be taken in.
    assert f"# - targets: {json.dumps(targets)}" in (PROMETHEUS / "prometheus.yml").read_text()


@pytest.mark.parametrize("case", DOCUMENT["tests"], ids=lambda case: case["name"][:60])
def test_each_alert_fires_when_it_should_and_only_then(
    promtool: Callable[..., str], tmp_path: Path, case: dict[str, Any]
) -> None:
    case = deepcopy(case)
    for expected in case["alert_rule_test"]:
        for alert in expected["exp_alerts"]:
            alert["exp_annotations"] |= {"runbook_url": runbook(expected["alertname"])}
    path = tmp_path / "rules.test.yml"
    path.write_text(yaml.safe_dump(DOCUMENT | {"rule_files": [str(RULES)], "tests": [case]}))
    assert "SUCCESS" in promtool("test", "rules", path)


def test_each_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    fires: Counter[tuple[str, bool]] = Counter()
    expressions = {alert["alert"]: alert["expr"] for alert in alerts()}
    for case in DOCUMENT["tests"]:
        given = {re.split(r"[{ ]", series["series"])[0] for series in case["input_series"]}
        for expected in case["alert_rule_test"]:
            # Of nothing no alert fires: that would say nothing.
            assert given & series_in(expressions[expected["alertname"]]), (case["name"], expected)
            fires[expected["alertname"], bool(expected["exp_alerts"])] += 1
    wanted = {(name, firing) for name in expressions for firing in (True, False)}
    assert wanted - fires.keys() == set()


def test_the_cases_know_each_group() -> None:
    """What they leave out would be evaluated in any order, and its records be there later than in Prometheus."""
    assert DOCUMENT["group_eval_order"] == [group["name"] for group in GROUPS]


def test_what_the_dashboard_asks_for_exists() -> None:
    asked = set(
        re.findall(r"\b(?:qgstream|process)_\w+", " ".join(re.sub(r'__name__=~"[^"]+"', "", q) for _, q in queries()))
    )
    assert asked - exposed() == set()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert set(re.findall(r"\bqgstream:[\w:]+", " ".join(q for _, q in queries()))) <= recorded


def test_what_the_rules_ask_for_exists() -> None:
    asked = {name for rule in rules() for name in series_in(rule["expr"])}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert asked - exposed() - recorded == set()
    for rule in rules():
        for label, values in re.findall(r"\b(reason|result)=~?\"([^\"]+)\"", rule["expr"]):
            for value in values.split("|"):
                assert [one for one in LABELS[label] if re.fullmatch(value, one)], (rule, value)


def test_each_alert_is_explained_where_its_runbook_leads() -> None:
    explained = re.findall(r"^### (Qgstream\w+)$", ALERTS.read_text(), re.MULTILINE)
    assert sorted(explained) == sorted(alert["alert"] for alert in alerts())
    assert {alert["labels"]["severity"] for alert in alerts()} == {"critical", "warning"}
    for alert in alerts():
        assert alert["annotations"]["runbook_url"] == runbook(alert["alert"])
        assert alert["alert"].lower() in anchors(ALERTS)


def test_one_command_moves_every_runbook(tmp_path: Path) -> None:
    """The one that the file itself names; what is left of the address would be a link to nowhere."""
    path = tmp_path / "qgstream.rules.yml"
    path.write_text(RULES.read_text())
    (line,) = re.findall(r"^#   (sed .*)$", path.read_text(), re.MULTILINE)
    assert line in ALERTS.read_text()
    subprocess.run(shlex.split(line), cwd=tmp_path, check=True)
    moved = [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"] if "alert" in rule]
    assert RUNBOOKS not in path.read_text().split("groups:")[1]
    assert {alert["annotations"]["runbook_url"].partition("#")[0] for alert in moved} == {
        "https://wiki.example.org/qgstream/alerts.md"
    }


def test_a_text_has_its_number_in_units_for_people() -> None:
    for alert in alerts():
        for said in re.findall(r"{{ *(\$value[^}]*)}}", alert["annotations"]["summary"]):
            assert "humanize" in said, alert["alert"]
        assert "a second" not in alert["annotations"]["summary"], "0.003 a second says nothing to anybody"


def shown() -> set[str]:
    """The series that some panel shows, those that it asks for by a pattern of their names included."""
    text = " ".join(expr for _, expr in queries())
    patterns = [re.compile(pattern) for pattern in re.findall(r'__name__=~"([^"]+)"', text)]
    return set(re.findall(r"\bqgstream_\w+", text)) | {
        name for name in exposed() for one in patterns if one.fullmatch(name)
    }


def test_each_metric_of_ours_is_on_the_dashboard() -> None:
    for family in Metrics().registry.collect():
        if family.name.startswith("qgstream_"):
            names = {family.name, f"{family.name}_total", f"{family.name}_bucket"}
            assert names & shown(), f"{family.name} is on no panel"


def test_nothing_is_drawn_twice() -> None:
    """The numbers in the first row and the tables are no drawings."""
    drawn: dict[str, str] = {}
    for panel in panels():
        if panel["type"] in ("stat", "table"):
            continue
        for name in {
            name
            for target in panel["targets"]
            for name in re.findall(r"\b(?:qgstream|process)[_:][\w:]+", target["expr"])
        }:
            assert name not in drawn, f"{name} is drawn in {drawn[name]} and in {panel['title']}"
            drawn[name] = panel["title"]
    # That one is the sum of this one.
    assert ("qgstream_connections_opened_total" in drawn) + (
        "qgstream_connections_opened_by_transport_total" in drawn
    ) < 2
    titles = Counter(panel["title"] for panel in DASHBOARD["panels"])
    assert [title for title, count in titles.items() if count > 1] == []


def test_the_dashboard_is_one_that_grafana_can_lay_out() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        area = {(x, y) for x in columns for y in rows}
        assert not area & taken, f"{panel['title']} lies on another"
        taken |= area
    named = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - named - {"__rate_interval", "__all"} == set()
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]


# A real Prometheus that has scraped a real run.


@dataclass
class Scraped:
    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        assert "warnings" not in document, document
        return document["data"]

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=60):
                return True
        except urllib.error.HTTPError:
            return False  # it listens before it can answer

    def scrapes(self) -> int:
        found = self.ask("query", query='sum(count_over_time(up{job="qgstream"}[1h]))')["result"]
        return int(found[0]["value"][1]) if found else 0

    def values(self, query: str) -> list[float]:
        return [float(sample["value"][1]) for sample in self.ask("query", query=query)["result"]]

    def some(self, query: str) -> list[float]:
        """The same, as soon as there is something. After a scrape that did not come in time there is nothing."""
        found: list[float] = []

        def is_there() -> bool:
            found[:] = self.values(query)
            return bool(found)

        wait_until(is_there, what=query)
        return found


def stream(server: ServerProcess, *headers: str) -> RawClient:
    client = RawClient(server.port).get("/events?topic=orders", "Accept: text/event-stream", *headers)
    client.until(b"retry: ")
    return client


def some_traffic(server: ServerProcess) -> list[RawClient]:
    """Something of everything that is counted: opened, closed, refused, published, delivered, replayed. Who stays."""
    staying, leaving = stream(server), stream(server)
    refused = stream(server)
    assert b"max_connections" in refused.to_end()
    refused.close()
    first = publish(server, "orders", "first")["id"]
    for number in range(20):
        publish(server, "orders", f"event {number}!")
    leaving.until(b"event 19!")
    leaving.close()
    server.wait_for_log("events.disconnected", reason="client")
    returned = stream(server, f"Last-Event-ID: {first}")
    for client in (staying, returned):
        client.until(b"event 19!")
        client.until(b'"event": "heartbeat"')
    return [staying, returned]


@contextmanager
def prometheus(program: Path, folder: Path, *admin_ports: int) -> Iterator[Scraped]:
    """Prometheus with the files of deploy/, in a hurry: minutes of waiting are moments here."""
    port = free_port()
    rules_path, config = folder / "qgstream.rules.yml", folder / "prometheus.yml"
    rules_path.write_text(
        rewritten(
            RULES,
            {"interval: 15s": "interval: 500ms", "interval: 1m": "interval: 500ms", "offset 5m": "offset 1s",
             "offset 10m": "offset 1s", "for: 5m": "for: 0s"},
        )
    )  # fmt: skip
    targets = ", ".join(f'"127.0.0.1:{admin_port}"' for admin_port in admin_ports)
    config.write_text(
        rewritten(
            PROMETHEUS / "prometheus.yml",
            {
                "scrape_interval: 15s": "scrape_interval: 500ms",
                "scrape_timeout: 5s": "scrape_timeout: 500ms",
                "evaluation_interval: 15s": "evaluation_interval: 500ms",
                "- qgstream.rules.yml": f"- {rules_path}",
                '"127.0.0.1:9000"': targets,
            },
        )
    )
    command: list[str | Path] = [
        program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with Program(command, folder / "prometheus.log") as running:
        running.wait_for_port(port)
        found = Scraped(f"http://127.0.0.1:{port}")
        wait_until(found.is_ready, what="Prometheus")
        # A counter's rate needs a scrape before and one after.
        wait_until(lambda: found.scrapes() >= 2, what="the first scrapes")
        yield found


@contextmanager
def key_set() -> Iterator[str]:
    """The address of an issuer's keys."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"keys": [jwk("p256", "ES256", kid="one")]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/keys"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], Path]) -> Iterator[Scraped]:
    """Of a server with something of everything, and of one with a certificate and an issuer."""
    program = require_program("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    admin_port, other_port = free_port(), free_port()
    settings: dict[str, Any] = {
        "admin__port": admin_port,
        "heartbeat__interval_seconds": 0.2,
        "limits__max_connections": 2,
        # One event at the start, and then none in this test.
        "sources": [{"use": "clock", "options": {"interval_seconds": 3600}}],
    }
    certfile, keyfile = make_certificate(folder, days=60)
    with (
        key_set() as url,
        ServerProcess(folder, **settings) as server,
        ServerProcess(
            folder, admin__port=other_port, server__certfile=str(certfile), server__keyfile=str(keyfile),
            auth__jwt__algorithms=["ES256"], auth__jwt__jwks_url=url,
        ),
        prometheus(program, folder, admin_port, other_port) as found,
    ):  # fmt: skip
        clients = some_traffic(server)
        before = found.scrapes()
        wait_until(lambda: found.scrapes() >= before + 6, what="scrapes of what happened")
        for record in ("qgstream:streams_failed:ratio_rate30d", "qgstream:connections_returned:increase5m"):
            wait_until(partial(found.values, record), what=record)
        yield found
        for client in clients:
            client.close()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], Path]) -> Iterator[Scraped]:
    """Of a server that has just started, and to which nobody came."""
    program = require_program("prometheus")
    folder = tmp_path_factory.mktemp("healthy")
    admin_port = free_port()
    with ServerProcess(folder, admin__port=admin_port), prometheus(program, folder, admin_port) as found:
        wait_until(lambda: found.values("qgstream:slo_errors_allowed:ratio"), what="what is recorded")
        yield found


def filled(query: str) -> str:
    """As Grafana would ask it."""
    return query.replace("$__rate_interval", "1m").replace("$job", "qgstream").replace("$instance", ".*")


@pytest.mark.parametrize(("name", "query"), queries(), ids=lambda text: text[:60])
def test_each_query_of_the_dashboard_shows_something(scraped: Scraped, name: str, query: str) -> None:
    values = scraped.some(filled(query))
    assert all(map(isfinite, values)), (filled(query), values)


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_no_panel_is_empty_without_saying_so(healthy: Scraped, panel: dict[str, Any]) -> None:
    """Nobody can tell an empty panel from one that is broken. (A value that is none draws nothing either.)"""
    for target in panel["targets"]:
        has_words = panel["fieldConfig"]["defaults"].get("noValue")
        values = (healthy.values if has_words else healthy.some)(filled(target["expr"]))
        assert all(map(isfinite, values)), (target["expr"], values)


def test_alerts_and_starts_are_marked(scraped: Scraped) -> None:
    marks = {mark["name"]: mark for mark in DASHBOARD["annotations"]["list"]}
    found: dict[str, Any] = {}

    def are_there() -> bool:
        found.update({
            name: scraped.ask("query", query=filled(mark["expr"]))["result"] for name, mark in marks.items()
        })  # fmt: skip
        return bool(found["Alerts"] and found["Starts"])

    wait_until(are_there, what="an alert, and a start")
    for name, mark in marks.items():
        for field in re.findall(r"{{(\w+)}}", mark["titleFormat"] + mark["textFormat"]):
            assert all(field in sample["metric"] for sample in found[name]), (name, field)
    # The moment of a start is the value, in the milliseconds of Grafana.
    assert marks["Starts"]["useValueForTime"]
    for sample in found["Starts"]:
        assert 0 < sample["value"][0] - float(sample["value"][1]) / 1000 < 3600


def test_the_dashboard_finds_its_jobs_and_instances(scraped: Scraped) -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", filled(variable["query"]["query"]))
            assert found, variable
            assert scraped.ask(f"label/{found[2]}/values", **{"match[]": found[1]}), variable


def test_what_was_counted_is_what_happened(scraped: Scraped) -> None:
    assert scraped.some("sum(qgstream_connections_rejected_total)") == [1]
    assert scraped.some("sum(qgstream_connections_opened_total)") == [3]
    assert scraped.some('sum(qgstream_replay_total{result="complete"})') == [1]
    assert scraped.some("sum(qgstream_events_published_total)") == [21 + 1]
    assert scraped.some("qgstream_source_events_total") == [1]


def test_prometheus_evaluates_every_alert_without_an_error(scraped: Scraped) -> None:
    def evaluated() -> list[dict[str, Any]]:
        return [rule for group in scraped.ask("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] != "unknown" for rule in evaluated()), what="an evaluation of each rule")
    assert {rule["name"]: rule.get("lastError", "") for rule in evaluated() if rule["health"] != "ok"} == {}
    # The run was at its limit, so this one has something to say; on a busy machine the loop may be late, too.
    usual = {"QgstreamNearLimit", "QgstreamLoopLag", "QgstreamSlowDelivery"}

    def is_as_it_was() -> bool:
        active = {rule["name"] for rule in evaluated() if rule.get("state", "inactive") != "inactive"}
        return "QgstreamNearLimit" in active and active <= usual

    # Not at any moment: where a scrape did not come in time, the process counts as one that is away.
    wait_until(is_as_it_was, what="no other alert")
