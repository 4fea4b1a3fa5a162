"""The messages of a stream with `envelope=1`: published events, and the server's own messages. Pure.

Without envelopes, a published event could imitate one of the server's own messages; with envelopes it cannot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import msgspec

from qgstream.client.responses import ClientError
from qgstream.wire import sse

_NOTHING = msgspec.Raw(b"")


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event as somebody published it.

    Attributes:
        id: The event's position in the log.
        topics: The topics that it was published to.
        event: Its type; `message` if it has none.
        raw: Its data as JSON text, in which no number loses a digit.

    Example::

        import qgstream

        event = qgstream.ReceivedEvent(id="5f0c2a9d1e-1", topics=("orders",), event="created", raw='{"order": 7}')
        print(event.topic, event.data["order"])
    """

    id: str
    topics: tuple[str, ...]
    event: str
    raw: str

    @property
    def topic(self) -> str:
        """The first of its topics; most events have only one."""
        return self.topics[0]

    @property
    def data(self) -> Any:
        """Its data: a string as it was published, or the decoded JSON."""
        return json.loads(self.raw)


@dataclass(frozen=True, slots=True)
class OwnMessage:
    """One of the server's own messages: `word` is its kind; `connected` has `replay`, and most other kinds have
    `reason`."""

    word: str
    replay: str
    reason: str


class _Payload(msgspec.Struct):
    """Either kind of message: an envelope has a topic and data, one of the server's own messages has a timestamp."""

    event: str | None = None
    topic: str | list[str] = ""
    data: msgspec.Raw = _NOTHING
    timestamp: str | None = None
    replay: str = ""
    reason: str = ""


_decode = msgspec.json.Decoder(_Payload).decode


def opened(event: sse.Event) -> ReceivedEvent | OwnMessage:
    """Decode an event of the stream. Raises `ClientError` for data that no qgstream server sends."""
    try:
        payload = _decode(event.data)
    except (msgspec.MsgspecError, RecursionError):
        payload = _Payload()
    if payload.topic and payload.data is not _NOTHING:
        topics = (payload.topic,) if isinstance(payload.topic, str) else tuple(payload.topic)
        return ReceivedEvent(event.id, topics, event.event, bytes(payload.data).decode())
    if payload.timestamp is not None and payload.event is not None and event.event == "message":
        return OwnMessage(payload.event, payload.replay, payload.reason)
    raise ClientError(f"got an event without an envelope ({event.data[:80]!r}), expected a stream of a qgstream server")
