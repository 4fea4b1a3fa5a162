"""One connection of the JavaScript client for all tabs, and who shares it."""

from __future__ import annotations

import pytest

from tests.browser.conftest import wait_for_connections
from tests.browser.streams import UNREADABLE, Frontend, opened, published, seen, wait_for, wait_for_own
from tests.publishing import publish, publish_all
from tests.serving import KEY, ServerProcess

# The client as the API's server gives it, and as a frontend's own copy.
ORIGINS = [pytest.param(8, "", id="from the API"), pytest.param(3, "&own", id="own copy")]


@pytest.mark.parametrize(("tabs", "query"), ORIGINS)
def test_all_tabs_live_on_one_connection(server: ServerProcess, frontend: Frontend, tabs: int, query: str) -> None:
    before = opened(server)
    first = frontend(server.port, query=query)
    others = [frontend(server.port, beside=first, query=query) for _ in range(tabs - 1)]
    for page in [first, *others]:
        wait_for_own(page, "connected")
        assert page.evaluate("stream.isShared")
    wait_for_connections(server, 1)
    assert publish(server, "orders", 1)["subscribers"] == 1
    assert publish(server, "orders", 2, event="created")["subscribers"] == 1
    for page in [first, *others]:
        wait_for(page, 2)
    assert opened(server) == before + 1
    # The tab that has the connection leaves. Another one goes on from the same place, and new ones come.
    first.close()
    publish(server, "orders", 3)
    late = frontend(server.port, beside=others[0], query=query)
    wait_for_own(late, "connected")
    publish(server, "orders", 4, event="created")
    for page in others:
        wait_for(page, 4)
        assert published(page) == [1, 2, 3, 4]
        assert page.evaluate("states.map((s) => s.state)") == ["connecting", "open"]
    wait_for(late, 4)
    assert published(late)[-1] == 4
    assert opened(server) == before + 2
    for page in [*others, late]:
        page.close()
    wait_for_connections(server, 0)


def test_tabs_that_start_at_once_find_each_other(server: ServerProcess, frontend: Frontend) -> None:
    # As a browser's session that is restored.
    wait = "stream.close(); window.channel = new BroadcastChannel('go'); channel.onmessage = () => start();"
    first = frontend(server.port, then=wait)
    pages = [first, *(frontend(server.port, then=wait, beside=first) for _ in range(2))]
    first.evaluate("() => { channel.postMessage('go'); start(); }")
    for page in pages:
        wait_for_own(page, "connected")
    wait_for_connections(server, 1)


def test_each_tab_gets_its_own_topics(server: ServerProcess, frontend: Frontend) -> None:
    a = frontend(server.port, path="/events?topic=a")
    wait_for_own(a, "connected")
    # It crashes one day, and says no goodbye.
    silent = "addEventListener('pagehide', (event) => event.stopImmediatePropagation(), true)"
    b = frontend(server.port, topics=["b/*", "d, e"], types=["paid"], beside=a, before=silent)
    wait_for_own(b, "connected")
    server.wait_for_log("events.connected", topics=["a", "b/*", "d, e"])
    wait_for_connections(server, 1)
    for topic in ("a", "b/1", "c", "d, e", ["a", "b/2"]):
        publish_all(server, [{"topic": topic, "data": str(topic)}])
    publish(server, "b/3", "paid", event="paid")
    publish(server, "a", "end")
    a.wait_for("seen.some((x) => x.data === 'end')")
    b.wait_for("seen.some((x) => x.type === 'paid')")
    assert [x["topic"] for x in seen(a, "message")] == ["a", ["a", "b/2"], "a"]
    assert [x["topic"] for x in seen(b, "message")] == ["b/1", "d, e", ["a", "b/2"]]
    for page, topics in ((a, ["a"]), (b, ["b/*", "d, e"])):
        assert [x["json"]["topics"] for x in seen(page, "connected")][-1] == topics
    # What a tab wanted is not asked for without it.
    b.close()
    server.wait_for_log("events.connected", topics=["a"], count=2)
    wait_for_connections(server, 1)


def test_another_group_has_another_connection(server: ServerProcess, frontend: Frontend) -> None:
    ann = frontend(server.port, share="ann")
    bob = frontend(server.port, share="bob", beside=ann)
    for page in (ann, bob):
        wait_for_own(page, "connected")
    wait_for_connections(server, 2)


NOTHING_TO_SHARE = {
    "no locks, as over plain http": "Object.defineProperty(navigator, 'locks', {value: undefined})",
    "no channel": "delete window.BroadcastChannel",
    "not allowed": (
        "navigator.locks.request = () => Promise.reject(new DOMException('of an opaque origin', 'SecurityError'))"
    ),
}


@pytest.mark.parametrize("before", NOTHING_TO_SHARE.values(), ids=NOTHING_TO_SHARE.keys())
def test_without_locks_a_page_has_one_connection(server: ServerProcess, frontend: Frontend, before: str) -> None:
    page = frontend(server.port, before=before, topics=["a"])
    page.evaluate("(options) => { window.first = stream; start(options); }", {"topics": ["b"]})
    for topic in ("a", "b"):
        page.wait_for("(t) => seen.some((x) => x.type === 'connected' && x.json.topics[0] === t)", topic)
    assert page.evaluate("[first.isShared, stream.isShared]") == [False, False]
    server.wait_for_log("events.connected", topics=["a", "b"])
    wait_for_connections(server, 1)
    for topic in ("a", "b", "c"):
        publish(server, topic, topic)
    publish(server, "b", "end")
    page.wait_for("seen.some((x) => x.data === 'end')")
    assert [x["data"] for x in seen(page, "message")] == ["a", "b", "end"]


def test_a_stream_with_credentials_is_shared_only_under_a_name(
    with_tokens: ServerProcess, frontend: Frontend, page_port: int
) -> None:
    server = with_tokens
    # Wildcards and credentials do not go together, so the answer to one of the requests below is unreadable.
    ann = frontend(server.port, topics=["mine"], tokens=[600], expected=("404", "/no-stream", *UNREADABLE))
    bob = frontend(server.port, topics=["mine"], tokens=[600], beside=ann)
    for page in (ann, bob):
        wait_for_own(page, "connected")
        assert not page.evaluate("stream.isShared")
    wait_for_connections(server, 2)
    for page in (ann, bob):
        named = {"topics": ["mine"], "tokens": [600], "share": "ann"}
        page.evaluate("(options) => { stream.close(); start(options); }", named)
    for page in (ann, bob):
        wait_for_own(page, "connected", count=2)
        assert page.evaluate("stream.isShared")
    wait_for_connections(server, 1)
    # Cookies go to the page's own origin, and elsewhere with `withCredentials`.
    names = ann.evaluate(
        """(port) => {
        const shared = (...options) => new Promise((resolve) => {
            const it = new stream.constructor(...options);
            // It has tried to connect.
            it.addEventListener("error", () => { resolve(it.isShared); it.close(); });
        });
        const elsewhere = `http://localhost:${port}/no-stream`;
        return Promise.all([
            shared("/no-stream"), shared("/no-stream", {share: true}), shared("/no-stream", {share: "ann"}),
            shared(elsewhere), shared(elsewhere, {withCredentials: true}), shared(elsewhere, {share: false}),
        ]);
    }""",
        server.port,
    )
    assert names == [False, False, True, True, False, False]


def test_a_stream_that_begins_at_a_position_catches_up_alone_and_joins(
    server: ServerProcess, frontend: Frontend
) -> None:
    ids = [publish(server, "numbers", n)["id"] for n in range(3)]
    page = frontend(server.port, topics=["numbers"])
    wait_for_own(page, "connected")
    resumed = frontend(server.port, topics=["numbers"], lastEventId=ids[0], beside=page)
    latest = frontend(server.port, topics=["numbers"], replay="latest", beside=page)
    wait_for(resumed, 2)
    wait_for(latest, 2)
    assert (published(resumed), published(latest), published(page)) == ([1, 2], [2], [])
    assert [x["json"]["replay"] for x in seen(resumed, "connected")] == ["complete"]
    resumed.wait_for("stream.isShared")
    wait_for_connections(server, 2)
    assert not latest.evaluate("stream.isShared")
    publish(server, "numbers", 3)
    for each in (page, resumed, latest):
        wait_for(each, 3)
    assert (published(resumed), published(latest), published(page)) == ([1, 2, 3], [2, 3], [3])


def test_other_topics_of_one_tab_disturb_no_other(server: ServerProcess, frontend: Frontend) -> None:
    page = frontend(server.port, topics=["a"])
    wait_for_own(page, "connected")
    other = frontend(server.port, topics=["b"], beside=page)
    wait_for_own(other, "connected")
    other.evaluate("stream.setTopics(['b', 'c'])")
    server.wait_for_log("events.connected", topics=["a", "b", "c"])
    publish(server, "c", 1)
    wait_for(other, 1)
    publish(server, "a", 2)
    wait_for(page, 2)
    assert page.evaluate("states.map((s) => s.state)") == ["connecting", "open"]


def test_other_topics_of_a_tab_that_is_behind(server: ServerProcess, frontend: Frontend) -> None:
    before = opened(server)
    leader = frontend(server.port, topics=["a"])
    wait_for_own(leader, "connected")
    other = frontend(server.port, topics=["a"], beside=leader)
    wait_for_own(other, "connected")
    # It hears nothing while it publishes, so its position is older than that of the connection.
    other.evaluate(
        """([url, key]) => {
            for (const n of [1, 2, 3]) {
                const request = new XMLHttpRequest();
                request.open("POST", url, false);
                request.setRequestHeader("Authorization", `Bearer ${key}`);
                request.setRequestHeader("Content-Type", "application/json");
                request.send(JSON.stringify({topic: "a", data: n}));
            }
            stream.setTopics(["a", "b"]);
        }""",
        [f"http://localhost:{server.port}/events", KEY],
    )
    server.wait_for_log("events.connected", topics=["a", "b"])
    publish(server, "a", 4)
    for page in (leader, other):
        wait_for(page, 4)
        assert published(page) == [1, 2, 3, 4]
    assert opened(server) == before + 2
