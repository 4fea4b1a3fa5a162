"""The messages of a RabbitMQ queue as events: a source for `[[sources]]`.

    [[sources]]
    import = "rabbitmq_source:messages"
    options = { url = "amqp://localhost", queue = "events" }

The source needs aio-pika: pip install 'qgstream[rabbitmq]'
"""
# ruff: noqa: INP001  # a module that the configuration names

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import aio_pika

from qgstream import Draft


async def messages(*, url: str, queue: str, prefetch: int = 100) -> AsyncIterator[Draft]:
    """Yield one event for each message: its routing key as the topic, its type as the type, its body as the data.

    The source acknowledges a message when its event is in the log, so no message is lost. A message with a
    `message_id` is never published twice, even if this process dies between the two steps.
    """
    # Not `connect_robust`: a source that cannot continue fails, and the server starts it again.
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=prefetch)
        source = await channel.declare_queue(queue, durable=True)
        async with source.iterator() as incoming:
            async for message in incoming:
                topic = message.routing_key or queue
                yield Draft(topic, data_of(message), event=message.type, idempotency_key=message.message_id)
                # Also if the server refuses the event: the log has the reason, and a second try would fail, too.
                await message.ack()


def data_of(message: aio_pika.abc.AbstractIncomingMessage) -> object:
    """Return JSON if the content type and the body are JSON, else text."""
    text = message.body.decode(errors="replace")
    if message.content_type == "application/json":
        try:
            return json.loads(text)
        except ValueError:
            pass
    return text
