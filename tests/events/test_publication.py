"""Positions: opaque to clients, exact to us."""

from __future__ import annotations

import json
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.events.draft import parse_json
from qgstream.events.history import HistorySettings, Window
from qgstream.events.publication import Position

EPOCHS = st.text("abzAZ09._~", min_size=1, max_size=40)


@given(EPOCHS, st.integers(0, 10**19 - 1))
def test_a_position_survives_its_trip_to_the_client(epoch: str, offset: int) -> None:
    position = Position(epoch, offset)
    assert Position.parse(str(position)) == position
    # Anything else, or more than that, and a browser preflights a cross-origin reconnect (Fetch, CORS-safelisted).
    assert re.fullmatch("[A-Za-z0-9._~-]{1,64}", str(position))


@given(st.text())
def test_any_text_parses_or_is_no_position(text: str) -> None:
    position = Position.parse(text)
    assert position is None or str(position).partition("-")[0] == text.partition("-")[0]


@pytest.mark.parametrize(
    "text", ["", "-", "a", "a-", "-1", "a-b", "a--1", "a-1 ", " a-1", "a-1\n", "a-٣", "a" * 41 + "-1", "a-" + "1" * 20]
)
def test_what_is_no_id_of_ours(text: str) -> None:
    assert Position.parse(text) is None


@pytest.mark.parametrize(
    ("topics", "size", "text", "event", "key"),
    [
        (1, 100, "x", None, False), (1, 0, "x", None, False), (64, 10, "x", None, False), (64, 10, "ж", "ново", True),
        (1, 4000, "x", "created", False), (2, 100, "ж", "created", True), (1, 20_000, "ж", None, False),
    ],
)  # fmt: skip
def test_what_a_window_says_it_holds_is_what_it_holds(
    topics: int, size: int, text: str, event: str | None, key: bool
) -> None:
    window = Window(HistorySettings(max_events=10**6, max_bytes=10**9), Position("log", 0))
    names = f"user/{text}/%d/%d"
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for offset in range(1, 1001):
            body = {
                "topic": [names % (offset, number) for number in range(topics)], "data": text * size, "event": event,
                "idempotency_key": str(offset) if key else None,
            }  # fmt: skip
            encoded = json.dumps(body, ensure_ascii=False).encode()
            publication = parse_json(encoded, 10**6, namespace=b"n" * 32)
            publication.offset, publication.published_at = offset, 1_800_000_000.5 + offset
            window.append(publication, 5000.5 + offset)
        del body, encoded, publication
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert window.size_bytes / 1.5 < held < window.size_bytes * 1.2
