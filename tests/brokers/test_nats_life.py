"""What a stream's description says of the log, and what a witness proves."""

from __future__ import annotations

from typing import Any

import pytest

from qgstream.brokers.nats.life import Life, bounds, epoch
from qgstream.brokers.vouching import MAX_EARLIER


def info(description: str | None = None, **state: int) -> dict[str, Any]:
    config = {"name": "s"} | ({} if description is None else {"description": description})
    return {
        "config": config,
        "created": "1970-01-01T00:00:00.000000042Z",
        "state": {"messages": 0, "last_seq": 9} | state,
    }


@pytest.mark.parametrize(
    "life",
    [
        Life("a"),
        Life("7c1k9a", (812, 1764300000000000000)),
        Life("7c1k9a", None, {"b": 3, "c": 0}),
        Life("7c1k9a", (0, 0), {"b": 3}),
    ],
)
@pytest.mark.parametrize("description", [None, "", "theirs", "The log. (epoch 3)", "x (epoch a until 1@2 after b-3)"])
def test_a_life_is_read_as_it_was_written(life: Life, description: str | None) -> None:
    config = life.described(info(description)["config"])
    assert Life.of(config) == life
    assert config["name"] == "s"
    assert config["description"].startswith((description or "").partition("(")[0].strip())
    assert config["description"].count("(epoch") == 1


@pytest.mark.parametrize(
    "description",
    [None, "", "theirs", "(epoch )", "(epoch a) and more", "(epoch a until 5)", "(epoch a until x@y)", "(epoch a-b)"],
)
def test_what_is_no_life_is_none(description: str | None) -> None:
    assert Life.of(info(description)["config"]) == Life()
    assert epoch(info(description)) == "16"


def test_an_epoch_is_the_time_of_a_stream_and_its_life() -> None:
    assert epoch(info("theirs (epoch 3)")) == "16.3"
    assert bounds(info("(epoch 3)")) == ("16.3", 9, 9)
    assert bounds(info(messages=4, first_seq=6)) == ("16", 5, 9)


def test_those_who_begin_a_life_at_the_same_time_give_it_the_same_name() -> None:
    witness = {"created": "2026-11-28T03:02:47.118284711Z"}
    life = Life("a", (5, 1), {"b": 3})
    new = life.next(witness, 5)
    assert new == life._replace(ended=None).next(witness, 5)
    assert (new.ended, new.earlier) == (None, {"a": 5, "b": 3})
    assert life.next(witness, None).earlier == {}
    # In another run of the server, and after another life.
    assert len({new.name, life.next({"created": "2026-11-28T03:02:48Z"}, 5).name, new.next(witness, 5).name, "a"}) == 4


def test_a_description_stays_short() -> None:
    life = Life("0")
    for n in range(100):
        life = life.next({"created": f"{n}"}, 10**18 + n)
    assert len(life.earlier) == MAX_EARLIER
    assert len(life._replace(ended=(10**18, 2 * 10**18)).described({})["description"]) < 300
