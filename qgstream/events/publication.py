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
    """What was published, once. A broker gives it its `offset` when it appends it.

    `idempotency_key` is the key within its publisher's namespace (`namespaces.scoped`), and not the text that the
    publisher sent.

    `data` is UTF-8: JSON text when `is_json`, else a plain string.
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
        """About what it takes in memory while a window holds it."""
        size = _OVERHEAD_BYTES + len(self.data)
        for topic in self.topics:
            size += getsizeof(topic) + _TOPIC_BYTES
        if self.event is not None:
            size += getsizeof(self.event)
        if self.idempotency_key is not None:
            size += getsizeof(self.idempotency_key)
        return size
