"""Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from pathlib import Path

from playwright.sync_api import BrowserContext, ConsoleMessage, Page, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from tests.browser.engines.base import PATIENCE_SECONDS, Engine, PageGone, Tab

# Nothing on the network but the tests: no sandbox (there is no user namespace in a container), and none of its own
# traffic.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


class ChromiumTab(Tab):
    """A page of Playwright's."""

    def __init__(self, context: BrowserContext, tabs: list[Tab], expected: tuple[str, ...]) -> None:
        super().__init__(expected)
        self._tabs = tabs
        self._page = context.new_page()
        self._page.on("console", self._hear)
        self._page.on("pageerror", lambda error: self.said.append(str(error)))
        tabs.append(self)

    @property
    def page(self) -> Page:
        return self._page

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.said.append(f"{message.text} ({message.location['url']})")

    def goto(self, url: str) -> None:
        self._page.goto(url)

    def beside(self) -> ChromiumTab:
        return ChromiumTab(self._page.context, self._tabs, self.expected)

    def close(self) -> None:
        self._page.close()

    def _run(self, script: str) -> str:
        try:
            answer = self._page.evaluate(script)
        except PlaywrightError as error:
            if "context was destroyed" in str(error):
                raise PageGone from error
            raise AssertionError(str(error)) from error
        assert isinstance(answer, str)
        return answer

    def _traverse(self, delta: int) -> None:
        (self._page.go_back if delta < 0 else self._page.go_forward)(wait_until="commit")


class Chromium(Engine):
    """While it is open, its event loop is the running one of this thread."""

    name = "chromium"

    def __init__(self, folder: Path) -> None:
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=FLAGS,
            ignore_default_args=["--disable-back-forward-cache"],  # users have it
        )  # fmt: skip
        self._tabs: list[Tab] = []

    @classmethod
    def programs(cls) -> tuple[str, ...]:
        return ("chromium",)

    def open(self, expected: tuple[str, ...]) -> ChromiumTab:
        context = self._browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(PATIENCE_SECONDS * 1000)
        return ChromiumTab(context, self._tabs, expected)

    def end_test(self) -> list[Tab]:
        for context in self._browser.contexts:
            context.close()
        tabs, self._tabs = self._tabs, []
        return tabs

    def close(self) -> None:
        self._browser.close()
        self._playwright.stop()
