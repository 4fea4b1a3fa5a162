"""Real browsers, and a server for pages of another origin."""

from __future__ import annotations

import functools
import http.server
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import expect

from tests.browser.engines.base import PATIENCE_SECONDS, Engine, Tab
from tests.browser.engines.chromium import Chromium
from tests.browser.engines.firefox import Firefox
from tests.browser.engines.webkit import WebKit
from tests.browser.relay import Relay
from tests.browser.streams import BACKOFF_MS
from tests.hostile.observing import metrics
from tests.serving import KEY, ServerProcess, wait_until
from tests.signing import SECRET, sign

HERE = Path(__file__).parent
CLIENT = HERE.parent.parent / "qgstream" / "web" / "client.js"

expect.set_options(timeout=PATIENCE_SECONDS * 1000)

# Short, so that the tests are: what they see is the order of things, not how long they last.
QUICK: dict[str, object] = {
    "heartbeat__interval_seconds": 0.2,
    "limits__retry_seconds": 0.2,
    "limits__overload_retry_seconds": 0.2,
    "log__level": "debug",
}

OpenTab = Callable[..., Tab]
StartServer = Callable[..., ServerProcess]
StartRelay = Callable[[ServerProcess], Relay]

ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (Chromium, Firefox, WebKit)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of a page runs in all engines, or in those that `@pytest.mark.engines(...)` names."""
    if "engine" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("engines")
        metafunc.parametrize("engine", marker.args if marker else list(ENGINES), indirect=True, scope="module")


_RUNNING = pytest.StashKey[dict[type[Engine], Engine]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """Close the browsers behind the last test of this folder: Chromium's event loop blocks those of other tests."""
    try:
        yield
    finally:
        if nextitem is None or HERE not in nextitem.path.parents:
            for running in item.session.stash.get(_RUNNING, {}).values():
                running.close()
            item.session.stash[_RUNNING] = {}


@pytest.fixture
def engine(
    request: pytest.FixtureRequest, require_program: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    """One browser of each kind for all tests of this folder: a start takes seconds. Each test has tabs of its own."""
    kind = ENGINES[request.param]
    running = request.session.stash.setdefault(_RUNNING, {})
    if kind not in running:
        for program in kind.programs():
            require_program(program)
        running[kind] = kind(tmp_path_factory.mktemp(kind.name))
    return running[kind]


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


def wait_for_connections(server: ServerProcess, count: int) -> None:
    """Until the server has this many. It notices the end of one later than the page does."""
    wait_until(lambda: metrics(server)["connections"] == count, what=f"{count} open connections")


@pytest.fixture
def open_tab(
    engine: Engine, start_server: Callable[..., ServerProcess], start_relay: Callable[[ServerProcess], Relay]
) -> Iterator[Callable[..., Tab]]:
    """Open a page. It is closed before the servers are, so that stopping them is not part of what it sees."""

    def open_it(url: str, *, expected: tuple[str, ...] = ()) -> Tab:
        tab = engine.open(expected)
        tab.goto(url)
        return tab

    yield open_it
    loud = [text for tab in engine.end_test() for text in tab.unexpected()]
    assert not loud, loud


def token(seconds: float) -> str:
    """Lets its bearer subscribe to the topic `mine` for `seconds`."""
    return sign({"sub": "ann", "exp": time.time() + seconds, "qgstream": {"subscribe": ["mine"]}})


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """The tests run in silence."""

    def do_GET(self) -> None:
        """Files, and what a frontend's own server gives to those who have signed in."""
        path = urlsplit(self.path).path
        if path == "/token":
            self._give(KEY)
        elif path.startswith("/mint/"):
            self._give(token(float(path.removeprefix("/mint/"))))
        else:
            super().do_GET()

    def _give(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        with suppress(ConnectionError):  # the page does not want it any more
            self.wfile.write(text.encode())

    def translate_path(self, path: str) -> str:
        # A frontend may serve its own copy of the client.
        return str(CLIENT) if urlsplit(path).path == "/client.js" else super().translate_path(path)


@contextmanager
def serving_files(folder: Path) -> Iterator[int]:
    """The port of a plain web server for the files of a folder: a frontend's own server, as on localhost:3000."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield server.server_port
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.fixture(scope="module")
def page_port() -> Iterator[int]:
    """The port of a server for the files of this folder."""
    with serving_files(HERE) as port:
        yield port


# What the tests of the JavaScript client need.


def serving(folder: Path, **settings: object) -> Iterator[ServerProcess]:
    with ServerProcess(folder, **(QUICK | settings)) as running:  # type: ignore[arg-type]  # `port` is not among them
        yield running


@pytest.fixture(scope="module")
def common_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    yield from serving(tmp_path_factory.mktemp("server"))


@pytest.fixture
def server(common_server: ServerProcess) -> ServerProcess:
    """One for all tests that leave it as it was, and nobody is connected to it."""
    wait_for_connections(common_server, 0)
    return common_server


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose topic `mine` needs a token."""
    yield from serving(
        tmp_path_factory.mktemp("tokens"), auth__jwt__secret=SECRET, auth__jwt__algorithms=["HS256"],
        auth__jwt__leeway_seconds=0, auth__private_topics=["mine"],
    )  # fmt: skip


@pytest.fixture
def frontend(open_tab: OpenTab, page_port: int) -> Callable[..., Tab]:
    """Open the page with the client in a context of its own, or beside another tab, and start a stream."""

    def open_it(
        port: int, *, beside: Tab | None = None, query: str = "", expected: tuple[str, ...] = (), before: str = "",
        then: str = "", **options: object,
    ) -> Tab:  # fmt: skip
        url = f"http://localhost:{page_port}/client.html?api=http://localhost:{port}{query}"
        page = open_tab("about:blank", expected=expected) if beside is None else beside.beside()
        page.goto(f"{url}#{quote(before)}")
        page.wait_for("document.body.dataset.ready")
        page.evaluate(f"(options) => {{ start(options); {then} }}", {"backoffMs": BACKOFF_MS} | options)
        return page

    return open_it
