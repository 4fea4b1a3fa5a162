"""How a stream begins: what it is told first, and what of the log it gets before it is live. Pure."""

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
    """What a stream is told first, and its replay.

    `replay_from` is the offset that the replay starts after; None without one. `latest` comes before that: the steps
    of `state`, of which only the first is made here.
    `everything` means that what is forgotten already is not missed.
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
    """How a stream begins that last heard `last_event_id` (None or "" for a new one).

    `older` is where it can go on all the same when the window does not reach back so far: the broker has the rest. Or
    `older` is the reason why the id cannot be resumed, whatever the window says by now.
    With `latest`, a client that has nothing to resume gets the newest event of each topic first: state instead of
    history. `ignored` are the parameters of the request that mean nothing. `now` is in Unix seconds.

    A message has a position only when the client has got, or was told of, everything before that position. A client
    that is cut off after any byte resumes with the last position that it has read whole.
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
    # A client that leaves before the state has arrived must not resume after it, so then there is no position yet.
    id = str(newest) if step is None else None
    replay_from = None if step is None else newest.offset
    first: tuple[Message, ...] = (
        messages.connected(
            # A client that leaves before `reset` has arrived must be told again when it comes back.
            now, id=None if resumed else id, replay="reset" if resumed else "none", retry_ms=retry_ms,
            topics=subscription.patterns, ignored=ignored,
        ),
    )  # fmt: skip
    if resumed:
        first += (messages.reset(now, id=id, reason=resumed),)
    return StreamStart(first, resumed or "none", replay_from, latest=None if step is None else chain((step,), steps))
