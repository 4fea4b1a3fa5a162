"""What JavaScript's own tools make of the client: the minified file, bundles, and pages rendered on a server."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qgstream.handlers.client import minified_version
from tests.browser.engines.base import Tab
from tests.documents import ROOT
from tests.publishing import publish
from tests.serving import ServerProcess

# The registry may be slow, and the machine too.
pytestmark = pytest.mark.timeout(240)

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
    page.evaluate("start({shared: false})")
    page.wait_for("seen.some((x) => x.type === 'heartbeat')")
    publish(server, "orders", {"order": 7}, event="created")
    page.wait_for("seen.some((x) => x.type === 'created' && x.json.order === 7)")


def test_the_minified_client_is_made_of_this_one(tools: Path) -> None:
    """If it is not: `make client`."""
    run(tools, "node", "minify.mjs", "made.js")
    assert (tools / "made.js").read_text() == (WEB / "client.min.js").read_text()
