"""Lines that a machine reads, with nothing secret in them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
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
