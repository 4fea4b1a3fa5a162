"""Queries over the open connections, for operators: filters, sort orders, pages, and the ending of all that match.

Each query visits all streams, so these functions are jobs for `Slices`: they yield every few visits.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice
from typing import Literal, cast, get_args

from qgstream.delivery.connection import Connection
from qgstream.delivery.subscriber import PARKED
from qgstream.errors import InvalidField
from qgstream.events.publication import Position
from qgstream.events.topics import overlap
from qgstream.hub import Hub
from qgstream.net.addresses import Network, is_in
from qgstream.talkers import Name

Sort = Literal["oldest", "newest", "backlog"]
SORTS: tuple[Sort, ...] = get_args(Sort)

# The work between two looks at the clock: a visit takes about 1 us, a description 10 us, a closing message 50 us.
_VISITS, _DESCRIPTIONS, _CLOSINGS = 128, 16, 4
# How many events back in the log the position of a stream is searched for.
_MAX_LOOK_BACK = 2000

_CURSOR = re.compile(r"(oldest|newest|backlog)-([0-9]{1,18})-([0-9]{1,18})")
_Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Filter:
    """Selects streams.

    `topic` is a name or a pattern: it selects the subscriptions that share at least one topic with it. With `exact`, it
    selects the subscriptions that contain exactly this text (`*`: to every topic). `key` is the name of a publish key
    and `sub` is the subject of a token, both as in `describe`.
    """

    topic: str | None = None
    exact: bool = False
    network: Network | None = None
    key: str | None = None
    sub: str | None = None
    min_age_seconds: float = 0.0
    min_backlog_bytes: int = 0

    @property
    def is_everything(self) -> bool:
        """Whether every stream matches."""
        return self == Filter(exact=self.exact)

    def matches(self, connection: Connection, now: float) -> bool:
        """Return whether this stream matches at the time `now` (Unix seconds)."""
        return (
            now - connection.opened_at >= self.min_age_seconds
            and (not self.min_backlog_bytes or connection.backlog_bytes >= self.min_backlog_bytes)
            and (self.topic is None or self._matches_topic(self.topic, connection))
            and (self.network is None or is_in(connection.ip, (self.network,)))
            and (self.key is None or self.key == _key_name(connection))
            and (self.sub is None or self.sub == _subject(connection))
        )

    def _matches_topic(self, topic: str, connection: Connection) -> bool:
        patterns = connection.feed.subscription.patterns or ("*",)
        return topic in patterns if self.exact else any(overlap(topic, pattern) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class ConnectionPage:
    """One page of streams, the cursor of the next page (None on the last page), and how many streams match in all."""

    connections: Sequence[dict[str, object]]
    cursor: str | None
    matching: int


def list_page(
    hub: Hub, wanted: Filter, *, sort: Sort, limit: int, cursor: str | None = None
) -> Generator[None, None, ConnectionPage]:
    """Return at most `limit` streams, each as `describe` returns it. A job for `Slices.result`. Raises `InvalidField`
    for a bad cursor.

    The cursor contains its sort order (which overrides `sort`) and the position of the last stream in this order, not a
    count. A stream that stays open between two pages is listed exactly once, whatever other streams open or close. In
    the order by backlog, this holds while the stream's backlog stays the same.
    """
    after: _Key | None = None
    if cursor is not None:
        sort, after = _parse_cursor(cursor)
    now = time.time()
    found: list[tuple[_Key, Connection]] = []
    matching = 0
    for visit, connection in enumerate(hub.registry, 1):
        if connection.is_open and wanted.matches(connection, now):
            matching += 1
            key = _key(connection, sort)
            if after is None or key > after:
                found.append((key, connection))
        if not visit % _VISITS:
            yield
    page = nsmallest(limit, found, key=_by_key)
    described = []
    visits = 0
    for _, connection in page:
        if connection.is_open:
            described.append(describe(hub, connection, now))
            visits += _DESCRIPTIONS if looks_back(connection) else 1  # 2 ms for `_MAX_LOOK_BACK` events
        if visits >= _DESCRIPTIONS:
            visits = 0
            yield
    more = f"{sort}-{abs(page[-1][0][0])}-{page[-1][0][1]}" if len(found) > limit else None
    return ConnectionPage(described, more, matching)


def find(hub: Hub, wanted: Filter) -> Generator[None, None, list[int]]:
    """Return the ids of all matching streams that are not ending yet. A job for `Slices.result`."""
    now, found = time.time(), []
    for visit, connection in enumerate(hub.registry, 1):
        if connection.is_open and connection.reason is None and wanted.matches(connection, now):
            found.append(connection.id)
        if not visit % _VISITS:
            yield
    return found


def kick_all(hub: Hub, wanted: Filter) -> Generator[None, None, int]:
    """End all matching streams with a closing message, and return how many there were. A job for `Slices.result`."""
    now, kicked = time.time(), 0
    for visit, connection in enumerate(hub.registry, 1):
        if connection.is_open and connection.reason is None and wanted.matches(connection, now):
            hub.end(connection, "kicked")
            kicked += 1
            if not kicked % _CLOSINGS:
                yield
        elif not visit % _VISITS:
            yield
    return kicked


def _key(connection: Connection, sort: Sort) -> _Key:
    # Ids increase, so they give the order of age and break ties.
    if sort == "oldest":
        return connection.id, 0
    if sort == "newest":
        return -connection.id, 0
    return -connection.backlog_bytes, connection.id


def _by_key(found: tuple[_Key, Connection]) -> _Key:
    return found[0]


def _parse_cursor(cursor: str) -> tuple[Sort, _Key]:
    parts = _CURSOR.fullmatch(cursor)
    if parts is None:
        raise InvalidField("cursor", f"got {cursor[:100]!r}, expected the `cursor` of a page")
    sort, first, second = cast(Sort, parts[1]), int(parts[2]), int(parts[3])
    return sort, ((first if sort == "oldest" else -first), second)


def describe(hub: Hub, connection: Connection, now: float) -> dict[str, object]:
    """Return one stream as JSON for operators."""
    subscription = connection.feed.subscription
    return {
        "id": connection.id,
        "ip": connection.ip,
        "key": _key_name(connection),
        "sub": _subject(connection),
        "topics": sorted(subscription.patterns) or ["*"],
        "events_filter": sorted(subscription.events),
        "transport": connection.transport,
        "state": state(connection),
        "age_seconds": round(max(0.0, now - connection.opened_at), 3),
        "events": connection.events_sent,
        "bytes": connection.bytes_sent,
        "backlog_bytes": connection.backlog_bytes,
        "position": position(hub, connection),
        "user_agent": connection.user_agent,
    }


def _key_name(connection: Connection) -> str | None:
    return connection.named if isinstance(connection.named, str) else None


def _subject(connection: Connection) -> str | None:
    return connection.named.name if isinstance(connection.named, Name) else None


def state(connection: Connection) -> str:
    """Return `closing` (the closing message is not sent yet), `replaying`, `parked` (the socket is full) or `live`."""
    if connection.reason is not None:
        return "closing"
    if connection.replay is not None:
        return "replaying"
    return "parked" if connection.cursor == PARKED else "live"


def looks_back(connection: Connection) -> bool:
    """Return whether the position of this stream must be searched for in the log."""
    return connection.reason is None and connection.replay is None and _waiting(connection) > 0


def _waiting(connection: Connection) -> int:
    """Return how many chunks the feed still holds for this stream."""
    feed = connection.feed
    at = connection.parked_at if connection.cursor == PARKED else connection.cursor
    return feed.end - at + bool(connection.rest_bytes)


def position(hub: Hub, connection: Connection) -> str | None:
    """Return the id of the last event that was written to the stream's socket, or None if the log no longer tells.

    The server keeps no position for each stream. This function finds the position from the log: it looks for the events
    that the feed still holds for the stream. Events of topics without history are not in the log, so the stream may
    look further behind than it is.
    """
    window, feed = hub.window, connection.feed
    if connection.reason is not None:
        return None
    if connection.replay is not None:
        return str(Position(window.epoch, connection.replay.offset))
    waiting = _waiting(connection)
    if not waiting:
        return str(window.position)
    for publication in islice(window.newest_first(), _MAX_LOOK_BACK):
        if feed.subscription.wants(publication):
            waiting -= 1
            if not waiting:
                return str(Position(window.epoch, publication.offset - 1))
    return None
