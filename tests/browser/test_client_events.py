"""Events of the JavaScript client: what was published, and nothing else."""

from __future__ import annotations

import pytest

from tests.browser.streams import WAYS, Frontend, seen, wait_for, wait_for_own, wait_for_state
from tests.publishing import publish, publish_all
from tests.serving import ServerProcess


def test_an_event_is_what_was_published(server: ServerProcess, frontend: Frontend) -> None:
    page = frontend(server.port, types=["a type"])
    wait_for_own(page, "connected")
    texts = ["", "a\rb\r\nc\n", '"\\n\\u2028\\"', "\u2028\x85\0", "\U0001f600", '{"id": "x", "topic": "y", "data": 1}']
    ids = [publish(server, '"], [\\', text, event="a type")["id"] for text in texts]
    ids += publish_all(server, [{"topic": ["x", "y]"], "data": {"n": 1}, "event": "a type"}])["ids"]
    publish(server, "end", "end")
    page.wait_for("seen.some((x) => x.topic === 'end')")
    got = seen(page, "a type")
    assert [x["data"] for x in got] == [*texts, '{"n": 1}']
    assert [x["id"] for x in got] == ids
    assert [x["topic"] for x in got] == ['"], [\\'] * len(texts) + [["x", "y]"]]
    assert got[-1]["json"] == {"n": 1}


def test_nobody_can_publish_a_message_of_the_servers_own(server: ServerProcess, frontend: Frontend) -> None:
    page = frontend(server.port)
    wait_for_own(page, "connected")
    words = ["reset", "closing", "rejected", "heartbeat", "connected", "state", "error", "open", "message"]
    for word in words:
        publish(server, "orders", {"event": word, "reason": "mine"})
        publish(server, "orders", {"event": word, "reason": "mine"}, event=word)
    publish(server, "orders", "end", event="created")
    page.wait_for("seen.some((x) => x.type === 'created')")
    assert [x["event"] for x in seen(page, "message")] == [each for word in words for each in (None, word)]
    assert [
        x for x in seen(page, "connected", "heartbeat", "reset", "closing", "rejected") if "mine" in x["data"]
    ] == []
    assert page.evaluate("states.map((s) => s.state)") == ["connecting", "open"]


@pytest.mark.parametrize("share", WAYS)
def test_a_published_type_is_never_taken_for_the_streams_own_event(
    server: ServerProcess, frontend: Frontend, share: bool
) -> None:
    own = ["error", "open", "state", "message", "connected", "heartbeat", "reset", "closing", "rejected"]
    others = ["close", "abort", "toString", "constructor", "__proto__", "then"]
    page = frontend(server.port, share=share, types=["error", "open", *others], topics=["t"])
    wait_for_state(page, "open")
    before = page.evaluate("states.length")
    for name in [*own, *others]:
        publish(server, "t", name, event=name)
    page.wait_for("seen.some((x) => x.data === 'then')")
    events = [x for x in seen(page, "message", "error", "open", *others) if x.get("data") in own + others]
    assert [(x["type"], x["event"], x["data"]) for x in events] == [
        *(("message", name, name) for name in own),
        *((name, name, name) for name in others),
    ]
    # The connection is the same, and nothing was said about it.
    assert page.evaluate("states.length") == before
    assert page.evaluate("stream.state") == "open"
    assert len(seen(page, "connected")) == 1


def test_a_loop_over_the_events(server: ServerProcess, frontend: Frontend) -> None:
    loop = """
        window.got = [];
        (async () => {
            for await (const event of stream) {
                got.push([event.type, event.json.reason ?? event.json]);
                if (event.json === 0) await new Promise((resolve) => { window.goOn = resolve; });
            }
            got.push('end');
        })();
    """
    page = frontend(server.port, then=loop, lastEventId="0000000000-7", share=False)
    page.wait_for("got.length >= 1")
    for value in (1, 0, 2, 3):
        publish(server, "orders", value, event="any type")
    page.wait_for("!!window.goOn")
    publish(server, "orders", 4)
    wait_for(page, 4)
    assert page.evaluate("got.length") == 3
    page.evaluate("goOn()")
    page.wait_for("got.length >= 6")
    page.evaluate("stream.close()")
    page.wait_for("got.at(-1) === 'end'")
    kinds = [["reset", "epoch_changed"], ["any type", 1], ["any type", 0], ["any type", 2], ["any type", 3]]
    assert page.evaluate("got") == [*kinds, ["message", 4], "end"]


def test_a_loop_that_is_too_far_behind_is_told(frontend: Frontend, server: ServerProcess) -> None:
    loop = """
        (async () => {
            try {
                for await (const event of stream) await new Promise((resolve) => { window.goOn = resolve; });
            } catch (error) { window.problem = String(error); }
        })();
    """
    page = frontend(server.port, then=loop, topics=["many"])
    wait_for_own(page, "connected")
    for turn in range(11):
        publish_all(server, [{"topic": "many", "data": turn * 1000 + n} for n in range(1000)])
    wait_for(page, 10_999)
    page.evaluate("goOn()")
    assert "10000 events" in page.wait_for("window.problem")
