"""Debian's WebKitGTK, driven over WebDriver (https://www.w3.org/TR/webdriver2/) on a display in memory.

GTK 3 has no headless mode. The driver tells nothing of the console; said.js does.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import httpx

from tests.browser.engines.base import PATIENCE_SECONDS, SAID, Engine, PageGone, Tab
from tests.deploy.programs import free_port
from tests.serving import wait_until

# The last argument of an asynchronous script is the function that takes its result.
RUN = "const done = arguments[arguments.length - 1]; ({}).then((it) => done([it]), (error) => done(String(error)));"


class WebKitTab(Tab):
    """A window of the one session that the browser has."""

    def __init__(self, webkit: WebKit, expected: tuple[str, ...]) -> None:
        super().__init__(expected)
        self._webkit = webkit
        # A window, not a tab: nothing is hidden, so no timer is slow.
        self.handle: str = webkit.call("POST", "window/new", window=webkit.first, type="window")["handle"]
        self._is_open = True
        webkit.tabs.append(self)

    def listen(self) -> None:
        """Take over what the page has kept of its console."""
        if self._is_open:
            heard = self.evaluate("(window.said ?? []).splice(0)")
            self.said += heard

    def goto(self, url: str) -> None:
        self.listen()
        self._webkit.call("POST", "url", window=self.handle, url=url)
        self._run(f"(async () => {{ {SAID}; return ''; }})()")

    def beside(self) -> WebKitTab:
        return WebKitTab(self._webkit, self.expected)

    def close(self) -> None:
        if self._is_open:
            self.listen()
            self._is_open = False
            self._webkit.call("DELETE", "window", window=self.handle)

    def _run(self, script: str) -> str:
        answer = self._webkit.call(
            "POST", "execute/async", window=self.handle, script=RUN.replace("{}", script), args=[]
        )
        if isinstance(answer, str):
            raise AssertionError(answer)
        value: str = answer[0]
        return value

    def _traverse(self, delta: int) -> None:
        self.listen()
        self._webkit.call("POST", "back" if delta < 0 else "forward", window=self.handle)


class WebKit(Engine):
    """One browser for all tests. It has one set of workers and caches for all its windows."""

    name = "webkit"

    def __init__(self, folder: Path) -> None:
        self.tabs: list[WebKitTab] = []
        self._session = ""
        self.first = ""  # a window that stays: the browser ends with its last one
        self._window = ""  # the one that commands are for
        self._http = httpx.Client(timeout=4 * PATIENCE_SECONDS, trust_env=False)
        self._processes: list[subprocess.Popen[str]] = []
        try:
            self._start(folder)
        except BaseException:
            self._stop()
            raise

    def _start(self, folder: Path) -> None:
        display = subprocess.Popen(
            ["Xvfb", "-displayfd", "1", "-screen", "0", "1280x900x24", "-nolisten", "tcp"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._processes.append(display)
        assert display.stdout is not None
        number = display.stdout.readline().strip()
        assert number, "Xvfb did not start"
        port = free_port()
        environment = {
            "DISPLAY": f":{number}", "GDK_BACKEND": "x11", "HOME": str(folder), "NO_AT_BRIDGE": "1",
            "WEBKIT_DISABLE_COMPOSITING_MODE": "1", "no_proxy": "*",
        }  # fmt: skip
        self._processes.append(
            subprocess.Popen(
                ["WebKitWebDriver", f"--port={port}"], env=os.environ | environment, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip
        self._http.base_url = httpx.URL(f"http://127.0.0.1:{port}")
        wait_until(self._is_ready, seconds=PATIENCE_SECONDS, what="WebKitWebDriver's port")
        self._session = f"/session/{self.call('POST', 'session', capabilities={})['sessionId']}"
        self.first = self._window = self.call("GET", "window")

    def _is_ready(self) -> bool:
        try:
            return self._http.get("/status").is_success
        except httpx.TransportError:
            return False

    @classmethod
    def programs(cls) -> tuple[str, ...]:
        return ("WebKitWebDriver", "Xvfb")

    def call(self, method: str, command: str, *, window: str | None = None, **parameters: object) -> Any:
        """The value of a command, for a window if one is given. Raises as the commands of Firefox do."""
        if window is not None and window != self._window:
            self.call("POST", "window", handle=window)
            self._window = window
        body = parameters if method == "POST" else None
        answer = self._http.request(method, f"{self._session}/{command}".rstrip("/"), json=body)
        value = answer.json()["value"]
        if answer.is_success:
            return value
        # A page that goes away takes what was asked of it along.
        if command.startswith("execute") and value["error"] in ("javascript error", "unknown error"):
            raise PageGone(value["message"])
        raise AssertionError(f"{command} {parameters}: {value['error']}: {value['message']}")

    def open(self, expected: tuple[str, ...]) -> WebKitTab:
        return WebKitTab(self, expected)

    def end_test(self) -> list[Tab]:
        for tab in self.tabs:
            tab.close()
        tabs: list[Tab] = list(self.tabs)
        self.tabs.clear()
        return tabs

    def close(self) -> None:
        try:
            self.call("DELETE", "")
        finally:
            self._stop()

    def _stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.communicate()
        self._http.close()
