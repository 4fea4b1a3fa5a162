"""The JavaScript client comes back from every end of its connection, and misses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.conftest import StartRelay, StartServer, wait_for_connections
from tests.browser.relay import BAD_GATEWAY
from tests.browser.streams import (
    BACKOFF_MS,
    CHROMIUM_ALONE,
    GONE,
    REFUSED,
    UNREADABLE,
    Frontend,
    published,
    seen,
    wait_for,
    wait_for_own,
    wait_for_state,
)
from tests.publishing import publish, publish_all
from tests.serving import RawClient, ServerProcess


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
    wait_for_connections(again, 2)


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
        assert "too many open streams: got 1" in state["message"]
    holder.close()
    wait_for_own(page, "connected")


def test_a_goodbye_is_told(start_server: StartServer, frontend: Frontend) -> None:
    server = start_server()
    page = frontend(server.port, expected=GONE)
    wait_for_own(page, "connected")
    server.stop()
    wait_for_own(page, "closing")
    assert wait_for_state(page, "waiting", why="closing")["reason"] == "drain"


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
