"""The tab that leads those that share a connection: it goes away, hangs, and comes back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.conftest import wait_for_connections
from tests.browser.streams import CHROMIUM_ALONE, GONE, WAYS, Frontend, published, wait_for, wait_for_own
from tests.publishing import publish, publish_all
from tests.serving import ServerProcess, wait_until


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


def test_back_from_another_page(server: ServerProcess, frontend: Frontend, page_port: int) -> None:
    page = frontend(server.port)
    wait_for_own(page, "connected")
    publish(server, "orders", 1)
    wait_for(page, 1)
    page.goto(f"http://localhost:{page_port}/away.html")
    wait_for_connections(server, 0)
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
    wait_for_connections(server, 1)


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
    wait_for_connections(server, 1)
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
    wait_for_connections(server, 0)
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
    wait_for_connections(server, 1)
