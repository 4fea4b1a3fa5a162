"""A stream of the JavaScript client: what an EventSource has, and more."""

from __future__ import annotations

import pytest

from tests.browser.conftest import StartRelay, wait_for_connections
from tests.browser.streams import GONE, WAYS, Frontend, opened, published, seen, wait_for, wait_for_own, wait_for_state
from tests.publishing import publish, publish_all
from tests.serving import ServerProcess


def test_close_is_the_end(server: ServerProcess, frontend: Frontend) -> None:
    before = opened(server)
    for share in (True, False):
        page = frontend(server.port, share=share)
        wait_for_own(page, "connected")
        page.evaluate("() => { stream.close(); stream.close(); }")
        wait_for_connections(server, 0)
        page.wait_for_text("#state", "closed")
    page.evaluate("() => { start(); stream.close(); }")
    page.evaluate("() => { start({share: false}); stream.close(); }")
    # A request of those two would have come before this one.
    wait_for_own(frontend(server.port, share=False, beside=page), "connected")
    assert opened(server) == before + 3


@pytest.mark.parametrize("share", WAYS)
def test_other_topics_from_the_same_position(
    server: ServerProcess, start_relay: StartRelay, frontend: Frontend, share: bool
) -> None:
    relay = start_relay(server)
    # Firefox says it of a connection that is closed before it has answered.
    page = frontend(relay.port, topics=["a", "0"], share=share, expected=("CORS request did not succeed",))
    wait_for_own(page, "connected")
    last = 0
    for turn in range(10):
        # What is published while it changes is what could fall between.
        page.evaluate("(topics) => stream.setTopics(topics)", ["a", str(turn)])
        numbers = range(turn * 10, turn * 10 + 10)
        publish_all(server, [{"topic": "a", "data": n} for n in numbers])
        last = numbers[-1]
    wait_for(page, last)
    assert published(page) == list(range(last + 1))
    assert seen(page, "reset") == []
    publish(server, "9", "of the last topic")
    page.wait_for("seen.some((x) => x.topic === '9')")
    reconnects = [request.splitlines()[0] for request in relay.requests if "topic=9" in request]
    assert reconnects
    assert all("last_event_id=" in request for request in reconnects)


@pytest.mark.parametrize("name", ["last_event_id", "lastEventId"])
def test_a_position_in_the_address_is_where_it_begins(
    server: ServerProcess, start_relay: StartRelay, frontend: Frontend, name: str
) -> None:
    ids = [publish(server, f"from {name}", n)["id"] for n in range(3)]
    relay = start_relay(server)
    page = frontend(
        relay.port, query="&own", path=f"/events?topic=from {name}&{name}={ids[0]}", share=False, expected=GONE
    )
    wait_for(page, 2)
    assert name not in page.evaluate("stream.url")
    relay.cut()
    wait_for_state(page, "waiting")
    relay.restore()
    wait_for_own(page, "connected", count=2)
    publish(server, f"from {name}", 3)
    wait_for(page, 3)
    assert published(page) == [1, 2, 3]
    lines = [request.splitlines()[0] for request in relay.requests if request.startswith("GET /events")]
    assert len(lines) >= 2
    for line in lines:
        assert line.count("last_event_id=") == 1
        assert "lastEventId=" not in line


def test_it_can_stand_where_an_eventsource_stood(
    server: ServerProcess, start_relay: StartRelay, frontend: Frontend
) -> None:
    relay = start_relay(server)
    handlers = """
        window.called = [];
        const constants = {0: 'CONNECTING', 1: 'OPEN', 2: 'CLOSED'};
        for (const type of ['open', 'message', 'error']) {
            const call = (name) => (e) => called.push([name, e.type, e.data ?? null, constants[stream.readyState]]);
            stream['on' + type] = call(type);
            stream.addEventListener(type, call('listener'));
        }
        called.push(stream.readyState);
    """
    page = frontend(relay.port, then=handlers, expected=GONE)
    wait_for_own(page, "connected")
    publish(server, "orders", 1)
    wait_for(page, 1)
    relay.cut()
    wait_for_state(page, "waiting")
    page.evaluate("() => { stream.onmessage = null; }")
    relay.restore()
    wait_for_own(page, "connected", count=2)
    publish(server, "orders", 2)
    wait_for(page, 2)
    page.evaluate("stream.close()")
    called = page.evaluate("called")
    assert called[0] == 0
    assert [each for each in called[1:] if each[0] != "listener" and each[1] != "error"] == [
        ["open", "open", None, "OPEN"],
        ["message", "message", "1", "OPEN"],
        ["open", "open", None, "OPEN"],
    ]
    assert ["error", "error", None, "CONNECTING"] in called
    assert ["listener", "message", "2", "OPEN"] in called
    assert page.evaluate("[stream.readyState, stream.withCredentials]") == [2, False]


@pytest.mark.parametrize("share", WAYS)
def test_reconnect_does_not_wait(
    server: ServerProcess, start_relay: StartRelay, frontend: Frontend, share: bool
) -> None:
    relay = start_relay(server)
    options = {"share": share, "backoffMs": [600_000, 600_000], "expected": GONE}
    page = frontend(relay.port, **options)
    wait_for_own(page, "connected")
    other = frontend(relay.port, beside=page, **options)
    wait_for_own(other, "connected")
    relay.cut()
    for each in (page, other):
        wait_for_state(each, "waiting", why="lost")
    publish(server, "orders", 1)
    relay.restore()
    # The one that does not lead.
    other.evaluate("stream.reconnect()")
    wait_for(other, 1)
    if not share:
        page.evaluate("stream.reconnect()")
    wait_for(page, 1)
    other.evaluate("stream.reconnect()")
    wait_for_own(other, "connected", count=3)
    publish(server, "orders", 2)
    for each in (page, other):
        wait_for(each, 2)
        assert published(each) == [1, 2]


def test_a_signal_closes_it(server: ServerProcess, frontend: Frontend) -> None:
    page = frontend(server.port)
    wait_for_own(page, "connected")
    page.evaluate("""() => {
        window.controller = new AbortController();
        window.other = new stream.constructor(stream.url, {signal: controller.signal, share: false});
        window.aborted = new stream.constructor(stream.url, {signal: AbortSignal.abort(), share: false});
    }""")
    page.wait_for("other.state === 'open'")
    wait_for_connections(server, 2)
    assert page.evaluate("() => { controller.abort(); return [other.state, aborted.state]; }") == ["closed", "closed"]
    wait_for_connections(server, 1)
