"""A real Chromium, and a server for pages of another origin."""

from __future__ import annotations

import functools
import http.server
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from tests.browser.relay import Relay
from tests.serving import ServerProcess

HERE = Path(__file__).parent
CLIENT = HERE.parent.parent / "qgstream" / "web" / "client.js"

# How long a page may take for anything: long enough for a machine that does something else besides.
PATIENCE_MS = 20_000
expect.set_options(timeout=PATIENCE_MS)

# Short, so that the tests are: what they see is the order of things, not how long they last.
QUICK: dict[str, object] = {
    "heartbeat__interval_seconds": 0.2,
    "limits__retry_seconds": 0.2,
    "limits__overload_retry_seconds": 0.2,
    "log__level": "debug",
}

# Debian's Chromium, and nothing on the network but the tests: no sandbox (there is no user namespace in a container),
# and none of its own traffic.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def chromium(require_program: Callable[[str], Path]) -> Iterator[Browser]:
    """One browser a module: while it is open, its event loop is the running one of this thread."""
    program = require_program("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start a server; it is stopped, and its log read, after the pages are closed."""
    servers: list[ServerProcess] = []

    def start(**settings: object) -> ServerProcess:
        server = ServerProcess(tmp_path, **(QUICK | settings))  # type: ignore[arg-type]  # `port` is among them
        servers.append(server)
        return server

    yield start
    for server in servers:
        if server.process.returncode is None:  # not killed, not stopped
            server.stop()


@pytest.fixture
def start_relay() -> Iterator[Callable[[ServerProcess], Relay]]:
    """Put a relay in front of a server."""
    with ExitStack() as stack:
        yield lambda server: stack.enter_context(Relay(server.port))


def connections(server: ServerProcess) -> float:
    """The server's own gauge."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=15) as answer:
        found = re.search(r"^qgstream_connections (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


@dataclass
class Tab:
    """A page in a context of its own (no shared cache, no shared connections).

    `said` is what its console said as errors and warnings; what has none of `expected` in it fails the test.
    """

    page: Page
    expected: tuple[str, ...]
    said: list[str] = field(default_factory=list)

    def hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.said.append(f"{message.text} ({message.location['url']})")

    def unexpected(self) -> list[str]:
        return [text for text in self.said if not any(part in text for part in self.expected)]


@pytest.fixture
def open_tab(
    chromium: Browser, start_server: Callable[..., ServerProcess], start_relay: Callable[[ServerProcess], Relay]
) -> Iterator[Callable[..., Tab]]:
    """Open a page. It is closed before the servers are, so that stopping them is not part of what it sees."""
    contexts: list[BrowserContext] = []
    tabs: list[Tab] = []

    def open_it(url: str, *, expected: tuple[str, ...] = ()) -> Tab:
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        tab = Tab(context.new_page(), expected)
        tabs.append(tab)
        tab.page.on("console", tab.hear)
        tab.page.on("pageerror", lambda error: tab.said.append(str(error)))
        tab.page.goto(url)
        return tab

    yield open_it
    for context in contexts:
        context.close()
    loud = [text for tab in tabs for text in tab.unexpected()]
    assert not loud, loud


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """The tests run in silence."""

    def translate_path(self, path: str) -> str:
        # A frontend may serve its own copy of the client.
        return str(CLIENT) if urlsplit(path).path == "/client.js" else super().translate_path(path)


@pytest.fixture(scope="module")
def page_port() -> Iterator[int]:
    """The port of a plain web server for the files of this folder: a frontend's own server, as on localhost:3000."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(HERE)))
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield server.server_port
    server.shutdown()
    serving.join()
    server.server_close()
