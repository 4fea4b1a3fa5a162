"""Maintenance: the process runs without clients until an operator admits clients again."""

from __future__ import annotations

import time

from qgstream.errors import Conflict, Unavailable
from qgstream.hub import Hub
from qgstream.service.evictions import Eviction, Evictions


class Maintenance:
    """Refuses new streams, and ends open streams over a period. With `takes_publishes`, events are still accepted."""

    def __init__(self, hub: Hub, evictions: Evictions) -> None:
        self._hub = hub
        self._evictions = evictions
        self._eviction: Eviction | None = None
        self.takes_publishes = True
        self.since: float | None = None  # Unix seconds

    @property
    def is_on(self) -> bool:
        """Whether maintenance is in effect."""
        return self._hub.maintenance

    def begin(self, seconds: float, *, takes_publishes: bool) -> None:
        """Refuse new streams from now on, and end the open streams over `seconds`. A second call changes both
        arguments.

        Raises `Conflict` while the server is draining.
        """
        if self._hub.draining:
            raise Conflict("maintenance", "the server is draining, which cannot be undone")
        for other in self._evictions:
            self._evictions.cancel(other)  # this eviction ends their streams, too
        self._eviction = self._evictions.begin([one.id for one in self._hub.registry], seconds, "maintenance")
        self._hub.maintenance, self.takes_publishes = True, takes_publishes
        self.since = self.since or time.time()

    def end(self) -> bool:
        """Admit clients again; streams that have not ended yet stay open. Returns whether maintenance was in effect."""
        was_on = self.is_on
        self._hub.maintenance, self.takes_publishes, self.since = False, True, None
        if self._eviction is not None and self._evictions.get(self._eviction.id) is self._eviction:
            self._evictions.cancel(self._eviction)
        self._eviction = None
        return was_on

    def check_publish(self, retry_after_seconds: float) -> None:
        """Raise `Unavailable` when events are not accepted."""
        if not self.takes_publishes:
            raise Unavailable(
                "the server is under maintenance and accepts no events",
                retry_after_seconds=retry_after_seconds, code="maintenance",
            )  # fmt: skip
