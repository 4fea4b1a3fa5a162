"""One subscriber's record, judged while it grows: exactly once and in order, or told by a `reset`. Pure.

The judge knows what an EventSource knows: the id in force after each block of the stream. Its subscriber is owed every
logged event that it wants behind that id. Order, repeats and lies are seen at once; holes are seen by `settle`, because
an event may reach its subscribers before its publisher is answered.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from qgstream.wire.sse import Event
from tests.fleet.ledger import TOKEN, Ledger, Place, Spec, Violation

# What a subscriber sends as its last event id: none, all history, the one it has, or one that nobody gave it.
Sent = Literal["none", "earliest", "own", "false"]

_NOTES = 400
_NOTES_AROUND = 14


@dataclass(frozen=True, slots=True)
class Rules:
    """What may happen besides. `resets` are the reasons that an honest id may be answered with, and `too_old` too for
    who asks for a topic of `short_lived`; `history_events` is how many events `earliest` must find."""

    short_lived: frozenset[str] = frozenset()
    resets: frozenset[str] = frozenset({"epoch_changed"})
    closings: frozenset[str] = frozenset({"drain", "slow_consumer", "max_age"})
    history_events: int = 10_000


@dataclass(slots=True)
class Stretch:
    """Where a subscriber is owed everything: behind `after`, up to `until`. A reset ends one and begins another."""

    epoch: str
    after: int
    until: int
    earliest: bool = False
    offsets: array[int] = field(default_factory=lambda: array("q"))


class History:
    """What happened to a subscriber, in few words: receipts in a row are one note."""

    def __init__(self) -> None:
        self._notes: list[tuple[str, Place | None]] = []
        self._run: tuple[int, Place, Place] | None = None

    def received(self, place: Place) -> None:
        """An event was received."""
        count, first, _ = self._run or (0, place, place)
        self._run = (count + 1, first, place)

    def note(self, text: str, place: Place | None = None) -> None:
        """Something else happened."""
        if self._run is not None:
            count, first, last = self._run
            self._notes.append((f"received {count}: {first}" + (f" to {last}" if count > 1 else ""), last))
            self._run = None
        self._notes.append((text, place))
        del self._notes[:-_NOTES]

    def around(self, place: Place | None = None) -> str:
        """The notes around the moment when a place was passed, or the last ones."""
        self.note("(here the judge stopped)")
        at = len(self._notes)
        if place is not None:
            passed = (n for n, (_, p) in enumerate(self._notes) if p and p.epoch == place.epoch and p >= place)
            at = next(passed, at)
        first, last = max(0, at - _NOTES_AROUND), at + _NOTES_AROUND
        lines = [f"    {text}" for text, _ in self._notes[first:last]]
        return "\n".join(["  its history:", *(["    ..."] if first else []), *lines])


class Witness:
    """Judges what one subscriber sees. Every method raises `Violation` when that must not be."""

    def __init__(self, name: str, spec: Spec, ledger: Ledger, rules: Rules, counts: Counter[str]) -> None:
        self.name = name
        self.spec = spec
        self.place: Place | None = None  # of the id in force
        self.history = History()
        self._ledger = ledger
        self._rules = rules
        self._asks_for_short_lived = any(spec.wants_topic(topic) for topic in rules.short_lived)
        self._resets = rules.resets | ({"too_old"} if self._asks_for_short_lived else set())
        self._counts = counts
        self._stretch: Stretch | None = None
        self._ended: list[Stretch] = []
        self._sent: Sent = "none"
        self._sent_id = ""
        self._connected = False
        self._last_word: str | None = None
        self._owed_reset = False

    # What it does.

    def connects(self, sent: Sent, id: str, where: str) -> None:
        """It opens a stream with this last event id."""
        self._sent, self._sent_id = sent, id
        self._connected = self._owed_reset = False
        self._last_word = None
        self.history.note(f"connects to {where}" + (f" with {id[:60]!r} ({sent})" if id else " without an id"))

    def leaves(self, how: str) -> None:
        """Its stream ended."""
        self.history.note(how, self.place)

    # What it sees.

    def dispatched(self, event: Event) -> None:
        """Its parser dispatched an event."""
        if self._last_word is not None:
            raise self._violation(f"the end after {self._last_word}", f"{event.data[:80]!r}")
        token = TOKEN.search(event.data)
        if token is not None:
            self._publication(event, token[0])
            return
        message = self._message(event)
        kind = message["event"]
        if not self._connected and kind not in ("connected", "rejected"):
            raise self._violation("connected or rejected as the first message", str(message))
        if self._owed_reset and kind != "reset":
            raise self._violation("reset after connected said so", str(message))
        match kind:
            case "connected":
                self._on_connected(str(message.get("replay")), event.id)
            case "reset":
                self._on_reset(str(message.get("reason")), event.id)
            case "heartbeat":
                self._counts["heartbeats"] += 1
                self.moved(event.id)
            case "closing" | "rejected":
                reason = str(message.get("reason"))
                self._last_word = f"{kind} {reason}"
                self._counts[f"{kind}:{reason}"] += 1
                self.history.note(f"{kind}: {reason}", self.place)
                if kind == "closing" and reason not in self._rules.closings:
                    raise self._violation(f"to be closed for one of {sorted(self._rules.closings)}", reason)
            case _:
                raise self._violation("a message of the documented kinds", str(message))

    def moved(self, id: str) -> None:
        """The id in force changed, or was repeated, without an event: all that it wants up to there has come."""
        if self.place is None or self._stretch is None:
            raise self._violation("connected before any id", repr(id))
        place = self._parse(id)
        if place.epoch != self.place.epoch:
            raise self._violation(f"an id of the epoch {self.place.epoch}", id)
        if place.offset < self.place.offset:
            raise self._violation(f"no id below {self.place}: a client that leaves now gets events twice", id)
        if place != self.place:
            self.place = place
            self._stretch.until = place.offset
            self.history.note(f"moved to {place}", place)

    def _message(self, event: Event) -> dict[str, object]:
        try:
            message = json.loads(event.data)
        except ValueError:
            message = None
        if event.event != "message" or not isinstance(message, dict) or not isinstance(message.get("event"), str):
            raise self._violation("what was published, or a message of the server's", str(event)[:200])
        return message

    def _on_connected(self, replay: str, id: str) -> None:
        if self._connected:
            raise self._violation("connected once", "connected again")
        self._connected = True
        self._counts["connections"] += 1
        expected = {"none": ("none",), "earliest": ("complete",), "own": ("complete", "reset"), "false": ("reset",)}
        if replay not in expected[self._sent]:
            raise self._violation(f"connected.replay {' or '.join(expected[self._sent])}", replay)
        self._owed_reset = replay == "reset"
        if self._owed_reset:
            # Cut now, it must come back with the id that it had, and be told again.
            if id != (self._sent_id if self._sent == "own" else ""):
                raise self._violation("no position before the reset is told", repr(id))
            self.history.note("connected: reset", self.place)
            return
        place = self._parse(id)
        self.history.note(f"connected: {replay} {place}", place)
        if replay != "complete":
            self._begin(place)
        elif self._sent == "earliest":
            self._counts["earliest"] += 1
            self._begin(place, earliest=True)
        else:
            self._counts["complete"] += 1
            assert self.place is not None
            if place.epoch != self.place.epoch:
                raise self._violation(f"a reset, for {self.place} is of another epoch", f"complete at {place}")
            self.moved(id)

    def _on_reset(self, reason: str, id: str) -> None:
        if not self._owed_reset:
            raise self._violation("no reset: connected promised everything", reason)
        self._owed_reset = False
        allowed = self._resets if self._sent == "own" else frozenset({"unknown_id", "epoch_changed"})
        self._counts[f"reset:{reason}" if self._sent == "own" else "reset for a false id"] += 1
        if reason not in allowed:
            raise self._violation(f"a complete replay, or reset for one of {sorted(allowed)}", f"reset: {reason}")
        place = self._parse(id)
        self.history.note(f"reset: {reason} {place}", place)
        self._begin(place)

    def _begin(self, place: Place, *, earliest: bool = False) -> None:
        if self._stretch is not None:
            self._ended.append(self._stretch)
        self._stretch = Stretch(place.epoch, place.offset, place.offset, earliest)
        self.place = place

    def _publication(self, event: Event, token: str) -> None:
        if not self._connected or self._owed_reset or self.place is None or self._stretch is None:
            raise self._violation("connected (and its reset) first", f"{token} with the id {event.id}")
        place = self._parse(event.id)
        if place.epoch != self.place.epoch:
            raise self._violation(f"events of the epoch {self.place.epoch}", f"{token} at {place}")
        if place.offset <= self.place.offset:
            seen = "again" if place.offset in self._stretch.offsets else "out of order"
            raise self._violation(f"only events after {self.place}", f"{token} at {place}, {seen}")
        if not self._ledger.is_forgotten(place):
            self._check(event, token, place)
        self._counts["received"] += 1
        self._stretch.offsets.append(place.offset)
        self._stretch.until = place.offset
        self.place = place
        self.history.received(place)

    def _check(self, event: Event, token: str, place: Place) -> None:
        intent = self._ledger.intent(token)
        if intent is None:
            raise self._violation("events that were published", f"{token} at {place}")
        if not self.spec.wants(intent):
            raise self._violation(f"what it asked for ({self.spec})", f"{intent} at {place}")
        try:
            self._ledger.bind(place, token, self.name)
        except Violation as violation:
            raise self._violation(violation.expected, violation.got) from None
        if event.event != (intent.event or "message"):
            raise self._violation(f"{token} as the event type {intent.event}", event.event)
        data: object = event.data
        if self.spec.envelope:
            wrapped = json.loads(event.data)
            data = wrapped.pop("data")
            # Of a private event only the topics that were asked for are named.
            named = [topic for topic in intent.topics if not intent.private or self.spec.wants_topic(topic)]
            topic = named[0] if len(named) == 1 else named
            if wrapped != {"id": event.id, "topic": topic, "event": intent.event}:
                raise self._violation(f"the envelope of {intent} at {place}", str(wrapped))
        elif intent.is_json:
            data = json.loads(event.data)
        if data != intent.payload:
            raise self._violation(f"the payload of {intent}", repr(data))

    # The holes.

    def reached(self, target: Place) -> bool:
        """Whether it has come as far as this."""
        return self.place is not None and self.place.epoch == target.epoch and self.place >= target

    def settle(self) -> None:
        """Compare with the ledger what came so far; then begin anew where it is."""
        for stretch in [*self._ended, self._stretch]:
            if stretch is not None:
                self._settle(stretch)
        self._ended.clear()
        if self._stretch is not None:
            self._stretch = Stretch(self._stretch.epoch, self._stretch.until, self._stretch.until)

    def _settle(self, stretch: Stretch) -> None:
        ledger = self._ledger
        expected = ledger.between(self.spec, stretch.epoch, stretch.after, stretch.until)
        got = [offset for offset in stretch.offsets if not ledger.is_forgotten(Place(stretch.epoch, offset))]
        if expected != got:
            raise self._hole(stretch.epoch, expected, got)
        first = ledger.first(stretch.epoch)
        all_held = ledger.size(stretch.epoch) <= self._rules.history_events and not self._asks_for_short_lived
        if stretch.earliest and all_held and first is not None and first <= stretch.after:
            hole = Place(stretch.epoch, first)
            raise self._violation(f"all history from {ledger.describe(hole)}", f"only from {stretch.after} on", hole)

    def _hole(self, epoch: str, expected: list[int], got: list[int]) -> Violation:
        there = set(got)
        missing = [offset for offset in expected if offset not in there]
        hole = Place(epoch, missing[0])
        before = max((offset for offset in got if offset < hole.offset), default=None)
        after = min((offset for offset in got if offset > hole.offset), default=None)
        return self._violation(
            f"{self._ledger.describe(hole)}",
            f"{after or 'nothing'} after {before or 'nothing'}: {len(missing)} missing, first {missing[:5]}",
            hole,
        )

    def never_arrived(self, target: Place) -> Violation:
        """It did not come as far as `target` in all the time it was given."""
        epoch, at = target.epoch, -1
        if self.place is not None and self.place.epoch == epoch:
            at = self.place.offset
        owed = self._ledger.between(self.spec, epoch, at, target.offset)
        first = f"; first {self._ledger.describe(Place(epoch, owed[0]))}" if owed else " (and no heartbeat moved it)"
        return self._violation(f"to get to {target}: {len(owed)} events{first}", f"still at {self.place}")

    def _parse(self, id: str) -> Place:
        place = Place.parse(id)
        if place is None:
            raise self._violation("an id of <epoch>-<offset>, at most 64 bytes", repr(id[:200]))
        return place

    def _violation(self, expected: str, got: str, at: Place | None = None) -> Violation:
        return Violation(f"{self.name} ({self.spec})", expected, got, self.history.around(at))
