"""What a drain tells the clients: to come back soon, or to stay away for the time of a restart."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from qgstream.brokers.base import open_broker
from qgstream.hub import Hub
from qgstream.limits import LimitSettings
from qgstream.service.drain import DrainRetry, is_spread
from qgstream.service.service import Service
from tests.serving import RawClient, ServerProcess, wait_until

STREAMS = 60
DRAIN_SECONDS = 2.0
RETRY_SECONDS = 1.0
SHORT = (RETRY_SECONDS, RETRY_SECONDS * 1.2)
WIDE = (RETRY_SECONDS, RETRY_SECONDS + DRAIN_SECONDS)


@pytest.mark.parametrize(
    ("url", "is_alone"),
    [
        ("memory://", True),
        ("sqlite:///tmp/never-opened.db", True),
        ("redis://127.0.0.1:6379", False),
        ("nats://127.0.0.1:4222", False),
        ("amqp://127.0.0.1:5672", False),
    ],
)
def test_other_processes_take_the_clients_when_they_have_the_same_log(url: str, is_alone: bool) -> None:
    broker = open_broker(url, timeout_seconds=1)
    assert is_spread("auto", broker) is is_alone
    assert is_spread("spread", broker)
    assert not is_spread("short", broker)


@pytest.mark.parametrize(
    ("retry", "seconds", "expected"),
    [("auto", DRAIN_SECONDS, WIDE), ("spread", DRAIN_SECONDS, WIDE), ("short", DRAIN_SECONDS, SHORT),
     # Nobody knows when it will be back; but they do not come back in one moment.
     ("spread", 0, SHORT)],
)  # fmt: skip
def test_each_client_is_told_a_time_of_its_own(
    tmp_path: Path, retry: DrainRetry, seconds: float, expected: tuple[float, float]
) -> None:
    with ServerProcess(
        tmp_path, drain__retry=retry, drain__seconds=seconds, limits__retry_seconds=RETRY_SECONDS
    ) as server:
        clients = [RawClient(server.port).get("/events", version="1.0") for _ in range(STREAMS)]
        for client in clients:
            client.until(b'"connected"')
        server.process.terminate()
        answers = [client.to_end() for client in clients]
        for client in clients:
            client.close()
    told = [
        int(found) / 1000 for answer in answers for found in re.findall(rb'retry: (\d+)\ndata: .*"closing"', answer)
    ]
    assert len(told) == STREAMS
    least, most = expected
    assert least <= min(told)
    assert max(told) <= most
    assert max(told) - min(told) > (most - least) / 2, "spread over all of it"


def test_a_newcomer_is_sent_to_another_server_as_soon_as_the_streams_are() -> None:
    service = Service(Hub(limits=LimitSettings(retry_seconds=2, overload_retry_seconds=10)))
    service.hub.draining = True
    assert {10 <= service.retry_after_seconds() <= 20 for _ in range(100)} == {True}
    service.drain_retry = "short"
    told = [service.retry_after_seconds() for _ in range(100)]
    assert 2 <= min(told) < max(told) <= 2.4
    service.hub.draining = False
    assert service.retry_after_seconds() >= 10


def test_a_reload_changes_what_a_drain_tells(tmp_path: Path) -> None:
    path = tmp_path / "qgstream.toml"
    path.write_text('[drain]\nretry = "spread"\nnotice_seconds = 600\n[limits]\nretry_seconds = 1\n')
    with ServerProcess(tmp_path, config=str(path)) as server:
        path.write_text(path.read_text().replace("spread", "short"))
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("config.reloaded")
        server.process.terminate()
        refused: list[bytes] = []

        def is_refused() -> bool:
            client = RawClient(server.port).get("/events", "Accept: text/event-stream")
            refused.append(client.until(b"\n\n"))
            client.close()
            return b'"draining"' in refused[-1]

        # During the notice the listener is open, and newcomers are refused.
        wait_until(is_refused, what="a refusal")
        (told,) = re.findall(rb"retry: (\d+)", refused[-1])
        assert 1000 <= int(told) <= 1200
        server.process.terminate()  # the second ends the notice
