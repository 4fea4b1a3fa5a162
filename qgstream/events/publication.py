"""The entries of the log, publications, and their positions. Pure.

The log has one order for all topics, so one `Last-Event-ID` is enough for any set of topics.
"""

from __future__ import annotations

import re
from sys import getsizeof
from typing import NamedTuple

# An id only has characters that the Fetch standard allows in the Last-Event-ID of a cross-origin request without a
# preflight, and at most 64 bytes (the standard allows 128).
_POSITION = re.compile(r"([A-Za-z0-9._~]{1,40})-([0-9]{1,19})")

# The memory of a publication besides its texts and bytes: its objects and its entries in the lists of the window. And
# the memory of each topic in the window's topic index and prefix index (tracemalloc, CPython 3.11).
_OVERHEAD_BYTES = 250
_TOPIC_BYTES = 80


class Position(NamedTuple):
    """A place in the log: after the publication `offset` of the log `epoch`.

    For clients, a position is an opaque id.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """Return the position of the id `text`, or None if this server never made such an id."""
        match = _POSITION.fullmatch(text)
        return cls(match[1], int(match[2])) if match else None


class Publication:
    """A checked and encoded event. `Hub.publish` makes a publication; `Hub.publish_all` takes several.

    Args:
        topics: The topics. Each has 1 to 256 characters, no control characters and no `*`.
        data: The data as UTF-8.
        is_json: Whether the data is JSON text in one line. If not, the data is a plain string.
        event: The type of the event.
        retry_ms: The new reconnection delay of browsers that get the event, in milliseconds.
        private: Whether only streams whose credentials grant a topic get the event.
        idempotency_key: The scoped key, which is not the text that the publisher sent.
        offset: The offset in the log. The broker sets it.
        published_at: When the event was published, in Unix seconds. The broker sets it.

    Example::

        import qgstream

        hub = qgstream.Hub()
        await hub.start()
        receipt = await hub.publish_all([
            qgstream.Publication(("orders",), b'{"order": 7}', event="created"),
            qgstream.Publication(("orders",), b"a plain string", is_json=False),
        ])
        print(receipt.ids)
        await hub.stop()
    """

    __slots__ = (
        "topics", "data", "is_json", "event", "retry_ms", "private", "idempotency_key", "offset", "published_at",
    )  # fmt: skip

    def __init__(
        self,
        topics: tuple[str, ...],
        data: bytes,
        *,
        is_json: bool = True,
        event: str | None = None,
        retry_ms: int | None = None,
        private: bool = False,
        idempotency_key: str | None = None,
        offset: int = 0,
        published_at: float = 0.0,
    ) -> None:
        self.topics = topics
        self.data = data
        self.is_json = is_json
        self.event = event
        self.retry_ms = retry_ms
        self.private = private
        self.idempotency_key = idempotency_key
        self.offset = offset
        self.published_at = published_at

    @property
    def size_bytes(self) -> int:
        """The approximate memory of the event in the history, in bytes."""
        size = _OVERHEAD_BYTES + len(self.data)
        for topic in self.topics:
            size += getsizeof(topic) + _TOPIC_BYTES
        if self.event is not None:
            size += getsizeof(self.event)
        if self.idempotency_key is not None:
            size += getsizeof(self.idempotency_key)
        return size
