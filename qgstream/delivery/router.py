"""The router: finds the feeds that want a publication, without a search through the others."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import cast

from qgstream.delivery.feed import Feed
from qgstream.delivery.subscriber import Subscriber
from qgstream.events.subscription import Subscription

Feeds = dict[Feed[Subscriber], None]
_NONE: Feeds = {}


class Router:
    """Finds or makes the feed of a subscription, and finds the feeds of a publication.

    An exact name takes one look-up. For prefixes, the router looks up the start of the topic, once for each length of a
    prefix in use. So the cost depends on the number of different lengths, and not on the number of subscribers.
    """

    def __init__(self) -> None:
        self._feeds: dict[Subscription, Feed[Subscriber]] = {}
        self._exact: dict[
            str, Feeds | Feed[Subscriber]
        ] = {}  # a dict takes 0.2 KiB, and a user's own topic has one feed
        self._prefix: dict[int, dict[str, Feeds]] = {}

    def __len__(self) -> int:
        return len(self._feeds)

    def __iter__(self) -> Iterator[Feed[Subscriber]]:
        return iter(self._feeds.values())

    def feed(self, subscription: Subscription) -> Feed[Subscriber]:
        """Return the feed for this subscription, or make it. Call `release` when the feed may be empty again."""
        feed = self._feeds.get(subscription)
        if feed is None:
            feed = self._feeds[subscription] = Feed(subscription)
            for pattern in subscription.patterns or ("*",):
                if pattern.endswith("*"):
                    prefixes = self._prefix.setdefault(len(pattern) - 1, {})
                    prefixes.setdefault(pattern[:-1], {})[feed] = None
                else:
                    self._add(pattern, feed)
        return feed

    def _add(self, topic: str, feed: Feed[Subscriber]) -> None:
        others = self._exact.setdefault(topic, feed)
        if isinstance(others, dict):
            others[feed] = None
        elif others is not feed:
            self._exact[topic] = {others: None, feed: None}

    def release(self, feed: Feed[Subscriber]) -> None:
        """Remove the feed if it has no subscribers."""
        if len(feed) or self._feeds.get(feed.subscription) is not feed:
            return
        del self._feeds[feed.subscription]
        for pattern in feed.subscription.patterns or ("*",):
            if pattern.endswith("*"):
                length = len(pattern) - 1
                _discard(self._prefix[length], pattern[:-1], feed)
                if not self._prefix[length]:
                    del self._prefix[length]
            elif self._exact[pattern] is feed:
                del self._exact[pattern]
            else:
                _discard(cast(dict[str, Feeds], self._exact), pattern, feed)

    def patterns(self, topic: str) -> list[str]:
        """Return the patterns of all feeds that cover the topic."""
        found = [topic] if topic in self._exact else []
        for length, prefixes in self._prefix.items():
            if length <= len(topic) and topic[:length] in prefixes:
                found.append(topic[:length] + "*")
        return found

    def asking(self, pattern: str) -> list[Feed[Subscriber]]:
        """Return the feeds with this pattern. The list is a copy, because feeds come and go."""
        if pattern.endswith("*"):
            return list(self._prefix.get(len(pattern) - 1, {}).get(pattern[:-1], _NONE))
        return _feeds(self._exact.get(pattern, _NONE))

    def meeting(self, topic: str) -> Collection[Feed[Subscriber]]:
        """Return all feeds with a pattern that covers the topic, whatever their other filters."""
        found = dict.fromkeys(_feeds(self._exact.get(topic, _NONE)))
        for length, prefixes in self._prefix.items():
            if length <= len(topic):
                found.update(prefixes.get(topic[:length], ()))
        return found


def _feeds(entry: Feeds | Feed[Subscriber]) -> list[Feed[Subscriber]]:
    return list(entry) if isinstance(entry, dict) else [entry]


def _discard(table: dict[str, Feeds], key: str, feed: Feed[Subscriber]) -> None:
    feeds = table[key]
    del feeds[feed]
    if not feeds:
        del table[key]
