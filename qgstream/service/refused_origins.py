"""Origins whose pages may not read the answers. "Blocked by CORS" stands in a browser's console, and nowhere else."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from qgstream.logs import SELDOM_SECONDS, log, quote
from qgstream.net import cors
from qgstream.net.cors import CorsSettings

_MAX_CHARACTERS = 200


class RefusedOrigins:
    """Writes a line for each of these origins, at most one in a minute. Anybody may send any origin, so there are at
    most `MAX_ORIGINS` lines in a minute."""

    MAX_ORIGINS = 20

    def __init__(self, *, seconds: float = SELDOM_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._said_at: OrderedDict[str, float] = OrderedDict()  # the oldest first

    def see(self, origin: str, settings: CorsSettings) -> None:
        """A page of another origin has asked."""
        if cors.is_allowed(settings, origin):
            return
        origin, now = quote(origin, _MAX_CHARACTERS), self._clock()
        while self._said_at and now - next(iter(self._said_at.values())) >= self._seconds:
            self._said_at.popitem(last=False)
        if origin in self._said_at or len(self._said_at) >= self.MAX_ORIGINS:
            return
        self._said_at[origin] = now
        log.info(
            "cors.refused",
            extra={"origin": origin, "change": "if its pages may read, add the origin to cors.allow_origins"},
        )
