"""What the rights of open streams rest on, and which streams lose theirs when a reload changes that."""

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

# How many streams are judged between two looks at the clock; a token takes about 3 us.
_VISITS = 64
_GOODBYES = 4


class Access(NamedTuple):
    """Why a stream was let in, as far as that may change: who asked, and the page of another origin that
    `cors.allow_origins` let in (None: no such page). `with_cookie`: that page may use its visitor's cookie, and did.
    """

    principal: Principal
    origin: str | None = None
    with_cookie: bool = False

    def holds(self, auth: Authenticator, settings: CorsSettings) -> bool:
        """Whether the stream would still be let in."""
        if self.principal.subscribe and not auth.still_accepts(self.principal):
            return False  # without grants it hears what everybody may hear
        if self.origin is None:
            return True
        return cors.is_allowed(settings, self.origin) and (settings.allow_credentials or not self.with_cookie)


@lru_cache(maxsize=256)
def _of_page(origin: str) -> Access:
    return Access(ANONYMOUS, origin)  # one object for all streams of its pages


class AccessList:
    """The access of each open stream that can lose it. An anonymous stream without an origin is not in it: what
    that hears depends on `auth.private_topics` alone, which its feed asks at each delivery."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._of: dict[Connection, Access] = {}
        hub.on_close.append(self._forget)

    def __len__(self) -> int:
        return len(self._of)

    def remember(
        self, connection: Connection, principal: Principal, origin: str | None, settings: CorsSettings
    ) -> None:
        """A stream was opened for `principal`, by a page of another origin unless that is None."""
        if origin is not None and not cors.is_allowed(settings, origin):
            origin = None  # no page: its browser would not have let it read
        if principal.kind != "anonymous":
            with_cookie = (
                origin is not None
                and settings.allow_credentials
                and principal.is_by_cookie
                and bool(principal.subscribe)  # else the cookie gave it nothing
            )
            self._of[connection] = Access(principal, origin, with_cookie)
        elif origin is not None:
            self._of[connection] = _of_page(origin)

    def _forget(self, connection: Connection) -> None:
        self._of.pop(connection, None)

    def end_banned(
        self, ban_of: Callable[[str, Principal], Ban | None], retry_ms: Callable[[Ban], int]
    ) -> Generator[None, None, int]:
        """End every stream whose client is banned (`ban_of` knows, by address and principal), and return how many those
        were. A job for `Slices.result`."""
        hub, ended = self._hub, 0
        for visit, connection in enumerate(hub.registry, 1):
            access = self._of.get(connection)
            ban = ban_of(connection.ip, ANONYMOUS if access is None else access.principal)
            if ban is not None and connection.is_open and connection.reason is None:
                hub.end(connection, "kicked", retry_ms=retry_ms(ban))
                ended += 1
                if not ended % _GOODBYES:
                    yield
            elif not visit % _VISITS:
                yield
        return ended

    def review(self, holds: Callable[[Access], bool]) -> Iterator[None]:
        """End every stream that would not be let in now; `holds` judges an access. A job for `Slices`: there may be
        thousands.

        A topic that has become private is held back from every stream already: here only those streams are ended that
        would now be refused for what they asked.
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
