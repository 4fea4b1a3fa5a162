"""What was published: the truth that subscribers are judged by. Pure.

Nothing in here asks the server's own code what a subscriber should get: it would agree with its mistakes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlencode

_ID = re.compile(r"([A-Za-z0-9._~]{1,40})-([0-9]{1,19})")
# In every payload, and in nothing that the server says by itself.
TOKEN = re.compile(r"~\d+\.\d+~")
# Not ASCII, and two characters that str.splitlines takes for line ends and the standard does not.
_PADDING = "padding, Füllung, 詰め物 \u2028\u0085 "


class Violation(Exception):
    """What must never happen did: who saw it, what was expected, what came instead, and what led there."""

    def __init__(self, who: str, expected: str, got: str, history: str = "") -> None:
        super().__init__(f"{who}\n  expected {expected}\n  got {got}\n{history}".rstrip())
        self.who = who
        self.expected = expected
        self.got = got


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """An id taken apart: `offset` orders the events of one `epoch`."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"

    @classmethod
    def parse(cls, id: str) -> Place | None:
        """The place that an id names, or None where it is not written as ids are."""
        match = _ID.fullmatch(id)
        return cls(match[1], int(match[2])) if match and len(id) <= 64 else None


@dataclass(frozen=True, slots=True)
class Intent:
    """One event that a publisher is about to publish. Its payload follows from its token."""

    token: str
    topics: tuple[str, ...]
    event: str | None = None
    private: bool = False
    is_json: bool = True
    padding: int = 0
    key: str | None = None

    @property
    def payload(self) -> object:
        """What a subscriber must find: a JSON object, or text of several lines."""
        padding = (_PADDING * (self.padding // len(_PADDING) + 1))[: self.padding]
        return {"token": self.token, "padding": padding} if self.is_json else f"{self.token}\n\n{padding}"

    def document(self) -> dict[str, object]:
        """The body of its publish."""
        topic = self.topics[0] if len(self.topics) == 1 else list(self.topics)
        made: dict[str, object] = {"topic": topic, "data": self.payload}
        optional = {"event": self.event, "private": self.private or None, "idempotency_key": self.key}
        return made | {name: value for name, value in optional.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Spec:
    """What a subscriber asks for. `privileged`: it brings the key that may see private events."""

    topics: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    envelope: bool = False
    earliest: bool = False
    privileged: bool = False
    http: str = "1.1"

    def wants(self, intent: Intent) -> bool:
        """Whether the event is for this subscriber."""
        if intent.private and not self.privileged:
            return False
        if self.events and (intent.event or "message") not in self.events:
            return False
        return any(self.wants_topic(topic) for topic in intent.topics)

    def wants_topic(self, topic: str) -> bool:
        """Whether the topic is one of those asked for."""
        return not self.topics or any(_covers(pattern, topic) for pattern in self.topics)

    def query(self, **more: str) -> str:
        """The query of its request."""
        pairs = [("topic", topic) for topic in self.topics] + [("event", event) for event in self.events]
        if self.envelope:
            pairs.append(("envelope", "1"))
        return urlencode([*pairs, *more.items()])

    def __str__(self) -> str:
        flags = [name for name in ("envelope", "earliest", "privileged") if getattr(self, name)]
        return f"HTTP/{self.http} ?{self.query()}" + "".join(f" {flag}" for flag in flags)


def _covers(pattern: str, topic: str) -> bool:
    return topic.startswith(pattern[:-1]) if pattern.endswith("*") else pattern == topic


@dataclass
class _Log:
    """One epoch: which token each offset holds, as far as anybody has seen. Below `floor` it was forgotten here."""

    tokens: dict[int, str] = field(default_factory=dict)
    floor: int = -1
    first: int | None = None
    ordered: list[int] | None = None
    wanted: dict[Spec, list[int]] = field(default_factory=dict)


class Ledger:
    """Every event by token and by id. An event counts as logged when its publish was answered, or when anybody got it:
    what one subscriber was given is in the log for all of them."""

    def __init__(self) -> None:
        self.intents: dict[str, Intent] = {}
        self.answered: dict[str, str] = {}
        self._logs: dict[str, _Log] = {}
        self._places: dict[str, dict[str, int]] = {}

    def intend(self, intent: Intent) -> None:
        """It is about to be published."""
        self.intents[intent.token] = intent

    def acknowledge(self, intent: Intent, id: str) -> Place:
        """Its publish was answered with this id."""
        place = Place.parse(id)
        if place is None:
            raise Violation(f"the publisher of {intent.token}", "an id of <epoch>-<offset>", repr(id))
        self.answered[intent.token] = id
        self.bind(place, intent.token, f"the publisher of {intent.token}")
        return place

    def bind(self, place: Place, token: str, who: str) -> None:
        """`who` was told that this event is at this place: nobody may have been told anything else."""
        log = self._logs.setdefault(place.epoch, _Log())
        known = log.tokens.get(place.offset)
        if known == token or place.offset <= log.floor:
            return
        if known is not None:
            raise Violation(who, f"{known} at {place}, as others were told", token)
        places = self._places.setdefault(token, {})
        if place.epoch in places:
            raise Violation(who, f"{token} at {place.epoch}-{places[place.epoch]} alone", f"it at {place} too")
        places[place.epoch] = place.offset
        log.tokens[place.offset] = token
        log.first = place.offset if log.first is None else min(log.first, place.offset)
        log.ordered = None
        log.wanted.clear()

    def intent(self, token: str) -> Intent | None:
        """The event with this token, if somebody intended it and it is not long ago."""
        return self.intents.get(token)

    def is_forgotten(self, place: Place) -> bool:
        """Whether it is too long ago to be judged."""
        log = self._logs.get(place.epoch)
        return log is not None and place.offset <= log.floor

    def between(self, spec: Spec, epoch: str, after: int, until: int) -> list[int]:
        """The offsets that `spec` must get after one place and up to another, in order."""
        log = self._logs.get(epoch)
        if log is None:
            return []
        if log.ordered is None:
            log.ordered = sorted(log.tokens)
        wanted = log.wanted.get(spec)
        if wanted is None:
            wanted = log.wanted[spec] = [o for o in log.ordered if spec.wants(self.intents[log.tokens[o]])]
        return [offset for offset in wanted if after < offset <= until]

    def first(self, epoch: str) -> int | None:
        """The offset of the first event of an epoch, and None when it is not known any more or there is none."""
        log = self._logs.get(epoch)
        return None if log is None or log.floor >= 0 else log.first

    def size(self, epoch: str) -> int:
        """How many events of an epoch are known."""
        log = self._logs.get(epoch)
        return 0 if log is None else len(log.tokens)

    def describe(self, place: Place) -> str:
        """An event for a person."""
        token = self._logs[place.epoch].tokens[place.offset]
        intent = self.intents[token]
        answer = "answered" if token in self.answered else "never answered, but others got it"
        return f"{place} ({token} on {', '.join(intent.topics)}, event {intent.event}, {answer})"

    def forget(self, *, epoch: str, keep: int) -> None:
        """Once everybody is in `epoch`: drop all others, and of this one what is older than the newest `keep` events
        or more, so that a run of days fits in memory."""
        for other in [name for name in self._logs if name != epoch]:
            self._drop(other, list(self._logs[other].tokens))
            del self._logs[other]
        log = self._logs.get(epoch)
        if log is not None and len(log.tokens) > 2 * keep:
            old = sorted(log.tokens)[:-keep]
            self._drop(epoch, old)
            log.floor = old[-1]
            log.ordered = None
            log.wanted.clear()

    def _drop(self, epoch: str, offsets: list[int]) -> None:
        for offset in offsets:
            token = self._logs[epoch].tokens.pop(offset)
            places = self._places[token]
            del places[epoch]
            if not places:
                del self._places[token]
                del self.intents[token]
                self.answered.pop(token, None)
