"""What the log is made of: positions and publications. Pure.

One total order for the whole hub, so one `Last-Event-ID` is enough for any set of topics.
"""

from __future__ import annotations

import re
from sys import getsizeof
from typing import NamedTuple

# Only characters that the Fetch standard lets a cross-origin request carry in Last-Event-ID without a preflight are
# in an id, and 64 bytes at most (it allows 128).
_POSITION = re.compile(r"([A-Za-z0-9._~]{1,40})-([0-9]{1,19})")

# What a publication costs beside its texts and bytes, objects and the window's lists, and what each topic costs in the
# window's tables of newest events and of names (tracemalloc, CPython 3.11).
_OVERHEAD_BYTES = 250
_TOPIC_BYTES = 80


class Position(NamedTuple):
    """A place in the log: after the publication `offset` of the log `epoch`. Clients get it as an opaque id."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """The position that `text` names, or None where it is no id of ours."""
        match = _POSITION.fullmatch(text)
        return cls(match[1], int(match[2])) if match else None


class Publication:
    """An event that was published, checked and encoded. `Hub.publish` makes it; `Hub.publish_all` takes several.

    Args:
        topics: The topics, which must be valid: 1 to 256 characters each, no control characters, no `*`.
        data: The data as UTF-8.
        is_json: Whether the data is JSON text in one line; else it is a plain string.
        event: The type of the event.
        retry_ms: After how many milliseconds a browser that gets the event reconnects, from then on.
        private: Whether only streams whose credentials grant a topic get the event.
        idempotency_key: The key within the namespace of its publisher, and not the text that the publisher sent.
        offset: The place in the log; a broker sets it.
        published_at: When the event was published, in Unix seconds; a broker sets it.

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
        """About how many bytes of memory the event takes while the history holds it."""
        size = _OVERHEAD_BYTES + len(self.data)
        for topic in self.topics:
            size += getsizeof(topic) + _TOPIC_BYTES
        if self.event is not None:
            size += getsizeof(self.event)
        if self.idempotency_key is not None:
            size += getsizeof(self.idempotency_key)
        return size
