"""Who is connected, for an operator: filters, an order, pages, and the goodbye to all that match.

Everything here walks all streams, so it is written as jobs for `Slices`: they yield every few visits.
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

# Between two looks at the clock: a visit is about a microsecond, a description 10, a goodbye 50.
_VISITS, _DESCRIPTIONS, _GOODBYES = 128, 16, 4
# How far back in the log a stream's position is looked for.
_MAX_LOOK_BACK = 2000

_CURSOR = re.compile(r"(oldest|newest|backlog)-([0-9]{1,18})-([0-9]{1,18})")
_Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which streams. `topic` is a name or a pattern: those of which some topic could be both; with `exact` those that
    asked for it in so many words (`*`: for everything). `key` is the name of a publish key and `sub` the subject of a
    token, both as `describe` has them."""

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
        """Whether this stream is meant, at the time `now` (Unix seconds)."""
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
class Page:
    """Some of the streams, the cursor of the next page (None on the last), and how many match in all."""

    connections: Sequence[dict[str, object]]
    cursor: str | None
    matching: int


def list_page(
    hub: Hub, wanted: Filter, *, sort: Sort, limit: int, cursor: str | None = None
) -> Generator[None, None, Page]:
    """At most `limit` streams, as `describe` has them. A job for `Slices.result`; `InvalidField` for a bad cursor.

    The cursor holds its order (whatever `sort` says) and the last one's place in it, not a count: whatever opens and
    closes between two pages, no stream that stays comes twice or is left out (by backlog: while its backlog stays).
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
            visits += _DESCRIPTIONS if looks_back(connection) else 1  # for `_MAX_LOOK_BACK` events that is 2 ms
        if visits >= _DESCRIPTIONS:
            visits = 0
            yield
    more = f"{sort}-{abs(page[-1][0][0])}-{page[-1][0][1]}" if len(found) > limit else None
    return Page(described, more, matching)


def find(hub: Hub, wanted: Filter) -> Generator[None, None, list[int]]:
    """The ids of all that match and are not leaving. A job for `Slices.result`."""
    now, found = time.time(), []
    for visit, connection in enumerate(hub.registry, 1):
        if connection.is_open and connection.reason is None and wanted.matches(connection, now):
            found.append(connection.id)
        if not visit % _VISITS:
            yield
    return found


def kick_all(hub: Hub, wanted: Filter) -> Generator[None, None, int]:
    """Say goodbye to all that match, and return how many those were. A job for `Slices.result`."""
    now, kicked = time.time(), 0
    for visit, connection in enumerate(hub.registry, 1):
        if connection.is_open and connection.reason is None and wanted.matches(connection, now):
            hub.end(connection, "kicked")
            kicked += 1
            if not kicked % _GOODBYES:
                yield
        elif not visit % _VISITS:
            yield
    return kicked


def _key(connection: Connection, sort: Sort) -> _Key:
    # Ids count up, so they are the order of age; and they break ties.
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
    """What an operator sees of one stream."""
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
    """`closing` (its goodbye is on its way), `replaying`, `parked` (its socket is full), or `live`."""
    if connection.reason is not None:
        return "closing"
    if connection.replay is not None:
        return "replaying"
    return "parked" if connection.cursor == PARKED else "live"


def looks_back(connection: Connection) -> bool:
    """Whether the position of this stream has to be looked for in the log."""
    return connection.reason is None and connection.replay is None and _waiting(connection) > 0


def _waiting(connection: Connection) -> int:
    """How many chunks the feed still holds for this stream."""
    feed = connection.feed
    at = connection.parked_at if connection.cursor == PARKED else connection.cursor
    return feed.end - at + bool(connection.rest_bytes)


def position(hub: Hub, connection: Connection) -> str | None:
    """The position up to which its socket was given everything, as an id; None where that cannot be told any more.

    Nobody counts positions while serving: it is found from the log, where the events lie that the feed still holds for
    this stream. Events of topics without history are not there, and make it look further behind than it is.
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
