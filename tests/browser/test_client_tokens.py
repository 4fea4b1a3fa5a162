"""The JavaScript client asks its pages for tokens."""

from __future__ import annotations

import pytest

from tests.browser.conftest import StartRelay, wait_for_connections
from tests.browser.streams import GONE, REFUSED, WAYS, Frontend, published, seen, wait_for, wait_for_own, wait_for_state
from tests.publishing import publish
from tests.serving import ServerProcess, wait_until

COUNT_REFUSALS = """
    const real = window.fetch;
    window.refusals = 0;
    window.fetch = async (...request) => {
        const answer = await real(...request);
        if (answer.status === 401) window.refusals += 1;
        return answer;
    };
"""


@pytest.mark.parametrize("share", WAYS)
def test_a_token_that_expires_is_replaced(with_tokens: ServerProcess, frontend: Frontend, share: bool) -> None:
    server = with_tokens
    # By how long they are good for; the first is refused, the second ends while the stream is open. On a busy machine
    # it may end before, and then the third is the one.
    tokens = [-60, 2, 10, 600]
    page = frontend(
        server.port, topics=["mine"], tokens=tokens, share=share and "ann", before=COUNT_REFUSALS, expected=REFUSED
    )
    wait_for_own(page, "connected")
    publish(server, "mine", 1)
    wait_for_own(page, "closing")
    publish(server, "mine", 2)
    wait_for(page, 2)
    assert {x["json"]["reason"] for x in seen(page, "closing")} == {"token_expired"}
    assert published(page) == [1, 2]
    # One for the first request, and another for each that was no good any more.
    asked, refusals, ends = page.evaluate("[asked, refusals, seen.filter((x) => x.type === 'closing').length]")
    assert asked == 1 + refusals + ends
    assert refusals >= 1


def test_a_token_function_that_fails_is_asked_again(with_tokens: ServerProcess, frontend: Frontend) -> None:
    page = frontend(with_tokens.port, topics=["mine"], tokens=[None, 600])
    assert "no token today" in wait_for_state(page, "waiting", why="token")["message"]
    wait_for_own(page, "connected")


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


def test_a_tab_that_has_no_token_lets_another_give_one(with_tokens: ServerProcess, frontend: Frontend) -> None:
    server = with_tokens
    page = frontend(server.port, topics=["mine"], tokens=[600, None], share="ann", before=HANG, expected=REFUSED)
    wait_for_own(page, "connected")
    other = frontend(server.port, topics=["mine"], tokens=[600], share="ann", beside=page)
    wait_for_own(other, "connected")
    page.evaluate("() => { refuses = true; stream.reconnect(); }")
    for each in (page, other):
        wait_for_own(each, "connected", count=2)
    publish(server, "mine", 1)
    for each in (page, other):
        wait_for(each, 1)
    assert page.evaluate("asked") >= 2
    assert other.evaluate("asked") == 1
    wait_for_connections(server, 1)


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
    wait_for_connections(server, 1)
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
