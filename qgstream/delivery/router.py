"""From a publication to the feeds that want it, without looking at the others."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from qgstream.delivery.feed import Feed
from qgstream.delivery.subscriber import Subscriber
from qgstream.events.publication import Publication
from qgstream.events.subscription import Subscription

Feeds = dict[Feed[Subscriber], None]
_NONE: Feeds = {}


class Router:
    """Finds or makes the feed of a subscription, and the feeds of a publication.

    Exact names are one look-up. A prefix is found by looking up the topic's own prefixes of the lengths in use, so the
    cost depends on how many different lengths there are, never on how many subscribers.
    """

    def __init__(self) -> None:
        self._feeds: dict[Subscription, Feed[Subscriber]] = {}
        self._exact: dict[str, Feeds] = {}
        self._prefix: dict[int, dict[str, Feeds]] = {}

    def __len__(self) -> int:
        return len(self._feeds)

    def __iter__(self) -> Iterator[Feed[Subscriber]]:
        return iter(self._feeds.values())

    def feed(self, subscription: Subscription) -> Feed[Subscriber]:
        """The feed for this subscription, made if there is none. Call `release` when it may be empty again."""
        feed = self._feeds.get(subscription)
        if feed is None:
            feed = self._feeds[subscription] = Feed(subscription)
            for pattern in subscription.patterns or ("*",):
                if pattern.endswith("*"):
                    prefixes = self._prefix.setdefault(len(pattern) - 1, {})
                    prefixes.setdefault(pattern[:-1], {})[feed] = None
                else:
                    self._exact.setdefault(pattern, {})[feed] = None
        return feed

    def release(self, feed: Feed[Subscriber]) -> None:
        """Forget the feed if nobody follows it."""
        if len(feed) or self._feeds.get(feed.subscription) is not feed:
            return
        del self._feeds[feed.subscription]
        for pattern in feed.subscription.patterns or ("*",):
            if pattern.endswith("*"):
                length = len(pattern) - 1
                _discard(self._prefix[length], pattern[:-1], feed)
                if not self._prefix[length]:
                    del self._prefix[length]
            else:
                _discard(self._exact, pattern, feed)

    def find(self, publication: Publication) -> Iterator[Feed[Subscriber]]:
        """Each feed that wants the publication, once. Feeds may come and go between two of them, and what is private
        may change: each feed is asked when its turn has come."""
        found: Feeds = {}
        for topic in publication.topics:
            candidates = [self._exact.get(topic, _NONE)]
            for length, prefixes in self._prefix.items():
                if length <= len(topic):
                    candidates.append(prefixes.get(topic[:length], _NONE))
            for feeds in candidates:
                for feed in list(feeds):
                    if feed not in found and feed.subscription.accepts(publication, topic):
                        found[feed] = None
                        yield feed

    def meeting(self, topic: str) -> Collection[Feed[Subscriber]]:
        """Each feed that asked for the topic, whatever else it asks of the events."""
        found = dict(self._exact.get(topic, ()))
        for length, prefixes in self._prefix.items():
            if length <= len(topic):
                found.update(prefixes.get(topic[:length], ()))
        return found


def _discard(table: dict[str, Feeds], key: str, feed: Feed[Subscriber]) -> None:
    feeds = table[key]
    del feeds[feed]
    if not feeds:
        del table[key]
