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
    "kicked",  # an operator
    "drain",  # the server is leaving
    "server_error",  # a fault of the server's own
]
CLOSE_REASONS: Final[tuple[CloseReason, ...]] = get_args(CloseReason)

RejectReason = Literal[
    "max_connections", "max_connections_per_ip", "connect_rate_per_ip", "draining", "max_sockets", "unauthorized",
    "broker_down", "auth_unavailable",
]  # fmt: skip
REJECT_REASONS: Final[tuple[RejectReason, ...]] = get_args(RejectReason)

ReplayResult = Literal["none", "complete", "too_old", "unknown_id", "epoch_changed"]
REPLAY_RESULTS: Final[tuple[ReplayResult, ...]] = get_args(ReplayResult)

Transport = Literal["sse", "websocket"]
TRANSPORTS: Final[tuple[Transport, ...]] = get_args(Transport)
