"""Logs: one JSON object a line, or text on a terminal, and nothing secret in it."""

from __future__ import annotations

import errno
import logging
import os
import re
import select
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal, TextIO, get_args

from pydantic import Field
from pythonjsonlogger.core import RESERVED_ATTRS as _RESERVED_ATTRS
from pythonjsonlogger.msgspec import MsgspecFormatter

from qgstream import terminal
from qgstream.settings import Section

# One logger for each audience: operators read `qgstream`; `qgstream.access` has one line for each plain HTTP request.
log = logging.getLogger("qgstream")
access_log = logging.getLogger("qgstream.access")

RESERVED_ATTRS = frozenset(_RESERVED_ATTRS)

_SECRET = re.compile(r"(?i)(bearer\s+|(?:access_token|token|authorization|api_key|key)=)[^&\s\"',]+")


# The time between two log lines about the same thing, if it may happen at any rate.
SELDOM_SECONDS = 60.0


class LogThrottle:
    """Decides when a repeated log line is due: the first time, and then once in `seconds`."""

    def __init__(self, seconds: float = SELDOM_SECONDS) -> None:
        self._seconds = seconds
        self._said_at: float | None = None

    def is_due(self) -> bool:
        """Return whether to write the line now. If so, the next line is due after `seconds`."""
        now = time.monotonic()
        if self._said_at is not None and now - self._said_at < self._seconds:
            return False
        self._said_at = now
        return True


LogFormat = Literal["auto", "json", "text"]


class LogSettings(Section):
    """`[log]`: the server's log."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    env: str = Field("production", description="Value of `env` in every line.")
    format: LogFormat = Field(
        "auto",
        description="'json' is one JSON object a line, 'text' short lines for people; 'auto' is 'text' when standard "
        "error is a terminal, and 'json' everywhere else. NO_COLOR in the environment turns colours off.",
    )


def scrub(text: str) -> str:
    """Remove tokens from URLs and headers in the text."""
    return _SECRET.sub(r"\1[secret]", text)


def printable(text: str, max_characters: int) -> str:
    """Return the start of a text in a form that is safe for a screen: control characters, line separators, changes of
    direction and lone surrogates are escaped (`\\x1b`, `\\u202e`)."""
    return terminal.escape(text[:max_characters])[:max_characters]


def quote(text: str, max_characters: int) -> str:
    """Return the start of a text from a client, without tokens, in `printable` form."""
    # Cut before the search: a header may have a megabyte. A cut token still follows its name, so the search finds it.
    return printable(scrub(text[:max_characters]), max_characters)


def excerpt(names: Iterable[str], max_names: int = 10, max_characters: int = 512) -> list[str]:
    """Return the first of these names, in order, up to both limits."""
    found: list[str] = []
    for name in sorted(names)[:max_names]:
        max_characters -= len(name)
        if max_characters < 0:
            break
        found.append(name)
    return found


class Formatter(MsgspecFormatter):
    """Formats a log line: `timestamp`, `level`, `event`, `env`, and the fields of the line; a traceback as
    `exc_info`."""

    def __init__(self, env: str) -> None:
        super().__init__()
        self.env = env

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Called by the library for each line, to add the fields in this order."""
        event = record.message
        log_data["timestamp"] = utc_iso(record.created)
        log_data["level"] = record.levelname.lower()
        log_data["event"] = scrub(event) if " " in event or "=" in event else event
        log_data["env"] = self.env
        if record.name != log.name:
            log_data["logger"] = record.name
        for name, value in record.__dict__.items():
            if name not in RESERVED_ATTRS and name not in log_data:
                log_data[name] = value
        if "exc_info" in message_dict:
            log_data["exc_info"] = scrub(str(message_dict["exc_info"]))


class TextFormatter(Formatter):
    """The same fields for people."""

    def __init__(self, env: str, stream: TextIO) -> None:
        super().__init__(env)
        self._colours = terminal.colours(stream)
        self._with_date = not terminal.is_terminal(stream)

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        """Called by the library for each line, with what `add_fields` has put into it."""
        return terminal.log_line(log_data, self._colours, with_date=self._with_date)


# Why a line was lost. `failed` is any other error, or a record that cannot be formatted.
LostReason = Literal["disk_full", "reader_gone", "reader_slow", "failed"]
LOST_REASONS: tuple[LostReason, ...] = get_args(LostReason)
# EFBIG: the file has the maximum size of the process (RLIMIT_FSIZE) or of its file system.
_LOST_BY: Mapping[int, LostReason] = {
    errno.ENOSPC: "disk_full", errno.EDQUOT: "disk_full", errno.EFBIG: "disk_full", errno.EPIPE: "reader_gone",
    errno.EAGAIN: "reader_slow",
}  # fmt: skip


class LineHandler(logging.Handler):
    """Writes lines to a file descriptor whose reader may be gone or may have stopped reading.

    A pipe without a reader holds 64 KiB, the lines of two hundred streams. The next write would then block the event
    loop, and all streams, for ever. Instead, a line waits briefly for room. If there is still no room, lines are
    dropped without waiting until there is room again. The next line that fits follows a line with the number of dropped
    lines.

    A budget limits all waiting together. Otherwise a reader that takes each line just in time could block the loop most
    of the time. While the budget is empty, a line without room is dropped at once.
    """

    # poll(2) reports room for this many bytes, which a pipe accepts as a whole (pipe(7), PIPE_BUF).
    _PIECE_BYTES = select.PIPE_BUF
    # The full budget: long enough for a reader that is only late, short enough to block the event loop once.
    PATIENCE_MS = 100.0
    # The budget grows by this much each second: a slow reader blocks the event loop for at most 2 % of the time.
    PATIENCE_MS_PER_SECOND = 20.0
    # The lines lost by all handlers of this process; a reload creates another handler.
    lost_totals: ClassVar[Counter[LostReason]] = Counter()

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._patience_ms = self.PATIENCE_MS
        self._counted_at = time.monotonic()
        self._is_stuck = False
        self._is_cut = False  # a line is partly written
        self._lost = 0
        self._lost_by: LostReason = "failed"  # the reason of the last loss

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line, or count the line as lost."""
        if self._lost and self._poll.poll(0):
            lost, self._lost = self._lost, 0
            # A nested call of this method writes this line.
            log.warning("log.lines_lost", extra={"lines": lost, "reason": self._lost_by})
            if self._lost:  # the line about lost lines was lost too, and does not count
                self._lost = lost
                LineHandler.lost_totals[self._lost_by] -= 1
        try:
            text = self.format(record) + "\n"
        except Exception:  # noqa: BLE001  # as in every handler: a broken record must not raise
            LineHandler.lost_totals["failed"] += 1
            self.handleError(record)
            return
        reason = self._write(("\n" + text if self._is_cut else text).encode("utf-8", "backslashreplace"))
        if reason is not None:
            self._lost += 1
            self._lost_by = reason
            LineHandler.lost_totals[reason] += 1

    def _write(self, data: bytes) -> LostReason | None:
        """Write a line. Return why the line was not written completely, or None."""
        reason: LostReason | None = None
        rest = memoryview(data)
        while rest:
            if not self._poll.poll(0) and not self._wait():
                self._is_stuck, reason = True, "reader_slow"
                break
            try:
                rest = rest[os.write(self._descriptor, rest[: self._PIECE_BYTES]) :]
            except OSError as error:
                reason = _LOST_BY.get(error.errno or 0, "failed")
                break
            self._is_stuck = False
        if len(rest) < len(data):
            self._is_cut = bool(rest)
        return reason

    def _wait(self) -> bool:
        """Wait for room as long as the budget allows. Return whether there is room."""
        if self._is_stuck:
            return False
        began = time.monotonic()
        earned_ms = (began - self._counted_at) * self.PATIENCE_MS_PER_SECOND
        self._patience_ms = min(self.PATIENCE_MS, self._patience_ms + earned_ms)
        self._counted_at = began
        has_room = bool(self._poll.poll(max(0, int(self._patience_ms))))
        self._patience_ms -= (time.monotonic() - began) * 1000
        return has_room


def lost_lines() -> Mapping[LostReason, int]:
    """The number of lines lost since the start of this process, by reason."""
    return {reason: LineHandler.lost_totals[reason] for reason in LOST_REASONS}


_CLIENTS_FAULTS = ("SSL Error on", "error on read", "Write error on")


def _clients_fault(record: logging.LogRecord) -> bool:
    # Tornado's warnings about failed handshakes and broken TLS records, which any client can cause at any rate.
    if record.levelno == logging.WARNING and record.getMessage().startswith(_CLIENTS_FAULTS):
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
    return logging.getLogger().isEnabledFor(record.levelno)


def _handler(stream: TextIO) -> logging.Handler:
    try:
        return LineHandler(stream.fileno())
    except (AttributeError, OSError):  # a closed stream, or not a file
        return logging.StreamHandler(stream)


def is_text(settings: LogSettings, stream: TextIO | None = None) -> bool:
    """Whether the log on `stream` (standard error) is text for people."""
    return settings.format == "text" or (settings.format == "auto" and terminal.is_terminal(stream or sys.stderr))


def configure(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send every logger's lines to `stream` (standard error), see `LogSettings.format`. For a server's process, not for
    a library."""
    stream = stream or sys.stderr
    handler = _handler(stream)
    formatter = TextFormatter(settings.env, stream) if is_text(settings, stream) else Formatter(settings.env)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    # The logging HOWTO's "Optimization": the lines contain none of these, and collecting them costs as much as writing
    # a line.
    logging._srcfile = None  # noqa: SLF001  # documented there under this name
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # Tornado logs clients' malformed requests at info. This server reports slow callbacks itself, so asyncio's lines
    # are off.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("tornado.general").addFilter(_clients_fault)


def utc_iso(timestamp: float) -> str:
    """Format a Unix time as ISO 8601 in UTC with microseconds: `2025-12-10T09:30:00.000000+00:00`."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="microseconds")
