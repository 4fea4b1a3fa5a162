"""The state of a subscription: the newest event of each topic of the subscription. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from qgstream.events.history import Window
from qgstream.events.pattern_sets import PatternSet, pattern_set
from qgstream.events.publication import Publication
from qgstream.events.subscription import Subscription

# How many topics are searched between two turns of the loop, which takes about a millisecond.
LOOKS = 512
# The state of up to so many topics is searched by their names, if they are less than a quarter of the events in the
# window. A larger state is searched through the log: to sort so many offsets takes about three milliseconds.
MOST_TOPICS = 16_384
# How much of the window a stalled reader keeps in memory, besides the page that is being sent.
STEP_BYTES = 256 * 1024


def state(window: Window, subscription: Subscription) -> Iterator[Sequence[Publication]]:
    """Yield the newest publication of each topic that the subscription wants, in the order of the log, in short steps.

    A step is a list, which may be empty. No step at all means that the state is empty. The state is that of the time of
    the first step. A publication that is replaced or dropped before its step is left out; its replacement comes with
    the log after that time.
    """
    patterns = pattern_set(subscription.patterns)
    found: list[Publication] = []
    looks = size_bytes = 0
    for publication in _candidates(window, patterns):
        if publication is None:
            looks = LOOKS
        else:
            looks += len(publication.topics)
            if _is_newest(window, publication, patterns) and subscription.wants(publication):
                found.append(publication)
                size_bytes += publication.size_bytes
        if looks >= LOOKS or size_bytes >= STEP_BYTES:
            yield found
            found = []
            looks = size_bytes = 0
    if found:
        yield found


def _is_newest(window: Window, publication: Publication, patterns: PatternSet) -> bool:
    return any(window.newest_on(topic) is publication and patterns.covers(topic) for topic in publication.topics)


def _candidates(window: Window, patterns: PatternSet) -> Iterator[Publication | None]:
    """Yield the publications that may belong to the state, in order. None means work without a result."""
    newest = window.newest
    while patterns.has_prefix and not patterns.is_everything and not window.sort_topics(LOOKS):
        yield None
    topics = window.count_topics_under(patterns)
    if topics > MOST_TOPICS or topics * 4 > max(len(window), LOOKS):
        yield from _all(window, newest)
        return
    # Offsets, not publications: a slow reader must not keep the events of a whole history in memory.
    offsets, looks = array("Q"), 0
    for names in window.some_topics_under(patterns, LOOKS):
        held = [window.newest_on(topic) for topic in names]
        offsets.extend([publication.offset for publication in held if publication is not None])
        looks += len(names)
        if looks >= LOOKS:
            yield None
            looks = 0
    for offset in array("Q", sorted(set(offsets))):
        if offset > newest:
            return
        publication = window.at(offset)
        if publication is not None:
            yield publication


def _all(window: Window, newest: int) -> Iterator[Publication]:
    offset = 0
    while page := window.page(offset, LOOKS):
        for publication in page:
            offset = publication.offset
            if offset > newest:
                return
            yield publication
