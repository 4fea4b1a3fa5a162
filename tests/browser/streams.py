"""What a page of the tests has seen of its stream (client.html), and what is expected of consoles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.engines.base import Tab
from tests.hostile.observing import metrics
from tests.serving import ServerProcess

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
# What only its tools can do: freeze a tab, open a dialog, take the network away.
CHROMIUM_ALONE = pytest.mark.engines("chromium")
WAYS = [pytest.param(True, id="shared"), pytest.param(False, id="alone")]
# Of the fixture `frontend`.
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


def opened(server: ServerProcess) -> int:
    """How many streams there have been. A counter, because a line of the log comes later than the stream."""
    return round(metrics(server)["connections_opened_total"])
