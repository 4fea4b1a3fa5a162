"""Who asks for how much: a row of counts for each address, key, user and agent, in bounded memory.

Pure: the time is an argument, in seconds of the monotonic clock. The values of these names are a client's to choose, so
they are no labels of metrics: there the number of series would have no bound.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import lru_cache
from heapq import nlargest
from typing import Final, Generic, Literal, NamedTuple, TypeVar, get_args

from qgstream.auth.authenticator import Principal
from qgstream.logs import printable
from qgstream.net.addresses import client_key

# Rows that a table keeps for sure; it has twice as many at most. A row is about 0.5 KiB, so a table is 0.5 MiB and with
# names of full length 1 MiB.
MAX_ROWS = 500
# Of a subject or an issuer, which are a token's issuer's to choose. Names of keys have 64 at most.
MAX_NAME_CHARACTERS = 200
# "Now" is the last so many seconds: a flood is seen by half after one, and by seven eighths or more after two.
NOW_SECONDS = 2.0
# What a row's weight keeps of itself in a second: half is gone after a minute.
_KEPT = 0.5 ** (1 / 60)

TalkerKind = Literal["address", "key", "user", "agent"]
TALKER_KINDS: Final[tuple[TalkerKind, ...]] = get_args(TalkerKind)

# What publishes: a publish key, a user (a token), a source of the configuration, or the program around the hub.
PublisherKind = Literal["key", "user", "source", "application"]


class Name(NamedTuple):
    """What a row is called. `issuer` is a token's: two issuers may give one subject. A token without a subject has the
    name None."""

    name: str | None
    issuer: str | None = None


class Asker(NamedTuple):
    """Who sends a request. `key` and `user` are there when the credentials were valid; a key's name is never the key.
    `agent` is the User-Agent as it may be shown; None for a socket that has sent no request."""

    address: str
    agent: str | None = None
    key: str | None = None
    user: Name | None = None

    @classmethod
    def of(cls, address: str, agent: str | None, principal: Principal) -> Asker:
        """The asker with these credentials."""
        if principal.kind == "token":
            return cls(address, agent, None, user_name(principal))
        if principal.kind == "admin_key":
            # Beside a publish key of the same name; no name has a colon.
            return cls(address, agent, f"admin:{principal.name}")
        return cls(address, agent, None if principal.kind == "anonymous" else principal.name)

    @property
    def fields(self) -> dict[str, str | None]:
        """For a line of the log: `key` of a key, `sub` of a token."""
        if self.user is not None:
            return {"sub": self.user.name}
        return {} if self.key is None else {"key": self.key}


def user_name(principal: Principal) -> Name:
    """The subject and the issuer of a token, as they may be shown."""
    has_subject = len(principal.identity) == 3
    issuer = principal.identity[1] if len(principal.identity) > 1 else ""
    subject = printable(principal.name, MAX_NAME_CHARACTERS) if has_subject else None
    return Name(subject, printable(issuer, MAX_NAME_CHARACTERS) or None)


class Recent:
    """A count over the last `NOW_SECONDS`, and a weight that forgets half of itself in a minute. `second` is the time
    without its fraction: a caller that counts in several asks for it once."""

    __slots__ = ("second", "count", "before", "earlier", "weight")

    def __init__(self, second: int) -> None:
        self.second = second
        self.count = self.before = self.earlier = 0  # of this second, and of the two before it
        self.weight = 0.0

    def add(self, amount: int, second: int) -> None:
        """So many more."""
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
        """The rate over the last two seconds; of the oldest second only the part that is not older counts."""
        self._turn(int(now))
        return (self.count + self.before + self.earlier * (1 - now % 1)) / NOW_SECONDS

    def rank(self, second: int) -> float:
        """How much it was over the last minutes."""
        return (self.weight + self.count) * _KEPT ** max(0, second - self.second)


class Row:
    """What is counted for one name since `first_at`."""

    __slots__ = (
        "publishes", "publishes_refused", "events", "bytes", "streams", "streams_refused", "others_refused",
        "last_refusal", "first_at", "last_at", "requests", "published",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.publishes = self.publishes_refused = self.events = self.bytes = 0
        self.streams = self.streams_refused = self.others_refused = 0
        self.last_refusal: str | None = None
        self.first_at = self.last_at = now
        self.requests = Recent(int(now))  # refused ones included
        self.published: Recent | None = None  # events; most rows have none

    def publish(self, events: int, bytes_: int, second: int) -> None:
        """A publish was taken."""
        self.publishes += 1
        self.events += events
        self.bytes += bytes_
        self.requests.add(1, second)
        if self.published is None:
            self.published = Recent(second)
        self.published.add(events, second)

    def refused_publish(self, reason: str, second: int) -> None:
        """A publish was refused."""
        self.publishes_refused += 1
        self.last_refusal = reason
        self.requests.add(1, second)

    def events_per_second(self, now: float) -> float:
        """Events taken into the log, over the last two seconds."""
        return 0.0 if self.published is None else self.published.per_second(now)


_K = TypeVar("_K", bound=Hashable)


class Tally(Generic[_K]):
    """A row for each name. When there are too many names, those with the fewest requests in the last minutes go; they
    start at 0 when they come again."""

    def __init__(self) -> None:
        self._rows: dict[_K, Row] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, name: _K, now: float) -> Row:
        """The row to count in."""
        row = self._rows.get(name)
        if row is None:
            if len(self._rows) >= 2 * MAX_ROWS:
                self._thin_out(int(now))
            row = self._rows[name] = Row(now)
        row.last_at = now
        return row

    def _thin_out(self, second: int) -> None:
        # Once in `MAX_ROWS` new names, so about 2 us for each of them. Among equals the latest stay.
        rows = sorted(self._rows.items(), key=lambda item: item[1].requests.rank(second))
        self._rows = dict(rows[-MAX_ROWS:])

    def most(self, limit: int, now: float, *, by_events: bool = False) -> list[tuple[_K, Row]]:
        """The rows with the highest rate now (of events, or of requests); among equals, over the last minutes."""
        second = int(now)

        def key(item: tuple[_K, Row]) -> tuple[float, float]:
            row = item[1]
            rate = row.events_per_second(now) if by_events else row.requests.per_second(now)
            return rate, row.requests.rank(second)

        return nlargest(limit, self._rows.items(), key=key)


class Talkers:
    """The tables of one process. Called once for each request and never for a delivery."""

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
        """A publish over HTTP was taken into the log: so many events, with so many bytes of data."""
        second = int(now)
        for row in self._rows(asker, now, publishes=True):
            row.publish(events, bytes_, second)

    def refused_publish(self, asker: Asker, reason: str, now: float) -> None:
        """A publish over HTTP was refused."""
        second = int(now)
        for row in self._rows(asker, now, publishes=True):
            row.refused_publish(reason, second)

    def brought(self, kind: PublisherKind, name: str, events: int, bytes_: int, now: float) -> None:
        """A source, or the program around the hub, published."""
        self.publishers.row((kind, _name(name)), now).publish(events, bytes_, int(now))

    def refused_source(self, name: str, now: float) -> None:
        """A source brought something of which no event can be made."""
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
        """A request for something else was refused."""
        second = int(now)
        for row in self._rows(asker, now):
            row.others_refused += 1
            row.last_refusal = reason
            row.requests.add(1, second)


# Most requests come from a few.


@lru_cache(maxsize=256)
def _name(name: str) -> Name:
    return Name(name)


@lru_cache(maxsize=256)
def _address(address: str) -> Name:
    return Name(client_key(address))


def data_bytes(datas: Iterable[bytes]) -> int:
    """The bytes of the data of some events."""
    return sum(map(len, datas))
