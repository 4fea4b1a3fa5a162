"""docs/examples/rabbitmq_source.py on a real RabbitMQ: a message is an event, once, and not acknowledged before."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import aio_pika
import pytest

from qgstream.hub import Hub
from qgstream.service.service import Service
from qgstream.sources.base import SourceSettings, open_sources
from qgstream.sources.runner import Intakes
from tests.brokers.rabbitmq_server import RabbitmqServer
from tests.conftest import ExpectLog
from tests.http.asking import until

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def settings(rabbitmq_machine: RabbitmqServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[SourceSettings]:
    """The source as a configuration names it, on a queue of its own."""
    monkeypatch.syspath_prepend(EXAMPLES)
    options = {"url": f"amqp://127.0.0.1:{rabbitmq_machine.port}", "queue": f"events-{secrets.token_hex(5)}"}
    yield SourceSettings.model_validate({"import": "rabbitmq_source:messages", "options": options})
    sys.modules.pop("rabbitmq_source", None)


@pytest.mark.gen_test
async def test_a_message_is_an_event_once(settings: SourceSettings, expect_log: ExpectLog) -> None:
    expect_log("source.refused")  # the one that no event can be made of
    hub = Hub()
    intakes = Intakes(hub, open_sources([settings]))
    queue = settings.options["queue"]
    async with Service(hub), await aio_pika.connect(settings.options["url"]) as connection:
        channel = await connection.channel()
        await channel.declare_queue(queue, durable=True)

        async def send(body: bytes, **properties: str) -> None:
            await channel.default_exchange.publish(aio_pika.Message(body, **properties), routing_key=queue)  # type: ignore[arg-type]

        await send(b'{"order": 7}', type="created", message_id="7", content_type="application/json")
        await send(b"text", type="note")
        intakes.start()
        await send(b'{"order": 7}', type="created", message_id="7", content_type="application/json")
        await send(b"no { json", content_type="application/json")
        await send(b"\xff", type="an event\nthat cannot be")
        await send(b"last")
        await until(lambda: len(hub.window) == 4)
        intakes.leave()
        await until(lambda: not intakes.running)
        events = hub.window.page(0, 1_000_000)
        assert {event.topics for event in events} == {(queue,)}
        assert [(event.event, event.data) for event in events] == [
            ("created", b'{"order":7}'), ("note", b"text"), (None, b"no { json"), (None, b"last"),
        ]  # fmt: skip
        # All but the last, whose source was told to leave before it could acknowledge it, or after.
        left = await channel.declare_queue(queue, passive=True)
        assert (left.declaration_result.message_count or 0) <= 1
        await left.delete(if_empty=False)
