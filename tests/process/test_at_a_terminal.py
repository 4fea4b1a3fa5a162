"""A real server on a terminal: it says what to click, ends when asked, and does not outlive the window."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import urllib.request

from tests.serving import RawClient, wait_until
from tests.terminals import Terminal


def get(url: str, **headers: str) -> tuple[int, bytes]:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        return answer.status, answer.read()


def loaded_at(port: int) -> str:
    document = json.loads(get(f"http://127.0.0.1:{port}/admin/config", Authorization="Bearer dev-admin")[1])
    return str(document["loaded_at"])


def port_of(terminal: Terminal) -> int:
    return int(terminal.read_until(r"http://127\.0\.0\.1:(\d+)/ ")[1])


def opened(port: int) -> RawClient:
    client = RawClient(port).get("/events")
    client.until(b'"connected"')
    return client


def test_the_whole_tour_is_one_command() -> None:
    with Terminal("serve", "--dev", "--port", "0") as terminal:
        terminal.read_until(r"Ctrl-C to stop[^$]*admin key +dev-admin\n")
        assert "\x1b[1m" in terminal.raw
        assert re.search(r"\d\d:\d\d:\d\d info +server\.started host=127\.0\.0\.1 port=\d+", terminal.shown)
        for url in re.findall(r"http://\S+", terminal.shown):
            assert get(url)[0] == 200, url
        port = port_of(terminal)
        publish = urllib.request.Request(
            f"http://127.0.0.1:{port}/events", data=b'{"topic": "a", "data": 1}',
            headers={"Authorization": "Bearer dev", "Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(publish, timeout=60) as answer:
            assert answer.status == 200
        # While the terminal is open, SIGHUP is a reload.
        terminal.process.send_signal(signal.SIGHUP)
        terminal.read_until(r"config\.reloaded ")
        terminal.enter("\x03")
        assert terminal.read_to_end() == 0
        assert "Ctrl-C again" not in terminal.shown
        assert "{" not in terminal.shown.partition("Ctrl-C to stop")[0]


def test_a_long_drain_is_announced_and_can_be_cut() -> None:
    flags = ["--set", "drain.seconds=3600", "--set", "drain.notice_seconds=600"]
    with Terminal("serve", "--port", "0", *flags, environ={"NO_COLOR": "1"}) as terminal:
        port = port_of(terminal)
        assert "\x1b" not in terminal.raw
        clients = [opened(port) for _ in range(2)]
        terminal.enter("\x03")
        terminal.read_until(r"draining 2 streams over 4200 s; Ctrl-C again to end now\n")
        terminal.enter("\x03")
        assert terminal.read_to_end() == 0
        cut = re.findall(r"events\.disconnected .*reason=drain cut=true", terminal.shown)
        assert len(cut) == int(re.search(r"drain\.finished cut=(\d+)", terminal.shown)[1]) >= 1  # type: ignore[index]
        for client in clients:
            client.close()


def test_without_streams_nothing_is_waited_for() -> None:
    flags = ["--set", "drain.seconds=3600", "--set", "drain.notice_seconds=600"]
    with Terminal("serve", "--port", "0", *flags) as terminal:
        port_of(terminal)
        terminal.enter("\x03")
        assert terminal.read_to_end() == 0  # long before 600 s


def test_it_ends_with_its_terminal() -> None:
    with Terminal("serve", "--dev", "--port", "0") as terminal:
        client = opened(port_of(terminal))
        terminal.hang_up()
        assert b'"reason": "drain"' in client.to_end()
        client.close()
        assert terminal.process.wait(60) == 0


def test_with_nohup_it_lives_on_and_reloads() -> None:
    nohup = ("sh", "-c", f"trap '' HUP; exec {sys.executable} -m qgstream \"$@\"", "sh")
    with Terminal("serve", "--dev", "--port", "0", command=nohup) as terminal:
        port = port_of(terminal)
        before = loaded_at(port)
        terminal.hang_up()
        terminal.process.send_signal(signal.SIGHUP)
        wait_until(lambda: loaded_at(port) > before, what="a reload")
        terminal.process.terminate()
        assert terminal.process.wait(60) == 0


def test_a_taken_port_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Terminal("serve", "--port", str(port)) as terminal:
            assert terminal.read_to_end() == 1
        assert terminal.shown.splitlines()[-1].startswith(
            f"cannot listen on 127.0.0.1:{port}: the port is in use by the process "
        )
