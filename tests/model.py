"""What was published, as a plain list: what it was, who wants it, and whether it can still be asked for.

Nothing in here asks the package's own code: it would agree with its mistakes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qgstream.events.history import HistorySettings, TopicHistory


def covers(pattern: str, topic: str) -> bool:
    return topic.startswith(pattern[:-1]) if pattern[-1] == "*" else pattern == topic


@dataclass
class Fact:
    """A publication, and whether it can still be asked for: `kept` are those of its topics that have a history."""

    offset: int
    topics: tuple[str, ...]
    at: float
    size: int = 0
    data: str = ""
    event: str | None = None
    stored: bool = True  # when it was published
    held: bool = True
    lost: bool = False  # by the bounds
    kept: frozenset[str] = frozenset()


@dataclass
class Ask:
    """What a client wants."""

    patterns: tuple[str, ...] = ()
    events: tuple[str, ...] = ()

    def topics(self, fact: Fact) -> set[str]:
        """Those of the fact's topics that it wants it for."""
        if self.events and (fact.event or "message") not in self.events:
            return set()
        return {t for t in fact.topics if not self.patterns or any(covers(p, t) for p in self.patterns)}


@dataclass
class Bounds:
    """The history's settings, applied to one publication after the other."""

    settings: HistorySettings
    floor: int = 0  # the newest that was lost under earlier settings: how far that reaches is not known any more

    def change(self, settings: HistorySettings, facts: list[Fact], now: float) -> None:
        """Other settings from now on."""
        if settings != self.settings:
            self.floor = max([self.floor, *(fact.offset for fact in facts if fact.lost)])
            if settings.topics != self.settings.topics and not all(entry.store for entry in self.settings.topics):
                self.floor = len(facts)  # what was not stored is asked for from now on, and nobody has it
            self.settings = settings
        self.apply(facts, now)

    def entry(self, topic: str) -> TopicHistory | None:
        return next((entry for entry in self.settings.topics if covers(entry.pattern, topic)), None)

    def age(self, topic: str) -> float:
        entry = self.entry(topic)
        return (entry and entry.max_age_seconds) or self.settings.max_age_seconds

    def add(self, facts: list[Fact], fact: Fact) -> None:
        """A publication; what has no history at all forgets nothing either."""
        facts.append(fact)
        fact.kept = self._with_history(fact.topics)
        fact.stored = fact.held = bool(fact.kept)
        if fact.held:
            self.apply(facts, fact.at)

    def apply(self, facts: list[Fact], now: float) -> None:
        """What is forgotten by now, under the settings of now."""
        for fact in facts:
            fact.kept = self._with_history(fact.topics if fact.held else fact.kept)
            if not fact.kept:
                fact.held = False
            elif fact.held and fact.at < now - max(map(self.age, fact.kept)):
                fact.held, fact.lost = False, True
        held = [fact for fact in facts if fact.held]
        while len(held) > self.settings.max_events or sum(f.size for f in held) > self.settings.max_bytes:
            oldest = held.pop(0)
            oldest.held, oldest.lost = False, True

    def _with_history(self, topics: Iterable[str]) -> frozenset[str]:
        entries = {topic: self.entry(topic) for topic in topics}
        return frozenset(topic for topic, entry in entries.items() if entry is None or entry.store)
