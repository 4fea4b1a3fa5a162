"""The busiest clients: counts for each address, key, user and agent, in bounded memory.

Pure: the time is an argument, in seconds of the monotonic clock. Clients choose these names, so the names cannot be
labels of metrics: the number of series would be unbounded.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import lru_cache
from heapq import nlargest
from typing import Final, Generic, Literal, NamedTuple, TypeVar, get_args

from qgstream.auth.authenticator import Principal
from qgstream.logs import printable
from qgstream.net.addresses import client_key

# The number of rows that a table always keeps; a table has at most twice as many. A row is about 0.5 KiB, so a table is
# about 0.5 MiB, or 1 MiB with names of full length.
MAX_ROWS = 500
# The limit of a subject or an issuer, which the issuer of a token chooses. Names of keys have at most 64.
MAX_NAME_CHARACTERS = 200
# The period of "now", in seconds. A flood shows half of its rate after one second, and at least seven eighths after
# two.
NOW_SECONDS = 2.0
# The fraction of a row's weight that remains after a second: the weight halves in a minute.
_KEPT = 0.5 ** (1 / 60)

TalkerKind = Literal["address", "key", "user", "agent"]
TALKER_KINDS: Final[tuple[TalkerKind, ...]] = get_args(TalkerKind)

# The kind of a publisher: a publish key, a user (a token), a configured source, or the application that embeds the hub.
PublisherKind = Literal["key", "user", "source", "application"]


class Name(NamedTuple):
    """The name of a row. `issuer` is the issuer of a token, because two issuers may use the same subject. `name` is
    None for a token without a subject."""

    name: str | None
    issuer: str | None = None


class Asker(NamedTuple):
    """The sender of a request.

    `key` and `user` are set if the credentials were valid; the name of a key is never the key itself. `agent` is the
    User-Agent in printable form; None for a socket that has sent no request.
    """

    address: str
    agent: str | None = None
    key: str | None = None
    user: Name | None = None

    @classmethod
    def of(cls, address: str, agent: str | None, principal: Principal) -> Asker:
        """Return the sender with these credentials."""
        if principal.kind == "token":
            return cls(address, agent, None, user_name(principal))
        if principal.kind == "admin_key":
            # The prefix tells the key apart from a publish key of the same name; no name contains a colon.
            return cls(address, agent, f"admin:{principal.name}")
        return cls(address, agent, None if principal.kind == "anonymous" else principal.name)

    @property
    def fields(self) -> dict[str, str | None]:
        """The fields of a log line: `key` for a key, `sub` for a token."""
        if self.user is not None:
            return {"sub": self.user.name}
        return {} if self.key is None else {"key": self.key}


def user_name(principal: Principal) -> Name:
    """Return the subject and the issuer of a token in printable form."""
    has_subject = len(principal.identity) == 3
    issuer = principal.identity[1] if len(principal.identity) > 1 else ""
    subject = printable(principal.name, MAX_NAME_CHARACTERS) if has_subject else None
    return Name(subject, printable(issuer, MAX_NAME_CHARACTERS) or None)


class Recent:
    """A count over the last `NOW_SECONDS`, and a weight that halves every minute.

    `second` is the time without its fraction: a caller with several counters computes it once.
    """

    __slots__ = ("second", "count", "before", "earlier", "weight")

    def __init__(self, second: int) -> None:
        self.second = second
        self.count = self.before = self.earlier = 0  # the counts of this second and of the two seconds before
        self.weight = 0.0

    def add(self, amount: int, second: int) -> None:
        """Add to the count."""
        if second != self.second:
            self._turn(second)
        self.count += amount

    def _turn(self, second: int) -> None:
        gone = second - self.second
        if gone <= 0:
            return
        if gone == 1:
            self.before, self.earlier = self.count, self.before
        else:
            self.before, self.earlier = 0, self.count if gone == 2 else 0
        self.weight = (self.weight + self.count) * _KEPT**gone
        self.count, self.second = 0, second

    def per_second(self, now: float) -> float:
        """Return the rate over the last two seconds; the oldest second counts only for the part within this period."""
        self._turn(int(now))
        return (self.count + self.before + self.earlier * (1 - now % 1)) / NOW_SECONDS

    def rank(self, second: int) -> float:
        """Return the weight, for sorting by the last minutes."""
        return (self.weight + self.count) * _KEPT ** max(0, second - self.second)


class Row:
    """The counts of one name since `first_at`."""

    __slots__ = (
        "publishes", "publishes_refused", "events", "bytes", "streams", "streams_refused", "others_refused",
        "last_refusal", "first_at", "last_at", "requests", "published",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.publishes = self.publishes_refused = self.events = self.bytes = 0
        self.streams = self.streams_refused = self.others_refused = 0
        self.last_refusal: str | None = None
        self.first_at = self.last_at = now
        self.requests = Recent(int(now))  # includes refused requests
        self.published: Recent | None = None  # events; most rows have none

    def publish(self, events: int, bytes_: int, second: int) -> None:
        """Count an accepted publish."""
        self.publishes += 1
        self.events += events
        self.bytes += bytes_
        self.requests.add(1, second)
        if self.published is None:
            self.published = Recent(second)
        self.published.add(events, second)

    def refused_publish(self, reason: str, second: int) -> None:
        """Count a refused publish."""
        self.publishes_refused += 1
        self.last_refusal = reason
        self.requests.add(1, second)

    def events_per_second(self, now: float) -> float:
        """Return the rate of events appended to the log, over the last two seconds."""
        return 0.0 if self.published is None else self.published.per_second(now)


_K = TypeVar("_K", bound=Hashable)


class Tally(Generic[_K]):
    """A table with a row for each name.

    If there are too many names, the table drops those with the fewest requests in the last minutes. A dropped name that
    returns starts at 0.
    """

    def __init__(self) -> None:
        self._rows: dict[_K, Row] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, name: _K, now: float) -> Row:
        """Return the row of a name; create the row if needed."""
        row = self._rows.get(name)
        if row is None:
            if len(self._rows) >= 2 * MAX_ROWS:
                self._thin_out(int(now))
            row = self._rows[name] = Row(now)
        row.last_at = now
        return row

    def _thin_out(self, second: int) -> None:
        # Runs once in `MAX_ROWS` new names, so it costs about 2 us for each new name. Among equals the latest stay.
        rows = sorted(self._rows.items(), key=lambda item: item[1].requests.rank(second))
        self._rows = dict(rows[-MAX_ROWS:])

    def most(self, limit: int, now: float, *, by_events: bool = False) -> list[tuple[_K, Row]]:
        """Return the rows with the highest current rate (of events, or of requests); equal rates are sorted by
        weight."""
        second = int(now)

        def key(item: tuple[_K, Row]) -> tuple[float, float]:
            row = item[1]
            rate = row.events_per_second(now) if by_events else row.requests.per_second(now)
            return rate, row.requests.rank(second)

        return nlargest(limit, self._rows.items(), key=key)


class Talkers:
    """The tables of one process. Called once for each request, and never for a delivery."""

    def __init__(self) -> None:
        self.publishers = Tally[tuple[PublisherKind, Name]]()
        self.by: dict[TalkerKind, Tally[Name]] = {kind: Tally[Name]() for kind in TALKER_KINDS}

    def _rows(self, asker: Asker, now: float, *, publishes: bool = False) -> list[Row]:
        by = self.by
        rows = [by["address"].row(_address(asker.address), now)]
        if asker.agent is not None:
            rows.append(by["agent"].row(_name(asker.agent), now))
        if asker.key is not None:
            name = _name(asker.key)
            rows.append(by["key"].row(name, now))
            if publishes:
                rows.append(self.publishers.row(("key", name), now))
        elif asker.user is not None:
            rows.append(by["user"].row(asker.user, now))
            if publishes:
                rows.append(self.publishers.row(("user", asker.user), now))
        return rows

    def published(self, asker: Asker, events: int, bytes_: int, now: float) -> None:
        """A publish over HTTP appended so many events to the log, with so many bytes of data."""
        second = int(now)
        for row in self._rows(asker, now, publishes=True):
            row.publish(events, bytes_, second)

    def refused_publish(self, asker: Asker, reason: str, now: float) -> None:
        """A publish over HTTP was refused."""
        second = int(now)
        for row in self._rows(asker, now, publishes=True):
            row.refused_publish(reason, second)

    def brought(self, kind: PublisherKind, name: str, events: int, bytes_: int, now: float) -> None:
        """A source, or the application that embeds the hub, published."""
        self.publishers.row((kind, _name(name)), now).publish(events, bytes_, int(now))

    def refused_source(self, name: str, now: float) -> None:
        """A source produced a value that is not a valid event."""
        self.publishers.row(("source", _name(name)), now).refused_publish("bad_request", int(now))

    def opened(self, asker: Asker, now: float) -> None:
        """A stream was opened."""
        second = int(now)
        for row in self._rows(asker, now):
            row.streams += 1
            row.requests.add(1, second)

    def refused_stream(self, asker: Asker, reason: str, now: float) -> None:
        """A stream was refused."""
        second = int(now)
        for row in self._rows(asker, now):
            row.streams_refused += 1
            row.last_refusal = reason
            row.requests.add(1, second)

    def refused_other(self, asker: Asker, reason: str, now: float) -> None:
        """A request other than a publish or a stream was refused."""
        second = int(now)
        for row in self._rows(asker, now):
            row.others_refused += 1
            row.last_refusal = reason
            row.requests.add(1, second)


# Most requests come from a few addresses.


@lru_cache(maxsize=256)
def _name(name: str) -> Name:
    return Name(name)


@lru_cache(maxsize=256)
def _address(address: str) -> Name:
    return Name(client_key(address))


def data_bytes(datas: Iterable[bytes]) -> int:
    """Return the total size of the data of some events."""
    return sum(map(len, datas))
