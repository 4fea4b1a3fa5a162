"""The dashboard at `/admin`, as an operator uses it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Locator, Page, expect

from qgstream.service.status_history import quantile
from tests.browser.conftest import QUICK
from tests.browser.engines.base import Tab
from tests.browser.relay import Relay
from tests.publishing import publish
from tests.serving import RawClient, ServerProcess, wait_until

# Its tools find what somebody sees, and use it as they do.
pytestmark = pytest.mark.engines("chromium")

OpenTab = Callable[..., Tab]
StartServer = Callable[..., ServerProcess]
ADMIN_KEY = "admin-key"
REFUSED = ("status of 401", "status of 403", "status of 400", "status of 409")
GONE = ("ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET")


@pytest.fixture
def server(start_server: StartServer) -> ServerProcess:
    return start_server(
        auth__admin_keys={"boss": ADMIN_KEY}, limits__max_connections=50, limits__max_backlog_bytes=2**26
    )


QUICK_HISTORY = """
from qgstream.service import status_history
status_history.INTERVAL_SECONDS = 0.2
from qgstream.cli import main
raise SystemExit(main())
"""


class QuickHistory(ServerProcess):
    """A server with a sample of its history every fifth of a second, and not every ten seconds."""

    program: ClassVar[tuple[str, ...]] = ("-c", QUICK_HISTORY)

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        settings = QUICK | {"auth__admin_keys": {"boss": ADMIN_KEY}}
        super().__init__(folder, port=port, **settings)  # type: ignore[arg-type]  # `port` is not among them

    def ask(self, path: str, *, method: str = "GET") -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        with urlopen(Request(f"{self.url}/admin/{path}", headers=headers, method=method), timeout=60) as answer:
            document: dict[str, Any] = json.loads(answer.read())
        return document

    def wait_for_sample(self, is_it: Callable[[dict[str, Any]], bool], what: str) -> None:
        wait_until(lambda: any(map(is_it, self.ask("history")["samples"])), what=what)


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuickHistory]:
    """Nobody uses it; for all tests that leave it so."""
    with QuickHistory(tmp_path_factory.mktemp("idle")) as server:
        yield server


@pytest.fixture
def start_quick(tmp_path: Path) -> Iterator[Callable[..., QuickHistory]]:
    """Start such a server; it is stopped after the pages are closed."""
    servers: list[QuickHistory] = []

    def start(port: int = 0) -> QuickHistory:
        servers.append(QuickHistory(tmp_path, port=port))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.returncode is None:  # not killed
            server.stop()


@pytest.fixture
def idle_board(idle: QuickHistory, open_tab: OpenTab) -> Page:
    """The page of that server with its key given."""
    page = open_tab(f"{idle.url}/admin").page
    give_key(page, ADMIN_KEY)
    expect(page.locator("#status")).to_have_text("ready")
    return page


@pytest.fixture
def connect(server: ServerProcess) -> Iterator[Callable[..., RawClient]]:
    """Open streams beside the page."""
    opened: list[RawClient] = []

    def connect(target: str = "/events", *headers: str, **options: Any) -> RawClient:
        opened.append(RawClient(server.port, **options).get(target, *headers))
        opened[-1].until(b"connected")
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


@pytest.fixture
def board(server: ServerProcess, open_tab: OpenTab) -> Callable[..., Page]:
    """The page with its key given."""

    def open_it(**options: Any) -> Page:
        page = open_tab(f"{server.url}/admin", **options).page
        give_key(page, ADMIN_KEY)
        expect(page.locator("#status")).to_have_text("ready")
        return page

    return open_it


def give_key(page: Page, key: str) -> None:
    page.get_by_label("Admin key").fill(key)
    page.get_by_role("button", name="Open").click()


def click_twice(button: Locator, question: str) -> None:
    """Click, see the question, and click again at once: after some seconds the page takes its question back."""
    button.click(trial=True)  # somebody could
    asked = button.evaluate("(it) => { it.click(); const asked = it.textContent; it.click(); return asked; }")
    assert asked == question


def tile(page: Page, title: str) -> Any:
    return page.locator(".tile").filter(has=page.get_by_role("heading", name=title)).locator(".value")


def test_it_asks_for_the_key_and_keeps_it_for_this_tab_only(server: ServerProcess, open_tab: OpenTab) -> None:
    page = open_tab(f"{server.url}/admin", expected=REFUSED).page
    give_key(page, "wrong")
    expect(page.locator("#refused")).to_contain_text("not accepted")
    give_key(page, ADMIN_KEY)
    expect(page.locator("#status")).to_have_text("ready")
    assert ADMIN_KEY not in page.url
    page.reload()
    expect(page.locator("#status")).to_have_text("ready")
    stored = "[Object.values(localStorage), Object.values(sessionStorage), document.cookie]"
    assert page.evaluate(stored) == [[], [ADMIN_KEY], ""]
    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_label("Admin key")).to_be_focused()
    assert page.evaluate(stored) == [[], [], ""]


def test_without_admin_keys_it_says_what_to_configure(start_server: StartServer, open_tab: OpenTab) -> None:
    page = open_tab(f"{start_server().url}/admin", expected=REFUSED).page
    give_key(page, "any")
    expect(page.locator("#refused")).to_contain_text("auth.admin_keys")


def test_it_lives(server: ServerProcess, board: Callable[..., Page], connect: Callable[..., RawClient]) -> None:
    page = board()
    expect(tile(page, "Connections")).to_have_text("0 of 50")
    expect(page.locator("#list-none")).to_have_text("No stream is open.")
    clients = [connect("/events?topic=orders/*", "User-Agent: shop/1"), connect()]
    expect(tile(page, "Connections")).to_have_text("2 of 50")
    for number in range(3):
        publish(server, "orders/1", {"order": number})
    row = page.locator("#topics tr")
    expect(row.locator("td").first).to_have_text("orders/1")
    expect(row.locator("td").last).to_have_text("2")
    expect(page.locator("#list tr").first).to_contain_text("orders/*")
    expect(page.locator("#list tr").first).to_contain_text("shop/1")
    expect(tile(page, "Publish to write")).to_contain_text("ms")
    clients[0].close()
    expect(tile(page, "Connections")).to_have_text("1 of 50")
    expect(page.locator("#closed li")).to_contain_text("client")
    expect(page.locator("#rejected-none")).to_have_text("None since the start.")


def test_it_shows_who_publishes_and_who_is_refused(server: ServerProcess, board: Callable[..., Page]) -> None:
    page = board()
    expect(page.locator("#publishers-none")).to_be_visible()
    expect(page.locator("#publishes-none")).to_have_text("None since the start.")
    for number in range(3):
        publish(server, "orders", number)
    body = b"{}"
    headers = f"Host: x\r\nUser-Agent: <b>loop</b>\r\nAuthorization: Bearer no\r\nContent-Length: {len(body)}"
    client = RawClient(server.port)
    for number in range(1, 3):
        client.socket.sendall(f"POST /events HTTP/1.1\r\n{headers}\r\n\r\n".encode() + body)
        while client.received.count(b'"unknown_key"') < number:
            client.received += client.socket.recv(4096)
    client.close()
    expect(page.locator("#publishers tr td")).to_have_text(["key-1", re.compile(r"\d"), "3", "0"])
    expect(page.locator("#publishes li .word")).to_have_text(["accepted", "unauthorized"])
    expect(page.locator("#publishes li .count")).to_have_text(["3", "2"])
    expect(page.locator("#talkers tr td")).to_have_text(["127.0.0.1", re.compile(r"\d"), "3", "2"])
    page.get_by_label("Top talkers by").select_option("agent")
    row = page.locator("#talkers tr").filter(has_text="<b>loop</b>")
    expect(row.locator("td").last).to_have_text("2")
    expect(row.locator("td").first).to_have_attribute("title", "last refused: unauthorized")
    expect(page.locator("#topics tr td")).to_have_text(["orders", re.compile(r"\d"), re.compile(r"\d"), "0"])


def test_a_connection_that_died_without_a_word_is_noticed(
    server: ServerProcess, open_tab: OpenTab, start_relay: Callable[[ServerProcess], Relay],
    connect: Callable[..., RawClient],
) -> None:  # fmt: skip
    relay = start_relay(server)
    page = open_tab("about:blank").page
    page.clock.install()
    page.goto(f"http://127.0.0.1:{relay.port}/admin")
    give_key(page, ADMIN_KEY)
    expect(tile(page, "Connections")).to_have_text("0 of 50")
    expect(page.locator("#list-none")).to_have_text("No stream is open.")
    relay.mute()
    connect("/events?topic=orders")
    page.clock.fast_forward(4500)
    expect(page.locator("#status")).to_have_text("no answer")

    def is_back() -> bool:
        # It asks again by itself; perhaps on other connections first, which have died, too.
        page.clock.fast_forward(11_000)
        try:
            expect(page.locator("#status")).to_have_text("ready", timeout=5000)
        except AssertionError:
            return False
        return True

    wait_until(is_back, seconds=120, what="another connection")
    expect(tile(page, "Connections")).to_have_text("1 of 50")
    expect(page.locator("#list tr").first).to_contain_text("orders")


def test_the_slowest_stands_first_and_is_kicked(
    server: ServerProcess, board: Callable[..., Page], connect: Callable[..., RawClient]
) -> None:
    page = board()
    for _ in range(3):
        connect("/events?topic=quiet")
    slow = connect(receive_buffer=4096)

    for _ in range(10):  # more than its socket's buffers
        publish(server, "a", "x" * 100_000)
    expect(page.locator("#list tr .state.parked")).to_have_count(1)
    expect(page.locator("#list tr .state").first).to_have_text("parked")
    first = page.locator("#list tr").first.get_attribute("data-id")
    kick = page.get_by_role("button", name=f"Kick connection {first}")
    click_twice(kick, "Sure?")
    expect(page.locator("#streams-said")).to_have_text(f"Connection {first} was told to go.")
    server.wait_for_log("events.disconnected", connection=int(first or 0), reason="kicked")
    expect(page.locator(f'#list tr[data-id="{first}"]')).to_have_count(0)
    slow.close()


def test_all_that_match_are_kicked(
    server: ServerProcess, board: Callable[..., Page], connect: Callable[..., RawClient]
) -> None:
    page = board(expected=REFUSED)
    chats = [connect("/events?topic=chat") for _ in range(3)]
    connect("/events?topic=orders")
    kick = page.locator("#kick-all")
    expect(kick).to_be_hidden()  # not without a filter
    page.get_by_role("textbox", name="Topic", exact=True).fill("a*b")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#streams-said")).to_contain_text("expected '*' only as the last character")
    page.get_by_role("textbox", name="Topic", exact=True).fill("chat*")
    page.get_by_role("button", name="Show").click()
    expect(kick).to_have_text("Kick all 3")
    expect(page.locator("#list tr")).to_have_count(3)
    click_twice(kick, "Really kick 3?")
    expect(page.locator("#streams-said")).to_have_text("3 streams were told to go.")
    for client in chats:
        assert b'"reason": "kicked"' in client.to_end()
    expect(tile(page, "Connections")).to_have_text("1 of 50")


def test_limits_are_a_form(
    server: ServerProcess, board: Callable[..., Page], connect: Callable[..., RawClient]
) -> None:
    page = board(expected=REFUSED)
    limit, apply = (
        page.get_by_label("max_connections", exact=True),
        page.get_by_role("button", name=re.compile("^Apply")),
    )
    expect(limit).to_have_value("50")
    expect(apply).to_be_disabled()
    limit.fill("many")
    page.get_by_label("retry_seconds", exact=True).fill("2")
    expect(apply).to_have_text("Apply 2 changes")
    apply.click()
    expect(page.locator("#about-max_connections")).to_have_text("got 'many', expected a valid integer")
    expect(limit).to_be_focused()
    page.get_by_role("button", name="Undo").click()
    expect(limit).to_have_value("50")
    limit.fill("1")
    expect(page.locator("#about-max_connections")).to_contain_text("Now: 50.")
    apply.click()
    expect(page.locator("#limits-said")).to_have_text("In effect: max_connections = 1.")
    assert server.wait_for_log("admin.limits_changed")["changes"] == {"max_connections": {"old": 50, "new": 1}}
    connect()
    expect(page.locator("#status")).to_have_text("full")
    expect(tile(page, "Connections")).to_have_text("1 of 1")
    one_too_many = RawClient(server.port).get("/events")
    one_too_many.until(b"max_connections")
    one_too_many.close()
    expect(page.locator("#rejected li")).to_contain_text("max_connections")
    page.locator("#config summary").click()
    changed = page.locator("#keys tr").filter(has_text="limits.max_connections").first
    expect(changed).to_contain_text("admin API")
    page.locator("#keys tr", has_text="limits.retry_seconds").first.wait_for()
    expect(page.locator("#keys tr", has_text="history.max_events")).to_be_hidden()  # by default
    page.get_by_label("with what is by default").check()
    expect(page.locator("#keys tr", has_text="history.max_events")).to_be_visible()


def test_a_drain_is_asked_for_twice_and_watched(
    server: ServerProcess, board: Callable[..., Page], connect: Callable[..., RawClient]
) -> None:
    page = board(expected=GONE)
    for _ in range(2):
        connect()
    page.get_by_role("button", name="Drain").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Keep serving").click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#status")).to_have_text("ready")
    page.get_by_role("button", name="Drain").click()
    dialog.get_by_label("Seconds").fill("600")
    dialog.get_by_role("button", name="Drain").click()
    expect(page.locator("#status")).to_have_text("draining")
    expect(page.locator("#banner")).to_contain_text("streams are left")
    assert server.wait_for_log("drain.started")["seconds"] == 600
    server.stop()  # a second signal ends it
    expect(page.locator("#status")).to_have_text("no answer")
    expect(page.locator("#banner")).to_contain_text("has left")


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits(board: Callable[..., Page], connect: Callable[..., RawClient], width: int) -> None:
    connect("/events?topic=" + "a-long-name-" * 10, "User-Agent: " + "long " * 40)
    page = board()
    page.set_viewport_size({"width": width, "height": 900})
    page.locator("#list tr").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    kick = page.get_by_role("button", name=re.compile("^Kick connection")).bounding_box()
    assert kick is not None
    assert kick["x"] + kick["width"] < width


def test_a_key_that_was_changed_is_asked_for_again(server: ServerProcess, board: Callable[..., Page]) -> None:
    page = board(expected=REFUSED)
    page.evaluate("key = 'another'")
    page.get_by_label("Order").select_option("oldest first")
    expect(page.locator("#refused")).to_contain_text("It may have been changed")


# The last hour.


def chart(page: Page, title: str) -> Any:
    """What stands for the line of a tile where nobody sees it."""
    return page.get_by_role("img", name=re.compile(f"^{title}, last"))


def test_the_charts_show_what_was_before_the_page(start_quick: Callable[..., QuickHistory], open_tab: OpenTab) -> None:
    server = start_quick()
    for number in range(30):
        publish(server, "orders", number)
    server.wait_for_sample(lambda sample: sample["published"] > 0, "a sample with publishes")
    server.ask("reload", method="POST")
    server.wait_for_sample(lambda sample: sample["reloads"] == 1, "a sample with the reload")
    page = open_tab(f"{server.url}/admin", expected=GONE).page
    give_key(page, ADMIN_KEY)
    expect(chart(page, "Published")).to_have_attribute("aria-label", re.compile(r"last 5 min: 0 /s to (?!0 /s)\d"))
    expect(page.locator("#charts")).to_contain_text(re.compile(r"reloaded .* started "))
    # A restart is shown, and what this page has seen of the process before it stays.
    server.kill()
    expect(page.locator("#status")).to_have_text("no answer")
    start_quick(server.port)
    expect(page.locator("#status")).to_have_text("ready")
    expect(page.locator("#charts")).to_contain_text(re.compile(r"started .* reloaded .* started "))
    expect(chart(page, "Published")).to_have_attribute("aria-label", re.compile(r": 0 /s to (?!0 /s)\d"))
    lines = page.locator(".tile svg .mark.start")
    assert lines.count() == 2 * page.locator(".tile").count()
    # Between the two processes there is no line.
    wait_until(lambda: page.locator(".tile").nth(6).locator(".curve").count() >= 2, what="the second line of the CPU")


# Numbers that are no alarm.


def test_few_measurements_have_a_median_and_no_colour(idle_board: Page) -> None:
    page = idle_board
    value = """([name, before, after]) => {
        const totals = (counts) => ({uptime_seconds: 0, totals: {[name]: counts}});
        const kept = [...seen];
        seen.splice(0, Infinity, totals(before), {...totals(after), uptime_seconds: 5});
        const found = lag(name, {warn: .25, bad: 2});
        seen.splice(0, Infinity, ...kept);
        return [found.value, found.small, found.more, found.level ?? ""];
    }"""

    def shown(*counts: int) -> Any:
        bounds = (0.1, 2.5, 5.0, None)
        after = list(zip(bounds, counts, strict=True))
        return page.evaluate(value, ["lag", [[bound, 0] for bound in bounds], after])

    assert shown(0, 0, 0, 0) == ["\N{EN DASH}", "", "0 measurements, last 5 s", ""]
    assert shown(0, 0, 1, 1) == ["3.8 s", " median", "1 measurement, last 5 s", ""]
    assert shown(0, 0, 19, 19) == ["3.8 s", " median", "19 measurements, last 5 s", ""]
    assert shown(0, 0, 20, 20)[3] == "bad"  # half of them took so long
    assert shown(0, 20, 20, 20)[3] == "warn"
    assert shown(38, 38, 40, 40) == ["53 ms", " median", "40 measurements, last 5 s", ""]  # and not "5 s p99"
    assert shown(390, 390, 400, 400) == ["4.0 s", " p99", "median 51 ms, last 5 s", "bad"]
    assert shown(400, 400, 400, 400) == ["99 ms", " p99", "median 50 ms, last 5 s", ""]


def test_the_page_estimates_quantiles_as_the_server_does(idle_board: Page) -> None:
    bounds = (0.1, 0.25, 1.0, None)
    nothing = [(bound, 0) for bound in bounds]
    for counts in ((1, 1, 1, 1), (0, 3, 4, 4), (2, 2, 4, 9), (0, 0, 0, 0), (0, 0, 0, 7)):
        after = list(zip(bounds, counts, strict=True))
        for part in (0.5, 0.99):
            found = idle_board.evaluate("([part, counts]) => Math.min(1, quantile(part, counts))", [part, after])
            assert found == pytest.approx(quantile(part, nothing, after) or 0, abs=1e-6)


# How it looks.


def test_counts_stand_below_each_other(idle_board: Page) -> None:
    right_edges = idle_board.evaluate(
        """() => {
            const before = {accepted: 0, repeated: 7, forbidden: 1};
            drawReasons("publishes", {accepted: 12345, repeated: 7, forbidden: 89}, before);
            const right = (x) => Math.round(x.getBoundingClientRect().right);
            const edge = (name) => [...document.querySelectorAll(name)].map(right);
            return [[...edge("#publishes .count"), ...edge("#publishes-sum")], edge("#publishes .since")];
        }"""
    )
    assert [(len(edges), len(set(edges))) for edges in right_edges] == [(4, 1), (3, 1)]


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_no_card_is_mostly_empty(idle_board: Page, width: int) -> None:
    page = idle_board
    page.set_viewport_size({"width": width, "height": 900})
    expect(page.locator("#list-none")).to_be_visible()
    empty = page.locator("main section:not(.tile)").evaluate_all(
        """all => all.map((card) => {
            const shown = [...card.querySelectorAll("*")].filter((x) => x.checkVisibility());
            const bottom = (x) => x.getBoundingClientRect().bottom;
            return Math.round(bottom(card) - Math.max(...shown.map(bottom)));
        })"""
    )
    assert len(empty) >= 8
    assert max(empty) <= 24, empty


def test_a_phone_has_sections_to_jump_to(idle_board: Page) -> None:
    page = idle_board
    links = page.get_by_role("navigation", name="Sections")
    page.set_viewport_size({"width": 1280, "height": 844})
    expect(links).to_be_hidden()
    page.set_viewport_size({"width": 390, "height": 844})
    for link in links.get_by_role("link").all():
        link.click()
        target = page.locator(link.get_attribute("href") or "none")
        expect(target).to_be_in_viewport()
        expect(target).to_be_focused()
        expect(links).to_be_in_viewport()
    links.get_by_role("link", name="Limits").click()
    expect(page.get_by_label("max_connections", exact=True)).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize(("width", "is_open"), [(390, False), (1280, True)])
def test_on_a_phone_the_limits_are_folded(idle: QuickHistory, open_tab: OpenTab, width: int, *, is_open: bool) -> None:
    page = open_tab("about:blank").page
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"{idle.url}/admin")
    give_key(page, ADMIN_KEY)
    expect(page.locator("#status")).to_have_text("ready")
    expect(page.locator("#limit-form")).to_be_visible(visible=is_open)
