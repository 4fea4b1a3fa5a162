"""Unreadable entries of a log: they are skipped, counted and reported in the process's log lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from qgstream.errors import QgstreamError
from qgstream.logs import LogThrottle, log

_T = TypeVar("_T")


class Skips:
    """Counts the entries that one broker skips. The first skip logs a line; later skips log at most one line a minute.

    `explain` makes the reason safe to log.
    """

    def __init__(self, broker: str, explain: Callable[[Exception | str], str] = str) -> None:
        self.count = 0
        self._broker = broker
        self._explain = explain
        self._throttle = LogThrottle()

    def read(self, offset: int, entry: Callable[[], _T]) -> _T | None:
        """Return the result of `entry()`, or None if it raises.

        Any program may have written the entry. A broken entry must not keep readers from later entries.
        """
        try:
            return entry()
        except Exception as error:  # noqa: BLE001
            self.skip(offset, error)
            return None

    def skip(self, offset: int, problem: Exception | str) -> None:
        """Skip the entry at this offset."""
        self.count += 1
        if not self._throttle.is_due():
            return
        # Parsers raise these with a description. Any other exception is a bug in a parser, and its traceback shows
        # where.
        is_known = isinstance(problem, QgstreamError | str)
        reason = self._explain(problem if is_known else f"{type(problem).__name__}: {problem}")
        said = {"broker": self._broker, "offset": offset, "reason": reason, "skipped": self.count}
        log.warning("broker.skipped", extra=said, exc_info=None if isinstance(problem, str) or is_known else problem)
