"""What servers tell each other in the stream."""

from __future__ import annotations

import pytest

from qgstream.brokers.rabbitmq.marks import Slip, mark_of, says_epoch


@pytest.mark.parametrize(
    "slip",
    [
        Slip("event", "u", 5, 1.5),
        Slip("end", "u"),
        Slip("set", "u", 5, epoch="new", instead_of="old"),
        Slip("is", "u", 5, epoch="a" * 40),
        Slip("bye", "u", 5, epoch="e", earlier={"d": 4}),
    ],
)
def test_a_slip_arrives_as_it_was(slip: Slip) -> None:
    headers = {"else": 1} | slip.headers()
    assert all(isinstance(value, str) for value in slip.headers().values()), "RabbitMQ drops lists and tables"
    assert Slip.find(headers) == slip


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"qgstream": 7},
        {"qgstream": None},
        {"qgstream": "{"},
        {"qgstream": "[]"},
        {"qgstream": '{"kind":"is"}'},
        {"qgstream": '{"kind":"was","uid":"u"}'},
        {"qgstream": '{"kind":"is","uid":"u","epoch":"not\\nan-epoch"}'},
        {"qgstream": '{"kind":"is","uid":"u","epoch":""}'},
        {"qgstream": '{"kind":"event","uid":"u","seen":"5"}'},
        {"qgstream": '{"kind":"is","uid":"u","epoch":"e","earlier":{"d":"4"}}'},
    ],
)
def test_what_is_none_is_none(headers: dict[str, object]) -> None:
    assert Slip.find(headers) is None


def test_who_saw_more_than_there_is_speaks_of_another_log() -> None:
    assert says_epoch(Slip("is", "u", seen=9, epoch="e"), 10)
    assert not says_epoch(Slip("is", "u", seen=10, epoch="e"), 10)
    assert not says_epoch(Slip("is", "u", seen=9), 10)
    assert not says_epoch(Slip("set", "u", seen=9, epoch="e"), 10)
    assert not says_epoch(None, 10)


def made(epoch: str, instead_of: str | None = None) -> Slip:
    return Slip("set", "u", epoch=epoch, instead_of=instead_of)


@pytest.mark.parametrize(
    ("known", "sets", "epoch"),
    [
        (None, [], None),
        (("e", 5), [], "e"),
        # Two servers made the stream at the same time: the first has it.
        (None, [(2, made("first")), (3, made("second"))], "first"),
        # Of a log whose beginning is trimmed away.
        (None, [(9, made("new", "old"))], "new"),
        # Two servers saw that it went back in time.
        (("e", 5), [(7, made("new", "e")), (8, made("late", "e"))], "new"),
        (("e", 5), [(7, made("new", "e")), (8, made("newer", "new"))], "newer"),
        (("e", 5), [(7, made("new", "another"))], "e"),
        # Whoever says `e` knew of all that was there when it had seen up to 5, and of nothing later.
        (("e", 5), [(5, made("e2", "e"))], "e"),
        (("e", 5), [(6, made("e2", "e"))], "e2"),
    ],
)
def test_all_come_to_the_same_epoch(
    known: tuple[str, int] | None, sets: list[tuple[int, Slip]], epoch: str | None
) -> None:
    slip = None if known is None else Slip("is", "u", seen=known[1], epoch=known[0])
    mark = mark_of(slip, sets[::-1])
    assert (None if mark is None else mark.epoch) == epoch
