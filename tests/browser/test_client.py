"""The JavaScript client in real tabs: one connection for all of them, and nothing missed or repeated on a way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.browser.conftest import QUICK, connections
from tests.browser.engines.base import Engine, Tab
from tests.browser.relay import BAD_GATEWAY, Relay
from tests.documents import Block, blocks
from tests.publishing import publish, publish_all
from tests.serving import RawClient, ServerProcess, wait_until
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
# The client as a frontend's own copy, and as the API's server gives it with the copy as its worker.
ORIGINS = [
    pytest.param("&own", {}, id="own copy"),
    pytest.param("", {"worker": "/client.js"}, id="own worker"),
]


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
def frontend(engine: Engine, open_tab: OpenTab, page_port: int) -> Callable[..., Tab]:
    """Open the page with the client in a context of its own, or beside another tab, and start a stream."""

    def open_it(
        port: int, *, beside: Tab | None = None, query: str | None = None, expected: tuple[str, ...] = (),
        before: str = "", then: str = "", **options: object,
    ) -> Tab:  # fmt: skip
        if query is None:
            query = "&own" if engine.name == "firefox" else ""  # it does not share a client.js of another origin
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


# In WebKit the worker may end with the first tab, and seven streams take all connections.
@pytest.mark.engines("chromium")
def test_eight_tabs_live_on_one_connection_with_the_client_of_the_api(
    server: ServerProcess, engine: Engine, frontend: Frontend
) -> None:
    check_one_connection(server, engine, frontend, tabs=8)


@pytest.mark.parametrize(("query", "options"), ORIGINS)
def test_all_tabs_live_on_one_connection(
    server: ServerProcess, engine: Engine, frontend: Frontend, query: str, options: dict[str, object]
) -> None:
    check_one_connection(server, engine, frontend, tabs=3, query=query, **options)


def check_one_connection(
    server: ServerProcess, engine: Engine, frontend: Frontend, *, tabs: int, **options: Any
) -> None:
    before = opened(server)
    first = frontend(server.port, **options)
    others = [frontend(server.port, beside=first, **options) for _ in range(tabs - 1)]
    for page in [first, *others]:
        wait_for_own(page, "connected")
        assert page.evaluate("stream.isShared")
    assert connections(server) == 1
    assert publish(server, "orders", 1)["subscribers"] == 1
    assert publish(server, "orders", 2, event="created")["subscribers"] == 1
    for page in [first, *others]:
        wait_for(page, 2)
    # The one that opened it leaves; the others go on, on the same connection, and new ones come.
    first.close()
    publish(server, "orders", 3)
    late = frontend(server.port, beside=others[0], **options)
    wait_for_own(late, "connected")
    publish(server, "orders", 4, event="created")
    for page in others:
        wait_for(page, 4)
        assert published(page) == [1, 2, 3, 4]
    wait_for(late, 4)
    assert published(late)[-1] == 4
    # WebKit may end the worker with the tab whose process it runs in.
    assert engine.name == "webkit" or opened(server) == before + 1
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
    assert connections(server) == 1


def test_another_group_has_another_connection(server: ServerProcess, frontend: Frontend) -> None:
    ann = frontend(server.port, shared="ann")
    bob = frontend(server.port, shared="bob", beside=ann)
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


# Without a worker.


NO_WORKERS = {
    "there is none": "delete window.SharedWorker",
    "it may not be started": (
        "document.addEventListener('DOMContentLoaded', () => document.head.append(Object.assign("
        "document.createElement('meta'), {httpEquiv: 'Content-Security-Policy', content: 'worker-src \\'none\\''})))"
    ),
    "its file is not there": (
        "const Real = SharedWorker;"
        "window.SharedWorker = function (_, options) { return new Real('/none.js', options); }"
    ),
}


@pytest.mark.parametrize("before", NO_WORKERS.values(), ids=NO_WORKERS.keys())
def test_without_a_worker_a_tab_has_its_own_connection(server: ServerProcess, frontend: Frontend, before: str) -> None:
    quiet = ("Content Security Policy", "Content-Security-Policy", "404 (File not found)")
    page = frontend(server.port, before=before, query="&own", expected=quiet)
    wait_for_own(page, "connected")
    assert not page.evaluate("stream.isShared")
    publish(server, "orders", 1)
    wait_for(page, 1)


def test_who_begins_at_a_position_has_its_own_connection(server: ServerProcess, frontend: Frontend) -> None:
    ids = [publish(server, "numbers", n)["id"] for n in range(3)]
    page = frontend(server.port, topics=["numbers"])
    wait_for_own(page, "connected")
    resumed = frontend(server.port, topics=["numbers"], lastEventId=ids[0], beside=page)
    latest = frontend(server.port, topics=["numbers"], replay="latest", beside=page)
    wait_for(resumed, 2)
    wait_for(latest, 2)
    assert (published(resumed), published(latest), published(page)) == ([1, 2], [2], [])
    assert [x["json"]["replay"] for x in seen(resumed, "connected")] == ["complete"]


@CHROMIUM_ALONE
def test_when_the_worker_dies_each_tab_goes_on_by_itself(server: ServerProcess, frontend: Frontend) -> None:
    page = frontend(server.port)
    other = frontend(server.port, beside=page)
    for each in (page, other):
        wait_for_own(each, "connected")
    publish(server, "orders", 1)
    for each in (page, other):
        wait_for(each, 1)
    browser = page.page.context.browser
    assert browser is not None
    devtools = browser.new_browser_cdp_session()
    (worker,) = (each for each in devtools.send("Target.getTargets")["targetInfos"] if each["type"] == "shared_worker")
    session = devtools.send("Target.attachToTarget", {"targetId": worker["targetId"]})["sessionId"]
    message = '{"id": 1, "method": "Runtime.evaluate", "params": {"expression": "close()"}}'
    devtools.send("Target.sendMessageToTarget", {"sessionId": session, "message": message})
    for each in (page, other):
        each.wait_for("!stream.isShared")
    publish(server, "orders", 2)
    for each in (page, other):
        wait_for(each, 2)
        assert published(each) == [1, 2]
    assert connections(server) == 2


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


@pytest.mark.parametrize("shared", WAYS)
def test_a_published_type_is_never_taken_for_the_streams_own_event(
    server: ServerProcess, frontend: Frontend, shared: bool
) -> None:
    own = ["error", "open", "state", "message", "connected", "heartbeat", "reset", "closing", "rejected"]
    others = ["close", "abort", "toString", "constructor", "__proto__", "then"]
    page = frontend(server.port, shared=shared, types=["error", "open", *others], topics=["t"])
    wait_for_state(page, "open")
    before = page.evaluate("states.length")
    for name in [*own, *others]:
        publish(server, "t", name, event=name)
    page.wait_for("seen.some((x) => x.data === 'then')")
    events = [x for x in seen(page, "message", "error", "open", *others) if x["data"] in own + others]
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
    for shared in (True, False):
        page = frontend(server.port, shared=shared)
        wait_for_own(page, "connected")
        page.evaluate("() => { stream.close(); stream.close(); }")
        wait_until(lambda: connections(server) == 0, what="the end of the connection")
        page.wait_for_text("#state", "closed")
    page.evaluate("() => { start(); stream.close(); }")
    page.evaluate("() => { start({shared: false}); stream.close(); }")
    assert opened(server) == before + 2


# Topics.


@pytest.mark.parametrize("shared", WAYS)
def test_other_topics_from_the_same_position(
    server: ServerProcess, start_relay: StartRelay, frontend: Frontend, shared: bool
) -> None:
    relay = start_relay(server)
    # Firefox says it of a connection that is closed before it has answered.
    page = frontend(relay.port, topics=["a", "0"], shared=shared, expected=("CORS request did not succeed",))
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
    pages = [page, frontend(server.port, beside=page), frontend(server.port, shared=False, beside=page)]
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
    assert [x["json"]["reason"] for x in seen(page, "reset")] == ["epoch_changed"]
    assert [x["json"]["replay"] for x in seen(page, "connected")] == ["reset", "reset"]
    publish(server, "orders", 1)
    wait_for(page, 1)


def test_a_permanent_stop_is_none(server: ServerProcess, start_relay: StartRelay, frontend: Frontend) -> None:
    relay = start_relay(server)
    page = frontend(relay.port, expected=(*REFUSED, *UNREADABLE, *GONE))
    wait_for_own(page, "connected")
    relay.cut(BAD_GATEWAY)
    publish_all(server, [{"topic": "orders", "data": n} for n in range(5)])
    page.wait_for("states.filter((s) => s.why === 'refused').length >= 4")
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
        wait_for_state(page, "waiting", why="refused", status=None)
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
@pytest.mark.parametrize("shared", WAYS)
def test_a_frozen_tab_has_missed_nothing(server: ServerProcess, frontend: Frontend, shared: bool) -> None:
    page = frontend(server.port, shared=shared)
    other = frontend(server.port, shared=shared, beside=page)
    for each in (page, other):
        wait_for_own(each, "connected")
    devtools = page.page.context.new_cdp_session(page.page)
    devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    publish_all(server, [{"topic": "orders", "data": n} for n in range(20)])
    wait_for(other, 19)
    devtools.send("Page.setWebLifecycleState", {"state": "active"})
    wait_for(page, 19)
    assert published(page) == published(other) == list(range(20))


@pytest.mark.parametrize("shared", WAYS)
def test_a_connection_that_died_without_a_word_is_noticed(
    server: ServerProcess, start_relay: StartRelay, frontend: Frontend, shared: bool
) -> None:
    relay = start_relay(server)
    page = frontend(relay.port, shared=shared)
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
    page = frontend(relay.port, shared=False)
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
    page = frontend(relay.port, shared=False, backoffMs=[600_000, 600_000], expected=GONE)
    wait_for_own(page, "connected")
    relay.cut()
    wait_for_state(page, "waiting", why="lost")
    relay.restore()
    page.page.context.set_offline(True)
    page.page.context.set_offline(False)
    wait_for_own(page, "connected", count=2)


@pytest.mark.engines("chromium", "firefox")  # WebKit's worker goes on while a page is kept
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


@pytest.mark.parametrize("shared", WAYS)
def test_a_token_that_expires_is_replaced(with_tokens: ServerProcess, frontend: Frontend, shared: bool) -> None:
    server = with_tokens
    # By how long they are good for; the first is refused, the second ends while the stream is open.
    page = frontend(server.port, topics=["mine"], tokens=[-60, 2, 600], shared=shared, expected=REFUSED)
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
    page = frontend(server.port, topics=["mine"], tokens=[3, None], expected=REFUSED)
    wait_for_own(page, "connected")
    other = frontend(server.port, topics=["mine"], tokens=[600], beside=page)
    wait_for_own(other, "connected")
    wait_for_own(page, "connected", count=2)
    publish(server, "mine", 1)
    for each in (page, other):
        wait_for(each, 1)
    assert page.evaluate("asked") >= 2
    assert other.evaluate("asked") == 1
    assert connections(server) == 1
