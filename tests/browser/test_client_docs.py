"""The JavaScript client as its documentation shows it."""

from __future__ import annotations

import re

import pytest

from tests.browser.conftest import OpenTab, StartRelay, wait_for_connections
from tests.browser.engines.base import Tab
from tests.browser.streams import Frontend, wait_for, wait_for_own
from tests.documents import ROOT, Block, blocks
from tests.publishing import publish
from tests.serving import KEY, ServerProcess
from tests.test_recipes import UVICORN, program

SHOWN = [block for block in blocks("javascript") if "page" in block.flags]
WITH_CLIENT = [block for block in SHOWN if "client.js" in block.text]
PLAIN = [block for block in SHOWN if block not in WITH_CLIENT]
PAGES = blocks("html")


@pytest.mark.parametrize("block", WITH_CLIENT, ids=str)
def test_what_the_documentation_shows_works(
    server: ServerProcess, open_tab: OpenTab, page_port: int, block: Block
) -> None:
    hears(server, open_tab(f"http://localhost:{page_port}/client.html?own"), block)


# What every browser has: tests/browser/test_eventsource.py and test_websocket.py look at the others.
@pytest.mark.engines("chromium")
@pytest.mark.parametrize("block", PLAIN, ids=str)
def test_what_the_documentation_shows_works_without_the_client(
    server: ServerProcess, open_tab: OpenTab, page_port: int, block: Block
) -> None:
    hears(server, open_tab(f"http://localhost:{page_port}/client.html?own"), block)


def hears(server: ServerProcess, page: Tab, block: Block) -> None:
    """The block, as a script of the page, shows an event of the kind that it listens for."""
    run_in(page, block.text.replace("localhost:8000", f"localhost:{server.port}"))
    wait_for_connections(server, 1)
    types = re.findall(r'"(\w+)", \(e\) => console', block.text) or ["created"]
    # An EventSource without a listener for a type hears nothing of it.
    event = None if "source.onmessage" in block.text and "addEventListener" not in block.text else types[0]
    data = 70707 if "load/" in block.text else {"order": 70707, "percent": 70707}
    publish(server, ["orders", "jobs/7", "load/a", "users/12/x"], data, event=event)
    page.wait_for("(logged.join() + document.body.textContent).includes('70707')")


def run_in(page: Tab, text: str) -> None:
    """As a script of the page. What it logs is in `logged`."""
    page.evaluate(
        """(text) => {
            window.logged = [];
            const shown = (it) => typeof it === "object" ? JSON.stringify(it) : it;
            console.log = (...what) => logged.push(what.map(shown).join(" "));
            document.head.append(Object.assign(document.createElement("script"), {type: "module", text}));
        }""",
        text,
    )


@pytest.mark.engines("chromium")
def test_the_page_of_a_recipe_reads_what_its_program_publishes(
    server: ServerProcess, open_tab: OpenTab, page_port: int
) -> None:
    (block,) = [block for block in blocks("javascript") if "/questions" in block.text]
    page = open_tab(f"http://localhost:{page_port}/client.html?own")
    with program("llm_tokens:app", *UVICORN, EVENTS_URL=server.url, EVENTS_KEY=KEY) as port:
        text = block.text.replace("localhost:8001", f"localhost:{port}")
        run_in(page, text.replace("localhost:8000", f"localhost:{server.port}"))
        page.wait_for("logged.join('') === 'You ask: Why? I do not know, and I say it slowly. '")
    wait_for_connections(server, 0)  # the page ends it


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
