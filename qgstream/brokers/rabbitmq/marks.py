"""Messages between servers in the stream: the epoch of the log, and the sender of each event. Pure.

The epoch cannot be a property of the queue, because AMQP cannot read such properties. The start of the stream is
trimmed. So marks in the stream repeat the epoch, and all servers derive the same epoch from the same messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

# The header that holds a `Slip` as JSON: RabbitMQ drops tables from the headers of messages in a stream.
SLIP = "qgstream"

SlipKind = Literal["event", "end", "set", "is", "bye"]
_Epoch = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]{1,40}$")]


class Slip(msgspec.Struct, frozen=True, omit_defaults=True):
    """The content of a server's message. The name `uid` is unique; its writer recognizes the message by this name.

    `event` is an event published at the time `at`. The other kinds are marks, not events. `end`: the log had this
    length when the mark was written. `set`: from here on the epoch is `epoch`, if the epoch before was `instead_of`
    (None: no epoch). `is`: the epoch is `epoch`. `bye`: the epoch is `epoch`, and the writer has stopped: the log is
    complete up to here. `seen` is the position up to which the writer had read the log. `earlier` maps earlier epochs
    to the last position of each that is still valid.
    """

    kind: SlipKind
    uid: str
    seen: int = 0
    at: float | None = None
    epoch: _Epoch | None = None
    instead_of: str | None = None
    earlier: Mapping[_Epoch, int] = msgspec.field(default_factory=dict)

    def headers(self) -> dict[str, Any]:
        """Return the header with this slip."""
        return {SLIP: _encode(self).decode()}

    @classmethod
    def find(cls, headers: Mapping[str, Any]) -> Slip | None:
        """Return the slip in a message's headers, or None."""
        try:
            return _decode(headers[SLIP])
        except (KeyError, TypeError, ValueError, RecursionError, msgspec.MsgspecError):
            return None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Slip).decode


def says_epoch(slip: Slip | None, position: int) -> bool:
    """Whether the slip is a mark that states the epoch.

    If the mark has `seen` more than the messages before it, the mark belongs to an earlier log: it was in transit when
    that log was deleted.
    """
    return slip is not None and slip.kind in ("is", "bye") and slip.epoch is not None and slip.seen < position


def mark_of(known: Slip | None, sets: Sequence[tuple[int, Slip]]) -> Slip | None:
    """Return the mark that counts: the newest mark that states the epoch, or one of the later marks that set an epoch.

    `sets` holds the setting marks with their positions, newest first. They count only if they come after everything
    that the writer of `known` had seen. If no earlier mark is known, the oldest counts.
    """
    mark, seen = known, -1 if known is None else known.seen
    for position, slip in reversed(sets):
        if position > seen and (mark is None or slip.instead_of == mark.epoch):
            mark = slip
    return mark
