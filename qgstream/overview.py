"""A process at a glance: what a person who watches it needs, as plain JSON."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import asdict
from heapq import nlargest
from operator import itemgetter

from qgstream.feed import Feed
from qgstream.hub import Hub
from qgstream.logs import utc_iso
from qgstream.subscriber import Subscriber
from qgstream.version import __version__

# In a snapshot; /admin/topics has more.
TOP_TOPICS = 10
_VISITS = 64
_PAGE_BYTES = resource.getpagesize()


def readiness(hub: Hub) -> str:
    """Whether a balancer should send new streams here: `ready` and `degraded` are yes, `draining`, `full` and
    `broker_down` are no.

    `degraded` is a hub whose broker is away. It serves new streams from its window, and cannot publish. All processes
    of one log lose their broker at the same moment: if that were a no, the balancer would have nobody for new streams.
    It is a no where the hub has no window yet, and where the operator wants it (`broker.required_for_ready`).
    """
    if hub.draining:
        return "draining"
    if len(hub.registry) >= hub.limits.max_connections:
        return "full"
    if hub.is_started and hub.broker.is_up:
        return "ready"
    return "broker_down" if hub.needs_broker or not hub.is_started else "degraded"


def snapshot(hub: Hub, *, started_at: float) -> dict[str, object]:
    """Everything at a glance: what holds now, and what was counted since the start (about half a millisecond)."""
    now = time.time()
    rates = hub.rates.per_second(time.monotonic())
    return {
        "event": "snapshot",
        "timestamp": utc_iso(now),
        "uptime_seconds": round(max(0.0, now - started_at), 3),
        "version": __version__,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "status": readiness(hub),
        "resident_bytes": resident_bytes(),
        "cpu_seconds": round(time.process_time(), 3),
        "live": asdict(hub.live()),
        "totals": asdict(hub.metrics.totals),
        "top_topics": published(hub, rates, TOP_TOPICS),
    }


def published(hub: Hub, rates: dict[str, float], limit: int) -> list[dict[str, object]]:
    """The topics that are published to most, and how many streams asked for each."""
    return [
        _published(topic, rate, hub.router.meeting(topic))
        for topic, rate in nlargest(limit, rates.items(), key=itemgetter(1))
    ]


def _published(topic: str, rate: float, feeds: Iterable[Feed[Subscriber]]) -> dict[str, object]:
    return {"topic": topic, "events_per_second": round(rate, 3), "subscribers": sum(map(len, feeds))}


def topics(hub: Hub, limit: int) -> Generator[None, None, dict[str, object]]:
    """What is published to most, and what is asked for most. A job for `Slices.result`."""
    asked: Counter[str] = Counter()
    for visit, feed in enumerate(list(hub.router), 1):
        for pattern in feed.subscription.patterns or ("*",):
            asked[pattern] += len(feed)
        if not visit % _VISITS:
            yield
    rates = hub.rates.per_second(time.monotonic())
    yield
    most_published = []
    visits = 0
    for topic, rate in nlargest(limit, rates.items(), key=itemgetter(1)):
        feeds = hub.router.meeting(topic)
        most_published.append(_published(topic, rate, feeds))
        visits += 1 + len(feeds)  # a thousand topics for which ten thousand feeds asked are two seconds
        if visits >= _VISITS:
            visits = 0
            yield
    return {
        "published": most_published,
        "published_topics": len(rates),
        "subscribed": [{"pattern": pattern, "subscribers": count} for pattern, count in asked.most_common(limit)],
        "subscribed_patterns": len(asked),
    }


def resident_bytes() -> int | None:
    """Memory of this process, where /proc tells (Linux)."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  # once a second; a Path costs more than the read
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None
