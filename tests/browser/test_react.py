"""The React example as its README and docs/try-it.md say: installed, checked, built, and opened beside a server on
another port."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from qgstream.version import __version__
from tests.browser.conftest import wait_for_connections
from tests.browser.engines.base import Tab
from tests.browser.streams import opened
from tests.deploy.programs import free_port
from tests.documents import ROOT, blocks, blocks_of
from tests.publishing import publish, publish_all
from tests.serving import KEY, ServerProcess, wait_until

EXAMPLE = Path("docs/examples/react")
WEB = Path("qgstream/web")
CLIENT = "qgstream-client"
QUIETLY = ("--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--loglevel=error")
# What the newest Vite needs (package.json, "engines").
OLDEST_NODE = (20, 19)

pytestmark = pytest.mark.engines("chromium")

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
    # What docs/try-it.md shows is checked with the rest.
    (shown,) = [block.text for block in blocks("jsx")]
    (folder / "src" / "Shown.tsx").write_text(f"{shown}\n")
    (packaged,) = [block.text for block in blocks_of(ROOT / WEB / "README.md")]
    (folder / "src" / "packaged.ts").write_text(packaged.replace("e.json.order", "(e.json as { order: number }).order"))
    run(folder, "npm", "ci", *QUIETLY)
    # What `npm ci` has is a link to the folder that the package is made of. This is the package itself.
    run(folder, "npm", "install", "--no-save", *QUIETLY, package(root / "packed"))
    assert not (folder / "node_modules" / CLIENT).is_symlink()
    run(folder, "npm", "run", "build")
    return folder


def package(folder: Path) -> str:
    """The npm package of the client, made by `make npm`."""
    run(ROOT, "make", "npm", f"BUILD={folder}", f"DIST={folder}")
    (tarball,) = folder.glob(f"{CLIENT}-*.tgz")
    return str(tarball)


def test_the_package_has_what_the_server_serves_and_its_version(built: Path) -> None:
    installed = built / "node_modules" / CLIENT
    files = {path.name for path in installed.iterdir()}
    assert files == {"package.json", "README.md", "LICENSE", "client.js", "client.min.js", "client.d.ts"}
    for name in ("client.js", "client.min.js", "client.d.ts"):
        assert (installed / name).read_bytes() == (ROOT / WEB / name).read_bytes()
    metadata = json.loads((installed / "package.json").read_text())
    assert metadata["version"] == __version__
    locked = json.loads((ROOT / EXAMPLE / "package-lock.json").read_text())["packages"]
    assert locked[f"../../../{WEB}"]["version"] == __version__
    # Every way in is a file, and Node.js finds it.
    for name in metadata["exports"]:
        if name.endswith("package.json"):
            continue
        code = f'import("{CLIENT}{name[1:]}").then((it) => console.log(Object.keys(it).sort().join()))'
        assert run(built, "node", "-e", code) == "StateEvent,Stream,StreamEvent\n"


def test_the_commands_that_are_shown_are_those_that_are_run_here() -> None:
    scripts = json.loads((ROOT / EXAMPLE / "package.json").read_text())["scripts"]
    shown = [block.text for block in blocks("sh") if "npm run" in block.text]
    assert sorted(shown) == [f"cd {EXAMPLE}\nnpm ci\nnpm run dev", "npm ci\nnpm run dev"]
    assert scripts["dev"] == "vite"


@contextmanager
def vite(folder: Path, *command: str, api: int) -> Iterator[str]:
    """Vite as a server on a free port; its address."""
    port = free_port()
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
        page = open_tab(f"{url}/?api=http://localhost:{server.port}", expected=("401 (Unauthorized)",)).page
        original, hook = page.locator("#original"), page.locator("#hook")
        expect(original).to_contain_text(re.compile(r"connected, heartbeat: 20\d\d-"))
        expect(hook).to_contain_text(re.compile(r"open, heartbeat: 20\d\d-"))
        publish(server, "orders", {"order": 7})
        publish(server, "orders", {"order": 8}, event="created")
        publish(server, "orders", "text", event="paid")
        expect(hook.locator("li")).to_have_text(
            ['paid orders "text"', 'created orders {"order":8}', 'message orders {"order":7}']
        )
        expect(original.locator("li")).to_have_text(['{"order": 7}'])
        publishes(page)
        is_styled(page)
        page.close()


def publishes(page: Page) -> None:
    """The form publishes, and says why the server refuses."""
    form, answer = page.get_by_role("region", name="Publish"), page.get_by_role("status")
    key = form.get_by_label("Publish key")
    expect(key).to_have_value("dev")  # of `make run`
    form.get_by_label("Data").fill('{"order": 9}')
    form.get_by_role("button", name="Publish").click()
    expect(answer).to_contain_text("401 unknown_key: ")
    key.fill(KEY)
    form.get_by_role("button", name="Publish").click()
    expect(answer).to_have_text(re.compile(r"^Published to 2 streams, id \S+\.$"))
    expect(page.locator("#hook li").first).to_have_text('created orders {"order":9}')
    form.get_by_label("Event type").fill("")
    form.get_by_label("Data").fill("no JSON")
    form.get_by_label("Data").press("Enter")
    expect(page.locator("#hook li").first).to_have_text('message orders "no JSON"')
    expect(page.locator("#original li").first).to_have_text("no JSON")


def is_styled(page: Page) -> None:
    """By its own style sheet, in light and dark, and on a phone."""
    ground = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    assert len({light, page.evaluate(ground), "rgba(0, 0, 0, 0)"}) == 3
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_in_development_and_strict_mode(built: Path, start_server: StartServer, open_tab: OpenTab) -> None:
    server = start_server()
    with vite(built, api=server.port) as url:
        # `?api=` is Vite's own origin, which passes /events on.
        page = open_tab(f"{url}/?api=").page
        original, hook = page.locator("#original"), page.locator("#hook")
        expect(original).to_contain_text(re.compile(r"connected, heartbeat: 20\d\d-"))
        expect(hook).to_contain_text(re.compile(r"open, heartbeat: 20\d\d-"))
        # Strict mode mounts twice, and nothing of the first time is left.
        wait_for_connections(server, 2)
        page.get_by_label("Topic", exact=True).fill("orders")
        server.wait_for_log("events.connected", topics=["orders"])
        for topic in ("news", "orders"):
            publish(server, topic, {"topic": topic})
        expect(original.locator("li")).to_have_text(['{"topic": "orders"}', '{"topic": "news"}'])
        expect(hook.locator("li")).to_have_text(['message orders {"topic":"orders"}'])
        page.close()


def test_on_a_server_it_opens_nothing(built: Path) -> None:
    run(built, "node", "node_modules/vite/bin/vite.js", "build", "--ssr", "src/server.tsx", "--outDir", "ssr")
    # It ends by itself: nothing was left open.
    shown = run(built, "node", "-e", 'import("./ssr/server.js").then((it) => console.log(it.render("http://x.test")))')
    assert "connecting, heartbeat: " in re.sub("<!-- -->", "", shown)


# The hook, in every engine.

EVERYWHERE = pytest.mark.engines("chromium", "firefox", "webkit")


@pytest.fixture(scope="module")
def hook_url(built: Path) -> Iterator[str]:
    """A page of components that the tests change."""
    for file in (ROOT / "tests/browser/react").iterdir():
        shutil.copy(file, built)
    (built / "public").mkdir(exist_ok=True)
    shutil.copy(ROOT / "tests/browser/engines/said.js", built / "public")
    with vite(built, api=9) as url:
        yield f"{url}/hook.html"


@pytest.fixture
def components(hook_url: str, open_tab: OpenTab) -> Callable[..., Tab]:
    """Open the page. Streams are alone, so that a connection is a stream."""

    def open_it(server: ServerProcess, *parts: dict[str, object], query: str = "") -> Tab:
        # Firefox says it of a connection that is closed before it has answered.
        early = ("CORS request did not succeed",)
        tab = open_tab(f"{hook_url}?api=http://127.0.0.1:{server.port}{query}", expected=early)
        tab.wait_for("document.body.dataset.ready")
        show(tab, *parts)
        for part in parts:
            tab.wait_for("(name) => shown[name]?.connected", part["name"])
        return tab

    return open_it


Components = Callable[..., Tab]


def show(tab: Tab, *parts: dict[str, object]) -> None:
    alone = {"shared": False, "share": False}  # what the option was called, and is
    tab.evaluate("(parts) => show(parts)", [alone | {"events": ["created"]} | part for part in parts])


def wait_for(tab: Tab, name: str, value: object) -> None:
    """Until this component has heard and shown it."""
    tab.wait_for("([name, value]) => heard[name]?.includes(value)", [name, value])
    tab.wait_for("([name, value]) => shown[name].messages.some((x) => x.data === value)", [name, value])


def heard(tab: Tab, name: str) -> list[object]:
    events: list[object] = tab.evaluate("(name) => heard[name] ?? []", name)
    return events


@EVERYWHERE
@pytest.mark.parametrize("query", ["", "&strict"], ids=["plain", "strict mode"])
def test_other_event_types_are_listened_to_on_the_same_stream(
    start_server: StartServer, components: Components, query: str
) -> None:
    server = start_server()
    tab = components(server, {"name": "a"}, query=query)
    for number in range(20):
        show(tab, {"name": "a", "events": ["created", f"type{number}"]})
        publish(server, "orders", number, event="created")
    wait_for(tab, "a", 19)
    assert heard(tab, "a") == list(range(20))

    def is_listened_to() -> bool:
        publish(server, "orders", 20, event="type19")
        return 20 in heard(tab, "a")

    wait_until(is_listened_to, what="an event of the last type")
    assert opened(server) == 1


@EVERYWHERE
def test_other_topics_go_on_from_the_same_position(start_server: StartServer, components: Components) -> None:
    server = start_server()
    tab = components(server, {"name": "a", "topics": ["t"]})
    for number in range(10):
        show(tab, {"name": "a", "topics": ["t", f"u{number}"]})
        publish(server, "t", number)
    wait_for(tab, "a", 9)
    assert heard(tab, "a") == list(range(10))
    wait_for_connections(server, 1)


@EVERYWHERE
def test_a_component_that_was_hidden_has_missed_nothing(start_server: StartServer, components: Components) -> None:
    server = start_server()
    tab = components(server, {"name": "a"}, {"name": "b", "topics": ["other"]})
    publish(server, "orders", 0)
    wait_for(tab, "a", 0)
    show(tab, {"name": "a", "hidden": True}, {"name": "b", "topics": ["other"]})
    wait_for_connections(server, 1)
    publish(server, "orders", 1, event="created")
    show(tab, {"name": "a"}, {"name": "b", "topics": ["other"]})
    wait_for(tab, "a", 1)
    assert heard(tab, "a") == [0, 1]


@EVERYWHERE
def test_a_stream_that_is_made_anew_begins_where_the_old_one_ended(
    start_server: StartServer, components: Components
) -> None:
    server = start_server()
    tab = components(server, {"name": "a"})
    for number in range(5):
        publish(server, "orders", number)
        show(tab, {"name": "a", "shared": f"group {number}", "share": f"group {number}"})
        publish(server, "orders", number + 0.5)
    wait_for(tab, "a", 4.5)
    assert heard(tab, "a") == [n / 2 for n in range(10)]
    wait_for_connections(server, 1)


@EVERYWHERE
def test_components_share_a_stream_and_none_misses_what_the_others_got(
    start_server: StartServer, components: Components
) -> None:
    server = start_server()
    tab = components(server, {"name": "a"}, {"name": "b", "events": ["paid"]})
    wait_for_connections(server, 1)
    publish(server, "orders", 0, event="created")
    publish(server, "orders", 1, event="paid")
    publish(server, "orders", 2)
    for name in ("a", "b"):
        wait_for(tab, name, 2)
    assert (heard(tab, "a"), heard(tab, "b")) == ([0, 2], [1, 2])
    # While one is hidden the other's stream goes on.
    show(tab, {"name": "a", "hidden": True}, {"name": "b", "events": ["paid"]})
    publish(server, "orders", 3)
    wait_for(tab, "b", 3)
    show(tab, {"name": "a"}, {"name": "b", "events": ["paid"]})
    wait_for(tab, "a", 3)
    publish(server, "orders", 4)
    for name in ("a", "b"):
        wait_for(tab, name, 4)
    assert (heard(tab, "a"), heard(tab, "b")) == ([0, 2, 3, 4], [1, 2, 3, 4])


@EVERYWHERE
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "alone"])
def test_many_events_are_few_renderings(start_server: StartServer, components: Components, shared: bool) -> None:
    server = start_server(heartbeat__interval_seconds=600)
    tab = components(server, {"name": "a", "keep": 1000, "shared": shared, "share": shared})
    before = tab.evaluate("renderings.a")
    publish_all(server, [{"topic": "orders", "data": number} for number in range(500)])
    wait_for(tab, "a", 499)
    assert tab.evaluate("shown.a.messages.map((x) => x.data)") == list(range(500))
    # At most one for each frame, and not one for each event; how many frames there are is the machine's business.
    assert tab.evaluate("renderings.a") - before < 250
