"""The access that each open stream was granted, and the streams that lose this access at a reload."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import lru_cache
from typing import NamedTuple, cast

from qgstream.auth.authenticator import ANONYMOUS, Authenticator, Principal
from qgstream.delivery.connection import Connection
from qgstream.hub import Hub
from qgstream.net import cors
from qgstream.net.cors import CorsSettings
from qgstream.service.bans import Ban

# How many streams a job checks between two looks at the clock. A stream with a token takes about 3 us.
_VISITS = 64
_CLOSINGS = 4


class Access(NamedTuple):
    """The access that a stream was granted: the principal, and the origin of the page that opened the stream.

    `origin` is another origin that `cors.allow_origins` accepted, or None without such a page. `with_cookie` says that
    the page may use its visitor's cookie, and did.
    """

    principal: Principal
    origin: str | None = None
    with_cookie: bool = False

    def holds(self, auth: Authenticator, settings: CorsSettings) -> bool:
        """Return whether the current settings would still admit the stream."""
        if self.principal.subscribe and not auth.still_accepts(self.principal):
            return False  # without grants, a stream receives only public topics
        if self.origin is None:
            return True
        return cors.is_allowed(settings, self.origin) and (settings.allow_credentials or not self.with_cookie)


@lru_cache(maxsize=256)
def _of_page(origin: str) -> Access:
    return Access(ANONYMOUS, origin)  # one object for all streams from this origin


class AccessList:
    """The access of each open stream that can lose it.

    Anonymous streams without an origin are not in this list. Their access depends on `auth.private_topics` alone, and
    their feed checks that at each delivery.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._of: dict[Connection, Access] = {}
        hub.on_close.append(self._forget)

    def __len__(self) -> int:
        return len(self._of)

    def remember(
        self, connection: Connection, principal: Principal, origin: str | None, settings: CorsSettings
    ) -> None:
        """Record that a stream was opened for `principal`; `origin` is the other origin of the page, or None."""
        if origin is not None and not cors.is_allowed(settings, origin):
            origin = None  # not a page: a browser would not have let this page read the stream
        if principal.kind != "anonymous":
            with_cookie = (
                origin is not None
                and settings.allow_credentials
                and principal.is_by_cookie
                and bool(principal.subscribe)  # otherwise the cookie granted nothing
            )
            self._of[connection] = Access(principal, origin, with_cookie)
        elif origin is not None:
            self._of[connection] = _of_page(origin)

    def _forget(self, connection: Connection) -> None:
        self._of.pop(connection, None)

    def end_banned(
        self, ban_of: Callable[[str, Principal], Ban | None], retry_ms: Callable[[Ban], int]
    ) -> Generator[None, None, int]:
        """End every stream whose client is banned, and return the number of these streams.

        `ban_of` finds the ban of an address and a principal. A job for `Slices.result`.
        """
        hub, ended = self._hub, 0
        for visit, connection in enumerate(hub.registry, 1):
            access = self._of.get(connection)
            ban = ban_of(connection.ip, ANONYMOUS if access is None else access.principal)
            if ban is not None and connection.is_open and connection.reason is None:
                hub.end(connection, "kicked", retry_ms=retry_ms(ban))
                ended += 1
                if not ended % _CLOSINGS:
                    yield
            elif not visit % _VISITS:
                yield
        return ended

    def review(self, holds: Callable[[Access], bool]) -> Iterator[None]:
        """End every stream that the current settings would not admit; `holds` checks one access.

        A job for `Slices`, because there may be thousands of streams. Feeds already withhold a topic that has become
        private. This job ends only the streams whose request would now be refused.
        """
        hub = self._hub
        for visit, feed in enumerate(list(hub.router), 1):
            if not feed.subscription.is_allowed:
                for subscriber in [*feed.subscribers, *feed.replaying]:
                    hub.end(cast(Connection, subscriber), "access_changed")
                    yield
            elif not visit % _VISITS:
                yield
        for visit, (connection, access) in enumerate(list(self._of.items()), 1):
            if not holds(access):
                hub.end(connection, "access_changed")
                yield
            elif not visit % _VISITS:
                yield
