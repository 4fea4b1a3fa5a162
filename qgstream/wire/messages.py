"""The server's own messages: without a type, so that a browser's `onmessage` gets them. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection
from itertools import islice

from qgstream.logs import utc_iso
from qgstream.reasons import CloseReason, RejectReason, ResetReason
from qgstream.wire.framing import Message

# What `connected` repeats of a request: as many topics as a stream has at most by default, and enough unknown
# parameters to find a mistake.
MAX_TOPICS = 64
MAX_IGNORED = 8
MAX_IGNORED_CHARACTERS = 64


def _message(
    event: str, now: float, *, id: str | None, retry_ms: int | None, more: str = "", **fields: str
) -> Message:  # fmt: skip
    # Written out: one is made for every stream, and every word in it is one of ours that needs no escaping.
    words = "".join([f', "{name}": "{word}"' for name, word in fields.items()])
    data = f'{{"event": "{event}", "timestamp": "{utc_iso(now)}"{words}{more}}}'
    return Message(data.encode(), id, retry_ms)


def connected(
    now: float, *, id: str | None, replay: str, retry_ms: int, topics: Collection[str] = (),
    ignored: Collection[str] = (),
) -> Message:  # fmt: skip
    """The first message of every stream. `id` is where a client that leaves now resumes; None when the client is to be
    told of a gap first.

    `topics` are the patterns that the stream has, none for every topic; `ignored` the names of parameters that mean
    nothing. Of many only the first are repeated.
    """
    more = f', "topics": {_listed(sorted(topics)[:MAX_TOPICS])}' if topics else ', "topics": ["*"]'
    if ignored:
        more += f', "ignored": {_listed([name[:MAX_IGNORED_CHARACTERS] for name in islice(ignored, MAX_IGNORED)])}'
    return _message("connected", now, id=id, retry_ms=retry_ms, replay=replay, more=more)


def _listed(names: list[str]) -> str:
    return json.dumps(names, ensure_ascii=False)


def reset(now: float, *, id: str | None, reason: ResetReason) -> Message:
    """The client has missed events that nobody can give it any more; live events follow."""
    return _message("reset", now, id=id, retry_ms=None, reason=reason)


def heartbeat(now: float, *, id: str | None) -> Message:
    """The stream lives. With `id` (only for a client that has caught up) a quiet topic's listener stays in history."""
    return _message("heartbeat", now, id=id, retry_ms=None)


def closing(now: float, *, reason: CloseReason, retry_ms: int) -> Message:
    """The server ends this stream, and when to come back."""
    return _message("closing", now, id=None, retry_ms=retry_ms, reason=reason)


def rejected(now: float, *, reason: RejectReason, retry_ms: int) -> Message:
    """The answer to an EventSource that is one too many: any status but 200 would stop it for good."""
    return _message("rejected", now, id=None, retry_ms=retry_ms, reason=reason)
