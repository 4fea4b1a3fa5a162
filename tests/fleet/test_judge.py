"""The judge itself: a record with one thing wrong is found out, and the same record without it is not."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from qgstream.wire.sse import Event
from tests.fleet.judge import Rules, Witness
from tests.fleet.ledger import Intent, Ledger, Place, Spec, Violation

ORDERS = Spec(("orders/*",))


def published(*numbers: int, epoch: str = "e") -> Ledger:
    """A ledger in which the event ~0.N~ is at the offset N, and topics alternate."""
    ledger = Ledger()
    for number in numbers:
        intent = Intent(f"~0.{number}~", ("orders/1",) if number % 10 else ("news",))
        ledger.intend(intent)
        ledger.acknowledge(intent, f"{epoch}-{number}")
    return ledger


def witness(ledger: Ledger, spec: Spec = ORDERS, rules: Rules | None = None) -> Witness:
    return Witness("subscriber 7", spec, ledger, rules or Rules(), Counter())


def see(witness: Witness, *story: str) -> None:
    """`sends own e-3`, `connected complete e-3` (`-` is no id), `heartbeat e-5`, `moved e-5`, `reset too_old e-5`,
    `closing drain`, or the id of an event."""
    for line in story:
        kind, *words = line.split()
        if kind == "sends":
            witness.connects(words[0], words[1] if len(words) > 1 else "", "here")  # type: ignore[arg-type]
        elif kind == "moved":
            witness.moved(words[0])
        elif kind in ("connected", "heartbeat", "reset", "closing", "rejected"):
            *reason, id = words if kind in ("connected", "heartbeat", "reset") else [*words, ""]
            field = "replay" if kind == "connected" else "reason"
            witness.dispatched(Event(json.dumps({"event": kind, field: "".join(reason)}), id=id.removeprefix("-")))
        else:
            token = f"~0.{int(kind.rpartition('-')[2]) % 1000}~"
            witness.dispatched(Event(json.dumps({"token": token, "padding": ""}), id=kind))


FRESH = ("sends none", "connected none e-0")

GOOD = {
    "all that it asked for, and a heartbeat": (*FRESH, "e-1", "e-2", "heartbeat e-10", "e-11", "closing drain"),
    "a comment that moves it": (*FRESH, "e-1", "e-2", "moved e-10", "e-11"),
    "from where it left": (*FRESH, "e-1", "sends own e-1", "connected complete e-1", "e-2", "e-11"),
    "all history": ("sends earliest earliest", "connected complete e-0", "e-1", "e-2", "e-11"),
    "told of what it missed": (*FRESH, "e-1", "sends own e-1", "connected reset e-1", "reset epoch_changed f-0"),
    "cut before it is told": (*FRESH, "e-1", "sends own e-1", "connected reset e-1", "sends own e-1",
                              "connected reset e-1", "reset epoch_changed f-0"),
    "an id that nobody gave": (*FRESH, "e-1", "sends false x", "connected reset -", "reset unknown_id e-2", "e-11"),
    "refused, then as before": (*FRESH, "e-1", "sends own e-1", "rejected draining", "sends own e-1",
                                "connected complete e-1", "e-2"),
    "a stream that never opened": (*FRESH, "e-1", "sends own e-1", "sends own e-1", "connected complete e-1", "e-2"),
}  # fmt: skip

BAD = {
    "a hole": ((*FRESH, "e-1", "e-11"), r"e-2 .*answered.*\n.*11 after 1: 1 missing"),
    "a hole behind the last event": ((*FRESH, "e-1", "heartbeat e-10"), "nothing after 1: 1 missing"),
    "a comment that jumps over an event": ((*FRESH, "e-1", "moved e-10"), "nothing after 1: 1 missing"),
    "a hole at the join": ((*FRESH, "e-1", "sends own e-1", "connected complete e-1", "e-11"), "e-2"),
    "connected that jumps over an event": ((*FRESH, "e-1", "sends own e-1", "connected complete e-2"), "e-2"),
    "history that begins late": (("sends earliest earliest", "connected complete e-1", "e-2"), "all history from e-1"),
    "an event twice": ((*FRESH, "e-1", "e-1"), "only events after e-1.*\n.*again"),
    "an event twice after resuming": (
        (*FRESH, "e-1", "e-2", "sends own e-2", "connected complete e-2", "e-2"), "again",
    ),
    "two events the wrong way round": ((*FRESH, "e-2", "e-1"), "out of order"),
    "an id that moves back": ((*FRESH, "e-2", "heartbeat e-1"), "no id below e-2"),
    "silence about another epoch": ((*FRESH, "e-1", "sends own e-1", "connected complete f-0"), "a reset"),
    "silence about an id": ((*FRESH, "e-1", "sends own e-1", "connected none e-2"), "complete or reset"),
    "silence about a false id": ((*FRESH, "sends false x", "connected complete e-2"), "replay reset"),
    "a reset that does not come": ((*FRESH, "sends false x", "connected reset -", "e-11"), "its reset"),
    "a heartbeat instead of a reset": ((*FRESH, "sends false x", "connected reset -", "heartbeat e-2"), "reset"),
    "a position before its reset": ((*FRESH, "sends false x", "connected reset e-2"), "before the reset is told"),
    "a position before the reset of its own id": (
        (*FRESH, "e-1", "sends own e-1", "connected reset f-0"), "before the reset is told",
    ),
    "a reset for nothing": ((*FRESH, "e-1", "reset too_old e-2"), "no reset"),
    "a reset for a bad reason": (
        (*FRESH, "e-1", "sends own e-1", "connected reset e-1", "reset too_old e-2"), "reset: too_old",
    ),
    "an event of another epoch": ((*FRESH, "f-11"), "of the epoch e"),
    "an event of another topic": ((*FRESH, "e-1", "e-2", "e-10"), "what it asked for"),
    "an event that nobody published": ((*FRESH, "e-999"), "that were published"),
    "an event at another place than for others": ((*FRESH, "e-1", "e-1002"), "e-2 alone"),
    "an event before connected": (("sends none", "e-1"), "connected"),
    "an event after the goodbye": ((*FRESH, "e-1", "closing drain", "e-2"), "the end after closing drain"),
    "a goodbye for a fault": ((*FRESH, "closing server_error"), "server_error"),
    "connected twice": ((*FRESH, "connected none e-0"), "connected once"),
    "an id that is none": (("sends none", "connected none nonsense"), "an id of"),
}  # fmt: skip


def see_and_settle(witness: Witness, *story: str) -> None:
    see(witness, *story)
    witness.settle()


@pytest.mark.parametrize("story", GOOD.values(), ids=GOOD)
def test_a_good_record_passes(story: tuple[str, ...]) -> None:
    judge = witness(published(1, 2, 10, 11))
    see(judge, *story)
    judge.settle()
    judge.settle()


@pytest.mark.parametrize(("story", "told"), BAD.values(), ids=BAD)
def test_a_bad_record_is_found_out(story: tuple[str, ...], told: str) -> None:
    judge = witness(published(1, 2, 10, 11))
    with pytest.raises(Violation, match=told) as found:
        see_and_settle(judge, *story)
    assert found.value.who == "subscriber 7 (HTTP/1.1 ?topic=orders%2F%2A)"
    assert "its history:" in str(found.value)


def test_what_others_got_is_owed_though_nobody_was_answered() -> None:
    ledger = published(1, 3)
    ledger.intend(Intent("~0.2~", ("orders/1",)))
    lucky, unlucky = witness(ledger), witness(ledger)
    see(unlucky, *FRESH, "e-1", "e-3")
    unlucky.settle()
    see(lucky, *FRESH, "e-1", "e-2", "e-3")
    lucky.settle()
    late = witness(ledger)
    see(late, *FRESH, "e-1", "e-3")
    with pytest.raises(Violation, match="never answered, but others got it"):
        late.settle()


def test_an_answer_is_owed_however_late_it_comes() -> None:
    ledger = published(1, 3)
    intent = Intent("~0.2~", ("orders/1",))
    ledger.intend(intent)
    judge = witness(ledger)
    see(judge, *FRESH, "e-1", "e-3")
    ledger.acknowledge(intent, "e-2")
    with pytest.raises(Violation, match="1 missing"):
        judge.settle()


def test_two_ids_for_one_event_are_found_out() -> None:
    ledger = published(1)
    with pytest.raises(Violation, match="e-1 alone"):
        ledger.acknowledge(Intent("~0.1~", ("orders/1",)), "e-2")
    with pytest.raises(Violation, match="as others were told"):
        ledger.bind(Place("e", 1), "~0.5~", "somebody")


def test_a_payload_is_compared() -> None:
    judge = witness(published(1))
    see(judge, *FRESH)
    with pytest.raises(Violation, match="the payload"):
        judge.dispatched(Event('{"token": "~0.1~", "padding": "x"}', id="e-1"))


def test_too_old_is_believed_only_of_short_lived_topics() -> None:
    rules = Rules(short_lived=frozenset({"news"}))
    story = ("sends own e-1", "connected reset e-1", "reset too_old e-2")
    see(witness(published(1), Spec(), rules), *story)
    with pytest.raises(Violation, match="too_old"):
        see(witness(published(1), ORDERS, rules), *story)


def test_private_events_and_event_types() -> None:
    private = Intent("~0.1~", ("orders/1",), private=True)
    created = Intent("~0.2~", ("orders/1",), event="created")
    assert not ORDERS.wants(private)
    assert Spec(("orders/*",), privileged=True).wants(private)
    assert not Spec(events=("message",)).wants(created)
    assert Spec(events=("message", "created")).wants(created)


def test_forgetting_keeps_what_is_new() -> None:
    ledger = published(*range(1, 10))
    ledger.forget(epoch="e", keep=3)
    assert ledger.is_forgotten(Place("e", 6))
    assert not ledger.is_forgotten(Place("e", 7))
    assert ledger.between(ORDERS, "e", 0, 9) == [7, 8, 9]
    ledger.forget(epoch="f", keep=3)
    assert ledger.between(ORDERS, "e", 0, 9) == []
    assert not ledger.intents
