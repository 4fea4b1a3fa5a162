"""A subscription: what a stream asked for, and which events it gets. Pure.

Streams with equal subscriptions share one feed. So a subscription has everything that decides the bytes of a stream.
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
    """A set of topics, and the format of their events.

    Empty `patterns` mean every topic. Empty `events` mean every event type; an event without a type has the type
    `message`. `envelope` has no effect on a WebSocket, where every event has an envelope. `grants` are the patterns of
    private topics that the subscriber may see. `private_topics` has the patterns of all private topics.
    """

    patterns: frozenset[str] = frozenset()
    events: frozenset[str] = frozenset()
    envelope: bool = False
    framing: Framing = Framing.CHUNKED
    grants: frozenset[str] = frozenset()
    private_topics: PrivateTopics = _NOTHING_PRIVATE

    def wants(self, publication: Publication) -> bool:
        """Return whether the subscription gets this publication."""
        return any(self._asks_for(topic) and self.accepts(publication, topic) for topic in publication.topics)

    def _asks_for(self, topic: str) -> bool:
        patterns = self.patterns
        return not patterns or topic in patterns or pattern_set(patterns).covers(topic)

    def accepts(self, publication: Publication, topic: str) -> bool:
        """Return whether grants and filter allow this publication, on a topic that the subscription asked for."""
        if self.events and (publication.event or "message") not in self.events:
            return False
        return not self._needs_grant(publication, topic) or matches_any(self.grants, topic)

    def _needs_grant(self, publication: Publication, topic: str) -> bool:
        private = self.private_topics.patterns
        return publication.private or bool(private and matches_any(private, topic))

    def _names(self, publication: Publication, topic: str) -> bool:
        """Return whether the envelope of a wanted publication names this topic.

        An envelope names a public topic, and a private topic that the subscription has a grant for and asked for. If
        envelopes named granted topics that were not asked for, the bytes would depend on all grants: 1000 readers of
        one public topic, each with an inbox of its own, were 1000 feeds.
        """
        return not self._needs_grant(publication, topic) or (matches_any(self.grants, topic) and self._asks_for(topic))

    @property
    def is_allowed(self) -> bool:
        """Whether a stream may have this subscription. Private topics may have changed since the stream opened."""
        private = self.private_topics.patterns
        return all(may_ask(pattern, self.grants, private) for pattern in self.patterns or ("*",))

    def frame(self, publication: Publication, epoch: str, made: dict[int, bytes]) -> bytes:
        """Return the bytes of a publication that the subscription wants.

        `made` caches the bytes of this publication by their format, so that subscriptions with the same format share
        them. Keep `made` only during the delivery; otherwise the history would take several times its maximum memory.

        An envelope names the topics. It leaves out private topics that the subscriber may not know or did not ask for.
        Only then the bytes depend on the grants.
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
    """Return the same subscription without grants that have no effect on its bytes."""
    if not subscription.grants:
        return subscription
    return replace(subscription, grants=narrowed(subscription.grants, subscription.patterns))


# An event goes to all feeds at once, so a small cache is enough. Thousands of feeds may show the same topics.
@lru_cache(maxsize=8)
def _frame(publication: Publication, epoch: str, framing: Framing, topics: tuple[str, ...]) -> bytes:
    return framing.wrap(_encode(publication, epoch, framing, topics))


def _encode(publication: Publication, epoch: str, framing: Framing, topics: tuple[str, ...]) -> bytes:
    """Encode a publication in an envelope with these topics, or without an envelope if there are no topics."""
    id = str(Position(epoch, publication.offset))
    retry_ms = publication.retry_ms
    if framing is Framing.WEBSOCKET:
        return _enveloped(publication, topics, {"retry": retry_ms} if retry_ms is not None else {}, id)
    data = _enveloped(publication, topics, {}, id) if topics else publication.data
    return sse.encode(data, event=publication.event, id=id, retry_ms=retry_ms)


# Without escapes for non-ASCII characters, which would take six bytes instead of two.
_json = json.JSONEncoder(ensure_ascii=False).encode


def _enveloped(publication: Publication, topics: tuple[str, ...], more: dict[str, int], id: str) -> bytes:
    # The data is JSON text already. It is inserted without parsing, so no number loses a digit.
    data = publication.data if publication.is_json else _json(publication.data.decode()).encode()
    topic = topics[0] if len(topics) == 1 else list(topics)
    head = _json({"id": id, "topic": topic, "event": publication.event, **more})
    return b'%b, "data": %b}' % (head[:-1].encode(), data)
