"""The vocabulary of streams: each reason is the same word in messages, log lines and metric labels."""

from __future__ import annotations

from typing import Final, Literal, get_args

CloseReason = Literal[
    "client",  # the client closed the connection, or its connection was reset
    "slow_consumer",  # the backlog exceeded limits.max_backlog_bytes or max_total_backlog_bytes
    "write_error",  # a send failed
    "timeout",  # the client acknowledged nothing for limits.tcp_user_timeout_seconds
    "max_age",  # limits.max_connection_age_seconds
    "token_expired",  # the token that opened the stream expired
    "access_changed",  # after a reload, the credentials, the topics or the page's origin are no longer allowed
    "kicked",  # an operator ended the stream, or banned its client
    "drain",  # the server is draining, or an operator moves the stream to another server
    "server_error",  # an error in the server
]
CLOSE_REASONS: Final[tuple[CloseReason, ...]] = get_args(CloseReason)

RejectReason = Literal[
    "max_connections", "max_connections_per_ip", "connect_rate_per_ip", "draining", "max_sockets", "unauthorized",
    "broker_down", "auth_unavailable", "maintenance", "banned", "auth_failure_rate_per_ip",
]  # fmt: skip
REJECT_REASONS: Final[tuple[RejectReason, ...]] = get_args(RejectReason)

# The result of a publish over HTTP (`POST /events`); each publish counts once.
PublishResult = Literal[
    "accepted",  # at least one event was appended to the log; other events of the batch may have been there already
    "repeated",  # all events were already in the log, by their idempotency keys
    "bad_request",  # 400 or 415: the body, its type or an event in it is invalid
    "unauthorized",  # 401: the credentials are missing or invalid
    "forbidden",  # 403: the credentials do not allow the publish
    "too_large",  # 413: limits.max_body_bytes or limits.max_event_bytes
    "rate_limited",  # 429: limits.publish_rate_per_key
    "overloaded",  # 503: limits.max_inflight_body_bytes
    "unavailable",  # 503: the broker or the issuer's keys are unreachable
    "draining",  # 503: the server is draining, or in a maintenance without publishes
    "incomplete",  # the client disconnected or violated HTTP before the whole request arrived
    "failed",  # 500: an error in the server
]
PUBLISH_RESULTS: Final[tuple[PublishResult, ...]] = get_args(PublishResult)

# Why a stream cannot resume from the client's id.
ResetReason = Literal["too_old", "unknown_id", "epoch_changed"]
ReplayResult = Literal["none", "complete", "too_old", "unknown_id", "epoch_changed"]
REPLAY_RESULTS: Final[tuple[ReplayResult, ...]] = get_args(ReplayResult)

BanKind = Literal["address", "network", "key", "user", "token"]
BAN_KINDS: Final[tuple[BanKind, ...]] = get_args(BanKind)

Transport = Literal["sse", "websocket"]
TRANSPORTS: Final[tuple[Transport, ...]] = get_args(Transport)
