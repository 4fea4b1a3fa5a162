"""The vocabulary of streams: one word each for message, log line and metric label."""

from __future__ import annotations

from typing import Final, Literal, get_args

CloseReason = Literal[
    "client",  # the client closed, or its side was reset
    "slow_consumer",  # further behind than limits.max_backlog_bytes or max_total_backlog_bytes
    "write_error",  # a send failed
    "timeout",  # nothing was acknowledged for limits.tcp_user_timeout_seconds
    "max_age",  # limits.max_connection_age_seconds
    "token_expired",  # the token that opened the stream
    "access_changed",  # a reload: its credentials, its topics or the origin of its page are no longer allowed
    "kicked",  # an operator ended it, or has banned its client
    "drain",  # the server is leaving, or an operator moves the stream elsewhere
    "server_error",  # a fault of the server's own
]
CLOSE_REASONS: Final[tuple[CloseReason, ...]] = get_args(CloseReason)

RejectReason = Literal[
    "max_connections", "max_connections_per_ip", "connect_rate_per_ip", "draining", "max_sockets", "unauthorized",
    "broker_down", "auth_unavailable", "maintenance", "banned", "auth_failure_rate_per_ip",
]  # fmt: skip
REJECT_REASONS: Final[tuple[RejectReason, ...]] = get_args(RejectReason)

# Of a publish over HTTP (`POST /events`), each counted once.
PublishResult = Literal[
    "accepted",  # taken into the log, or a part of it: the others of the batch were there already
    "repeated",  # all of it was in the log already, by its idempotency keys
    "bad_request",  # 400 or 415: the body, its type or an event in it is wrong
    "unauthorized",  # 401: no credentials, or none that are valid
    "forbidden",  # 403: the credentials do not allow it
    "too_large",  # 413: limits.max_body_bytes or limits.max_event_bytes
    "rate_limited",  # 429: limits.publish_rate_per_key
    "overloaded",  # 503: limits.max_inflight_body_bytes
    "unavailable",  # 503: the broker, or the issuer's keys, cannot be reached
    "draining",  # 503: the server is leaving, or in a maintenance without publishes
    "incomplete",  # the client went away, or broke HTTP, before all of its request had come
    "failed",  # 500: a fault of the server's own
]
PUBLISH_RESULTS: Final[tuple[PublishResult, ...]] = get_args(PublishResult)

# Why a stream cannot resume from the id that its client has.
ResetReason = Literal["too_old", "unknown_id", "epoch_changed"]
ReplayResult = Literal["none", "complete", "too_old", "unknown_id", "epoch_changed"]
REPLAY_RESULTS: Final[tuple[ReplayResult, ...]] = get_args(ReplayResult)

BanKind = Literal["address", "network", "key", "user", "token"]
BAN_KINDS: Final[tuple[BanKind, ...]] = get_args(BanKind)

Transport = Literal["sse", "websocket"]
TRANSPORTS: Final[tuple[Transport, ...]] = get_args(Transport)
