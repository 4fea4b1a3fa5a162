"""GET /admin/history: the last hour, as described."""

from __future__ import annotations

from typing import Any

import pytest

from qgstream.http import openapi
from qgstream.service.status_history import MAX_SAMPLES
from tests.http.asking import Client, document, error_of

ADMIN = {"Authorization": "Bearer admin-key"}


async def history(client: Client, query: str = "") -> dict[str, Any]:
    answer = await client.ask("GET", f"/admin/history{query}", headers=ADMIN)
    assert answer.code == 200, answer.body
    return document(answer)


@pytest.mark.gen_test
async def test_the_newest_samples_oldest_first(client: Client) -> None:
    assert (await history(client))["samples"] == []
    for number in range(4):
        client.hub.metrics.published(number)
        client.service.status_history.take()
    found = await history(client)
    assert [sample["published"] for sample in found["samples"]] == [0, 1, 2, 3]
    assert [sample["published"] for sample in (await history(client, "?limit=2"))["samples"]] == [2, 3]
    times = [sample["timestamp"] for sample in found["samples"]]
    assert [found["started_at"], *times] == sorted([found["started_at"], *times])
    assert found["interval_seconds"] == 10


@pytest.mark.gen_test
async def test_a_sample_is_as_described(client: Client) -> None:
    client.service.status_history.take()
    described = openapi.document()["components"]["schemas"]["Sample"]
    (sample,) = (await history(client))["samples"]
    assert list(sample) == list(described["properties"]) == described["required"]


@pytest.mark.gen_test
@pytest.mark.parametrize("limit", ["0", str(MAX_SAMPLES + 1), "-1", "x", ""])
async def test_a_limit_that_cannot_be_is_named(client: Client, limit: str) -> None:
    answer = await client.ask("GET", f"/admin/history?limit={limit}", headers=ADMIN)
    assert (answer.code, error_of(answer)["field"]) == (400, "limit")
