"""The window: the newest part of the log, with a maximum number of events, size and age. Pure; time is an argument."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import merge
from math import inf
from operator import attrgetter
from typing import NamedTuple

from pydantic import Field, field_validator

from qgstream.errors import InvalidField
from qgstream.events.pattern_sets import PatternSet
from qgstream.events.publication import Position, Publication
from qgstream.events.topic_index import TopicIndex
from qgstream.events.topics import check_pattern, covers, matches
from qgstream.reasons import ResetReason
from qgstream.settings import Section

# The work between two looks at the clock, about a third of a millisecond: sort or move so many events, or drop events
# with so many topics. An append drops fewer, because 64 appends may happen between two looks.
EVENTS_PER_STEP = 256
TOPICS_PER_STEP = 64
TOPICS_PER_APPEND = 16
# At most so many publications are searched one by one, because to look up or sort topics would cost more.
MOST_LOOKS = 64
# A page is searched in at most so many topics, which takes about a millisecond.
MOST_TOPICS = 4096
# How many topics are sorted at once, which takes about a millisecond.
TOPICS_SORTED = 512
# Spreads offsets evenly over the higher bits of the product (Knuth's multiplicative hash).
_MIX = 2654435761


class TopicHistory(Section):
    """`[[history.topics]]`: another history for some topics. The first entry that matches a topic applies."""

    pattern: str = Field(description="A topic, or a prefix that ends in `*`.")
    max_age_seconds: float | None = Field(None, gt=0, description="Replaces history.max_age_seconds.", examples=[60])
    store: bool = Field(
        True,
        description="false: the events are never replayed, and a missed event causes no reset. For unimportant events.",
    )

    @field_validator("pattern")
    @classmethod
    def _is_pattern(cls, pattern: str) -> str:
        try:
            return check_pattern(pattern, field="pattern")
        except InvalidField as error:
            raise ValueError(str(error).partition(": ")[2]) from None


class HistorySettings(Section):
    """`[history]`: the events that a reconnecting client can still get.

    Example::

        import qgstream

        hub = qgstream.Hub(history=qgstream.HistorySettings(max_events=50_000, max_age_seconds=600))
    """

    max_events: int = Field(10_000, ge=0, description="Maximum number of events in the history.")
    max_bytes: int = Field(64 * 1024 * 1024, ge=0, description="Maximum memory of the history, in bytes.")
    max_age_seconds: float = Field(3600, gt=0, description="The server deletes older events.")
    topics: tuple[TopicHistory, ...] = Field((), description="Exceptions for some topics.")

    # There is a retention class for each of `topics`, with the same index. The last one is for all other topics.

    def retention_classes_of_event(self, topics: Iterable[str]) -> Iterator[int]:
        """Yield the index of the retention class of each of an event's topics, except of topics that are not stored."""
        for topic in topics:
            for retention_class, entry in enumerate((*self.topics, None)):
                if entry is None or matches(entry.pattern, topic):
                    if entry is None or entry.store:
                        yield retention_class
                    break

    def retention_classes_of_patterns(self, patterns: Iterable[str]) -> list[int]:
        """Return the indexes of the retention classes that may hold a subscription's events.

        No pattern means every topic. Events that are not stored are in no class, so missing one causes no reset.
        """
        wanted = tuple(patterns) or ("*",)
        found = [
            retention_class
            for retention_class, entry in enumerate(self.topics)
            if entry.store and any(covers(entry.pattern, p) or covers(p, entry.pattern) for p in wanted)
        ]
        if not all(any(covers(entry.pattern, pattern) for entry in self.topics) for pattern in wanted):
            found.append(len(self.topics))
        return found


class RetentionClass:
    """The publications in the window that share an age limit.

    The first `TopicHistory` that matches a topic selects the topic's retention class. The class with the `pattern` None
    is for all other topics. `held` has the publications, oldest first. `since` has the arrival time of each, in the
    same order; these times never decrease. `forgotten` is the offset of the newest publication that the class has
    dropped.
    """

    __slots__ = ("pattern", "max_age_seconds", "forgotten", "held", "since")

    def __init__(self, pattern: str | None, max_age_seconds: float, forgotten: int) -> None:
        self.pattern = pattern
        self.max_age_seconds = max_age_seconds
        self.forgotten = forgotten
        self.held: deque[Publication] = deque()
        self.since: deque[float] = deque()


class Part(NamedTuple):
    """The matching publications of a part of the log, and the offset up to which the part reaches."""

    publications: Sequence[Publication]
    end: int


class _Gone:
    """Takes the place of a dropped publication in the list, until the list is rewritten.

    So the memory of the publication is free at once. Otherwise up to `max_bytes` more would be held until the rewrite.
    """

    __slots__ = ("offset",)

    def __init__(self, offset: int) -> None:
        self.offset = offset


class Window:
    """The newest publications, which can be replayed, in the order of the log.

    An append takes O(1), and a search for a position O(log n). An append drops only a few old events; call `forgetting`
    to drop the others. `newest` is the offset of the last publication of the log, even if the window does not hold it.

    The age of a publication is the time since its arrival, on a monotonic clock of the caller. `published_at` comes
    from another clock: with it, an event that is dated two hours ahead would make all others too old.
    """

    def __init__(self, settings: HistorySettings, position: Position, earlier: Mapping[str, int] | None = None) -> None:
        self.epoch = position.epoch
        self.earlier = earlier or {}  # earlier epochs of the log, with the last valid offset of each
        self.newest = position.offset
        self.size_bytes = 0
        self.generation = 0  # a replay that holds retention classes gets them again when this has changed
        self._log: list[Publication | _Gone] = []  # with `_Gone` entries: see _cut and _rewrite
        self._log_start = 0  # how many entries were cut off the front; index + _log_start never changes
        self._gone = 0  # the number of `_Gone` entries in _log
        self._topics = TopicIndex()
        self._settings = settings
        self._changes = 0  # how often the settings have changed
        self._classes = self._new_classes(settings, position.offset)

    def __len__(self) -> int:
        """The number of publications in the window."""
        return len(self._log) - self._gone

    @property
    def position(self) -> Position:
        """The position after the newest publication."""
        return Position(self.epoch, self.newest)

    @property
    def settings(self) -> HistorySettings:
        """The settings in effect."""
        return self._settings

    @settings.setter
    def settings(self, settings: HistorySettings) -> None:
        for _ in self.change(settings):
            pass

    def change(self, settings: HistorySettings) -> Iterator[None]:
        """Apply new settings, in steps. The old settings are in effect until all publications have their new class.

        A later change cancels a change in progress. Call `forgetting` to drop the events that exceed the new settings.
        """
        self._changes += 1
        change = self._changes
        if settings == self._settings:
            return
        retention_classes = self._new_classes(settings, 0)
        dropped: list[Publication] = []
        seen = -1
        while seen < self._newest_held:  # again, for publications that arrived meanwhile
            for step, (publication, at) in enumerate(self._held_since(seen), 1):
                seen = publication.offset
                index = _class_index(settings, publication)
                if index is None:
                    dropped.append(publication)
                else:
                    retention_classes[index].held.append(publication)
                    retention_classes[index].since.append(at)
                if not step % EVENTS_PER_STEP:
                    yield
                    if change != self._changes:
                        return
        # An event that an old class has dropped may belong to any new class. So each new class starts with the highest
        # mark of the old ones. Topics that were not stored may be stored from now on, and lack all earlier events.
        forgotten = max(retention_class.forgotten for retention_class in self._classes)
        if settings.topics != self._settings.topics and not all(entry.store for entry in self._settings.topics):
            forgotten = self.newest
        for retention_class in retention_classes:
            retention_class.forgotten = forgotten
        self._settings = settings
        self._classes = retention_classes
        self.generation += 1
        for publication in dropped:
            self._drop(publication)
            yield

    @property
    def _newest_held(self) -> int:
        return max(
            (retention_class.held[-1].offset for retention_class in self._classes if retention_class.held), default=-1
        )

    def _held_since(self, offset: int) -> Iterator[tuple[Publication, float]]:
        """Yield the publications after an offset, oldest first, each with its arrival time."""
        parts: list[Iterator[tuple[Publication, float]]] = []
        for retention_class in self._classes:
            # Copies, which are cheap: the window appends and drops publications while the caller reads.
            held, since = list(retention_class.held), list(retention_class.since)
            start = bisect_right(held, offset, key=_offset)
            parts.append(zip(held[start:], since[start:], strict=True))
        return parts[0] if len(parts) == 1 else merge(*parts, key=_offset_of_first)

    def _new_classes(self, settings: HistorySettings, forgotten: int) -> list[RetentionClass]:
        default = settings.max_age_seconds
        retention_classes = [
            RetentionClass(topic.pattern, topic.max_age_seconds or default, forgotten) for topic in settings.topics
        ]
        return [*retention_classes, RetentionClass(None, default, forgotten)]

    # Appending and forgetting.

    def preload(
        self,
        publications: Iterable[Publication],
        newest: int,
        forgotten_of: Mapping[str, int],
        *,
        now: float,
        unix_now: float,
    ) -> None:
        """Take the events that the log has already, up to the offset `newest`.

        `forgotten_of` has the offset of the newest dropped event for some topics, by the pattern of their
        `TopicHistory`. `now` is on the clock of the ages, `unix_now` on the clock of `published_at`.
        """
        since = -inf
        for publication in publications:
            # No publication is older than the one before it in the log, and none is from the future.
            since = max(since, now - max(0.0, unix_now - publication.published_at))
            self.append(publication, since)
        self.newest = newest
        for retention_class in self._classes:
            retention_class.forgotten = max(
                retention_class.forgotten, forgotten_of.get(retention_class.pattern or "", 0)
            )
        self.forget(now)

    def append(self, publication: Publication, now: float) -> None:
        """Add the next publication of the log, whose offset must be above `newest`. `now` never decreases."""
        self.newest = publication.offset
        retention_class = self._class_of(publication)
        if retention_class is None:
            return
        retention_class.held.append(publication)
        retention_class.since.append(now)
        self._log.append(publication)
        self.size_bytes += publication.size_bytes
        self._topics.add(publication)
        self.forget_some(now)

    def stores(self, publication: Publication) -> bool:
        """Return whether the settings store this publication."""
        return self._class_of(publication) is not None

    def _class_of(self, publication: Publication) -> RetentionClass | None:
        """Return the retention class of a publication, or None if it is not stored. See `_class_index`."""
        index = _class_index(self._settings, publication)
        return None if index is None else self._classes[index]

    def _classes_of_topics(self, publication: Publication) -> Iterator[RetentionClass]:
        """Return the retention class of each of its topics, except of topics that are not stored."""
        return map(self._classes.__getitem__, self._settings.retention_classes_of_event(publication.topics))

    def forget(self, now: float) -> None:
        """Drop all publications that exceed the limits at the time `now`."""
        for _ in self.forgetting(now):
            pass

    def forgetting(self, now: float) -> Iterator[None]:
        """Do the same as `forget`, in steps.

        Thousands of events may become too old at once, or be dropped to make room for a large event.
        """
        while not self.forget_some(now, TOPICS_PER_STEP):
            yield
        if self._gone > len(self):
            yield from self._rewrite()

    def forget_some(self, now: float, most_topics: int = TOPICS_PER_APPEND) -> bool:
        """Drop some of the publications that exceed the limits at the time `now`.

        Drops at least one, and stops after `most_topics` topics. Returns True if no publication exceeds the limits any
        more.
        """
        settings, topics = self._settings, 0
        while topics < most_topics:
            for retention_class in self._classes:
                if retention_class.held and retention_class.since[0] < now - retention_class.max_age_seconds:
                    break
            else:
                if len(self) <= settings.max_events and self.size_bytes <= settings.max_bytes:
                    return True
                oldest = min((s for s in self._classes if s.held), key=_oldest_offset, default=None)
                if oldest is None:
                    return True  # new settings do not store the rest: `change` will drop it
                retention_class = oldest
            topics += len(retention_class.held[0].topics)
            self._take_down(retention_class)
        return False

    def _take_down(self, retention_class: RetentionClass) -> None:
        publication = retention_class.held.popleft()
        retention_class.since.popleft()
        self._drop(publication)
        # A stream that asked for another topic of this event also misses the event. That stream looks at the mark of
        # its own topic's class.
        several = len(publication.topics) > 1 and len(self._classes) > 1
        for concerned in self._classes_of_topics(publication) if several else (retention_class,):
            concerned.forgotten = max(concerned.forgotten, publication.offset)

    def _drop(self, publication: Publication) -> None:
        index = self._gone  # its index if all earlier entries are gone
        if index >= len(self._log) or self._log[index] is not publication:
            index = bisect_left(self._log, publication.offset, key=_offset)
            if index == len(self._log) or self._log[index] is not publication:
                return  # it was dropped while the settings changed
        self._log[index] = _Gone(publication.offset)
        self._gone += 1
        self.size_bytes -= publication.size_bytes
        self._topics.discard(publication)
        if not self._gone % EVENTS_PER_STEP or self._gone > len(self):
            self._cut()

    def _cut(self) -> None:
        """Delete the `_Gone` entries at the beginning of the list."""
        gone = next((index for index, entry in enumerate(self._log) if isinstance(entry, Publication)), len(self._log))
        del self._log[:gone]
        self._log_start += gone
        self._gone -= gone

    def _rewrite(self) -> Iterator[None]:
        """Delete all `_Gone` entries of the list, in steps.

        This moves all publications. It is worth the cost if at least half of the entries are gone.
        """
        start = 0
        while start < len(self._log):
            part = self._log[start : start + EVENTS_PER_STEP]
            held = [entry for entry in part if isinstance(entry, Publication)]
            self._log[start : start + EVENTS_PER_STEP] = held
            self._log_start += len(part) - len(held)
            self._gone -= len(part) - len(held)
            start += len(held)
            yield

    # Reading.

    def retention_classes_of(self, patterns: Iterable[str]) -> tuple[RetentionClass, ...]:
        """Return the retention classes that may hold a subscription's publications.

        See `HistorySettings.retention_classes_of_patterns`.
        """
        return tuple([self._classes[index] for index in self._settings.retention_classes_of_patterns(patterns)])

    def complete_after(self, patterns: Iterable[str]) -> Position:
        """Return the position after which the window has all stored events of these topics."""
        return Position(
            self.epoch, max((s.forgotten for s in self.retention_classes_of(patterns)), default=self.newest)
        )

    def locate(self, last_event_id: str) -> Position | None:
        """Return the position of an id, in this epoch if the id is valid here. None: this server never made the id."""
        position = Position.parse(last_event_id)
        if position is not None and position.offset <= self.earlier.get(position.epoch, -1):
            return Position(self.epoch, position.offset)
        return position

    def resume(self, last_event_id: str, patterns: Iterable[str] = ()) -> Position | ResetReason:
        """Return the position where a client with this id and these topics resumes, or why the client cannot resume.

        The window never guesses, and never allows a partial replay. `earliest` is everything in the window: it starts
        where the longest history of these topics starts.
        """
        retention_classes = self.retention_classes_of(patterns)
        if last_event_id == "earliest":
            return Position(
                self.epoch,
                min((retention_class.forgotten for retention_class in retention_classes), default=self.newest),
            )
        position = self.locate(last_event_id)
        if position is None:
            return "unknown_id"
        if position.epoch != self.epoch:
            return "epoch_changed"
        if position.offset > self.newest:
            return "unknown_id"  # from the future
        if not holds(retention_classes, position.offset):
            return "too_old"
        return position

    def page(self, offset: int, size: int) -> Sequence[Publication]:
        """Return the publications after `offset`, oldest first, up to the next multiple of `size` in the log.

        So pages end at the same offsets for all readers, and readers can share encoded pages.
        """
        index = bisect_right(self._log, offset, key=_offset)
        while index < len(self._log):
            stop = index + size - (self._log_start + index) % size
            held = [publication for publication in self._log[index:stop] if isinstance(publication, Publication)]
            if held:
                return held
            index = stop  # all of these are gone: the next page starts behind them
        return []

    def newest_first(self) -> Iterator[Publication]:
        """Yield the publications, newest first."""
        return (publication for publication in reversed(self._log) if isinstance(publication, Publication))

    def at(self, offset: int) -> Publication | None:
        """Return the publication with this offset, if the window holds it."""
        index = bisect_left(self._log, offset, key=_offset)
        found = self._log[index] if index < len(self._log) else None
        return found if isinstance(found, Publication) and found.offset == offset else None

    def newest_on(self, topic: str) -> Publication | None:
        """Return the newest publication of this topic, if the window holds it."""
        return self._topics.newest_on(topic)

    def sort_topics(self, most: int) -> bool:
        """Prepare for `topics_under`: sort at most so many topics. Return True if all topics are sorted."""
        return self._topics.sort(most)

    def sorting(self) -> Iterator[None]:
        """Sort all topics, in steps, so that the next request for a prefix waits less."""
        while not self._topics.sort(TOPICS_PER_STEP):
            yield

    def count_topics_under(self, patterns: PatternSet) -> int:
        """See `TopicIndex.count_under`; call `sort_topics` first."""
        return self._topics.count_under(patterns)

    def some_topics_under(self, patterns: PatternSet, most: int) -> Iterator[list[str]]:
        """See `TopicIndex.some_topics_under`; call `sort_topics` first."""
        return self._topics.some_topics_under(patterns, most)

    def topics_under(self, patterns: PatternSet, most: int) -> list[str] | None:
        """See `TopicIndex.topics_under`; call `sort_topics` first."""
        return self._topics.topics_under(patterns, most)

    def page_of(self, patterns: PatternSet, offset: int, size: int) -> Part | None:
        """Return publications after `offset` that may match these patterns, oldest first, and at most `size` of them.

        The search goes through the matching topics, or through all publications after the offset, whichever is less.
        Returns None if topics must be sorted first. Each such call sorts some of them, so call again.
        """
        behind = len(self._log) - bisect_right(self._log, offset, key=_offset)
        if behind > MOST_LOOKS and not patterns.is_everything:
            if patterns.has_prefix and not self.sort_topics(TOPICS_SORTED):
                return None
            topics = self._topics.topics_under(patterns, min(MOST_TOPICS, behind))
            if topics is not None:
                return self._part_of(topics, offset, size)
        found = self.page(offset, size)
        return Part(found, found[-1].offset if found else self.newest)

    def _part_of(self, topics: Iterable[str], offset: int, size: int) -> Part:
        found = self._topics.after(offset, topics, size)
        # Pages end at the same offsets for readers that started at different offsets: half of the pages end here.
        # Multiples of the offset would not work, for example for a topic that has every second event of the log.
        for index, publication in enumerate(found, 1):
            if not (publication.offset * _MIX >> 16) % (size // 2):
                return Part(found[:index], publication.offset)
        return Part(found, found[-1].offset if len(found) == size else self.newest)


def _class_index(settings: HistorySettings, publication: Publication) -> int | None:
    """Return the index of the retention class that holds a publication, or None if the publication is not stored.

    If an event has several topics, the class with the longest age limit holds the event.
    """
    topics = settings.topics
    if not topics:
        return 0

    def max_age_seconds(index: int) -> float:
        return (topics[index].max_age_seconds if index < len(topics) else None) or settings.max_age_seconds

    return max(settings.retention_classes_of_event(publication.topics), key=max_age_seconds, default=None)


def holds(retention_classes: Iterable[RetentionClass], offset: int) -> bool:
    """Return whether these retention classes still have everything after `offset`."""
    return all(offset >= retention_class.forgotten for retention_class in retention_classes)


_offset = attrgetter("offset")


def _offset_of_first(held: tuple[Publication, float]) -> int:
    return held[0].offset


def _oldest_offset(retention_class: RetentionClass) -> int:
    return retention_class.held[0].offset
