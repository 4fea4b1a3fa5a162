"""What JavaScript's own tools make of the client: the minified file, bundles, and pages rendered on a server."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qgstream.http.client import minified_version
from tests.browser.conftest import serving_files, wait_for_connections
from tests.browser.engines.base import Tab
from tests.documents import ROOT
from tests.publishing import publish
from tests.serving import ServerProcess

WEB = ROOT / "qgstream" / "web"


def run(folder: Path, *command: str | Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tools(require_program: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with esbuild and Rollup, in their locked versions, and with the client."""
    require_program("npm")
    folder = tmp_path_factory.mktemp("repository") / "tests" / "browser" / "bundlers"
    ours = shutil.ignore_patterns("node_modules")
    shutil.copytree(ROOT / "tests" / "browser" / "bundlers", folder, ignore=ours)
    shutil.copytree(WEB, folder.parents[2] / "qgstream" / "web")
    run(folder, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--loglevel=error")
    return folder


MINIFIED = ["client.min.js", f"client-{minified_version()}.min.js", f"client-{'0' * 16}.min.js"]


@pytest.mark.parametrize("file", MINIFIED, ids=["minified", "with its version", "with another version"])
def test_the_minified_client_works(
    start_server: Callable[..., ServerProcess], open_tab: Callable[..., Tab], page_port: int, file: str
) -> None:
    server = start_server()
    page = open_tab(f"http://localhost:{page_port}/client.html?api=http://localhost:{server.port}&file={file}")
    page.wait_for("document.body.dataset.ready")
    page.evaluate("start({share: false})")
    page.wait_for("seen.some((x) => x.type === 'heartbeat')")
    publish(server, "orders", {"order": 7}, event="created")
    page.wait_for("seen.some((x) => x.type === 'created' && x.json.order === 7)")


def test_the_minified_client_is_made_of_this_one(tools: Path) -> None:
    """If it is not: `make client`."""
    run(tools, "node", "minify.mjs", "made.js")
    assert (tools / "made.js").read_text() == (WEB / "client.min.js").read_text()


# Bundles.


@pytest.fixture(scope="module")
def bundle(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], str]]:
    """A page that a tool has bundled with a form of the client, on a server of its own; its address."""
    folder = tmp_path_factory.mktemp("bundles")
    page = '<!doctype html><link rel="icon" href="data:,"><script src="/said.js"></script>'
    shutil.copy(ROOT / "tests/browser/engines/said.js", folder)
    with serving_files(folder) as port:

        def make(tool: str, client: str) -> str:
            name = f"{tool}-{client}"
            run(tools, "node", "bundle.mjs", tool, WEB / client, folder / name)
            (folder / name / "index.html").write_text(f'{page}<script type="module" src="page.js"></script>')
            return f"http://localhost:{port}/{name}/"

        yield make


@pytest.mark.parametrize("tool", ["esbuild", "rollup"])
@pytest.mark.parametrize("client", ["client.js", "client.min.js"])
@pytest.mark.engines("chromium")
def test_a_bundle_shares_its_stream(
    start_server: Callable[..., ServerProcess], open_tab: Callable[..., Tab], bundle: Callable[[str, str], str],
    tool: str, client: str,
) -> None:  # fmt: skip
    server = start_server()
    url = f"{bundle(tool, client)}?api=http://localhost:{server.port}"
    first = open_tab(url)
    second = first.beside()
    second.goto(url)
    for tab in (first, second):
        tab.wait_for("seen.includes('connected')")
    publish(server, "orders", 7, event="created")
    for tab in (first, second):
        tab.wait_for("seen.includes(7)")
    wait_for_connections(server, 1)


# No browser.


@pytest.mark.parametrize("client", ["client.js", "client.min.js"])
def test_on_a_server_it_is_harmless(require_program: Callable[[str], Path], tmp_path: Path, client: str) -> None:
    """It ends by itself, with status 0: nothing is left open, and nothing is thrown later."""
    node = require_program("node")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(WEB / client, tmp_path)
    printed = run(tmp_path, node, ROOT / "tests/browser/bundlers/server.mjs", tmp_path / client)
    assert printed.splitlines() == ["connecting news true", "connecting news true", "function"]
