"""The server's own messages, as `onmessage` gets them."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from qgstream.reasons import CLOSE_REASONS, REJECT_REASONS, CloseReason, RejectReason
from qgstream.wire import messages
from qgstream.wire.framing import Message
from qgstream.wire.sse import Event, Parser

NOW = 1765359000.5


def parsed(message: Message) -> tuple[Event, dict[str, str]]:
    (event,) = Parser().feed(message.as_sse())
    return event, json.loads(event.data)


def test_connected_is_byte_for_byte_what_the_contract_shows() -> None:
    assert messages.connected(NOW, id="e-1", replay="none", retry_ms=3000).as_sse() == (
        b"retry: 3000\nid: e-1\n"
        b'data: {"event": "connected", "timestamp": "2025-12-10T09:30:00.500000+00:00", "replay": "none", '
        b'"topics": ["*"]}\n\n'
    )


def test_every_message_is_a_plain_message_with_its_name_and_time() -> None:
    cases = [
        ("connected", messages.connected(NOW, id="e-1", replay="complete", retry_ms=1)),
        ("reset", messages.reset(NOW, id="e-1", reason="too_old")),
        ("heartbeat", messages.heartbeat(NOW, id="e-1")),
        ("heartbeat", messages.heartbeat(NOW, id=None)),
        *(("closing", messages.closing(NOW, reason=reason, retry_ms=1)) for reason in CLOSE_REASONS),
        *(("rejected", messages.rejected(NOW, reason=reason, retry_ms=1)) for reason in REJECT_REASONS),
    ]
    for name, message in cases:
        event, data = parsed(message)
        assert event.event == "message"
        assert data["event"] == name
        assert datetime.fromisoformat(data["timestamp"]) == datetime.fromtimestamp(NOW, UTC)


@pytest.mark.parametrize("reason", CLOSE_REASONS)
def test_a_goodbye_says_why_and_when_to_come_back(reason: CloseReason) -> None:
    event, data = parsed(messages.closing(NOW, reason=reason, retry_ms=4321))
    assert (data["reason"], event.retry_ms) == (reason, 4321)


@pytest.mark.parametrize("reason", REJECT_REASONS)
def test_a_refusal_says_why_and_when_to_come_back(reason: RejectReason) -> None:
    event, data = parsed(messages.rejected(NOW, reason=reason, retry_ms=4321))
    assert (data["reason"], event.retry_ms) == (reason, 4321)


def test_only_who_is_told_a_position_moves_to_it() -> None:
    assert parsed(messages.heartbeat(NOW, id="e-9"))[0].id == "e-9"
    assert parsed(messages.heartbeat(NOW, id=None))[0].id == ""
    assert parsed(messages.reset(NOW, id=None, reason="unknown_id"))[0].id == ""
