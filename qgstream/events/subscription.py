"""What a subscriber asked for, and what of the log is its part. Pure.

Two subscribers with equal subscriptions share one feed, so everything that decides what their bytes are is in here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache

from qgstream.events.pattern_sets import narrowed, pattern_set
from qgstream.events.publication import Position, Publication
from qgstream.events.topics import PrivateTopics, matches_any, may_ask
from qgstream.wire import sse
from qgstream.wire.framing import Framing

_NOTHING_PRIVATE = PrivateTopics()


@dataclass(frozen=True, slots=True)
class Subscription:
    """A set of topics and how their events are to look.

    `patterns` empty means every topic. `events` empty means every event type; an event without a type is `message`.
    `envelope` is not for a WebSocket, on which every event has one. `grants` are the patterns of private topics that
    the subscriber may see; `private_topics` says which those are.
    """

    patterns: frozenset[str] = frozenset()
    events: frozenset[str] = frozenset()
    envelope: bool = False
    framing: Framing = Framing.CHUNKED
    grants: frozenset[str] = frozenset()
    private_topics: PrivateTopics = _NOTHING_PRIVATE

    def wants(self, publication: Publication) -> bool:
        """Whether the publication is part of this subscription."""
        return any(self._asks_for(topic) and self.accepts(publication, topic) for topic in publication.topics)

    def _asks_for(self, topic: str) -> bool:
        patterns = self.patterns
        return not patterns or topic in patterns or pattern_set(patterns).covers(topic)

    def accepts(self, publication: Publication, topic: str) -> bool:
        """Whether it may have, and is not filtered to be without, this publication on a topic that it asked for."""
        if self.events and (publication.event or "message") not in self.events:
            return False
        return not self._needs_grant(publication, topic) or matches_any(self.grants, topic)

    def _needs_grant(self, publication: Publication, topic: str) -> bool:
        private = self.private_topics.patterns
        return publication.private or bool(private and matches_any(private, topic))

    def _names(self, publication: Publication, topic: str) -> bool:
        """Whether an envelope names a topic of a publication that this subscription wants: a public one, or one with a
        grant that was asked for.

        To name granted topics that were not asked for would make the bytes depend on all grants: 1000 readers of one
        public topic, each with an inbox of its own, were 1000 feeds.
        """
        return not self._needs_grant(publication, topic) or (matches_any(self.grants, topic) and self._asks_for(topic))

    @property
    def is_allowed(self) -> bool:
        """Whether a stream may have it: what was private in its topics when it opened may have changed since."""
        private = self.private_topics.patterns
        return all(may_ask(pattern, self.grants, private) for pattern in self.patterns or ("*",))

    def frame(self, publication: Publication, epoch: str, made: dict[int, bytes]) -> bytes:
        """The bytes of a publication that it wants.

        `made` holds what was made of this publication: its bytes are made once, and shared by all subscriptions of a
        kind. Nobody keeps them longer than they are on their way, or the history would take a multiple of its bound.

        Its topics are named in an envelope. Of several, private ones that the subscriber may not know of or did not
        ask for are left out: only then the bytes depend on its grants.
        """
        if len(publication.topics) > 1 and (self.envelope or self.framing is Framing.WEBSOCKET):
            shown = tuple([topic for topic in publication.topics if self._names(publication, topic)])
            if shown != publication.topics:
                return _frame(publication, epoch, self.framing, shown)
        kind = self.framing + 2 * self.envelope
        frame = made.get(kind)
        if frame is None:
            topics = publication.topics if kind > Framing.RAW else ()
            frame = made[kind] = self.framing.wrap(_encode(publication, epoch, self.framing, topics))
        return frame


def narrow(subscription: Subscription) -> Subscription:
    """The same subscription without the grants that never decide what its bytes are."""
    if not subscription.grants:
        return subscription
    return replace(subscription, grants=narrowed(subscription.grants, subscription.patterns))


# An event goes to all feeds in one go, so a few are enough: there may be thousands of feeds that are shown the same.
@lru_cache(maxsize=8)
def _frame(publication: Publication, epoch: str, framing: Framing, topics: tuple[str, ...]) -> bytes:
    return framing.wrap(_encode(publication, epoch, framing, topics))


def _encode(publication: Publication, epoch: str, framing: Framing, topics: tuple[str, ...]) -> bytes:
    """In an envelope with these topics; with none, as it is."""
    id = str(Position(epoch, publication.offset))
    retry_ms = publication.retry_ms
    if framing is Framing.WEBSOCKET:
        return _enveloped(publication, topics, {"retry": retry_ms} if retry_ms is not None else {}, id)
    data = _enveloped(publication, topics, {}, id) if topics else publication.data
    return sse.encode(data, event=publication.event, id=id, retry_ms=retry_ms)


# Without escapes for other scripts: they would make six bytes of two.
_json = json.JSONEncoder(ensure_ascii=False).encode


def _enveloped(publication: Publication, topics: tuple[str, ...], more: dict[str, int], id: str) -> bytes:
    # The data is JSON text already and goes in as it is: nothing is parsed, so no number loses a digit.
    data = publication.data if publication.is_json else _json(publication.data.decode()).encode()
    topic = topics[0] if len(topics) == 1 else list(topics)
    head = _json({"id": id, "topic": topic, "event": publication.event, **more})
    return b'%b, "data": %b}' % (head[:-1].encode(), data)
