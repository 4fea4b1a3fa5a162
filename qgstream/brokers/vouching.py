"""Whether a log may have lost events while no process followed it. Decided once, when a process starts.

An engine can come back with an older log: restored from a copy, or after a power cut that took what was not on its disk
yet. Every process that follows the log notices that. When no process was left to notice, the engine soon gives the same
offsets again, and a client that comes back with its id would be told that it has missed nothing. So a process that
starts asks for evidence:

- The witness. Every process that follows the log leaves a trace in the engine's memory. The trace ends with the engine,
  and no copy of the engine's files holds it. While the witness is there, the engine has lost nothing.
- The signature. The last process to stop, if it stops as it should, writes beside the log where the log ends. A log
  that has its signature is as complete as it was then. But an older log may come back with an older signature. So the
  log gets a new epoch: ids of the old epoch are good up to the signature, and ids that were given later are unknown.

Without evidence the log gets a new epoch in which no older id is good: every client is told `reset`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from qgstream.backoff import LIMIT_SECONDS

# A log without evidence may be followed by processes that have not come back to their engine yet, and they know more.
# They try again every `LIMIT_SECONDS` at least.
WAIT_SECONDS = LIMIT_SECONDS + 1.0
LOOK_SECONDS = 0.2
# Epochs whose ids are still good: each ended when all processes and the engine had stopped.
MAX_EARLIER = 5

_T = TypeVar("_T")


class Standing(NamedTuple):
    """The evidence for a log of this epoch. `ended` is the offset in the signature, None without one. `earlier` are the
    epochs that the log had before, newest first, each with the offset up to which its ids are good in this one."""

    epoch: str
    is_witnessed: bool = True
    ended: int | None = None
    earlier: Mapping[str, int] = {}  # a default, which nobody changes


class Vouching(Protocol):
    """What an engine does for this. Each method raises the engine's `failures`."""

    async def standing(self) -> Standing:
        """The evidence that there is now."""

    async def vouch(self) -> None:
        """Leave a witness, and take back a signature: the log grows again."""

    async def renew(self, epoch: str, ended: int | None = None) -> None:
        """Give the log another epoch, unless it has another one than this already. With `ended`, ids of the old epoch
        are good up to there; see `earlier_of`."""


class Ask(Protocol):
    """Puts a question to the engine, and raises what callers are told when there is no answer in time."""

    async def __call__(self, question: Coroutine[Any, Any, _T], /) -> _T: ...


async def settle(log: Vouching, ask: Ask) -> bool:
    """See that the log's epoch holds only what is known to be complete, and vouch for it. Return False when there was
    no evidence for what the log held."""
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
    """The earlier epochs of the one that comes after `epoch`, which itself had these."""
    if ended is None:
        return {}
    return dict([(epoch, ended), *earlier.items()][:MAX_EARLIER])
