"""The status of a process as plain JSON, for operators."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import asdict
from heapq import nlargest
from typing import NamedTuple

from qgstream.delivery.feed import Feed
from qgstream.delivery.subscriber import Subscriber
from qgstream.hub import Hub
from qgstream.logs import utc_iso
from qgstream.version import __version__

# In a snapshot; /admin/topics lists more.
TOP_TOPICS = 10
_VISITS = 64
_PAGE_BYTES = resource.getpagesize()


def readiness(hub: Hub) -> str:
    """Return whether a load balancer should send new streams here: `ready` and `degraded` mean yes; `draining`,
    `maintenance`, `full` and `broker_down` mean no.

    `degraded` means that the broker is down. The hub then serves new streams from its window, and cannot publish. All
    processes of one log lose their broker at the same moment: if `degraded` meant no, the load balancer would have no
    server for new streams. Without a broker, the status is `broker_down` if the hub has no window yet, or if the
    operator set `broker.required_for_ready`.
    """
    if hub.draining:
        return "draining"
    if hub.maintenance:
        return "maintenance"
    if len(hub.registry) >= hub.limits.max_connections:
        return "full"
    if hub.is_started and hub.broker.is_up:
        return "ready"
    return "broker_down" if hub.needs_broker or not hub.is_started else "degraded"


def snapshot(hub: Hub, *, started_at: float) -> dict[str, object]:
    """Return the current state, and the counts since the start (takes about half a millisecond)."""
    now = time.time()
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
        "top_topics": [
            _published(rates, hub.router.meeting(rates.topic)) for rates in _most_published(_rates(hub), TOP_TOPICS)
        ],
    }


class _Rates(NamedTuple):
    """Events per second of a topic: over the last two seconds, and over the last minute."""

    topic: str
    now: float
    per_second: float


def _rates(hub: Hub) -> list[_Rates]:
    now = time.monotonic()
    latest, minute = hub.rates_now.per_second(now), hub.rates.per_second(now)
    return [_Rates(topic, latest.get(topic, 0.0), minute.get(topic, 0.0)) for topic in latest | minute]


def _most_published(rates: list[_Rates], limit: int) -> list[_Rates]:
    # Sorted by the higher rate: a flood that has just begun comes first, and one that has just ended is still listed.
    return nlargest(limit, rates, key=lambda one: max(one.now, one.per_second))


def _published(rates: _Rates, feeds: Iterable[Feed[Subscriber]]) -> dict[str, object]:
    return {
        "topic": rates.topic,
        "events_per_second": round(rates.per_second, 3),
        "events_per_second_now": round(rates.now, 3),
        "subscribers": sum(map(len, feeds)),
    }


def topics(hub: Hub, limit: int) -> Generator[None, None, dict[str, object]]:
    """Return the topics with the most published events, and the patterns with the most subscribers. A job for
    `Slices.result`."""
    asked: Counter[str] = Counter()
    for visit, feed in enumerate(list(hub.router), 1):
        for pattern in feed.subscription.patterns or ("*",):
            asked[pattern] += len(feed)
        if not visit % _VISITS:
            yield
    rates = _rates(hub)
    yield
    most_published = []
    visits = 0
    for one in _most_published(rates, limit):
        feeds = hub.router.meeting(one.topic)
        most_published.append(_published(one, feeds))
        visits += 1 + len(feeds)  # a thousand topics with ten thousand matching feeds take two seconds
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
    """Return the resident memory of this process in bytes, or None where /proc is missing (outside Linux)."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  # once a second; a Path costs more than the read
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None
