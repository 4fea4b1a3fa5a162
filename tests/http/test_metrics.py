"""/metrics: both formats by Accept, and every series present from the start."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from qgstream.reasons import CLOSE_REASONS, REJECT_REASONS, REPLAY_RESULTS
from qgstream.version import __version__
from tests.http.asking import Client

PLAIN = [
    "",
    "*/*",
    "text/plain",
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "text/html",
    "application/openmetrics-text;version=0.0.1",
]
OPEN = [
    "application/openmetrics-text",
    "application/openmetrics-text; version=1.0.0; charset=utf-8",
    # What Prometheus 3 sends.
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
]
NONSENSE = [
    "application/openmetrics-text;version=banana",
    "application/openmetrics-text;version=1.\xe9",
    "application/openmetrics-text;version=" + "9" * 5000,
    "application/openmetrics-text;version=1.0.0;escaping=bogus",
    "text/plain;version=1.0.0;escaping=;;;==",
    "text/plain;version=..",
    "," * 10_000,
    ";" * 10_000,
    "=,=;=",
]


def parse_openmetrics(text: str) -> list[Metric]:
    return list(openmetrics.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]  # theirs


def series(families: Iterable[Metric]) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    return [(sample.name, tuple(sorted(sample.labels.items()))) for family in families for sample in family.samples]


def labels(families: Iterable[Metric], name: str, label: str) -> set[str]:
    return {sample.labels[label] for family in families for sample in family.samples if sample.name == name}


@pytest.mark.gen_test
@pytest.mark.parametrize("accept", PLAIN)
async def test_the_text_format(client: Client, accept: str) -> None:
    answer = await client.ask("GET", "/metrics", headers={"Accept": accept} if accept else {})
    assert answer.code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert answer.headers["Cache-Control"] == "no-store"
    assert list(parse_text(answer.body.decode()))


@pytest.mark.gen_test
@pytest.mark.parametrize("accept", OPEN)
async def test_openmetrics_for_those_who_ask(client: Client, accept: str) -> None:
    answer = await client.ask("GET", "/metrics", headers={"Accept": accept})
    assert answer.code == 200
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert answer.body.endswith(b"# EOF\n")
    assert parse_openmetrics(answer.body.decode())


@pytest.mark.gen_test
@pytest.mark.parametrize("accept", NONSENSE)
async def test_no_accept_is_an_error(client: Client, accept: str) -> None:
    answer = await client.ask("GET", "/metrics", headers={"Accept": accept})
    assert answer.code == 200
    assert b"qgstream_connections" in answer.body


@pytest.mark.gen_test
async def test_every_series_is_there_before_anything_happened_and_once(client: Client) -> None:
    answer = await client.ask("GET", "/metrics", headers={"Accept": OPEN[0]})
    families = parse_openmetrics(answer.body.decode())
    assert labels(families, "qgstream_connections_closed_total", "reason") == set(CLOSE_REASONS)
    assert labels(families, "qgstream_connections_rejected_total", "reason") == set(REJECT_REASONS)
    assert labels(families, "qgstream_replay_total", "result") == set(REPLAY_RESULTS)
    assert labels(families, "qgstream_build_info", "version") == {__version__}
    all_series = series(families)
    assert len(all_series) == len(set(all_series))
    names = {name for name, _ in all_series}
    assert names >= {
        "qgstream_connections", "qgstream_connections_limit", "qgstream_connections_opened_total",
        "qgstream_connections_closed_total", "qgstream_connections_rejected_total",
        "qgstream_connection_age_seconds_count",
        "qgstream_events_published_total", "qgstream_events_delivered_total", "qgstream_bytes_sent_total",
        "qgstream_heartbeats_total", "qgstream_replay_total", "qgstream_replay_events_count",
        "qgstream_fanout_seconds_count", "qgstream_publish_to_write_seconds_count", "qgstream_loop_lag_seconds_count",
        "qgstream_backlog_bytes", "qgstream_backlog_largest_bytes", "qgstream_history_events",
        "qgstream_inflight_body_bytes", "qgstream_inflight_bodies_refused_total",
        "qgstream_history_bytes", "qgstream_broker_up", "qgstream_draining", "qgstream_build_info",
        "process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "python_gc_collections_total",
    }  # fmt: skip


@pytest.mark.gen_test
async def test_no_series_appears_or_goes_with_traffic(client: Client) -> None:
    """A rate over a counter that was born with its first event misses that event."""

    async def scrape() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        return set(series(parse_text((await client.ask("GET", "/metrics")).body.decode())))

    before = await scrape()
    streams = [await client.stream("a"), await client.stream(last_event_id="nonsense"), await client.stream("b*")]
    await client.publish("a", "x")
    assert await streams[0].data() == "x"
    await client.post(b"{")
    for stream in streams:
        stream.close()
    for connection in client.hub.registry:
        connection.close("kicked")
    await client.ask("GET", "/events", headers={"Authorization": "Bearer wrong"})
    assert await scrape() == before


@pytest.mark.gen_test
async def test_what_it_says_is_what_happened(client: Client) -> None:
    async def value(name: str, **wanted: str) -> float:
        families = parse_text((await client.ask("GET", "/metrics")).body.decode())
        (found,) = [
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and sample.labels == wanted
        ]
        return found

    stream = await client.stream("a")
    other = await client.stream("b")
    assert await value("qgstream_connections") == 2
    assert await value("qgstream_connections_opened_total") == 2
    for number in range(5):
        await client.publish("a", f"{number}")
    for number in range(5):
        assert await stream.data() == f"{number}"
    assert await value("qgstream_events_published_total") == 5
    assert await value("qgstream_events_delivered_total") == 5
    next(iter(client.hub.registry)).close("kicked")
    assert await value("qgstream_connections") == 1
    assert await value("qgstream_connections_closed_total", reason="kicked") == 1
    assert await value("qgstream_connections_closed_total", reason="client") == 0
    assert await value("qgstream_connection_age_seconds_count") == 1
    client.hub.draining = True
    assert await value("qgstream_draining") == 1
    stream.close()
    other.close()
