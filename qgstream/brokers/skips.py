"""Entries of a log that cannot be read: they are passed over, counted, and said in the log of the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from qgstream.errors import QgstreamError
from qgstream.logs import Seldom, log

_T = TypeVar("_T")


class Skips:
    """Counts what one broker passes over. The log has a line about it at once, and then at most one a minute.

    `explain` makes the reason fit for the log.
    """

    def __init__(self, broker: str, explain: Callable[[Exception | str], str] = str) -> None:
        self.count = 0
        self._broker = broker
        self._explain = explain
        self._seldom = Seldom()

    def read(self, offset: int, entry: Callable[[], _T]) -> _T | None:
        """What `entry()` returns, or None when it raises.

        Anybody may have written the entry, and whatever is wrong with it, it must not keep readers from what follows.
        """
        try:
            return entry()
        except Exception as error:  # noqa: BLE001
            self.skip(offset, error)
            return None

    def skip(self, offset: int, problem: Exception | str) -> None:
        """Pass over what is at this offset."""
        self.count += 1
        if not self._seldom.is_due():
            return
        # Parsers raise what says what was expected. Anything else is a gap in a parser, and its trace shows where.
        is_known = isinstance(problem, QgstreamError | str)
        reason = self._explain(problem if is_known else f"{type(problem).__name__}: {problem}")
        said = {"broker": self._broker, "offset": offset, "reason": reason, "skipped": self.count}
        log.warning("broker.skipped", extra=said, exc_info=None if isinstance(problem, str) or is_known else problem)
