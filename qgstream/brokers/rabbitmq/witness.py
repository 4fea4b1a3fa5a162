"""The witness in RabbitMQ (`brokers.vouching`): a transient message in a durable queue.

The queue survives a restart of RabbitMQ, but the message does not.
"""

from __future__ import annotations

from aio_pika.exceptions import AMQPChannelError
from pamqp.commands import Basic
from pamqp.common import FieldValue

from qgstream.brokers.rabbitmq.link import Link, answered

# A classic queue, whatever the default of the virtual host is: other types write every message to disk.
_ARGUMENTS: dict[str, FieldValue] = {"x-queue-type": "classic", "x-max-length": 1}
_ON_NO_DISK = 1


def queue_of(stream: str) -> str:
    """Return the name of the queue that belongs to a stream."""
    return f"{stream}.witness"


async def is_there(link: Link, stream: str) -> bool:
    """Whether the message exists."""
    channel = await link.channel()
    try:
        found = await answered(channel.queue_declare(queue_of(stream), passive=True))
    except AMQPChannelError:  # no such queue
        return False
    await answered(channel.close())
    return bool(found.message_count)


async def leave(link: Link, stream: str) -> Exception | None:
    """Create the message if needed; return the error if that is not possible."""
    channel = await link.channel(confirms=True)
    try:
        queue = await answered(channel.queue_declare(queue_of(stream), durable=True, arguments=_ARGUMENTS))
        if not queue.message_count:
            properties = Basic.Properties(delivery_mode=_ON_NO_DISK)
            await answered(channel.basic_publish(b"", routing_key=queue_of(stream), properties=properties))
    except AMQPChannelError as error:
        return error
    await answered(channel.close())
    return None
