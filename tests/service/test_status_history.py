"""The last hour: what a sample counts, and that the samples are bounded."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from qgstream.hub import Hub
from qgstream.metrics import _buckets
from qgstream.service.service import Service
from qgstream.service.status_history import MAX_SAMPLES, Sample, StatusHistory, quantile
from tests.http.asking import until


def samples(service: Service) -> list[Sample]:
    return list(service.status_history._samples)


@pytest.mark.gen_test
async def test_a_sample_counts_its_own_interval_alone() -> None:
    async with Service(Hub()) as service:
        metrics = service.hub.metrics
        for _ in range(2):
            await service.hub.publish("a", 1)
        metrics.opened("sse")
        metrics.closed("client", 1.0)
        metrics.closed("kicked", 1.0)
        metrics.rejected("draining")
        metrics.delivered(3, 100)
        service.reloads.loaded()
        service.status_history.take()
        await service.hub.publish("a", 1)
        metrics.delivered(1, 7)
        service.status_history.take()
        service.status_history.take()
        counts = [(s.published, s.opened, s.closed, s.rejected, s.delivered, s.bytes_sent, s.reloads)
                  for s in samples(service)]  # fmt: skip
    assert counts == [(2, 1, 2, 1, 3, 100, 1), (1, 0, 0, 0, 1, 7, 0), (0, 0, 0, 0, 0, 0, 0)]


@pytest.mark.gen_test
async def test_a_sample_says_what_its_interval_took() -> None:
    async with Service(Hub()) as service:
        began = time.monotonic()
        service.status_history.take()
        before = time.process_time()
        while time.process_time() < before + 0.1:
            pass
        service.hub.metrics.loop_was_late(0.4)
        service.status_history.take()
        whole = time.monotonic() - began
        sample = samples(service)[-1]
    assert 0.1 <= sample.seconds <= whole + 0.001
    assert sample.cpu_seconds >= 0.1
    assert 0.25 < (sample.loop_lag_seconds or 0) <= 0.5
    assert sample.publish_to_write_seconds is None
    assert sample.resident_bytes is None or sample.resident_bytes > 2**20


@pytest.mark.gen_test
async def test_the_oldest_sample_makes_place_for_the_newest() -> None:
    async with Service(Hub()) as service:
        for number in range(MAX_SAMPLES + 10):
            service.hub.metrics.published(number)
            service.status_history.take()
        kept = [sample.published for sample in samples(service)]
        assert kept == list(range(10, MAX_SAMPLES + 10))
        document = service.status_history.document(2)
    assert [sample["published"] for sample in document["samples"]] == kept[-2:]  # type: ignore[attr-defined]


@pytest.mark.gen_test
async def test_it_takes_them_by_itself_while_the_service_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qgstream.service.status_history.INTERVAL_SECONDS", 0.01)
    service = Service(Hub())
    assert not samples(service)
    async with service:
        await until(lambda: len(samples(service)) >= 3)
        timer = service.status_history._timer
        assert timer.is_running()
    assert not timer.is_running()


# The same as Prometheus makes of the same buckets.

BOUNDS = (0.1, 0.25, 1.0)


def buckets(*values: float) -> tuple[tuple[float | None, int], ...]:
    histogram = Histogram("h", "h", buckets=BOUNDS, registry=CollectorRegistry())
    for value in values:
        histogram.observe(value)
    return _buckets(histogram)


@pytest.mark.parametrize(
    ("values", "part", "expected"),
    [
        ((), 0.5, None),
        ((0.05,), 0.5, 0.05),  # the middle of its bucket
        ((0.05,) * 10, 0.99, 0.099),
        ((0.2,) * 4, 0.5, 0.175),  # half way from 0.1 to 0.25
        ((0.05, 0.05, 0.5, 0.5), 0.5, 0.1),
        ((0.05, 0.05, 0.5, 0.5), 0.75, 0.625),
        ((0.05,) + (7.0,) * 9, 0.99, 1.0),  # above the highest bound: that bound
    ],
)
def test_a_quantile_is_estimated_within_its_bucket(
    values: tuple[float, ...], part: float, expected: float | None
) -> None:
    assert quantile(part, buckets(), buckets(*values)) == expected


def test_a_quantile_is_of_what_came_between() -> None:
    before = buckets(*(0.05,) * 100)
    assert quantile(0.5, before, buckets(*(0.05,) * 100, 0.5, 0.5)) == 0.625
    assert quantile(0.99, before, before) is None


@given(st.lists(st.floats(0, 2), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_never_outside_the_bucket_that_holds_it(values: list[float], part: float) -> None:
    found = quantile(part, buckets(), buckets(*values))
    rank = max(1, -(-part * len(values) // 1))
    exact = sorted(values)[min(int(rank), len(values)) - 1]
    high = next((bound for bound in BOUNDS if exact <= bound), BOUNDS[-1])
    low = max((bound for bound in (0.0, *BOUNDS) if bound < high), default=0.0)
    assert found is not None
    assert low <= found <= high


def test_it_needs_nothing_of_a_hub_that_has_not_started() -> None:
    service = Service(Hub())
    StatusHistory(service.hub, service.reloads).take()
