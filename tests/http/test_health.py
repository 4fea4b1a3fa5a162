"""/health says that the process lives, /ready that new streams are welcome."""

from __future__ import annotations

from typing import Any

import pytest
from tornado.web import Application

from qgstream.http.app import admin_app
from qgstream.hub import Hub
from qgstream.service.service import Service
from qgstream.service.status import readiness, snapshot
from tests.http.asking import Client, document

ONE = {"limits": {"max_connections": 1}}


@pytest.mark.gen_test
@pytest.mark.parametrize("query", ["", "?x=%ff", "?topic=a"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Cookie": '=;;a="\x80'}])
async def test_health_asks_for_nothing(client: Client, query: str, headers: dict[str, str]) -> None:
    answer = await client.ask("GET", f"/health{query}", headers=headers)
    assert (answer.code, document(answer)) == (200, {"status": "ok"})
    assert answer.headers["Cache-Control"] == "no-store"


async def ready(client: Client) -> tuple[int, Any]:
    answer = await client.ask("GET", "/ready")
    assert answer.headers["Cache-Control"] == "no-store"
    head = await client.ask("HEAD", "/ready")
    assert head.code == answer.code
    return answer.code, document(answer)["status"]


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [ONE])
async def test_ready_until_it_is_full_and_again_when_a_slot_is_free(client: Client) -> None:
    assert await ready(client) == (200, "ready")
    stream = await client.stream()
    assert await ready(client) == (503, "full")
    connection = next(iter(client.hub.registry))
    connection.close("kicked")
    assert await ready(client) == (200, "ready")
    stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [ONE])
async def test_draining_comes_before_every_other_reason_and_full_before_the_broker(client: Client) -> None:
    stream = await client.stream()
    await client.hub.broker.close()
    assert await ready(client) == (503, "full")
    client.hub.draining = True
    assert await ready(client) == (503, "draining")
    answer = await client.ask("GET", "/health")
    assert answer.code == 200  # restarting it now would cut the streams
    stream.close()


@pytest.mark.gen_test
async def test_without_its_broker_it_is_degraded_and_serves_new_streams(client: Client) -> None:
    await client.hub.broker.close()
    assert await ready(client) == (200, "degraded")
    assert document(await client.ask("GET", "/ready"))["reason"] == "broker_down"
    assert snapshot(client.hub, started_at=0)["status"] == "degraded"
    stream = await client.stream()
    stream.close()


@pytest.mark.gen_test
async def test_an_operator_may_want_new_streams_elsewhere_meanwhile(client: Client) -> None:
    client.hub.needs_broker = True
    assert await ready(client) == (200, "ready")
    await client.hub.broker.close()
    assert await ready(client) == (503, "broker_down")


def test_without_its_log_nobody_can_be_served() -> None:
    assert readiness(Hub()) == "broker_down"


class TestOnTheAdminPort:
    @pytest.fixture
    def app(self, service: Service) -> Application:
        return admin_app(service)

    @pytest.mark.gen_test
    async def test_the_operator_is_answered_and_nobody_streams(self, client: Client) -> None:
        for path in ("/health", "/ready", "/metrics"):
            assert (await client.ask("GET", path)).code == 200
        for path in ("/events", "/"):
            assert (await client.ask("GET", path)).code == 404
