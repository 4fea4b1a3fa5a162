"""`/admin/publishers` and `/admin/talkers`: the clients that publish, and the clients that send the most requests."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable

from qgstream.http.admin.base import AdminHandler
from qgstream.logs import utc_iso
from qgstream.talkers import Name, PublisherKind, Row, Talkers

_MAX_LIMIT = 1000
# A row takes about 10 us.
_ROWS_PER_LOOK = 32


class PublishersHandler(AdminHandler):
    """The publishers, by the name of the key, the subject of the token, or the source."""

    parameters = ("limit",)

    async def get(self) -> None:
        """Return at most `limit` publishers; those with the most events now come first."""
        limit = self.whole("limit", 100, low=1, high=_MAX_LIMIT)
        self.answer(await self.service.hub.slices.result(_publishers(self.service.hub.talkers, limit)))


class TalkersHandler(AdminHandler):
    """The clients with the most requests, by address, key, user and agent. Refused requests are counted too."""

    parameters = ("limit",)

    async def get(self) -> None:
        """Return at most `limit` of each; those with the most requests now come first."""
        limit = self.whole("limit", 20, low=1, high=_MAX_LIMIT)
        self.answer(await self.service.hub.slices.result(_talkers(self.service.hub.talkers, limit)))


_Job = Generator[None, None, dict[str, object]]


def _publishers(talkers: Talkers, limit: int) -> _Job:
    most = talkers.publishers.most(limit, time.monotonic(), by_events=True)
    yield
    found: list[dict[str, object]] = []
    yield from _describe(((_publisher(kind, name), row) for (kind, name), row in most), found)
    return {"publishers": found, "told_apart": len(talkers.publishers)}


def _publisher(kind: PublisherKind, name: Name) -> dict[str, object]:
    return {"kind": kind, "name": name.name, "issuer": name.issuer}


def _talkers(talkers: Talkers, limit: int) -> _Job:
    document: dict[str, object] = {}
    for kind, tally in talkers.by.items():
        most = tally.most(limit, time.monotonic())
        yield
        found: list[dict[str, object]] = []
        yield from _describe((({"name": name.name, "issuer": name.issuer}, row) for name, row in most), found)
        document[kind] = found
    return document | {"told_apart": {kind: len(tally) for kind, tally in talkers.by.items()}}


def _describe(
    rows: Iterable[tuple[dict[str, object], Row]], found: list[dict[str, object]]
) -> Generator[None, None, None]:
    # Rows are still counted while this job waits between two slices, so the time is read again.
    for number, (named, row) in enumerate(rows, 1):
        now, unix_now = time.monotonic(), time.time()
        found.append({
            **named,
            "events_per_second": round(row.events_per_second(now), 3),
            "requests_per_second": round(row.requests.per_second(now), 3),
            "publishes": row.publishes,
            "publishes_refused": row.publishes_refused,
            "events": row.events,
            "bytes": row.bytes,
            "streams": row.streams,
            "streams_refused": row.streams_refused,
            "others_refused": row.others_refused,
            "last_refusal": row.last_refusal,
            "first_seen": utc_iso(unix_now - (now - row.first_at)),
            "last_seen": utc_iso(unix_now - (now - row.last_at)),
        })  # fmt: skip
        if not number % _ROWS_PER_LOOK:
            yield
