"""The server refuses what one tab asks for, or what all ask for."""

from __future__ import annotations

import pytest

from tests.browser.conftest import StartRelay, wait_for_connections
from tests.browser.engines.base import Tab
from tests.browser.relay import BAD_GATEWAY
from tests.browser.streams import (
    BACKOFF_MS,
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
from tests.serving import ServerProcess


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
    wait_for_connections(server, 1)
    assert good.evaluate("stream.isShared")
    refused.evaluate("stream.setTopics(['orders'])")
    wait_for_own(refused, "connected")


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
    wait_for_connections(server, 1)
    publish(server, "a", 1)
    wait_for(good, 1)
    for page in (good, refused):
        page.evaluate("() => { refuses = false; }")
    wait_for_own(refused, "connected")
    for page in (good, refused):
        page.wait_for("stream.isShared")
    wait_for_connections(server, 1)
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
    server = with_tokens
    # Whichever tab is asked gives a token that is good for `seconds`. When it `refuses`, the token of now is no good.
    mint = """
        const real = window.fetch;
        window.seconds = 600;
        window.refuses = false;
        window.fetch = (url, ...more) => {
            if (String(url).startsWith("/mint")) return real(`/mint/${window.seconds}`, ...more);
            if (!window.refuses) return real(url, ...more);
            window.refuses = false;
            return Promise.resolve(new Response("", {status: 401}));
        };
    """
    options = {"topics": ["mine"], "share": "ann", "expected": REFUSED, "backoffMs": [100, 100], "tokens": [600]}
    page = frontend(server.port, before=mint, **options)
    wait_for_own(page, "connected")
    other = frontend(server.port, before=mint, beside=page, **options)
    wait_for_own(other, "connected")
    for each in (page, other):
        each.evaluate("() => { seconds = -60; }")
    page.evaluate("() => { refuses = true; stream.reconnect(); }")
    for each in (page, other):
        wait_for_state(each, "waiting", why="refused", status=401)
    for each in (page, other):
        each.evaluate("() => { seconds = 600; }")
    for each in (page, other):
        each.wait_for("stream.state === 'open' && stream.isShared")
    publish(server, "mine", 1)
    for each in (page, other):
        wait_for(each, 1)
    wait_for_connections(server, 1)


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
    wait_for_connections(server, 1)


def refuse_b(pages: list[Tab], *, refuses: bool) -> None:
    for page in pages:
        page.evaluate("(value) => { refuses = value; }", refuses)


@pytest.mark.parametrize("leading", ["a", "b"])
def test_a_tab_that_was_let_in_and_is_refused_later_stops_no_other(
    server: ServerProcess, frontend: Frontend, leading: str
) -> None:
    """As when a grant is taken back: everything that the connection asked for was good until then."""
    before = REFUSE_B.replace("refuses = true", "refuses = false")
    first = frontend(server.port, topics=[leading], before=before)
    wait_for_own(first, "connected")
    second = frontend(server.port, topics=["a" if leading == "b" else "b"], before=before, beside=first)
    wait_for_own(second, "connected")
    pages = [first, second]
    good, refused = pages if leading == "a" else reversed(pages)
    for turn in range(1, 4):
        refuse_b(pages, refuses=True)
        first.evaluate("stream.reconnect()")
        refused.wait_for("(n) => states.filter((s) => s.status === 403).length >= n", turn)
        publish(server, "a", turn)
        wait_for(good, turn)
        refuse_b(pages, refuses=False)
        refused.wait_for("stream.state === 'open'")
        if turn > 1:
            # It would disturb the others again and again, so it stays alone for a while.
            wait_for_own(refused, "heartbeat", count=len(seen(refused, "heartbeat")) + 3)
            assert not refused.evaluate("stream.isShared")
            refused.evaluate(
                """(ms) => {
                    const now = performance.now.bind(performance);
                    performance.now = () => now() + ms;
                }""",
                61_000 * (turn - 1),
            )
        refused.wait_for("stream.isShared")
        wait_for_connections(server, 1)
    publish_all(server, [{"topic": topic, "data": 10 + n} for n, topic in enumerate("abab")])
    wait_for(good, 12)
    wait_for(refused, 13)
    assert (published(good), published(refused)) == ([1, 2, 3, 10, 12], [11, 13])
