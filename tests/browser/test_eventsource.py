"""A page of another origin opens an EventSource and lives on it, in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.engines.base import Engine, Tab
from tests.browser.relay import Relay
from tests.publishing import publish, publish_all
from tests.serving import KEY, RawClient, ServerProcess, wait_until

OpenTab = Callable[..., Tab]
StartServer = Callable[..., ServerProcess]
StartRelay = Callable[[ServerProcess], Relay]

FIREFOX_GONE = ("CORS request did not succeed", "interrupted while the page", "establish a connection to the server")
UNREADABLE = ("blocked by CORS policy", "ERR_FAILED", "(Reason: ", "establish a connection to the server")


def frontend(page_port: int, api_port: int, *, page_host: str = "localhost", api_host: str = "localhost") -> str:
    return f"http://{page_host}:{page_port}/frontend.html?api=http://{api_host}:{api_port}"


def seen(page: Tab) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = page.evaluate("seen")
    return events


def own(page: Tab) -> list[str]:
    """The server's own messages so far, heartbeats left out."""
    return [x["data"]["event"] for x in seen(page) if x["data"].get("event", "heartbeat") != "heartbeat"]


def wait_for(page: Tab, name: str, *, count: int = 1) -> None:
    """Until the server's own message of this name has come `count` times."""
    enough = "([name, count]) => seen.filter((x) => x.data.event === name).length >= count"
    page.wait_for(enough, [name, count])


def wait_for_published(page: Tab, value: object, *, event: str = "message") -> None:
    came = "([event, value]) => seen.some((x) => x.type === event && x.data.value === value)"
    page.wait_for(came, [event, value])


@pytest.mark.parametrize(
    ("page_host", "api_host"), [("localhost", "localhost"), ("localhost", "127.0.0.1"), ("127.0.0.1", "localhost")]
)
def test_a_page_of_another_origin_lives_on_a_stream(
    start_server: StartServer, open_tab: OpenTab, page_port: int, page_host: str, api_host: str
) -> None:
    server = start_server()
    page = open_tab(frontend(page_port, server.port, page_host=page_host, api_host=api_host))
    wait_for(page, "heartbeat", count=3)
    assert seen(page)[0]["data"]["event"] == "connected"
    assert publish(server, "orders", {"value": 1})["subscribers"] == 1
    assert publish(server, "orders", {"value": 2}, event="created")["subscribers"] == 1
    wait_for_published(page, 2, event="created")
    published = [x for x in seen(page) if "value" in x["data"]]
    assert [(x["type"], x["data"]["value"]) for x in published] == [("message", 1), ("created", 2)]
    assert len({x["id"] for x in published}) == 2
    assert all(x["id"] for x in seen(page))
    page.wait_for_text("#state", "open")
    page.close()
    assert server.wait_for_log("events.disconnected")["reason"] == "client"


@pytest.mark.engines("chromium", "webkit")
def test_a_page_recovers_when_the_server_is_killed_and_started_again(
    start_server: StartServer, open_tab: OpenTab, page_port: int
) -> None:
    server = start_server()
    gone = ("ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_REFUSED", *FIREFOX_GONE)
    page = open_tab(frontend(page_port, server.port), expected=gone)
    wait_for(page, "connected")
    server.kill()
    page.wait_for_text("#state", "reconnecting")
    again = start_server(port=server.port)
    wait_for(page, "connected", count=2)
    publish(again, "orders", {"value": "after"})
    wait_for_published(page, "after")
    # The memory of the first one died with it, and the page is told so.
    assert own(page) == ["connected", "connected", "reset"]
    assert [x["data"]["replay"] for x in seen(page) if x["data"].get("event") == "connected"] == ["none", "reset"]
    page.wait_for_text("#state", "open")


@pytest.mark.engines("firefox")
@pytest.mark.parametrize("way", ["refused", "closed"])
def test_firefox_gives_up_a_server_of_another_origin_that_is_away(
    start_server: StartServer, start_relay: StartRelay, open_tab: OpenTab, page_port: int, way: str
) -> None:
    """A connection without an answer is a failure of CORS there, after which the standard has no way back."""
    server = start_server()
    relay = start_relay(server)
    page = open_tab(frontend(page_port, relay.port if way == "closed" else server.port), expected=FIREFOX_GONE)
    wait_for(page, "connected")
    if way == "closed":
        relay.cut()
    else:
        server.kill()
    page.wait_for_text("#state", "closed for good")


# What the files in deploy/ say to an EventSource while no server answers.
EMPTY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nAccess-Control-Allow-Origin: *\r\n"
    b"Content-Length: 12\r\nConnection: close\r\n\r\nretry: 200\n\n"
)


def test_empty_answers_of_a_proxy_bring_a_page_back(
    start_server: StartServer, start_relay: StartRelay, open_tab: OpenTab, page_port: int
) -> None:
    server = start_server()
    relay = start_relay(server)
    page = open_tab(frontend(page_port, relay.port), expected=("ERR_INCOMPLETE_CHUNKED_ENCODING", *FIREFOX_GONE))
    wait_for(page, "connected")
    relay.cut(EMPTY)
    publish(server, "orders", {"value": "meanwhile"})
    wait_until(lambda: len(relay.requests) >= 4, what="retries that got the empty answer")
    relay.restore()
    wait_for_published(page, "meanwhile")
    page.wait_for_text("#state", "open")


def test_a_page_of_the_same_origin_comes_back_without_an_answer(
    start_server: StartServer, start_relay: StartRelay, open_tab: OpenTab
) -> None:
    server = start_server()
    relay = start_relay(server)
    cut = ("ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE", *FIREFOX_GONE)
    page = open_tab(f"http://localhost:{relay.port}/client.js", expected=("favicon.ico", *cut))
    page.evaluate("""() => {
        window.seen = [];
        window.eventSource = new EventSource("/events?topic=orders");
        eventSource.onmessage = (event) => seen.push({type: "message", data: JSON.parse(event.data)});
    }""")
    wait_for(page, "connected")
    before = len(relay.requests)
    relay.cut()
    publish(server, "orders", {"value": "meanwhile"})
    wait_until(lambda: len(relay.requests) >= before + 2, what="retries that got no answer")
    relay.restore()
    wait_for_published(page, "meanwhile")


def test_over_the_limit_a_page_comes_back_by_itself_when_a_slot_frees(
    start_server: StartServer, open_tab: OpenTab, page_port: int
) -> None:
    server = start_server(limits__max_connections=1)
    holder = RawClient(server.port).get("/events")
    holder.until(b"connected")
    page = open_tab(frontend(page_port, server.port))
    wait_for(page, "rejected", count=2)
    assert {x["data"]["reason"] for x in seen(page)} == {"max_connections"}
    assert "connected" not in own(page)
    holder.close()
    wait_for(page, "connected")
    publish(server, "orders", {"value": "in"})
    wait_for_published(page, "in")


# A POST as a page makes it: JSON and a key, so the browser asks before (a preflight).
POST = """([port, key]) => fetch(`http://localhost:${port}/events`, {
    method: "POST",
    headers: {"Content-Type": "application/json", Authorization: `Bearer ${key}`},
    body: JSON.stringify({topic: "orders", data: {value: "posted"}}),
}).then((answer) => answer.status, String)"""


def test_with_a_list_of_origins_a_foreign_page_is_refused_and_ours_is_not(
    engine: Engine, start_server: StartServer, open_tab: OpenTab, page_port: int
) -> None:
    ours, foreign = f"http://localhost:{page_port}", f"http://127.0.0.1:{page_port}"
    server = start_server(cors__allow_origins=[ours, "https://www.example.com"], cors__allow_credentials=True)
    refused = open_tab(frontend(page_port, server.port, page_host="127.0.0.1"), expected=UNREADABLE)
    refused.wait_for_text("#state", "closed for good")
    if engine.name == "chromium":
        refused.wait_for_said(f"from origin '{foreign}' has been blocked by CORS policy")
    assert refused.evaluate(POST, [server.port, KEY]).startswith("TypeError")

    for options in ("", "&credentials"):
        page = open_tab(frontend(page_port, server.port) + options)
        wait_for(page, "heartbeat")
        assert page.evaluate("eventSource.withCredentials") is bool(options)
        assert page.evaluate(POST, [server.port, KEY]) == 200
        wait_for_published(page, "posted")
    assert seen(refused) == []


# What the tracing of a page adds to each request of `fetch`.
TRACED_POST = POST.replace(
    '"Content-Type":',
    '"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "x=1", "baggage": "a=b", '
    '"sentry-trace": "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1", "Content-Type":',
)


@pytest.mark.parametrize(
    ("cors", "answer"),
    [
        ({}, 200),
        ({"cors__allow_credentials": True}, 200),
        ({"cors__allow_headers": ["*"]}, 200),
        ({"cors__allow_headers": ["Authorization", "Content-Type"]}, None),
    ],
    ids=["by default", "with credentials", "everything", "too little"],
)
def test_a_page_with_tracing_publishes(
    start_server: StartServer, open_tab: OpenTab, page_port: int, cors: dict[str, object], answer: int | None
) -> None:
    server = start_server(cors__allow_origins=[f"http://localhost:{page_port}"], **cors)
    refused = () if answer else UNREADABLE
    page = open_tab(frontend(page_port, server.port), expected=refused)
    wait_for(page, "connected")
    said = page.evaluate(TRACED_POST, [server.port, KEY])
    if answer:
        assert said == answer
        wait_for_published(page, "posted")
    else:
        assert said.startswith("TypeError")


# Event types that an EventSource has a meaning of its own for.
LISTEN = """(names) => {
    window.heard = [];
    for (const name of names) eventSource.addEventListener(name, (event) => {
        heard.push([name, event instanceof MessageEvent, event.data ?? null, eventSource.readyState]);
    });
}"""


def test_the_types_error_and_open_call_the_handlers_of_the_connection(
    start_server: StartServer, open_tab: OpenTab, page_port: int
) -> None:
    """What docs/publishing.md warns of; a MessageEvent tells the two apart."""
    server = start_server()
    page = open_tab(frontend(page_port, server.port))
    wait_for(page, "connected")
    page.evaluate(LISTEN, ["error", "open", "message"])
    for name in ("error", "open", "message"):
        publish(server, "orders", {"value": name}, event=name)
    wait_for_published(page, "message")  # `onmessage` hears it, as an event without a type
    heard = [x for x in page.evaluate("heard") if '"heartbeat"' not in x[2]]
    assert heard == [[name, True, f'{{"value": "{name}"}}', 1] for name in ("error", "open", "message")]
    # The handler of the page has taken the first for a lost connection, and the second for a new one.
    page.wait_for_text("#state", "open")


def test_a_reconnect_is_not_preflighted_and_gets_what_was_missed(
    start_server: StartServer, start_relay: StartRelay, open_tab: OpenTab, page_port: int
) -> None:
    server = start_server()
    relay = start_relay(server)
    cut = ("ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE", *FIREFOX_GONE)
    page = open_tab(frontend(page_port, relay.port), expected=cut)
    wait_for(page, "connected")
    publish(server, "orders", {"value": 0})
    wait_for_published(page, 0)
    relay.cut(EMPTY)  # Firefox gives up when there is none
    page.wait_for_text("#state", "reconnecting")
    last_id = seen(page)[-1]["id"]
    publish_all(server, [{"topic": "orders", "data": {"value": n}} for n in range(1, 21)])
    publish(server, "orders", {"value": 21}, event="created")
    relay.restore()
    wait_for_published(page, 21, event="created")
    assert [x["data"]["value"] for x in seen(page) if "value" in x["data"]] == list(range(22))
    assert own(page) == ["connected", "connected"]

    assert {request.split(" ")[0] for request in relay.requests} == {"GET"}
    reconnect = relay.requests[-1].splitlines()
    assert reconnect[0] == "GET /events HTTP/1.1"
    assert f"Last-Event-ID: {last_id}" in reconnect
    assert f"Origin: http://localhost:{page_port}" in reconnect
    # The relay does see a preflight where there is one.
    assert page.evaluate(POST, [relay.port, KEY]) == 200
    assert "OPTIONS" in {request.split(" ")[0] for request in relay.requests}
