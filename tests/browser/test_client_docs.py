"""The JavaScript client as its documentation shows it."""

from __future__ import annotations

import re

import pytest

from tests.browser.conftest import OpenTab, StartRelay, wait_for_connections
from tests.browser.streams import Frontend, wait_for, wait_for_own
from tests.documents import ROOT, Block, blocks
from tests.publishing import publish
from tests.serving import ServerProcess

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
    wait_for_connections(server, 1)
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
    wait_for_connections(server, 1)
    # The policy holds: nothing else may be asked.
    blocked = page.evaluate("fetch('/away.html').then(() => 'allowed', () => 'blocked')")
    assert blocked == "blocked"
