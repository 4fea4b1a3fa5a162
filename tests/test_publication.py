"""Positions: opaque to clients, exact to us."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream.publication import Position, Publication

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


def test_a_publication_weighs_its_data_twice_and_itself() -> None:
    small, large = Publication(("a",), b"x"), Publication(("a",), b"x" * 1001)
    assert large.size_bytes - small.size_bytes == 2000
    assert small.size_bytes > 2
