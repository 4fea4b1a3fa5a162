"""The resume decision: the first messages of a stream, and the events that it gets before it is live. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from qgstream.events.history import Window
from qgstream.events.latest import state
from qgstream.events.publication import Position, Publication
from qgstream.events.subscription import Subscription
from qgstream.reasons import ReplayResult, ResetReason
from qgstream.wire import messages
from qgstream.wire.framing import Message


@dataclass(frozen=True, slots=True)
class StreamStart:
    """The result of the resume decision: the first messages of a stream, and its replay.

    The replay starts after the offset `replay_from`; None means no replay. The replay begins with the events of
    `latest`, which are the steps of `state`. Only the first step exists already. With `everything`, events that are
    already gone do not count as missed.
    """

    first: tuple[Message, ...]
    result: ReplayResult
    replay_from: int | None = None
    everything: bool = False
    latest: Iterator[Sequence[Publication]] | None = None


def decide_start(
    window: Window, subscription: Subscription, last_event_id: str | None, *, latest: bool,
    older: Position | ResetReason | None = None, ignored: Collection[str] = (), now: float, retry_ms: int,
) -> StreamStart:  # fmt: skip
    """Decide how a stream starts.

    A message has an id only if the client has all events before that position, or was told that they are lost. So a
    client can lose its connection after any byte, and resumes with the last id that it has read completely.

    Args:
        window: The newest part of the log.
        subscription: What the stream asked for.
        last_event_id: The last id that the client has received; None or "" for a new client.
        latest: Whether a client that cannot resume, or is new, first gets the newest event of each topic.
        older: The position to resume from if the window does not reach back far enough, because the broker has the
            older events. Or the reason why the id cannot be resumed, which has priority over the window.
        ignored: The parameters of the request that have no meaning.
        now: The time, in Unix seconds.
        retry_ms: The reconnection delay of the client, in milliseconds.

    Returns:
        The first messages and the replay.
    """
    resumed = window.resume(last_event_id, subscription.patterns) if last_event_id else None
    everything = last_event_id == "earliest"
    if isinstance(older, str):
        resumed = older
    elif older is not None and older.epoch == window.epoch and (everything or resumed == "too_old"):
        resumed, everything = older, False
    if isinstance(resumed, Position):
        connected = messages.connected(
            now, id=str(resumed), replay="complete", retry_ms=retry_ms, topics=subscription.patterns, ignored=ignored
        )
        return StreamStart((connected,), "complete", resumed.offset, everything=everything)
    newest = window.position
    steps = state(window, subscription) if latest else iter(())
    step = next(steps, None)
    # A client that disconnects before it has the state must not resume after the state. So there is no id yet.
    id = str(newest) if step is None else None
    replay_from = None if step is None else newest.offset
    first: tuple[Message, ...] = (
        messages.connected(
            # A client that disconnects before it has the `reset` must get a `reset` again when it reconnects.
            now, id=None if resumed else id, replay="reset" if resumed else "none", retry_ms=retry_ms,
            topics=subscription.patterns, ignored=ignored,
        ),
    )  # fmt: skip
    if resumed:
        first += (messages.reset(now, id=id, reason=resumed),)
    return StreamStart(first, resumed or "none", replay_from, latest=None if step is None else chain((step,), steps))
