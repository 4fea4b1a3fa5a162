"""The React example as its README says: installed, checked, built, and opened beside a server on another port."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import connections
from tests.browser.engines.base import Tab
from tests.documents import ROOT
from tests.publishing import publish
from tests.serving import ServerProcess, wait_until

EXAMPLE = Path("docs/examples/react")
WEB = Path("qgstream/web")
# What the newest Vite needs (package.json, "engines").
OLDEST_NODE = (20, 19)

# The registry may be slow, and the machine too.
pytestmark = [pytest.mark.timeout(240), pytest.mark.engines("chromium")]

OpenTab = Callable[..., Tab]
StartServer = Callable[..., ServerProcess]


def run(folder: Path, *command: str, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(require_program: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, with what it needs beside it, after `npm ci` and `npm run build`."""
    require_program("npm")
    version = run(ROOT, str(require_program("node")), "--version")
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_NODE:
        pytest.skip(f"needs Node.js {OLDEST_NODE[0]}.{OLDEST_NODE[1]} or newer, got {version.strip()}")
    root = tmp_path_factory.mktemp("repository")
    ours = shutil.ignore_patterns("node_modules", "dist")
    for part in (EXAMPLE, WEB):
        shutil.copytree(ROOT / part, root / part, ignore=ours)
    folder = root / EXAMPLE
    run(folder, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--loglevel=error")
    run(folder, "npm", "run", "build")
    return folder


@contextmanager
def vite(folder: Path, *command: str, api: int) -> Iterator[str]:
    """Vite as a server on a free port; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = ["node", "node_modules/vite/bin/vite.js", *command, "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"API_URL": f"http://127.0.0.1:{api}"}
    with (folder / "vite.log").open("w") as log:
        process = subprocess.Popen(program, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: is_open(port), seconds=60, what="Vite's port")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_what_was_built_lives_on_a_server_of_another_origin(
    built: Path, start_server: StartServer, open_tab: OpenTab
) -> None:
    server = start_server()
    with vite(built, "preview", api=server.port) as url:
        page = open_tab(f"{url}/?api=http://localhost:{server.port}").page
        original, hook = page.locator("#original"), page.locator("#hook")
        expect(original).to_contain_text(re.compile(r"connected, heartbeat: 20\d\d-"))
        expect(hook).to_contain_text(re.compile(r"open, heartbeat: 20\d\d-"))
        publish(server, "orders", {"order": 7})
        publish(server, "orders", {"order": 8}, event="created")
        publish(server, "orders", "text", event="paid")
        expect(hook.locator("li")).to_have_text(['message {"order":7}', 'created {"order":8}', 'paid "text"'])
        expect(original.locator("li")).to_have_text(['{"order": 7}'])
        page.close()


# A stream that shares a connection holds a lock.
OPEN_STREAMS = "navigator.locks.query().then(({held}) => held.filter((x) => x.name.startsWith('qgstream tab')).length)"


def test_in_development_and_strict_mode(built: Path, start_server: StartServer, open_tab: OpenTab) -> None:
    server = start_server()
    with vite(built, api=server.port) as url:
        # `?api=` is Vite's own origin, which passes /events on.
        page = open_tab(f"{url}/?api=").page
        original, hook = page.locator("#original"), page.locator("#hook")
        expect(original).to_contain_text(re.compile(r"connected, heartbeat: 20\d\d-"))
        expect(hook).to_contain_text(re.compile(r"open, heartbeat: 20\d\d-"))
        # Strict mode mounts twice, and nothing of the first time is left.
        wait_until(lambda: connections(server) == 2, what="one connection of each")
        assert page.evaluate(OPEN_STREAMS) == 1
        page.get_by_label("Topic").fill("orders")
        server.wait_for_log("events.connected", topics=["orders"])
        for topic in ("news", "orders"):
            publish(server, topic, {"topic": topic})
        expect(original.locator("li")).to_have_text(['{"topic": "news"}', '{"topic": "orders"}'])
        expect(hook.locator("li")).to_have_text(['message {"topic":"orders"}'])
        page.close()


def test_on_a_server_it_opens_nothing(built: Path) -> None:
    run(built, "node", "node_modules/vite/bin/vite.js", "build", "--ssr", "src/server.tsx", "--outDir", "ssr")
    # It ends by itself: nothing was left open.
    shown = run(built, "node", "-e", 'import("./ssr/server.js").then((it) => console.log(it.render("http://x.test")))')
    assert "connecting, heartbeat: " in re.sub("<!-- -->", "", shown)
