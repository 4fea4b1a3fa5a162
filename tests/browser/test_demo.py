"""The demo page at `/`, as somebody sees it who has just started the server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from qgstream.wire.sse import Parser
from tests.browser.conftest import serving
from tests.browser.engines.base import Tab
from tests.browser.relay import BAD_GATEWAY, Relay
from tests.deploy.programs import free_port
from tests.publishing import publish, publish_all
from tests.serving import KEY, RawClient, ServerProcess

# Its tools find what somebody sees, and use it as they do.
pytestmark = pytest.mark.engines("chromium")

OpenTab = Callable[..., Tab]
StartServer = Callable[..., ServerProcess]
StartRelay = Callable[[ServerProcess], Relay]
GONE = ("ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE")


@pytest.fixture(scope="module")
def common_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    yield from serving(tmp_path_factory.mktemp("server"), auth__publish_keys={"tests": KEY, "dev": "dev"})


@pytest.fixture
def demo(open_tab: OpenTab) -> OpenTab:
    """Open the page of a server and wait until it is in `state`."""

    def open_it(port: int, query: str = "", *, state: str = "open", **options: Any) -> Tab:
        tab = open_tab(f"http://127.0.0.1:{port}/{query}", **options)
        expect(tab.page.locator("#state")).to_have_text(state)
        return tab

    return open_it


def rows(page: Page, kind: str) -> Locator:
    """The rows of the list whose type is `kind`, newest first."""
    return page.locator("#rows li").filter(has=page.locator(".kind", has_text=re.compile(f"^{re.escape(kind)}$")))


def data(row: Locator) -> Locator:
    return row.locator(".data")


def fill_form(page: Page, *, topic: str = "demo", event: str = "", payload: str, key: str = KEY) -> None:
    page.get_by_label("Topic", exact=True).fill(topic)
    page.get_by_label("Event type").fill(event)
    page.get_by_label("Data").fill(payload)
    page.get_by_label("Publish key").fill(key)


def publish_by_form(page: Page, payload: str, *, topic: str = "demo", event: str = "", key: str = KEY) -> None:
    fill_form(page, topic=topic, event=event, payload=payload, key=key)
    page.get_by_role("button", name="Publish", exact=True).click()


# Live at once.


def test_it_shows_the_stream_at_once(start_server: StartServer, demo: OpenTab) -> None:
    server = start_server()
    page = demo(server.port).page
    expect(rows(page, "connected")).to_have_count(1)
    expect(rows(page, "heartbeat").nth(2)).to_be_visible()
    expect(page.locator("#heartbeat")).to_have_text(re.compile(r"^\d\.\d s ago$"))
    expect(page.locator("#replay")).to_have_text("none")
    answer = publish(server, "orders", {"order": 7})
    publish(server, "orders", "typed", event="a type that nobody told the page of")
    row = rows(page, "message")
    expect(data(row)).to_have_text('{"order": 7}')
    expect(row.locator(".id")).to_have_text(answer["id"])
    expect(row.locator("time")).to_have_text(re.compile(r"^\d\d:\d\d:\d\d\.\d{3}$"))
    expect(data(rows(page, "a type that nobody told the page of"))).to_have_text("typed")
    expect(page.locator("#count")).to_have_text("2")


def test_heartbeats_as_comments_count_too(start_server: StartServer, demo: OpenTab) -> None:
    server = start_server(heartbeat__format="comment")
    page = demo(server.port, "?topic=quiet").page
    expect(rows(page, "comment").nth(1)).to_be_visible()
    expect(page.locator("#heartbeat")).to_have_text(re.compile(r"s ago$"))
    # They move the position past what is not for this stream.
    answer = publish(server, "other", "x")
    expect(page.locator("#last-id")).to_have_text(answer["id"])
    expect(page.locator("#count")).to_have_text("0")


def test_heartbeats_can_be_hidden(start_server: StartServer, demo: OpenTab) -> None:
    page = demo(start_server().port).page
    expect(rows(page, "heartbeat").first).to_be_visible()
    page.get_by_role("switch", name="Heartbeats").uncheck()
    expect(page.locator("#rows li:visible .kind")).to_have_text(["connected"])
    expect(page.locator("#shown")).to_contain_text("1 of")


# Publishing.


# What is typed, and what arrives: no digit is lost, what is no JSON is text, a JSON string is its text, markup is text.
TYPED = {
    '{"a": 12345678901234567890.10}': '{"a": 12345678901234567890.10}',
    "two\nlines and a : colon": "two\nlines and a : colon",
    '"a JSON string"': "a JSON string",
    '<img src=x onerror="alert(1)">': '<img src=x onerror="alert(1)">',
}


def test_the_form_publishes_what_was_typed(start_server: StartServer, demo: OpenTab) -> None:
    page = demo(start_server().port).page
    for number, (typed, arrives) in enumerate(TYPED.items()):
        publish_by_form(page, typed, event=f"created-{number}")
        expect(data(rows(page, f"created-{number}"))).to_have_text(arrives, use_inner_text=True)
        expect(page.locator("#answer")).to_contain_text("Published to 1 stream in")
    assert page.locator("#rows img").count() == 0


def test_the_form_shows_why_the_server_refused(start_server: StartServer, demo: OpenTab) -> None:
    page = demo(start_server().port, expected=("401 (Unauthorized)", "400 (Bad Request)")).page
    publish_by_form(page, "x", key="not the key")
    expect(page.locator("#answer")).to_contain_text("401 unknown_key")
    publish_by_form(page, "x", topic="a*b")
    expect(page.locator("#answer")).to_contain_text("400 invalid_field topic: got 'a*b'")
    publish_by_form(page, "x")
    expect(page.locator("#answer")).to_contain_text("Published")
    expect(rows(page, "message")).to_have_count(1)


def test_one_every_second(start_server: StartServer, demo: OpenTab) -> None:
    page = demo(start_server().port, expected=("401 (Unauthorized)",)).page
    switch = page.get_by_role("switch", name="One every second")
    fill_form(page, payload="", event="tick")
    switch.check()
    expect(rows(page, "tick").nth(2)).to_be_visible()
    assert [json.loads(text)["number"] for text in data(rows(page, "tick")).all_inner_texts()][-3:] == [3, 2, 1]
    page.get_by_label("Publish key").fill("not the key")
    # What is refused once would be refused each second.
    expect(switch).not_to_be_checked()


def test_the_keyboard_is_enough(start_server: StartServer, demo: OpenTab) -> None:
    page = demo(start_server().port).page
    fill_form(page, payload="")
    page.get_by_label("Data").focus()
    page.keyboard.type("from the keyboard")
    page.keyboard.press("Control+Enter")
    expect(data(rows(page, "message"))).to_have_text("from the keyboard")
    page.evaluate("document.activeElement.blur()")
    name = "(x) => x.id || x.getAttribute('aria-label') || x.textContent"
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(f"({name})(document.activeElement)"))
    controls = page.locator("input, select, textarea, button:visible:not(#log button), #log, a:visible")
    assert set(controls.evaluate_all(f"all => all.map({name})")) <= set(reached)


def test_the_arrow_keys_lead_from_event_to_event(server: ServerProcess, demo: OpenTab) -> None:
    """One event of the list takes part in the order of the tab key: the form behind 500 events is soon reached."""
    page = demo(server.port, "?topic=arrows").page
    publish_all(server, [{"topic": "arrows", "data": {"n": number}} for number in range(3)])
    expect(rows(page, "message")).to_have_count(3)
    page.get_by_role("switch", name="Heartbeats").uncheck()
    expect(page.locator('#rows li:visible:has(button:not([tabindex="-1"]))')).to_have_count(1)
    page.locator("#log").focus()
    for expected in ("arrows", "Expand the JSON", "Copy this event"):
        page.keyboard.press("Tab")
        assert (
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent")
            == expected
        )
    row = "document.activeElement.closest('li').querySelector('.data').textContent"
    assert page.evaluate(row) == '{"n": 2}'
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(row) == '{"n": 0}'
    page.keyboard.press("ArrowUp")
    assert page.evaluate(row) == '{"n": 1}'
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "topic"


# Away and back.


def test_it_survives_the_server_being_killed_and_started_again(start_server: StartServer, demo: OpenTab) -> None:
    server = start_server(limits__retry_seconds=1)
    page = demo(server.port, expected=GONE).page
    publish_by_form(page, "before")
    expect(rows(page, "message")).to_have_count(1)
    server.kill()
    expect(page.locator("#state")).to_have_text("reconnecting")
    expect(page.locator("#countdown")).to_have_text(re.compile(r"^in \d(\.\d)? s$"))
    expect(page.locator("#notice")).to_contain_text("The connection was lost")
    expect(page.locator("#open-now")).to_have_text("\N{EN DASH}")
    start_server(port=server.port)
    expect(page.locator("#state")).to_have_text("open")
    # The new server has none of the old one's memory, and the page says so until somebody has read it.
    expect(page.locator("#replay")).to_have_text("reset")
    expect(page.locator("#resets")).to_have_text("1")
    expect(page.locator("#reconnections")).to_have_text("1")
    expect(page.locator("#notice")).to_contain_text("epoch_changed")
    expect(rows(page, "reset")).to_have_count(1)
    publish_by_form(page, "after")
    expect(data(rows(page, "message"))).to_have_text(["after", "before"])
    expect(page.locator("#open-now")).to_have_text("1")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator("#notice")).to_be_hidden()


def test_it_survives_a_proxy_without_its_server_and_gets_what_it_missed(
    start_server: StartServer, start_relay: StartRelay, demo: OpenTab
) -> None:
    server = start_server()
    relay = start_relay(server)
    page = demo(relay.port, expected=(*GONE, "502 (Bad Gateway)")).page
    publish(server, "demo", "0")
    expect(rows(page, "message")).to_have_count(1)
    relay.cut(BAD_GATEWAY)  # this is what stops an EventSource for good
    expect(page.locator("#notice")).to_contain_text("The answer was 502")
    publish_all(server, [{"topic": "demo", "data": str(n)} for n in range(1, 11)])
    relay.restore()
    expect(page.locator("#state")).to_have_text("open")
    expect(page.locator("#replay")).to_have_text("complete")
    expect(data(rows(page, "message"))).to_have_text([str(n) for n in range(10, -1, -1)])
    expect(page.locator("#notice")).to_be_hidden()
    expect(page.locator("#resets")).to_have_text("0")


def test_a_connection_that_died_without_a_word_is_noticed(
    start_server: StartServer, start_relay: StartRelay, demo: OpenTab
) -> None:
    server = start_server()
    relay = start_relay(server)
    page = demo(relay.port).page
    expect(rows(page, "heartbeat").nth(2)).to_be_visible()
    relay.mute()
    publish(server, "demo", "unheard")
    expect(page.locator("#reconnections")).to_have_text("1")
    expect(page.locator("#replay")).to_have_text("complete")
    expect(data(rows(page, "message"))).to_have_text("unheard")


def test_try_now_does_not_wait(start_server: StartServer, start_relay: StartRelay, demo: OpenTab) -> None:
    server = start_server(limits__retry_seconds=600)
    relay = start_relay(server)
    page = demo(relay.port, expected=GONE).page
    relay.cut()
    expect(page.locator("#state")).to_have_text("reconnecting")
    relay.restore()
    page.get_by_role("button", name="Try now").click()
    expect(page.locator("#state")).to_have_text("open")


def test_over_the_limit_it_says_so_and_comes_back_by_itself(start_server: StartServer, demo: OpenTab) -> None:
    server = start_server(limits__max_connections=1, limits__overload_retry_seconds=1)
    holder = RawClient(server.port).get("/events")
    holder.until(b"connected")
    page = demo(server.port, state="rejected").page
    expect(page.locator("#countdown")).to_have_text(re.compile(r"^in [12](\.\d)? s$"))
    expect(page.locator("#notice")).to_contain_text("The server is full (max_connections)")
    expect(page.locator("#open-detail")).to_contain_text("of at most 1")
    holder.close()
    expect(page.locator("#state")).to_have_text("open")
    expect(page.locator("#notice")).to_be_hidden()


def test_it_says_that_the_server_is_leaving(start_server: StartServer, demo: OpenTab) -> None:
    server = start_server()
    page = demo(server.port, expected=GONE).page
    server.stop()
    expect(data(rows(page, "closing"))).to_contain_text('"reason": "drain"')
    expect(data(rows(page, "note")).last).to_contain_text("The server is leaving (drain)")
    expect(page.locator("#state")).to_have_text("reconnecting")


def test_disconnect_and_connect(start_server: StartServer, demo: OpenTab) -> None:
    server = start_server()
    page = demo(server.port).page
    expect(rows(page, "heartbeat").first).to_be_visible()
    page.get_by_role("button", name="Disconnect").click()
    expect(page.locator("#state")).to_have_text("disconnected")
    assert server.wait_for_log("events.disconnected")["reason"] == "client"
    publish(server, "demo", "meanwhile")
    page.get_by_role("button", name="Connect", exact=True).click()
    expect(page.locator("#replay")).to_have_text("complete")
    expect(data(rows(page, "message"))).to_have_text("meanwhile")


# Topics.


def test_topics_choose_what_comes(start_server: StartServer, demo: OpenTab) -> None:
    server = start_server()
    page = demo(server.port, "?topic=news").page
    publish_all(server, [{"topic": topic, "data": topic} for topic in ("orders", "stock/a", "news")])
    expect(data(rows(page, "message"))).to_have_text("news")
    page.get_by_label("Topics").fill("orders, stock/*")
    page.keyboard.press("Enter")
    expect(page.locator("#address")).to_have_text(re.compile(r"/events\?topic=orders&topic=stock/\*$"))
    server.wait_for_log("events.connected", topics=["orders", "stock/*"])
    publish_all(server, [{"topic": topic, "data": topic} for topic in ("news", "stock/a", "orders")])
    expect(data(rows(page, "message"))).to_have_text(["orders", "stock/a", "news"])
    # The address is one to share.
    page.reload()
    expect(page.get_by_label("Topics")).to_have_value("orders, stock/*")
    page.get_by_role("button", name="Replay all").click()
    expect(data(rows(page, "message"))).to_have_text(["orders", "stock/a", "stock/a", "orders"])


def test_a_topic_that_cannot_be_is_refused_with_the_servers_words(start_server: StartServer, demo: OpenTab) -> None:
    page = demo(start_server().port, "?topic=a*b", state="refused", expected=("400 (Bad Request)",)).page
    expect(page.locator("#notice")).to_contain_text("400 invalid_field: topic: got 'a*b'")
    page.get_by_label("Topics").fill("")
    page.get_by_role("button", name="Subscribe").click()
    expect(page.locator("#state")).to_have_text("open")
    expect(page.locator("#notice")).to_be_hidden()


# Reading.

STREAM = (
    "\ufeffretry: 5\nid: a\ndata: 1\r\ndata:2\rdata\r\r: comment\nid: b\n\nevent: x\ndata:  3\n\nid: c\0\n"
    "retry: 1x\nunknown: 4\ndata: \U0001f600\u2028\x85\n\nevent: y\n\nid\ndata: last\r\n\r\ndata: cut"
)


def test_it_reads_a_stream_as_the_standard_says_however_it_is_cut(start_server: StartServer, demo: OpenTab) -> None:
    page = demo(start_server().port).page
    whole = STREAM.encode()
    expected = [[event.event, event.data, event.id] for event in Parser().feed(whole)]
    assert len(expected) == 4
    got = page.evaluate(
        """(bytes) => bytes.map((_, cut) => {
            const got = [], decoder = new TextDecoder();
            const parser = new Parser("", ({type, data, id}) => { if (data !== null) got.push([type, data, id]); });
            for (const part of [bytes.slice(0, cut), [], bytes.slice(cut)]) {
                parser.feed(decoder.decode(new Uint8Array(part), {stream: true}));
            }
            return got;
        })""",
        list(whole),
    )
    assert [each for each in got if each != expected] == []


def test_it_looks_at_each_character_once(start_server: StartServer, demo: OpenTab) -> None:
    looked_at, lines = demo(start_server().port).page.evaluate(
        """() => {
            const exec = RegExp.prototype.exec, lines = [];
            let lookedAt = 0, last = "";
            RegExp.prototype.exec = function (text) {
                if (text !== last) lookedAt += text.length;
                last = text;
                return exec.call(this, text);
            };
            try {
                const parser = new Parser("", ({data}) => lines.push(data.length));
                for (const part of ["data: ", ...Array(1000).fill("x".repeat(100)), "\\n\\ndata: y", "\\n\\n"]) {
                    parser.feed(part);
                }
            } finally {
                RegExp.prototype.exec = exec;
            }
            return [lookedAt, lines];
        }"""
    )
    assert lines == [100_000, 1]
    assert looked_at <= 100_020


def test_what_a_server_asks_for_is_bounded(start_server: StartServer, demo: OpenTab) -> None:
    page = demo(start_server().port).page
    by_retry, by_header = page.evaluate(
        """async () => {
            disconnect();
            const set = window.setTimeout, byRetry = [];
            for (const retry of [0, 1234, 1e12]) {
                received({retry, data: null, comment: null}, {});
                window.setTimeout = (_, ms) => byRetry.push(ms);
                lost({said: "rejected", why: "The server is full"});
                window.setTimeout = set;
            }
            const asked = ["0", "-5", "7", "999999999", "9".repeat(400), "soon"];
            const answers = asked.map((after) => new Response("", {status: 503, headers: {"Retry-After": after}}));
            return [byRetry, (await Promise.all(answers.map(refusal))).map(({waitMs}) => waitMs)];
        }"""
    )
    assert by_retry == [500, 1234, 300_000]
    assert by_header == [None, -5000, 7000, 300_000, 300_000, None]  # the page's own pauses are the least


# The list.


def test_the_list_is_bounded(start_server: StartServer, demo: OpenTab) -> None:
    server = start_server(heartbeat__interval_seconds=60)
    page = demo(server.port).page
    publish_all(server, [{"topic": "demo", "data": n} for n in range(1200)])
    expect(page.locator("#count")).to_have_text("1,200")
    expect(page.locator("#rows li")).to_have_count(500)
    expect(data(page.locator("#rows li").first)).to_have_text("1199")
    expect(page.locator("#shown")).to_contain_text("701 older dropped")  # `connected` was the first
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#rows li")).to_have_count(0)


def test_a_long_event_is_shown_in_part_until_asked_for(start_server: StartServer, demo: OpenTab) -> None:
    server = start_server()
    page = demo(server.port).page
    publish(server, "demo", "x" * 262_144)
    button = page.get_by_role("button", name="Show all 262,144 characters")
    assert len(data(rows(page, "message")).inner_text()) == 600
    button.click()
    assert len(data(rows(page, "message")).inner_text()) == 262_144


def test_pause_filter_and_clear(start_server: StartServer, demo: OpenTab) -> None:
    server = start_server(heartbeat__interval_seconds=60)
    page = demo(server.port).page
    publish(server, "demo", "apples")
    expect(rows(page, "message")).to_have_count(1)
    page.get_by_role("button", name="Pause").click()
    publish_all(server, [{"topic": "demo", "data": text, "event": "fruit"} for text in ("Pears", "plums")])
    expect(page.locator("#shown")).to_have_text("paused, 2 waiting")
    expect(rows(page, "message")).to_have_count(1)
    page.get_by_role("button", name="Resume").click()
    expect(data(rows(page, "fruit"))).to_have_text(["plums", "Pears"])
    page.get_by_label("Filter events by text").fill("PEAR")
    expect(page.locator("#rows li:visible .data")).to_have_text(["Pears"])
    page.get_by_label("Filter events by text").fill("fruit")
    expect(page.locator("#rows li:visible .data")).to_have_text(["plums", "Pears"])
    page.get_by_label("Filter events by text").fill("no such thing")
    expect(page.locator("#empty")).to_have_text("No event matches the filter.")
    page.get_by_label("Filter events by text").fill("")
    expect(page.locator("#rows li:visible")).to_have_count(4)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#rows li")).to_have_count(0)
    expect(page.locator("#empty")).to_contain_text("Nothing here")


# Open connections.


def test_it_plots_the_open_connections(start_server: StartServer, demo: OpenTab) -> None:
    server = start_server()
    page = demo(server.port).page
    expect(page.locator("#open-now")).to_have_text("1")
    clients = [RawClient(server.port).get("/events") for _ in range(4)]
    expect(page.locator("#open-now")).to_have_text("5")
    for client in clients:
        client.close()
    expect(page.locator("#open-now")).to_have_text("1")
    expect(page.locator("#open-detail")).to_have_text("of at most 10,000, highest seen here 5")
    path = page.locator("#plot path.curve").get_attribute("d") or ""
    heights = [float(y) for y in re.findall(r"(?: |V)([0-9.]+)", path)]
    assert len(heights) >= 3
    assert heights[0] == heights[-1] > min(heights)  # up, and down again; y grows downwards


def test_without_metrics_on_this_port_it_says_so(start_server: StartServer, demo: OpenTab) -> None:
    server = start_server(admin__port=free_port())
    page = demo(server.port, expected=("404 (Not Found)",)).page
    expect(page.locator("#unmeasured")).to_contain_text("no /metrics on this port")
    expect(page.locator("#plot")).to_be_hidden()


# Where it may go, and how it fits.


def test_another_server_on_this_machine_can_be_named(start_server: StartServer, demo: OpenTab) -> None:
    here, there = start_server(), start_server()
    page = demo(here.port, f"?api=http://localhost:{there.port}").page
    publish_by_form(page, "over there", event="created")
    expect(data(rows(page, "created"))).to_have_text("over there")
    expect(page.locator("#open-now")).to_have_text("1")
    there.wait_for_log("events.connected")
    assert not [line for line in here.lines() if line["event"] == "events.connected"]


def test_its_policy_holds(start_server: StartServer, demo: OpenTab) -> None:
    server = start_server()
    # A crafted link must not send the key that somebody types to a stranger.
    refused = ("Content Security Policy",)
    page = demo(server.port, "?api=http://stranger.example", state="reconnecting", expected=refused)
    page.wait_for_said("http://stranger.example/events")
    page.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
    )
    assert page.page.evaluate("window.ran") is None


def test_it_fits_narrow_screens(start_server: StartServer, demo: OpenTab) -> None:
    server = start_server()
    page = demo(server.port, f"?topic={'t' * 100}&topic=demo").page
    publish(server, "demo", "x" * 500, event="e" * 200)
    publish_by_form(page, "y" * 500)
    expect(rows(page, "message")).to_have_count(1)
    for width in (360, 700, 1000):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width


# What a reader of the list does with an event.


def test_it_shows_topics_and_filters_by_them(server: ServerProcess, demo: OpenTab) -> None:
    page = demo(server.port).page
    publish_all(
        server,
        [
            {"topic": "orders", "data": 1},
            {"topic": ["orders", 'news/"a", b'], "data": {"id": "x", "topic": "other", "data": 2}},
            {"topic": "chat", "data": '{"id": "1", "topic": "forged", "event": null, "data": 3}'},
        ],
    )
    messages = rows(page, "message")
    expect(messages.locator(".topic")).to_have_text(["chat", "orders", 'news/"a", b', "orders"])
    expect(data(messages).first).to_have_text('{"id": "1", "topic": "forged", "event": null, "data": 3}')
    expect(data(messages).nth(1)).to_have_text('{"id": "x", "topic": "other", "data": 2}')
    choice = page.get_by_label("Filter events by topic")
    assert choice.locator("option").all_inner_texts()[1:] == ["chat", 'news/"a", b', "orders"]
    choice.select_option("orders")
    expect(page.locator("#rows li:visible .data")).to_have_text(['{"id": "x", "topic": "other", "data": 2}', "1"])
    choice.select_option("")
    messages.first.get_by_role("button", name="chat").click()
    expect(choice).to_have_value("chat")
    expect(page.locator("#rows li:visible .topic")).to_have_text(["chat"])
    publish(server, "orders", 4)
    publish(server, "chat", 5)
    expect(page.locator("#rows li:visible .data").first).to_have_text("5")
    expect(page.locator("#rows li:visible .topic")).to_have_text(["chat", "chat"])
    page.get_by_role("button", name="Clear").click()
    expect(choice).to_have_value("chat")  # what somebody has chosen stays


def test_json_is_expanded_and_keeps_its_digits(server: ServerProcess, demo: OpenTab) -> None:
    page = demo(server.port, "?topic=json").page
    page.get_by_label("Topic", exact=True).fill("json")
    written = '{"a": [1, 12345678901234567890.10], "b": {}, "c": [], "d": "x: {[,\\"", "e": [{"f": null}]}'
    publish_by_form(page, written, topic="json")
    row = rows(page, "message")
    expect(data(row)).to_have_text(written)
    expand = row.get_by_role("button", name="Expand the JSON")
    expect(expand).to_have_attribute("aria-expanded", "false")
    expand.click()
    expect(expand).to_have_attribute("aria-expanded", "true")
    shown = data(row).inner_text()
    assert shown.splitlines()[:5] == ["{", '  "a": [', "    1,", "    12345678901234567890.10", "  ],"]
    assert '"b": {},' in shown
    assert '"c": [],' in shown
    assert json.loads(shown) == json.loads(written)
    expand.click()
    expect(data(row)).to_have_text(written)
    publish_by_form(page, "no JSON", topic="json")
    expect(rows(page, "message")).to_have_count(2)
    expect(rows(page, "message").first.get_by_role("button", name="Expand the JSON")).to_have_count(0)


def test_long_json_is_expanded_as_a_whole(server: ServerProcess, demo: OpenTab) -> None:
    page = demo(server.port, "?topic=long").page
    publish(server, "long", list(range(1000)))
    row = rows(page, "message")
    row.get_by_role("button", name="Expand the JSON").click()
    assert json.loads(data(row).inner_text()) == list(range(1000))
    expect(row.get_by_role("button", name="Show all")).to_be_hidden()


@pytest.mark.parametrize("has_clipboard", [True, False], ids=["clipboard", "another host without TLS"])
def test_events_and_snippets_are_copied(server: ServerProcess, demo: OpenTab, *, has_clipboard: bool) -> None:
    page = demo(server.port, "?topic=copies").page
    # What a browser would give to its machine; that belongs to whoever runs the tests.
    page.evaluate(
        """(has) => {
            window.copied = [];
            const clipboard = has ? {writeText: async (text) => void copied.push(text)} : undefined;
            Object.defineProperty(navigator, "clipboard", {value: clipboard});
            document.execCommand = () => { copied.push(document.activeElement.value); return true; };
        }""",
        has_clipboard,
    )
    publish(server, "copies", '{"a":  1}')
    button = rows(page, "message").get_by_role("button", name="Copy this event")
    button.click()
    expect(page.locator("#said")).to_have_text("Copied")
    expect(button).to_be_focused()
    for name in ("code-page", "code-shell", "code-publish"):
        page.locator(f'[data-copies="{name}"]').click()
        expect(page.locator(f'[data-copies="{name}"]')).to_have_text("Copied")
    snippets = [page.locator(f"#{name}").text_content() for name in ("code-page", "code-shell", "code-publish")]
    assert page.evaluate("copied") == ['{"a":  1}', *snippets]
    expect(page.locator("#said")).to_have_text("")


# Keys, and the way to the dashboard.


def test_the_key_of_development_is_offered_where_it_is_one(server: ServerProcess, demo: OpenTab) -> None:
    page = demo(server.port).page
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.locator("#answer")).to_contain_text("Published")
    expect(page.locator("#code-publish")).to_contain_text("Bearer dev'")
    page.get_by_role("link", name="Dashboard").click()
    expect(page.get_by_label("Admin key")).to_be_visible()
    page.get_by_role("link", name="Demo page").click()
    expect(page.locator("#state")).to_have_text("open")


@pytest.mark.parametrize("keys", [{}, {"shop": "a-key"}], ids=["none", "another"])
def test_no_key_is_offered_that_would_not_be_taken(
    start_server: StartServer, demo: OpenTab, keys: dict[str, str]
) -> None:
    page = demo(start_server(auth__publish_keys=keys).port).page
    expect(page.locator("#publish-form")).to_be_visible(visible=bool(keys))
    expect(page.locator("#shell-publish")).to_be_visible(visible=bool(keys))
    expect(page.locator("#no-keys")).to_be_visible(visible=not keys)
    if keys:
        expect(page.get_by_label("Publish key")).to_have_value("")
    else:
        expect(page.locator("#no-keys")).to_contain_text("auth.publish_keys")
    assert not re.search(r"\bdev\b", page.locator("body").inner_text())


# A phone.


def test_on_a_phone_the_result_of_a_publish_is_in_sight(server: ServerProcess, demo: OpenTab) -> None:
    page = demo(server.port, "?topic=other/*").page
    page.set_viewport_size({"width": 390, "height": 844})
    answer = page.locator("#answer")

    def press_at_the_edge() -> None:
        """The button is at the lower edge, the form's answer below it, and the event far above. Playwright's own click
        would scroll."""
        page.get_by_role("button", name="Publish", exact=True).evaluate(
            "(it) => { scrollBy(0, it.getBoundingClientRect().bottom - innerHeight); it.click(); }"
        )

    press_at_the_edge()
    expect(answer).to_contain_text("This page does not listen to that topic.")
    expect(answer).to_be_in_viewport(ratio=1)
    page.get_by_label("Topics").fill("")
    page.get_by_role("button", name="Subscribe").click()
    expect(page.locator("#replay")).to_have_text("none")
    expect(page.locator("#state")).to_have_text("open")
    press_at_the_edge()
    expect(answer).to_contain_text("It is in the list")
    expect(answer).to_be_in_viewport(ratio=1)
    page.get_by_role("button", name="Show it").click()
    expect(data(rows(page, "message").first)).to_be_in_viewport()


@pytest.mark.parametrize("width", [390, 1280])
def test_no_line_of_a_snippet_is_cut_off(server: ServerProcess, demo: OpenTab, width: int) -> None:
    page = demo(server.port, f"?topic={'t' * 150}").page
    page.set_viewport_size({"width": width, "height": 844})
    for snippet in page.locator("pre").all():
        assert snippet.evaluate("pre => pre.scrollWidth - pre.clientWidth") == 0
