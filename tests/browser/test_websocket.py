"""A page opens a WebSocket in a real browser: with an origin that may, and with one that may not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.browser.engines.base import Tab
from tests.publishing import publish
from tests.serving import ServerProcess

# Its tools find what somebody sees, and use it as they do.
pytestmark = pytest.mark.engines("chromium")

LISTEN = """(url) => {
  const got = window.got = [];  // its own: an earlier socket of the page may still get something
  window.ended = null;
  const socket = new WebSocket(url, ["qgstream.v1"]);
  socket.onmessage = (e) => got.push(JSON.parse(e.data));
  socket.onclose = (e) => { window.ended = [e.code, e.reason, e.wasClean]; };
}"""


def test_a_page_lives_on_a_websocket_and_a_page_of_a_foreign_origin_does_not(
    start_server: Callable[..., ServerProcess], open_tab: Callable[..., Tab], page_port: int
) -> None:
    server = start_server(cors__allow_origins=[f"http://localhost:{page_port}"])
    url = f"ws://127.0.0.1:{server.port}/ws?topic=orders"
    page = open_tab(f"http://localhost:{page_port}/conftest.py", expected=("favicon",)).page
    page.evaluate(LISTEN, url)
    page.wait_for_function("got.some((x) => x.data.event === 'heartbeat')")
    first = publish(server, "orders", {"value": 1}, event="created")
    page.wait_for_function("got.some((x) => x.topic)")
    assert page.evaluate("got[0].data.replay") == "none"
    assert page.evaluate("got.find((x) => x.topic)") == {
        "id": first["id"], "topic": "orders", "event": "created", "data": {"value": 1},
    }  # fmt: skip

    foreign = open_tab(f"http://127.0.0.1:{page_port}/conftest.py", expected=("favicon", "403")).page
    foreign.evaluate(LISTEN, url)
    foreign.wait_for_function("ended")
    assert foreign.evaluate("[got.length, ended]") == [0, [1006, "", False]]

    second = publish(server, "orders", "more")
    page.evaluate(LISTEN, f"{url}&last_event_id={first['id']}")
    page.wait_for_function("got.some((x) => x.topic)")
    assert page.evaluate("[got[0].data.replay, got.find((x) => x.topic).id]") == ["complete", second["id"]]
    server.stop()
    page.wait_for_function("ended")
    assert page.evaluate("ended") == [1001, "drain", True]
    assert page.evaluate("got.at(-1).data.reason") == "drain"
