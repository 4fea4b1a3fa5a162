"""A JetStream stream as the log: its configuration, and the check of a stream that others created. Pure.

The documents are those of the JetStream API in JSON, with times in nanoseconds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from qgstream.brokers.base import IDEMPOTENCY_SECONDS
from qgstream.brokers.options import TlsOptions
from qgstream.brokers.remote import longest_seconds
from qgstream.events.history import HistorySettings
from qgstream.limits import MIB

Document = Mapping[str, Any]

STREAM = "qgstream"
# The description of a stream created by qgstream: its limits follow this server's settings. Other streams keep their
# limits.
OURS = "The log of events of qgstream."
# JetStream counts the bytes of the whole stream; a limit below one message would keep no message.
MIN_BYTES = MIB
_PREFIX = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


class Options(TlsOptions):
    """The options in the query of the URL."""

    prefix: str = Field(STREAM, description="The subjects of the log are `<prefix>.<topic>`.")
    max_events: int | None = Field(None, ge=0, description="Replaces history.max_events, in the stream.")
    max_bytes: int | None = Field(None, ge=0, description="Replaces history.max_bytes, in the stream.")
    max_age_seconds: float | None = Field(None, gt=0, description="Replaces history.max_age_seconds, in the stream.")
    replicas: int = Field(1, ge=1, le=5, description="Cluster servers that hold a stream that the server creates.")

    @field_validator("prefix")
    @classmethod
    def _is_subject(cls, prefix: str) -> str:
        if not _PREFIX.fullmatch(prefix):
            raise ValueError(f"got {prefix!r}, expected words of letters, digits, _ and -, with dots between them")
        return prefix


def to_make(name: str, options: Options, history: HistorySettings) -> Document:
    """Return the configuration of a new stream."""
    return {
        "name": name,
        "subjects": [f"{options.prefix}.>"],
        "description": OURS,
        "retention": "limits",
        "discard": "old",
        "storage": "file",
        "num_replicas": options.replicas,
        "duplicate_window": nanoseconds(IDEMPOTENCY_SECONDS),
        **_limits(options, history),
    }


def _limits(options: Options, history: HistorySettings) -> dict[str, Any]:
    max_events = history.max_events if options.max_events is None else options.max_events
    max_bytes = history.max_bytes if options.max_bytes is None else options.max_bytes
    max_age_seconds = options.max_age_seconds or longest_seconds(history)
    return {
        # In JetStream, 0 means no limit, and an age below the window of idempotency keys is an error.
        "max_msgs": max(max_events, 1),
        "max_bytes": max(max_bytes, MIN_BYTES),
        "max_age": nanoseconds(max(max_age_seconds, IDEMPOTENCY_SECONDS)),
    }


def with_limits(config: Document, options: Options, history: HistorySettings) -> Document:
    """Return the configuration that a stream should have. It differs only for a stream that qgstream created."""
    is_ours = str(config.get("description", "")).startswith(OURS)
    return {**config, **_limits(options, history)} if is_ours else config


def check(config: Document, options: Options) -> None:
    """Raise `OSError` for a stream, created by others, in which events would disappear without a trace."""
    name, wanted = config["name"], f"{options.prefix}.>"
    subjects = config.get("subjects") or []
    if wanted not in subjects and ">" not in subjects:
        raise OSError(f"the stream {name} has the subjects {subjects}, expected {wanted} among them")
    if config.get("retention", "limits") != "limits":
        raise OSError(f"the stream {name} has the retention {config['retention']!r}, expected 'limits'")
    if config.get("max_msgs_per_subject", -1) > 0:
        raise OSError(
            f"the stream {name} keeps max_msgs_per_subject = {config['max_msgs_per_subject']}: "
            "expected -1, because clients cannot be told about messages missing in the middle"
        )


def max_message_bytes(config: Document) -> int:
    """Return the maximum size of a message, with its headers, in the stream."""
    limit: int = config.get("max_msg_size", -1)
    return limit if limit >= 0 else sys.maxsize


def check_room(info: Document) -> None:
    """Raise `OSError` for a full stream that refuses new messages instead of discarding old ones."""
    config, state = info["config"], info["state"]
    if config.get("discard") == "new":
        for limit, used in (("max_msgs", "messages"), ("max_bytes", "bytes")):
            if 0 < config.get(limit, -1) <= state[used]:
                raise OSError(f"the stream {config['name']} is full: {limit} = {config[limit]}")


def nanoseconds(seconds: float) -> int:
    """Convert seconds to JetStream's nanoseconds."""
    return int(seconds * 10**9)
