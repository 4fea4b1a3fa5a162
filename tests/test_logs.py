"""Lines that a machine reads, with nothing secret in them."""

from __future__ import annotations

import io
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgstream import logs


@pytest.fixture
def lines() -> Iterator[Any]:
    """Configure as a server does, and give everything back."""
    root, before = logging.getLogger(), (logging.getLogger().handlers[:], logging.getLogger().level)
    switches = (logging._srcfile, logging.logThreads, logging.logProcesses, logging.logMultiprocessing)
    stream = io.StringIO()

    def read(**settings: Any) -> list[dict[str, Any]]:
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    logs.configure(logs.LogSettings(level="info", env="test"), stream)
    yield read
    root.handlers[:], level = before
    root.setLevel(level)
    logging._srcfile, logging.logThreads, logging.logProcesses, logging.logMultiprocessing = switches


def test_a_line_has_its_time_level_event_environment_and_fields(lines: Any) -> None:
    logs.log.info("events.connected", extra={"connection": 7, "topics": ["ä"]})
    (line,) = lines()
    assert list(line) == ["timestamp", "level", "event", "env", "connection", "topics"]
    assert line["timestamp"].endswith("+00:00")
    assert line | {"timestamp": ""} == {
        "timestamp": "", "level": "info", "event": "events.connected", "env": "test", "connection": 7, "topics": ["ä"],
    }  # fmt: skip


def test_operators_filter_by_these_names() -> None:
    assert (logs.log.name, logs.access_log.name) == ("qgstream", "qgstream.access")


def test_others_are_named_and_quieter_ones_unheard(lines: Any, expect_log: Any) -> None:
    expect_log("something", logger="tornado.general")
    logging.getLogger("tornado.general").warning("%s went wrong", "something")
    logs.access_log.debug("request")
    (line,) = lines()
    assert (line["logger"], line["event"], line["level"]) == ("tornado.general", "something went wrong", "warning")


def test_a_traceback_is_one_line_without_secrets(lines: Any, expect_log: Any) -> None:
    expect_log("request.failed")
    try:
        raise ValueError("GET /events?access_token=sesame failed")
    except ValueError:
        logs.log.exception("request.failed")
    (line,) = lines()
    assert "ValueError" in line["exc_info"]
    assert "sesame" not in json.dumps(line)


def test_a_field_cannot_pose_as_one_of_the_lines_own(lines: Any) -> None:
    logs.log.info("real", extra={"event": "forged", "level": "forged"})
    (line,) = lines()
    assert (line["event"], line["level"]) == ("real", "info")


SECRET = st.text("abcXYZ012._~+/=-", min_size=1).map(lambda text: "s3cr3t" + text)
PLACES = st.sampled_from(
    [
        "GET /events?access_token={}&topic=a HTTP/1.1",
        "/events?topic=a&ACCESS_TOKEN={}",
        "Authorization: Bearer {}",
        "authorization:  bearer   {}",
        "token={}",
        "api_key={} and more",
        '{{"Authorization": "Bearer {}"}}',
    ]
)


@given(PLACES, SECRET)
def test_no_token_survives(place: str, secret: str) -> None:
    scrubbed = logs.scrub(place.format(secret))
    assert "s3cr3t" not in scrubbed
    assert "[secret]" in scrubbed


@given(st.text("abc /?&:.", max_size=50))
def test_what_is_no_secret_stays(text: str) -> None:
    assert logs.scrub(text) == text


def test_what_is_quoted_is_short_and_has_no_secret() -> None:
    assert logs.quote("a" * 1_000_000, 200) == "a" * 200
    assert logs.quote("x" * 100 + " token=s3cr3t", 110) == "x" * 100 + " token=[se"
    assert logs.quote("token=s3cr3t&more", 200) == "token=[secret]&more"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Mozilla/5.0 (ünï 雪)", "Mozilla/5.0 (ünï 雪)"),
        ("a\x1b[31m\x00\r\n\t", r"a\x1b[31m\x00\r\n\t"),  # C0
        ("\x7f\x9b31m\x85", r"\x7f\x9b31m\x85"),  # DEL and C1, which a terminal obeys too
        ("\u2028\u2029\u202e\u2066\u200b\ufeff", r"\u2028\u2029\u202e\u2066\u200b\ufeff"),
        ("\ud800", r"\ud800"),  # what no encoder takes
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_would_act_on_a_screen_is_escaped(said: str, shown: str) -> None:
    assert logs.printable(said, 200) == logs.quote(said, 200) == shown
    assert logs.printable(said * 100, 100) == (shown * 100)[:100]


def test_an_excerpt_has_as_many_names_as_fit() -> None:
    assert logs.excerpt(["b", "a"]) == ["a", "b"]
    assert logs.excerpt(map(str, range(100, 200)), 3) == ["100", "101", "102"]
    assert logs.excerpt(["aaa", "bbb", "c"], 3, 6) == ["aaa", "bbb"]
    assert logs.excerpt(["aaaa"], 3, 3) == []


# A reader that is slow.


class Pipe:
    """The poll(2) of a pipe that is full, and whose reader makes room `late_ms` later, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        self.waited_ms = 0.0
        self.late_ms = 0.0
        self.reader, self.writer = os.pipe()
        monkeypatch.setattr("qgstream.logs.time.monotonic", lambda: self.seconds)
        self.handler = logs.LineHandler(self.writer)
        self.handler._poll = self  # type: ignore[assignment]

    def poll(self, timeout_ms: int) -> list[tuple[int, int]]:
        waited_ms = min(timeout_ms, self.late_ms)
        self.waited_ms += waited_ms
        self.seconds += waited_ms / 1000
        return [(self.writer, 4)] if waited_ms == self.late_ms else []

    def say(self) -> bool:
        """One line. Whether it is written."""
        self.handler.emit(logging.LogRecord("qgstream", logging.INFO, "", 0, "a line", None, None))
        return self.read() == b"a line\n"

    def read(self) -> bytes:
        os.set_blocking(self.reader, False)
        try:
            return os.read(self.reader, 1000)
        except BlockingIOError:
            return b""


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    pipe = Pipe(monkeypatch)
    yield pipe
    os.close(pipe.reader)
    os.close(pipe.writer)


@pytest.mark.parametrize("late_ms", [1, 9, 50, 99, 101, 10**6])
def test_a_slow_reader_of_the_log_takes_a_fiftieth_of_the_time(pipe: Pipe, late_ms: float, expect_log: Any) -> None:
    """However late it is with each line, and whatever it misses."""
    pipe.late_ms = late_ms
    began = pipe.seconds
    for _ in range(3000):
        pipe.say()
        pipe.seconds += 0.01
        allowed_ms = pipe.handler.PATIENCE_MS + (pipe.seconds - began) * pipe.handler.PATIENCE_MS_PER_SECOND
        assert pipe.waited_ms <= allowed_ms
    assert pipe.waited_ms >= pipe.handler.PATIENCE_MS


def test_a_reader_that_is_late_now_and_then_misses_nothing(pipe: Pipe) -> None:
    for _ in range(20):
        pipe.late_ms = 90
        assert pipe.say()
        pipe.late_ms = 0
        for _ in range(100):
            assert pipe.say()
        pipe.seconds += 5


def test_the_budget_comes_back(pipe: Pipe, expect_log: Any) -> None:
    expect_log("log.lines_lost")
    pipe.late_ms = 60
    before = sum(logs.lost_lines().values())
    assert pipe.say()
    assert not pipe.say()
    assert sum(logs.lost_lines().values()) == before + 1
    assert 100 <= pipe.waited_ms <= 102
    pipe.late_ms = 0
    assert pipe.say()  # pytest has the line that says how many are missing
    pipe.seconds += 3.1
    pipe.late_ms = 60
    assert pipe.say()
    assert not pipe.say()


def test_every_line_that_is_not_written_is_counted_once(lines: Any, expect_log: Any) -> None:
    """The disk is full. What the handler itself would say about it is lost as well, and is no line of anybody."""
    expect_log("log.lines_lost")
    before = sum(logs.lost_lines().values())
    with Path("/dev/full").open("w") as full:
        handler = logs.LineHandler(full.fileno())
        logging.getLogger().addHandler(handler)
        for _ in range(5):
            logs.log.info("a line")
        logging.getLogger().removeHandler(handler)
    assert sum(logs.lost_lines().values()) == before + 5


def test_the_reason_of_a_loss_is_told(pipe: Pipe, lines: Any, expect_log: Any, tmp_path: Path) -> None:
    """What to do differs: make room on a disk, or see to the program that reads."""
    expect_log("log.lines_lost")
    before = Counter(logs.lost_lines())

    def lose(descriptor: int) -> None:
        handler = logs.LineHandler(descriptor)
        handler.emit(logging.LogRecord("qgstream", logging.INFO, "", 0, "a line", None, None))

    with Path("/dev/full").open("w") as full:
        lose(full.fileno())
    reader, writer = os.pipe()
    os.close(reader)
    lose(writer)
    os.close(writer)
    lose(writer)  # closed
    pipe.late_ms = 10**6
    assert not pipe.say()
    assert Counter(logs.lost_lines()) - before == Counter(disk_full=1, reader_gone=1, failed=1, reader_slow=1)
    pipe.late_ms = 0
    assert pipe.say()
    assert [(line["lines"], line["reason"]) for line in lines() if line["event"] == "log.lines_lost"] == [
        (1, "reader_slow")
    ]


def test_a_line_that_cannot_be_made_is_lost(pipe: Pipe, capsys: pytest.CaptureFixture[str]) -> None:
    before = sum(logs.lost_lines().values())
    pipe.handler.emit(logging.LogRecord("qgstream", logging.INFO, "", 0, "%d", ("no number",), None))
    assert sum(logs.lost_lines().values()) == before + 1
    assert "Logging error" in capsys.readouterr().err
