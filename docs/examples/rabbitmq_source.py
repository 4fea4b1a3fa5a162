"""The messages of a RabbitMQ queue as events: a source for `[[sources]]`.

    [[sources]]
    import = "rabbitmq_source:messages"
    options = { url = "amqp://localhost", queue = "events" }

It needs aio-pika: pip install 'qgstream[rabbitmq]'
"""
# ruff: noqa: INP001  # a module that the configuration names

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import aio_pika

from qgstream import Draft


async def messages(*, url: str, queue: str, prefetch: int = 100) -> AsyncIterator[Draft]:
    """One event for each message: the topic is its routing key, the type its type, the data its body.

    A message is acknowledged when its event is in the log, so it is never lost; and with a `message_id` it is never
    published twice, also if this process dies between the two.
    """
    # Not `connect_robust`: who cannot go on says so, and is begun again.
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=prefetch)
        source = await channel.declare_queue(queue, durable=True)
        async with source.iterator() as incoming:
            async for message in incoming:
                topic = message.routing_key or queue
                yield Draft(topic, data_of(message), event=message.type, idempotency_key=message.message_id)
                # Also for one that was refused as an event: the log says so, and it would be refused again.
                await message.ack()


def data_of(message: aio_pika.abc.AbstractIncomingMessage) -> object:
    """JSON if it says so and is, else text."""
    text = message.body.decode(errors="replace")
    if message.content_type == "application/json":
        try:
            return json.loads(text)
        except ValueError:
            pass
    return text
