"""Decides at the start of a process whether a log may have lost events while no process followed it.

An engine can return with an older log: restored from a backup, or after a power failure that lost unflushed data. Every
process that follows the log detects this. If no process was running, the engine soon assigns the same offsets again. A
client that reconnects with its id would then be told that it has missed nothing. So a starting process looks for
evidence:

- The witness. Every process that follows the log leaves a mark in the engine's memory. The mark disappears when the
  engine stops, and no copy of the engine's files contains the mark. While the witness exists, the engine has lost
  nothing.
- The signature. The last process to stop, if it stops cleanly, writes the end of the log beside the log. A log with its
  signature is as complete as at that time. But an older log may return with an older signature. So the log gets a new
  epoch: ids of the old epoch are valid up to the signature, and later ids are unknown.

Without evidence the log gets a new epoch in which no older id is valid: every client gets `reset`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from qgstream.backoff import LIMIT_SECONDS

# Other processes may know more about a log without evidence, if they have not reconnected to their engine yet. They
# retry at least every `LIMIT_SECONDS`.
WAIT_SECONDS = LIMIT_SECONDS + 1.0
LOOK_SECONDS = 0.2
# The number of epochs whose ids stay valid. Each epoch ended when all processes and the engine had stopped.
MAX_EARLIER = 5

_T = TypeVar("_T")


class Standing(NamedTuple):
    """The evidence for a log of this epoch.

    `ended` is the offset in the signature, None without a signature. `earlier` maps the earlier epochs of the log,
    newest first, to the last offset of each that is valid in this epoch.
    """

    epoch: str
    is_witnessed: bool = True
    ended: int | None = None
    earlier: Mapping[str, int] = {}  # an immutable default: nothing changes the dict


class Vouching(Protocol):
    """The part of an engine that `settle` uses. Each method raises the engine's `failures`."""

    async def standing(self) -> Standing:
        """Return the current evidence."""

    async def vouch(self) -> None:
        """Leave a witness, and remove the signature: the log grows again."""

    async def renew(self, epoch: str, ended: int | None = None) -> None:
        """Give the log a new epoch, unless it already has another epoch than this one.

        With `ended`, ids of the old epoch are valid up to that offset; see `earlier_of`.
        """


class Ask(Protocol):
    """Sends a query to the engine. Raises the error for callers if there is no result in time."""

    async def __call__(self, question: Coroutine[Any, Any, _T], /) -> _T: ...


async def settle(log: Vouching, ask: Ask) -> bool:
    """Make sure that the log's epoch covers only complete history, and vouch for the log.

    Returns False if there was no evidence that the log is complete.
    """
    standing = await ask(log.standing())
    deadline = time.monotonic() + WAIT_SECONDS
    while not standing.is_witnessed and standing.ended is None and time.monotonic() < deadline:
        await asyncio.sleep(LOOK_SECONDS)
        standing = await ask(log.standing())
    if not standing.is_witnessed:
        await ask(log.renew(standing.epoch, standing.ended))
    await ask(log.vouch())
    return standing.is_witnessed or standing.ended is not None


def earlier_of(epoch: str, ended: int | None, earlier: Mapping[str, int]) -> dict[str, int]:
    """Return the earlier epochs of the epoch that follows `epoch`. `earlier` holds the earlier epochs of `epoch`
    itself."""
    if ended is None:
        return {}
    return dict([(epoch, ended), *earlier.items()][:MAX_EARLIER])
