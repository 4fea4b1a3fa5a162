"""Listeners of the JavaScript client: they may call anything, whenever they run."""

from __future__ import annotations

import pytest

from tests.browser.conftest import StartRelay, wait_for_connections
from tests.browser.engines.base import Tab
from tests.browser.relay import BAD_GATEWAY
from tests.browser.streams import (
    GONE,
    REFUSED,
    UNREADABLE,
    WAYS,
    Frontend,
    published,
    seen,
    wait_for,
    wait_for_own,
    wait_for_state,
)
from tests.publishing import publish, publish_all
from tests.serving import ServerProcess, wait_until


def test_a_type_can_be_listened_to_later(server: ServerProcess, frontend: Frontend) -> None:
    page = frontend(server.port, types=[])
    wait_for_own(page, "connected")
    page.evaluate("hear('late')")
    wait_until(lambda: publish(server, "orders", 1, event="late") and seen(page, "late"), what="an event")
    wait_for_connections(server, 1)


def connect_another(server: ServerProcess, frontend: Frontend, beside: Tab) -> None:
    """A stream that comes after everything else: what was to happen has happened."""
    other = frontend(server.port, beside=beside, share=False)
    wait_for_own(other, "heartbeat", count=2)
    other.close()


@pytest.mark.parametrize("share", WAYS)
@pytest.mark.parametrize("state", ["connecting", "open", "waiting"])
def test_close_in_a_listener_is_the_end(
    server: ServerProcess, start_relay: StartRelay, frontend: Frontend, share: bool, state: str
) -> None:
    relay = start_relay(server)
    if state == "waiting":
        relay.cut(BAD_GATEWAY)
    give_up = f"stream.addEventListener('state', (event) => {{ if (event.state === '{state}') stream.close(); }});"
    page = frontend(relay.port, query="&own", share=share, then=give_up, expected=(*REFUSED, *UNREADABLE, *GONE))
    wait_for_state(page, "closed")
    relay.restore()
    asked = len(relay.requests)
    connect_another(server, frontend, page)
    wait_for_connections(server, 0)
    # A request may have been on its way, but the first one is sent after the listeners.
    assert len(relay.requests) <= (0 if state == "connecting" else asked + 1)
    assert page.evaluate("[stream.state, stream.readyState]") == ["closed", 2]
    assert page.evaluate("states.at(-1).state") == "closed"


@pytest.mark.parametrize("share", WAYS)
def test_nothing_comes_after_close(server: ServerProcess, frontend: Frontend, share: bool) -> None:
    page = frontend(server.port, share=share, then="stream.addEventListener('message', () => stream.close());")
    wait_for_own(page, "connected")
    publish_all(server, [{"topic": "orders", "data": n} for n in range(5)])  # they come in one piece
    wait_for_state(page, "closed")
    connect_another(server, frontend, page)
    assert published(page) == [0]


@pytest.mark.parametrize("share", WAYS)
def test_other_topics_in_every_listener(server: ServerProcess, frontend: Frontend, share: bool) -> None:
    change = """
        let n = 0;
        const change = () => { if (n < 5) stream.setTopics(['orders', String(n++)]); };
        for (const type of ['state', 'connected', 'message']) stream.addEventListener(type, change);
        // Without an end, but not without a pause: the page lives.
        stream.addEventListener('state', ({state}) => {
            if (state === 'connecting') stream.setTopics(['orders', String(n++)]);
        });
    """
    page = frontend(server.port, share=share, topics=["orders"], then=change, expected=GONE)
    page.wait_for("stream.state === 'open'")
    publish(server, "orders", 1)
    wait_for(page, 1)
    publish(server, "orders", 2)
    wait_for(page, 2)
    assert published(page) == [1, 2]
    topics = page.evaluate("stream.topics")
    server.wait_for_log("events.connected", topics=topics)
    wait_for_connections(server, 1)


def test_a_listener_that_throws_stops_nothing(server: ServerProcess, frontend: Frontend) -> None:
    throw = (
        "for (const type of ['state', 'created']) stream.addEventListener(type, () => { throw new Error('mine'); });"
    )
    page = frontend(server.port, then=throw, expected=("mine",))
    wait_for_own(page, "connected")
    publish(server, "orders", 1, event="created")
    publish(server, "orders", 2, event="created")
    wait_for(page, 2)
    assert published(page) == [1, 2]


def test_a_listener_for_every_type(server: ServerProcess, frontend: Frontend) -> None:
    collect = "window.all = []; stream.addEventListener('*', (e) => all.push([e.type, e.event, e.json]));"
    page = frontend(server.port, then=collect)
    wait_for_own(page, "connected")
    for n, kind in enumerate([None, "created", "unheard of", "reset", "*"]):
        publish_all(server, [{"topic": "orders", "data": n} | ({"event": kind} if kind else {})])
    page.wait_for("all.length >= 5")
    assert page.evaluate("all") == [
        ["*", None, 0], ["*", "created", 1], ["*", "unheard of", 2], ["*", "reset", 3], ["*", "*", 4],
    ]  # fmt: skip
    assert [(x["type"], x["json"]) for x in seen(page, "message", "created")] == [
        ("message", 0), ("created", 1), ("message", 3), ("message", 4),
    ]  # fmt: skip
