"""The server's own messages. They have no event type, so a browser's `onmessage` receives them. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection
from itertools import islice

from qgstream.logs import utc_iso
from qgstream.reasons import CloseReason, RejectReason, ResetReason
from qgstream.wire.framing import Message

# The parts of a request that `connected` repeats: as many topics as a stream may have by default, and enough unknown
# parameters to find a mistake.
MAX_TOPICS = 64
MAX_IGNORED = 8
MAX_IGNORED_CHARACTERS = 64


def _message(
    event: str, now: float, *, id: str | None, retry_ms: int | None, more: str = "", **fields: str
) -> Message:  # fmt: skip
    # Formatted by hand for speed: every stream gets this message, and all words in it are constants that need no
    # escaping.
    words = "".join([f', "{name}": "{word}"' for name, word in fields.items()])
    data = f'{{"event": "{event}", "timestamp": "{utc_iso(now)}"{words}{more}}}'
    return Message(data.encode(), id, retry_ms)


def connected(
    now: float, *, id: str | None, replay: str, retry_ms: int, topics: Collection[str] = (),
    ignored: Collection[str] = (),
) -> Message:  # fmt: skip
    """Build the first message of every stream.

    `id` is the position from which a client resumes that disconnects now. `id` is None when a `reset` message follows.
    `topics` holds the patterns of the stream; an empty collection means every public topic. `ignored` holds the names
    of unknown query parameters. The message repeats only the first of many names.
    """
    more = f', "topics": {_listed(sorted(topics)[:MAX_TOPICS])}' if topics else ', "topics": ["*"]'
    if ignored:
        more += f', "ignored": {_listed([name[:MAX_IGNORED_CHARACTERS] for name in islice(ignored, MAX_IGNORED)])}'
    return _message("connected", now, id=id, retry_ms=retry_ms, replay=replay, more=more)


def _listed(names: list[str]) -> str:
    return json.dumps(names, ensure_ascii=False)


def reset(now: float, *, id: str | None, reason: ResetReason) -> Message:
    """Build the message that tells a client about missed events that are no longer in history; live events follow."""
    return _message("reset", now, id=id, retry_ms=None, reason=reason)


def heartbeat(now: float, *, id: str | None) -> Message:
    """Build a heartbeat. `id` (only for a client that has caught up) keeps the position of a quiet stream within
    history."""
    return _message("heartbeat", now, id=id, retry_ms=None)


def closing(now: float, *, reason: CloseReason, retry_ms: int) -> Message:
    """Build the closing message: the server ends this stream, and `retry_ms` says when to reconnect."""
    return _message("closing", now, id=None, retry_ms=retry_ms, reason=reason)


def rejected(now: float, *, reason: RejectReason, retry_ms: int) -> Message:
    """Build the message for an EventSource over a connection limit. Any status except 200 would stop the EventSource
    for good."""
    return _message("rejected", now, id=None, retry_ms=retry_ms, reason=reason)
