"""Refusals leave a trace: the first at once, the others of the minute in one line, in bounded memory."""

from __future__ import annotations

import logging
import tracemalloc
from dataclasses import dataclass, field
from typing import Any

import pytest
from tornado.web import HTTPError

from qgstream.errors import (
    BadRequest,
    Forbidden,
    InvalidField,
    NotStorable,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnknownKeyId,
    UnsupportedMediaType,
)
from qgstream.logs import RESERVED_ATTRS
from qgstream.reasons import PUBLISH_RESULTS
from qgstream.service.refusal_log import RefusalLog, result_of
from qgstream.talkers import Asker, Name

MANY = 100_000


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Scene:
    caplog: pytest.LogCaptureFixture
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.refusals = RefusalLog(clock=self.clock)

    def lines(self) -> list[dict[str, Any]]:
        """The lines since the last call."""
        found = [
            {"event": r.getMessage()} | {k: v for k, v in vars(r).items() if k not in RESERVED_ATTRS}
            for r in self.caplog.records
        ]
        self.caplog.clear()
        return found


@pytest.fixture
def scene(caplog: pytest.LogCaptureFixture) -> Scene:
    caplog.set_level(logging.INFO, "qgstream")
    return Scene(caplog)


ASKER = Asker("192.0.2.7", "curl/8")


def test_the_first_has_a_line_and_the_others_one_together(scene: Scene) -> None:
    for _ in range(10_000):
        scene.refusals.see("publish.refused", ASKER, "unauthorized", Unauthorized("got a bad key", code="unknown_key"))
    first = {
        "event": "publish.refused", "reason": "unauthorized", "remote_ip": "192.0.2.7", "user_agent": "curl/8",
        "status": 401, "code": "unknown_key", "error": "got a bad key",
    }  # fmt: skip
    assert scene.lines() == [first]
    scene.clock.now += 59.9
    scene.refusals.flush()
    assert scene.lines() == []
    scene.clock.now += 0.1
    scene.refusals.flush()
    together = {"event": "publish.refused", "reason": "unauthorized", "remote_ip": "192.0.2.7"}
    assert scene.lines() == [together | {"more": 9999, "more_in_seconds": 60.0}]
    scene.refusals.flush()
    assert scene.lines() == []
    assert len(scene.refusals) == 0


def test_a_single_one_has_one_line(scene: Scene) -> None:
    scene.refusals.see("events.rejected", ASKER, "max_connections")
    scene.clock.now += 61
    scene.refusals.flush()
    assert len(scene.lines()) == 1


def test_the_next_minute_begins_with_a_line_of_its_own(scene: Scene) -> None:
    for _ in range(3):
        scene.refusals.see("events.rejected", ASKER, "max_connections")
    scene.clock.now += 60  # and nobody has flushed
    for _ in range(3):
        scene.refusals.see("events.rejected", ASKER, "max_connections")
    assert [line.get("more") for line in scene.lines()] == [None, 2, None]


def test_each_event_address_and_reason_is_told_apart(scene: Scene) -> None:
    other = Asker("192.0.2.8")
    for _ in range(2):
        scene.refusals.see("publish.refused", ASKER, "unauthorized")
        scene.refusals.see("publish.refused", ASKER, "forbidden")
        scene.refusals.see("publish.refused", other, "unauthorized")
        scene.refusals.see("admin.refused", ASKER, "unauthorized")
    assert len(scene.lines()) == 4


def test_the_end_writes_what_is_not_written(scene: Scene) -> None:
    for _ in range(3):
        scene.refusals.see("publish.refused", ASKER, "unauthorized")
    scene.lines()
    scene.clock.now += 2.5
    scene.refusals.flush(everything=True)
    (line,) = scene.lines()
    assert (line["more"], line["more_in_seconds"]) == (2, 2.5)


def test_it_says_whose_credentials_those_were(scene: Scene) -> None:
    scene.refusals.see("publish.refused", Asker("a", "", "shop"), "rate_limited")
    scene.refusals.see("publish.refused", Asker("b", "", None, Name("alice", "issuer")), "forbidden")
    one, other = scene.lines()
    assert (one["key"], other["sub"]) == ("shop", "alice")


def test_addresses_of_one_ipv6_network_are_one(scene: Scene) -> None:
    for number in range(1, 1000):
        scene.refusals.see("publish.refused", Asker(f"2001:db8::{number:x}"), "unauthorized")
    scene.refusals.flush(everything=True)
    first, together = scene.lines()
    assert first["remote_ip"] == together["remote_ip"] == "2001:db8::1"
    assert (together["network"], together["more"]) == ("2001:db8::/64", 998)


def test_a_flood_of_addresses_takes_bounded_memory_and_lines(scene: Scene) -> None:
    def flood(start: int) -> None:
        for number in range(start, start + MANY):
            scene.refusals.see(
                "publish.refused", Asker(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"), "forbidden"
            )
            assert len(scene.refusals) <= RefusalLog.MAX_TOLD_APART + 1

    flood(0)
    assert len(scene.lines()) == RefusalLog.MAX_TOLD_APART
    tracemalloc.start()
    flood(MANY)
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes < 2**22  # a tenth of what all of them would take
    assert scene.lines() == []
    scene.clock.now += 60
    scene.refusals.flush()
    (line,) = scene.lines()
    beyond = 2 * MANY - RefusalLog.MAX_TOLD_APART
    assert (line["event"], line["more"]) == ("refusals.others", beyond)
    assert line["refused"] == {"publish.refused": {"forbidden": beyond}}
    assert len(scene.refusals) == 0


def test_what_a_stranger_sent_is_cut_and_escaped(scene: Scene) -> None:
    scene.refusals.see(
        "publish.refused", ASKER, "bad_request", InvalidField("topic", "\x1b[31m\u202e\x9b" + "x" * 1000)
    )
    (line,) = scene.lines()
    assert line["error"].startswith(r"topic: \x1b[31m\u202e\x9bxx")
    assert len(line["error"]) == 200


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (BadRequest("x"), "bad_request"), (InvalidField("a", "x"), "bad_request"), (NotStorable("x"), "bad_request"),
        (UnsupportedMediaType("x"), "bad_request"), (Unauthorized("x", code="expired"), "unauthorized"),
        (UnknownKeyId("x", issued_at=None), "unauthorized"), (Forbidden("x"), "forbidden"),
        (TooLarge("body", 2, 1), "too_large"), (TooManyRequests("x", retry_after_seconds=1), "rate_limited"),
        (Unavailable("x", retry_after_seconds=1), "unavailable"),
        (Unavailable("x", retry_after_seconds=1, code="draining"), "draining"),
        (Unavailable("x", retry_after_seconds=1, code="inflight_bodies"), "overloaded"),
        (HTTPError(400), "bad_request"), (HTTPError(405), "bad_request"), (ValueError("x"), "failed"),
    ],
)  # fmt: skip
def test_each_error_has_its_word(error: Exception, result: str) -> None:
    assert result_of(error) == result
    assert result in PUBLISH_RESULTS
