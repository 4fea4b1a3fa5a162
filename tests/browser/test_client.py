"""The JavaScript client in real tabs: one connection for all of them, and nothing missed or repeated on a way back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.browser.conftest import QUICK, connections
from tests.browser.engines.base import Tab
from tests.browser.relay import BAD_GATEWAY, Relay
from tests.documents import ROOT, Block, blocks
from tests.publishing import publish, publish_all
from tests.serving import KEY, RawClient, ServerProcess, wait_until
from tests.signing import SECRET

OpenTab = Callable[..., Tab]
StartServer = Callable[..., ServerProcess]
StartRelay = Callable[[ServerProcess], Relay]

# What a console says of connections: Chromium of all that failed, Firefox of some, WebKit of none.
GONE = (
    "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET",
    "CORS request did not succeed", "was interrupted while the page was loading",
    "establish a connection to the server",
)  # fmt: skip
REFUSED = (
    "401 (Unauthorized)",
    "502 (Bad Gateway)",
    "503 (Service Unavailable)",
    "establish a connection to the server",
)
UNREADABLE = ("blocked by CORS policy", "ERR_FAILED", "(Reason: CORS header")
BACKOFF_MS = [100, 400]
# What only its tools can do: freeze a tab, stop a worker, take the network away.
CHROMIUM_ALONE = pytest.mark.engines("chromium")
WAYS = [pytest.param(True, id="shared"), pytest.param(False, id="alone")]
# The client as the API's server gives it, and as a frontend's own copy.
ORIGINS = [pytest.param(8, "", id="from the API"), pytest.param(3, "&own", id="own copy")]


def serving(folder: Path, **settings: object) -> Iterator[ServerProcess]:
    with ServerProcess(folder, **(QUICK | settings)) as running:  # type: ignore[arg-type]  # `port` is not among them
        yield running


@pytest.fixture(scope="module")
def common_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    yield from serving(tmp_path_factory.mktemp("server"))


@pytest.fixture
def server(common_server: ServerProcess) -> ServerProcess:
    """One for all tests that leave it as it was, and nobody is connected to it."""
    wait_until(lambda: connections(common_server) == 0, what="the end of the last test's connections")
    return common_server


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose topic `mine` needs a token."""
    yield from serving(
        tmp_path_factory.mktemp("tokens"), auth__jwt__secret=SECRET, auth__jwt__algorithms=["HS256"],
        auth__jwt__leeway_seconds=0, auth__private_topics=["mine"],
    )  # fmt: skip


@pytest.fixture
def frontend(open_tab: OpenTab, page_port: int) -> Callable[..., Tab]:
    """Open the page with the client in a context of its own, or beside another tab, and start a stream."""

    def open_it(
        port: int, *, beside: Tab | None = None, query: str = "", expected: tuple[str, ...] = (), before: str = "",
        then: str = "", **options: object,
    ) -> Tab:  # fmt: skip
        url = f"http://localhost:{page_port}/client.html?api=http://localhost:{port}{query}"
        page = open_tab("about:blank", expected=expected) if beside is None else beside.beside()
        page.goto(f"{url}#{quote(before)}")
        page.wait_for("document.body.dataset.ready")
        page.evaluate(f"(options) => {{ start(options); {then} }}", {"backoffMs": BACKOFF_MS} | options)
        return page

    return open_it


Frontend = Callable[..., Tab]


def seen(page: Tab, *types: str) -> list[dict[str, Any]]:
    everything: list[dict[str, Any]] = page.evaluate("seen")
    return [x for x in everything if x["type"] in types]


def published(page: Tab) -> list[Any]:
    """What was published, in the order in which it came."""
    return [x["json"] for x in seen(page, "message", "created") if x["topic"] is not None]


def wait_for(page: Tab, value: object) -> None:
    page.wait_for("(value) => seen.some((x) => x.topic !== null && x.json === value)", value)


def wait_for_own(page: Tab, name: str, *, count: int = 1) -> None:
    page.wait_for("([n, c]) => seen.filter((x) => x.type === n).length >= c", [name, count])


def wait_for_state(page: Tab, state: str, **fields: object) -> dict[str, Any]:
    """Until the stream has been in this state, with these fields; returns it."""
    wanted = {"state": state} | fields
    found = "(w) => states.find((s) => Object.entries(w).every(([k, v]) => s[k] === v))"
    page.wait_for(found, wanted)
    state_then: dict[str, Any] = page.evaluate(found, wanted)
    return state_then


# The documentation.

SHOWN = [block for block in blocks("javascript") if "page" in block.flags]
PAGES = blocks("html")


@pytest.mark.parametrize("block", SHOWN, ids=str)
def test_what_the_documentation_shows_works(
    server: ServerProcess, open_tab: OpenTab, page_port: int, block: Block
) -> None:
    page = open_tab(f"http://localhost:{page_port}/client.html?own")
    page.evaluate(
        """(text) => {
            window.logged = [];
            console.log = (...what) => logged.push(what.join(" "));
            document.head.append(Object.assign(document.createElement("script"), {type: "module", text}));
        }""",
        block.text.replace("localhost:8000", f"localhost:{server.port}"),
    )
    wait_until(lambda: connections(server) == 1, what="the connection")
    publish(server, "orders", {"order": 7}, event="created")
    page.wait_for("logged.some((text) => text.startsWith('created 7'))")


@pytest.mark.parametrize("block", PAGES, ids=str)
def test_a_page_that_the_documentation_shows_works(
    server: ServerProcess, open_tab: OpenTab, page_port: int, block: Block
) -> None:
    page = open_tab(f"http://localhost:{page_port}/client.html?own")
    page.evaluate(
        "(text) => { document.open(); document.write(text); document.close(); }",
        block.text.replace("localhost:8000", f"localhost:{server.port}"),
    )
    page.wait_for("/connected|alive|open/.test(document.querySelector('#state')?.textContent)")
    publish(server, "orders", {"order": 7}, event="created")
    publish(server, "orders", {"order": 7}, event="paid")
    listed = "[...document.querySelectorAll('#list li')].map((item) => item.textContent)"
    page.wait_for(f"{listed}.length >= 2")
    assert page.evaluate(listed) == ['paid {"order": 7}', 'created {"order": 7}']


# One connection for all.


def opened(server: ServerProcess) -> int:
    """How many streams there have been."""
    return len([line for line in server.lines() if line["event"] == "events.connected"])


@pytest.mark.parametrize(("tabs", "query"), ORIGINS)
def test_all_tabs_live_on_one_connection(server: ServerProcess, frontend: Frontend, tabs: int, query: str) -> None:
    before = opened(server)
    first = frontend(server.port, query=query)
    others = [frontend(server.port, beside=first, query=query) for _ in range(tabs - 1)]
    for page in [first, *others]:
        wait_for_own(page, "connected")
        assert page.evaluate("stream.isShared")
    assert connections(server) == 1
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
    wait_until(lambda: connections(server) == 0, what="the end of the connection")


def test_tabs_that_start_at_once_find_each_other(server: ServerProcess, frontend: Frontend) -> None:
    # As a browser's session that is restored.
    wait = "stream.close(); window.channel = new BroadcastChannel('go'); channel.onmessage = () => start();"
    first = frontend(server.port, then=wait)
    pages = [first, *(frontend(server.port, then=wait, beside=first) for _ in range(2))]
    first.evaluate("() => { channel.postMessage('go'); start(); }")
    for page in pages:
        wait_for_own(page, "connected")
    assert connections(server) == 1


def test_each_tab_gets_its_own_topics(server: ServerProcess, frontend: Frontend) -> None:
    a = frontend(server.port, path="/events?topic=a")
    wait_for_own(a, "connected")
    # It crashes one day, and says no goodbye.
    silent = "addEventListener('pagehide', (event) => event.stopImmediatePropagation(), true)"
    b = frontend(server.port, topics=["b/*", "d, e"], types=["paid"], beside=a, before=silent)
    wait_for_own(b, "connected")
    server.wait_for_log("events.connected", topics=["a", "b/*", "d, e"])
    wait_until(lambda: connections(server) == 1, what="one connection")
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
    wait_until(lambda: connections(server) == 1, what="one connection")


def test_another_group_has_another_connection(server: ServerProcess, frontend: Frontend) -> None:
    ann = frontend(server.port, share="ann")
    bob = frontend(server.port, share="bob", beside=ann)
    for page in (ann, bob):
        wait_for_own(page, "connected")
    assert connections(server) == 2


def test_a_tab_whose_topics_are_refused_does_not_disturb_the_others(
    with_tokens: ServerProcess, frontend: Frontend
) -> None:
    server = with_tokens
    good = frontend(server.port, topics=["orders"], expected=REFUSED)
    wait_for_own(good, "connected")
    refused = frontend(server.port, topics=["mine"], beside=good)
    assert wait_for_state(refused, "waiting", why="refused", status=401)["waitMs"] >= BACKOFF_MS[1] / 2
    assert not refused.evaluate("stream.isShared")
    publish(server, "orders", 1)
    wait_for(good, 1)
    wait_until(lambda: connections(server) == 1, what="one connection")
    assert good.evaluate("stream.isShared")
    refused.evaluate("stream.setTopics(['orders'])")
    wait_for_own(refused, "connected")


# Where nothing can be shared, and by whom.


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
    wait_until(lambda: connections(server) == 1, what="one connection")
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
    assert connections(server) == 2
    for page in (ann, bob):
        named = {"topics": ["mine"], "tokens": [600], "share": "ann"}
        page.evaluate("(options) => { stream.close(); start(options); }", named)
    for page in (ann, bob):
        wait_for_own(page, "connected", count=2)
        assert page.evaluate("stream.isShared")
    wait_until(lambda: connections(server) == 1, what="one connection")
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
    wait_until(lambda: connections(server) == 2, what="the end of the connection")
    assert not latest.evaluate("stream.isShared")
    publish(server, "numbers", 3)
    for each in (page, resumed, latest):
        wait_for(each, 3)
    assert (published(resumed), published(latest), published(page)) == ([1, 2, 3], [2, 3], [3])


# What comes.


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


def test_a_type_can_be_listened_to_later(server: ServerProcess, frontend: Frontend) -> None:
    page = frontend(server.port, types=[])
    wait_for_own(page, "connected")
    page.evaluate("hear('late')")
    wait_until(lambda: publish(server, "orders", 1, event="late") and seen(page, "late"), what="an event")
    assert connections(server) == 1


def test_close_is_the_end(server: ServerProcess, frontend: Frontend) -> None:
    before = opened(server)
    for share in (True, False):
        page = frontend(server.port, share=share)
        wait_for_own(page, "connected")
        page.evaluate("() => { stream.close(); stream.close(); }")
        wait_until(lambda: connections(server) == 0, what="the end of the connection")
        page.wait_for_text("#state", "closed")
    page.evaluate("() => { start(); stream.close(); }")
    page.evaluate("() => { start({share: false}); stream.close(); }")
    assert opened(server) == before + 2


# Topics.


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


# Away and back.


def test_a_server_that_is_killed_and_started_again(
    start_server: StartServer, frontend: Frontend, tmp_path: Path
) -> None:
    stored = f"sqlite://{tmp_path}/log.db"
    server = start_server(broker__url=stored)
    page = frontend(server.port, expected=GONE)
    pages = [page, frontend(server.port, beside=page), frontend(server.port, share=False, beside=page)]
    for each in pages:
        wait_for_own(each, "connected")
    publish_all(server, [{"topic": "orders", "data": n, "event": "created"} for n in range(10)])
    server.kill()
    again = start_server(port=server.port, broker__url=stored)
    publish_all(again, [{"topic": "orders", "data": n} for n in range(10, 20)])
    for each in pages:
        wait_for(each, 19)
        assert published(each) == list(range(20))
        assert wait_for_state(each, "waiting")["why"] in ("lost", "unreachable")
        assert each.evaluate("stream.state") == "open"
        assert seen(each, "reset") == []
    assert connections(again) == 2


def test_a_gap_is_told_whatever_happens_then(server: ServerProcess, frontend: Frontend) -> None:
    # Between `connected` and `reset` the topics change, so the connection is made anew.
    change = "stream.addEventListener('connected', () => stream.setTopics(['orders']))"
    page = frontend(server.port, lastEventId="0000000000-7", then=change)
    wait_for_own(page, "reset")
    assert {x["json"]["reason"] for x in seen(page, "reset")} == {"epoch_changed"}
    assert seen(page, "connected")[0]["json"]["replay"] == "reset"
    publish(server, "orders", 1)
    wait_for(page, 1)


def test_a_permanent_stop_is_none(server: ServerProcess, start_relay: StartRelay, frontend: Frontend) -> None:
    relay = start_relay(server)
    page = frontend(relay.port, expected=(*REFUSED, *UNREADABLE, *GONE))
    wait_for_own(page, "connected")
    relay.cut(BAD_GATEWAY)
    publish_all(server, [{"topic": "orders", "data": n} for n in range(5)])
    # The answer has no CORS headers, so the page may not see that there was one.
    page.wait_for("states.filter((s) => s.why === 'unreachable').length >= 4")
    waits = [x["waitMs"] for x in page.evaluate("states.filter((s) => s.state === 'waiting')")]
    ceilings = [min(BACKOFF_MS[0] * 2**n, BACKOFF_MS[1]) for n in range(len(waits))]
    shares = [wait / ceiling for wait, ceiling in zip(waits, ceilings, strict=True)]
    assert all(0.5 <= share <= 1 for share in shares), waits
    assert len(set(shares)) > 1
    relay.restore()
    wait_for(page, 4)
    assert published(page) == list(range(5))


@pytest.mark.parametrize("response", ["auto", "error"])
def test_over_the_limit_it_comes_back_when_a_slot_frees(
    start_server: StartServer, frontend: Frontend, response: str
) -> None:
    server = start_server(limits__max_connections=1, limits__overload_response=response)
    holder = RawClient(server.port).get("/events")
    holder.until(b"connected")
    page = frontend(server.port, expected=REFUSED)
    if response == "auto":
        assert wait_for_state(page, "waiting", why="rejected")["reason"] == "max_connections"
        wait_for_own(page, "rejected", count=2)
    else:
        state = wait_for_state(page, "waiting", why="refused", status=503)
        assert state["code"] == "max_connections"
        assert "open streams: 1" in state["message"]
    holder.close()
    wait_for_own(page, "connected")


def test_a_goodbye_is_told(start_server: StartServer, frontend: Frontend) -> None:
    server = start_server()
    page = frontend(server.port, expected=GONE)
    wait_for_own(page, "connected")
    server.stop()
    wait_for_own(page, "closing")
    assert wait_for_state(page, "waiting", why="closing")["reason"] == "drain"


# Sleep and wake.


@CHROMIUM_ALONE
@pytest.mark.parametrize("share", WAYS)
def test_a_frozen_tab_has_missed_nothing(server: ServerProcess, frontend: Frontend, share: bool) -> None:
    page = frontend(server.port, share=share)
    other = frontend(server.port, share=share, beside=page)
    for each in (page, other):
        wait_for_own(each, "connected")
    devtools = page.page.context.new_cdp_session(page.page)
    devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    publish_all(server, [{"topic": "orders", "data": n} for n in range(20)])
    wait_for(other, 19)
    devtools.send("Page.setWebLifecycleState", {"state": "active"})
    wait_for(page, 19)
    assert published(page) == published(other) == list(range(20))


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


@CHROMIUM_ALONE
def test_it_does_not_wait_when_the_network_is_back(
    server: ServerProcess, start_relay: StartRelay, frontend: Frontend
) -> None:
    relay = start_relay(server)
    page = frontend(relay.port, share=False, backoffMs=[600_000, 600_000], expected=GONE)
    wait_for_own(page, "connected")
    relay.cut()
    wait_for_state(page, "waiting", why="lost")
    relay.restore()
    page.page.context.set_offline(True)
    page.page.context.set_offline(False)
    wait_for_own(page, "connected", count=2)


def test_back_from_another_page(server: ServerProcess, frontend: Frontend, page_port: int) -> None:
    page = frontend(server.port)
    wait_for_own(page, "connected")
    publish(server, "orders", 1)
    wait_for(page, 1)
    page.goto(f"http://localhost:{page_port}/away.html")
    wait_until(lambda: connections(server) == 0, what="the end of the connection")
    publish(server, "orders", 2)
    page.back()
    page.wait_for("document.body.dataset.ready")
    is_kept = page.evaluate("'stream' in window")
    if is_kept:
        wait_for(page, 2)
        assert published(page) == [1, 2]
    else:  # a page that was loaded anew starts a stream of its own
        page.evaluate("start()")
        wait_for_own(page, "connected")
    publish(server, "orders", 3)
    wait_for(page, 3)
    assert connections(server) == 1


# Tokens.


@pytest.mark.parametrize("share", WAYS)
def test_a_token_that_expires_is_replaced(with_tokens: ServerProcess, frontend: Frontend, share: bool) -> None:
    server = with_tokens
    # By how long they are good for; the first is refused, the second ends while the stream is open.
    page = frontend(server.port, topics=["mine"], tokens=[-60, 2, 600], share=share and "ann", expected=REFUSED)
    wait_for_own(page, "connected")
    publish(server, "mine", 1)
    wait_for_own(page, "closing")
    publish(server, "mine", 2)
    wait_for(page, 2)
    assert [x["json"]["reason"] for x in seen(page, "closing")] == ["token_expired"]
    assert published(page) == [1, 2]
    assert page.evaluate("asked") == 3


def test_a_token_function_that_fails_is_asked_again(with_tokens: ServerProcess, frontend: Frontend) -> None:
    page = frontend(with_tokens.port, topics=["mine"], tokens=[None, 600])
    assert "no token today" in wait_for_state(page, "waiting", why="token")["message"]
    wait_for_own(page, "connected")


def test_a_tab_that_has_no_token_lets_another_give_one(with_tokens: ServerProcess, frontend: Frontend) -> None:
    server = with_tokens
    page = frontend(server.port, topics=["mine"], tokens=[3, None], share="ann", expected=REFUSED)
    wait_for_own(page, "connected")
    other = frontend(server.port, topics=["mine"], tokens=[600], share="ann", beside=page)
    wait_for_own(other, "connected")
    wait_for_own(page, "connected", count=2)
    publish(server, "mine", 1)
    for each in (page, other):
        wait_for(each, 1)
    assert page.evaluate("asked") >= 2
    assert other.evaluate("asked") == 1
    assert connections(server) == 1


# Listeners.


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
    wait_until(lambda: connections(server) == 0, what="the end of the connection")
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
    assert connections(server) == 1


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


# The page that leads.


@CHROMIUM_ALONE
def test_a_page_that_does_not_answer_loses_the_lead(server: ServerProcess, frontend: Frontend) -> None:
    leader = frontend(server.port)
    wait_for_own(leader, "connected")
    others = [frontend(server.port, beside=leader) for _ in range(2)]
    for page in others:
        wait_for_own(page, "connected")
    publish(server, "orders", 1)
    for page in [leader, *others]:
        wait_for(page, 1)
    dialogs: list[Any] = []
    leader.page.on("dialog", lambda dialog: dialogs.append(dialog))  # noqa: PLW0108  # Playwright marks the function
    leader.evaluate("() => { setTimeout(() => alert('Are you still there?')); }")
    wait_until(lambda: others[0].evaluate("1") and bool(dialogs), what="the dialog")
    publish(server, "orders", 2)
    for page in others:
        wait_for(page, 2)
    publish(server, "orders", 3)
    for page in others:
        wait_for(page, 3)
    dialogs[0].accept()
    publish(server, "orders", 4)
    for page in [leader, *others]:
        wait_for(page, 4)
        assert published(page) == [1, 2, 3, 4]
    wait_until(lambda: connections(server) == 1, what="one connection")
    assert leader.evaluate("stream.isShared")


def test_eight_tabs_go_to_another_page_and_back(server: ServerProcess, frontend: Frontend, page_port: int) -> None:
    pages = [frontend(server.port, expected=GONE)]
    wait_for_own(pages[0], "connected")
    pages += [frontend(server.port, beside=pages[0]) for _ in range(7)]
    for page in pages:
        wait_for_own(page, "connected")
    publish(server, "orders", 1)
    for page in pages:
        wait_for(page, 1)
    for page in pages:
        page.goto(f"http://localhost:{page_port}/away.html")
    wait_until(lambda: connections(server) == 0, what="the end of the connection")
    publish(server, "orders", 2)
    kept = []
    for page in pages:
        page.back()
        page.wait_for("document.body.dataset.ready")
        if page.evaluate("'stream' in window"):
            kept.append(page)
        else:  # an engine need not keep each of them
            page.evaluate("start()")
            wait_for_own(page, "connected")
    for page in kept:
        wait_for(page, 2)
    publish(server, "orders", 3)
    for page in pages:
        wait_for(page, 3)
        assert published(page) == ([1, 2, 3] if page in kept else published(page)[-1:])
        page.wait_for("stream.isShared")
    wait_until(lambda: connections(server) == 1, what="one connection")


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


REFUSE_B = """
    const real = window.fetch;
    window.refuses = true;
    window.fetch = (url, ...more) => {
        if (!window.refuses || !String(url).includes("topic=b")) return real(url, ...more);
        const error = {error: {code: "forbidden", message: "not b"}};
        return Promise.resolve(new Response(JSON.stringify(error), {status: 403}));
    };
"""


def test_a_tab_that_was_refused_joins_again(server: ServerProcess, frontend: Frontend) -> None:
    good = frontend(server.port, topics=["a"], before=REFUSE_B)
    wait_for_own(good, "connected")
    refused = frontend(server.port, topics=["b"], before=REFUSE_B, beside=good)
    wait_for_state(refused, "waiting", why="refused", status=403, code="forbidden", message="not b")
    wait_until(lambda: connections(server) == 1, what="one connection")
    publish(server, "a", 1)
    wait_for(good, 1)
    for page in (good, refused):
        page.evaluate("() => { refuses = false; }")
    wait_for_own(refused, "connected")
    for page in (good, refused):
        page.wait_for("stream.isShared")
    wait_until(lambda: connections(server) == 1, what="one connection")
    publish_all(server, [{"topic": topic, "data": n} for n, topic in enumerate("abab")])
    wait_for(good, 2)
    wait_for(refused, 3)
    assert (published(good), published(refused)) == ([1, 0, 2], [1, 3])


def test_one_tab_that_is_refused_from_the_beginning_stops_no_other(server: ServerProcess, frontend: Frontend) -> None:
    refused = frontend(server.port, topics=["b"], before=REFUSE_B)
    wait_for_state(refused, "waiting", why="refused", status=403)
    good = frontend(server.port, topics=["a"], before=REFUSE_B, beside=refused)
    wait_for_own(good, "connected")
    publish(server, "a", 1)
    wait_for(good, 1)


def test_when_all_are_refused_they_stay_together(with_tokens: ServerProcess, frontend: Frontend) -> None:
    server, bad = with_tokens, [-60] * 4
    # Both tabs may be asked, or only one.
    options = {"topics": ["mine"], "share": "ann", "expected": REFUSED, "backoffMs": [100, 100]}
    page = frontend(server.port, tokens=[3, *bad, 600], **options)
    wait_for_own(page, "connected")
    other = frontend(server.port, tokens=[3, *bad, 600], beside=page, **options)
    wait_for_own(other, "connected")
    for each in (page, other):
        wait_for_state(each, "waiting", why="refused", status=401)
        each.wait_for("stream.state === 'open'")
        assert each.evaluate("stream.isShared")
    publish(server, "mine", 1)
    for each in (page, other):
        wait_for(each, 1)
    assert connections(server) == 1


HANG = """
    const real = window.fetch;
    window.hangs = window.refuses = false;
    window.fetch = (url, ...more) => {
        if (String(url).startsWith("/mint")) return window.hangs ? new Promise(() => {}) : real(url, ...more);
        if (!window.refuses) return real(url, ...more);
        window.refuses = false;
        return Promise.resolve(new Response("", {status: 401}));
    };
"""


def test_tabs_that_do_not_answer_keep_no_other_from_a_token(with_tokens: ServerProcess, frontend: Frontend) -> None:
    server = with_tokens
    options = {"topics": ["mine"], "share": "ann", "before": HANG, "tokens": [600]}
    first = frontend(server.port, **options)
    wait_for_own(first, "connected")
    pages = [first, *(frontend(server.port, beside=first, **options) for _ in range(5))]
    for page in pages:
        wait_for_own(page, "connected")
    for page in pages[:-1]:
        page.evaluate("() => { hangs = true; }")
    assert pages[-1].evaluate("asked") == 0
    first.evaluate("() => { refuses = true; stream.reconnect(); }")
    for page in pages:
        wait_for_own(page, "connected", count=2)
    publish(server, "mine", 1)
    for page in pages:
        wait_for(page, 1)
    assert connections(server) == 1
    assert pages[-1].evaluate("asked") == 1


def test_to_wait_for_a_token_is_not_silence(
    with_tokens: ServerProcess, start_relay: StartRelay, frontend: Frontend
) -> None:
    relay = start_relay(with_tokens)
    page = frontend(with_tokens.port, before=HANG, then="window.silent = stream;", expected=GONE)
    wait_for_own(page, "connected")
    page.evaluate("() => { hangs = true; start({share: false, tokens: [600]}); }")
    # Another one waits for an answer, and hears none.
    relay.hold()
    page.evaluate("""(port) => {
        window.held = new silent.constructor(`http://localhost:${port}/events`, {share: false});
        held.addEventListener("state", ({why}) => { if (why) window.why = why; });
    }""", relay.port)  # fmt: skip
    wait_until(lambda: bool(relay.requests), what="the request")
    page.evaluate("() => { const now = performance.now.bind(performance); performance.now = () => now() + 60_000; }")
    assert page.wait_for("window.why") == "silent"
    assert page.evaluate("stream.state") == "connecting"
    assert page.evaluate("asked") == 1


# Time, and the network.


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


# What an EventSource has, and more.


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
    assert connections(server) == 2
    assert page.evaluate("() => { controller.abort(); return [other.state, aborted.state]; }") == ["closed", "closed"]
    wait_until(lambda: connections(server) == 1, what="the end of the connection")


@pytest.mark.parametrize("share", WAYS)
def test_the_page_says_what_is_fatal(
    server: ServerProcess, start_relay: StartRelay, frontend: Frontend, share: bool
) -> None:
    relay = start_relay(server)
    relay.cut(BAD_GATEWAY)
    fatal = """
        window.last = new stream.constructor(stream.url, {
            share: options.share, backoffMs: options.backoffMs,
            isFatal: ({failures, why}) => why === 'unreachable' && failures >= 3,
        });
        window.told = [];
        const tell = (e) => told.push([e.type, e.state ?? null, e.why ?? null, last.readyState]);
        for (const type of ['state', 'error']) last.addEventListener(type, tell);
    """
    page = frontend(relay.port, query="&own", share=share, then=fatal, expected=(*REFUSED, *UNREADABLE, *GONE))
    page.wait_for("last.state === 'closed'")
    told = page.evaluate("told.filter(([type, state]) => type === 'error' || state !== 'connecting')")
    assert told[-2:] == [["state", "closed", "unreachable", 2], ["error", None, None, 2]]
    # The two may have begun one after the other.
    assert {each[1] for each in told[:-2] if each[0] == "state"} <= {"waiting"}
    # The other stream of the page goes on.
    relay.restore()
    wait_for_own(page, "connected")
    wait_until(lambda: connections(server) == 1, what="one connection")


# The policy of a page.


def test_the_policy_that_the_documentation_shows_is_enough(
    server: ServerProcess, start_relay: StartRelay, frontend: Frontend
) -> None:
    (policy,) = re.findall(r"^Content-Security-Policy: (.*)$", (ROOT / "docs/javascript.md").read_text(), re.MULTILINE)
    policy = policy.replace("https://api.example.com", f"http://localhost:{server.port}")
    meta = f"""document.head.append(Object.assign(
        document.createElement("meta"), {{httpEquiv: "Content-Security-Policy", content: "{policy}"}}))"""
    page = frontend(server.port, before=meta, expected=("Content Security Policy", "Content-Security-Policy"))
    wait_for_own(page, "connected")
    other = frontend(server.port, before=meta, beside=page)
    wait_for_own(other, "connected")
    assert page.evaluate("stream.isShared")
    assert other.evaluate("stream.isShared")
    publish(server, "orders", 1)
    for each in (page, other):
        wait_for(each, 1)
    assert connections(server) == 1
    # The policy holds: nothing else may be asked.
    blocked = page.evaluate("fetch('/away.html').then(() => 'allowed', () => 'blocked')")
    assert blocked == "blocked"
