"""The JavaScript client notices a connection that has died in silence."""

from __future__ import annotations

import pytest

from tests.browser.conftest import StartRelay, StartServer
from tests.browser.streams import WAYS, Frontend, published, wait_for, wait_for_own, wait_for_state
from tests.publishing import publish
from tests.serving import ServerProcess


@pytest.mark.parametrize("share", WAYS)
def test_a_connection_that_died_without_a_word_is_noticed(
    server: ServerProcess, start_relay: StartRelay, frontend: Frontend, share: bool
) -> None:
    relay = start_relay(server)
    page = frontend(relay.port, share=share)
    wait_for_own(page, "heartbeat", count=3)
    relay.mute()
    publish(server, "orders", 1)
    wait_for(page, 1)
    assert wait_for_state(page, "waiting")["why"] == "silent"
    assert published(page) == [1]


def test_after_a_sleep_silence_is_not_waited_for(
    start_server: StartServer, start_relay: StartRelay, frontend: Frontend
) -> None:
    server = start_server(heartbeat__format="comment")  # so that nobody can know how long is too long
    relay = start_relay(server)
    page = frontend(relay.port, share=False)
    wait_for_own(page, "connected")
    relay.mute()
    publish(server, "orders", 1)
    # What a script sees of a sleep: the time, afterwards.
    page.evaluate("() => { const now = Date.now; Date.now = () => now() + 600_000; }")
    wait_for(page, 1)
    assert wait_for_state(page, "waiting")["why"] == "silent"


@pytest.mark.parametrize("share", WAYS)
def test_a_clock_that_is_set_back_hides_no_silence(
    server: ServerProcess, start_relay: StartRelay, frontend: Frontend, share: bool
) -> None:
    relay = start_relay(server)
    page = frontend(relay.port, share=share)
    wait_for_own(page, "heartbeat", count=3)
    page.evaluate("() => { const now = Date.now; Date.now = () => now() - 3_600_000; }")
    relay.mute()
    publish(server, "orders", 1)
    wait_for(page, 1)
    assert wait_for_state(page, "waiting")["why"] == "silent"
    assert published(page) == [1]


def test_a_silent_line_is_noticed_with_comments_as_heartbeats(
    start_server: StartServer, start_relay: StartRelay, frontend: Frontend
) -> None:
    server = start_server(heartbeat__format="comment")
    relay = start_relay(server)
    page = frontend(relay.port, topics=["orders"])
    wait_for_own(page, "connected")
    for n in range(2):
        position = page.evaluate("stream.lastEventId")
        # A comment moves the position, and is no event.
        publish(server, "others", n)
        page.wait_for("(position) => stream.lastEventId !== position", position)
    assert [x["type"] for x in page.evaluate("seen")] == ["connected"]
    relay.mute()
    publish(server, "orders", 1)
    wait_for(page, 1)
    assert wait_for_state(page, "waiting")["why"] == "silent"
