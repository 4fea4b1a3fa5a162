"""What servers tell each other in the stream: which log it is, and whose message is whose. Pure.

The epoch cannot be a property of the queue (none is readable over AMQP), and the beginning of the stream is trimmed. So
messages say it, again and again, and all servers draw the same conclusion from the same messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

# The header that holds a `Slip`, as JSON: RabbitMQ drops tables on their way into a stream.
SLIP = "qgstream"

SlipKind = Literal["event", "end", "set", "is", "bye"]
_Epoch = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]{1,40}$")]


class Slip(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a server says in a message of its own. Each has a name (`uid`), by which who wrote it knows it again.

    `event`: published at the time `at`. The others are marks, and no events. `end`: the log went so far when this was
    written. `set`: from here on the epoch is `epoch`, if until here it was `instead_of` (None: none). `is`: the epoch
    is `epoch`. `bye`: likewise, and its writer has stopped: the log is whole up to here. `seen` is the position up to
    which the writer had seen the log. `earlier` are the epochs before, each with the position up to which its ids are
    good.
    """

    kind: SlipKind
    uid: str
    seen: int = 0
    at: float | None = None
    epoch: _Epoch | None = None
    instead_of: str | None = None
    earlier: Mapping[_Epoch, int] = msgspec.field(default_factory=dict)

    def headers(self) -> dict[str, Any]:
        """The header that holds it."""
        return {SLIP: _encode(self).decode()}

    @classmethod
    def find(cls, headers: Mapping[str, Any]) -> Slip | None:
        """The slip in a message's headers, if there is one."""
        try:
            return _decode(headers[SLIP])
        except (KeyError, TypeError, ValueError, RecursionError, msgspec.MsgspecError):
            return None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Slip).decode


def says_epoch(slip: Slip | None, position: int) -> bool:
    """Whether it is a mark that says which log this is. One that has seen more than there is before it is of an earlier
    log, and was on its way when that was deleted."""
    return slip is not None and slip.kind in ("is", "bye") and slip.epoch is not None and slip.seen < position


def mark_of(known: Slip | None, sets: Sequence[tuple[int, Slip]]) -> Slip | None:
    """The mark that counts: the newest one that says the epoch, or one of those that set it, which are given with their
    positions, newest first. Of these count the ones that came behind what the writer of the first had seen. Where
    nothing is known of before, the oldest counts."""
    mark, seen = known, -1 if known is None else known.seen
    for position, slip in reversed(sets):
        if position > seen and (mark is None or slip.instead_of == mark.epoch):
            mark = slip
    return mark
