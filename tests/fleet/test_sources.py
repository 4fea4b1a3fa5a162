"""Sources of the configuration in a real server: they fail and go on, they leave last, and mistakes stop a start."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.programs import free_port
from tests.hostile.observing import data_of, metrics
from tests.process.test_server import FromFile
from tests.serving import RawClient, wait_until

FEEDS = """
import asyncio, pathlib

failures = 1

async def numbers(*, mark: pathlib.Path, step_seconds: float):
    global failures
    number = 0
    try:
        while True:
            number += 1
            yield {"topic": "numbers", "data": number, "event": "number"}
            if number == 3 and failures:
                failures -= 1
                raise LookupError("the feed is gone")
            await asyncio.sleep(step_seconds)
    finally:
        mark.write_text(f"left after {number}")
"""


@pytest.fixture
def feeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "feeds_of_mine.py").write_text(FEEDS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_source_fails_and_goes_on_and_leaves_after_the_last_stream(feeds: Path) -> None:
    path, mark = feeds / "qgstream.toml", feeds / "mark"
    text = f"""
        [admin]
        port = {free_port()}
        [drain]
        seconds = 0.5
        [[sources]]
        import = "feeds_of_mine:numbers"
        [sources.options]
        mark = "{mark}"
        step_seconds = 0.02
        [[sources]]
        name = "shell"
        use = "process"
        options = {{ topic = "shell", command = ["sh", "-c", "echo begun; trap 'exit 1' TERM; sleep 60 & wait"] }}
        """
    path.write_text(text)
    server = FromFile(feeds, config=str(path))
    try:
        failed = server.wait_for_log("source.failed", source="numbers")
        assert "LookupError: the feed is gone" in failed["exc_info"]
        assert 0.25 <= failed["restart_seconds"] <= 0.5
        server.wait_for_log("source.started", count=2, source="numbers")
        # Several, because the drain ends one at a random moment of its time: perhaps at the first.
        clients = [RawClient(server.port).get("/events?last_event_id=earliest") for _ in range(8)]
        for client in clients:
            client.until(b"data: begun\n")
        wait_until(lambda: metrics(server)['source_events_total{source="numbers"}'] > 5)
        seen = metrics(server)
        assert seen['source_failures_total{source="numbers"}'] == 1
        assert seen['source_running{source="numbers"}'] == seen['source_running{source="shell"}'] == 1
        # A change is named, and needs a restart.
        path.write_text(text + "restart = 'always'\n")
        server.process.send_signal(signal.SIGHUP)
        assert server.wait_for_log("config.reloaded")["needs_restart"] == ["sources"]
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("drain.started")
        before = metrics(server)['source_events_total{source="numbers"}']
        for client in clients:
            client.to_end()
            client.close()
        server.process.wait(60)
        server.stop(expect=("source.failed",))
    finally:
        if server.process.poll() is None:
            server.kill()
    received = [[int(data) for data in data_of(client) if data != "begun"] for client in clients]
    for numbers in received:
        assert numbers[:4] == [1, 2, 3, 1]
        assert numbers[3:] == list(range(1, len(numbers) - 2))
    numbers = max(received, key=len)
    assert len(numbers) > before, "events go on while the streams leave"
    assert int(mark.read_text().removeprefix("left after ")) >= numbers[-1]
    # One line for the failure, and none for what leaving did to the programs.
    assert sum(line["event"] == "source.failed" for line in server.lines()) == 1
    assert server.lines()[-1]["event"] == "server.stopped"


def test_a_mistake_stops_the_start_and_check_config_finds_it(feeds: Path) -> None:
    sources = json.dumps([{"import": "feeds_of_mine:number"}, {"use": "clock", "options": {"topik": "x"}}])
    for command in ("serve", "check-config"):
        done = subprocess.run(
            [sys.executable, "-m", "qgstream", command, "--port", "0"], env={"QGSTREAM_SOURCES": sources,
            "PYTHONPATH": str(feeds)}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        said = (
            "sources[0].import: feeds_of_mine:number: feeds_of_mine has no number; did you mean numbers?\n"
            "sources[1].options.topik: unknown option; did you mean topic?\n"
        )
        assert said in done.stderr
        assert "Traceback" not in done.stderr
