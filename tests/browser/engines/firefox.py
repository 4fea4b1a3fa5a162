"""Debian's Firefox, driven over WebDriver BiDi (https://w3c.github.io/webdriver-bidi/), which it speaks by itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.browser.engines.base import PATIENCE_SECONDS, Engine, PageGone, Tab

# What the remote agent does not set by itself: no proxy of the machine's, and nothing on the network but the tests.
PREFERENCES = {
    "network.proxy.type": 0,
    "app.normandy.enabled": False,
    "browser.region.network.url": "",
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
}


class _BiDi:
    """Commands and their answers; events go to `on_event`, in a thread of their own."""

    def __init__(self, url: str, on_event: Any) -> None:
        self._closing = ExitStack()
        self._socket = self._closing.enter_context(connect(f"{url}/session", max_size=None, proxy=None))
        self._on_event = on_event
        self._answers: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._last_id = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for text in self._socket:
                message = json.loads(text)
                if message["type"] == "event":
                    self._on_event(message["method"], message["params"])
                else:
                    self._answers.put(message)
        except ConnectionClosed:
            pass
        self._answers.put(None)

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """The result of a command. Raises PageGone if the page it is for has gone, AssertionError for other errors."""
        self._last_id += 1
        self._socket.send(json.dumps({"id": self._last_id, "method": method, "params": parameters}))
        answer: dict[str, Any] | None = {}
        while answer is not None and answer.get("id") != self._last_id:
            try:
                answer = self._answers.get(timeout=2 * PATIENCE_SECONDS)
            except Empty:
                raise AssertionError(f"Firefox has not answered {method} {parameters}") from None
        assert answer is not None, f"Firefox has gone; it was asked for {method} {parameters}"
        if answer["type"] == "success":
            result: dict[str, Any] = answer["result"]
            return result
        # A page that goes away takes what was asked of it along.
        if answer["error"] in ("no such frame", "unknown error") and method == "script.evaluate":
            raise PageGone(answer["message"])
        raise AssertionError(f"{method} {parameters}: {answer['error']}: {answer['message']}")

    def close(self) -> None:
        self._closing.close()
        self._reader.join()


class FirefoxTab(Tab):
    """A browsing context in a user context ("container") of its test's own."""

    def __init__(self, firefox: Firefox, container: str, expected: tuple[str, ...]) -> None:
        super().__init__(expected)
        self._firefox = firefox
        self._container = container
        created = firefox.bidi.call("browsingContext.create", type="tab", userContext=container)
        self.context: str = created["context"]
        self._heard: set[tuple[int, str]] = set()
        self._is_open = True
        firefox.tabs[self.context] = self

    def hear(self, entry: dict[str, Any]) -> None:
        """Keep what the console said. An entry comes again when the page comes back from the history."""
        text = f"{entry['text']} ({entry['type']})"
        known = (entry["timestamp"], text)
        if entry["level"] in ("error", "warn") and known not in self._heard:
            self._heard.add(known)
            self.said.append(text)

    def goto(self, url: str) -> None:
        self._firefox.bidi.call("browsingContext.navigate", context=self.context, url=url, wait="complete")

    def beside(self) -> FirefoxTab:
        return FirefoxTab(self._firefox, self._container, self.expected)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._firefox.bidi.call("browsingContext.close", context=self.context)

    def _run(self, script: str) -> str:
        answer = self._firefox.bidi.call(
            "script.evaluate", expression=script, target={"context": self.context}, awaitPromise=True
        )
        assert answer["type"] == "success", answer["exceptionDetails"]["text"]
        value: str = answer["result"]["value"]
        return value

    def _traverse(self, delta: int) -> None:
        self._firefox.bidi.call("browsingContext.traverseHistory", context=self.context, delta=delta)


class Firefox(Engine):
    """One process for all tests, with a profile that is thrown away."""

    name = "firefox"

    def __init__(self, folder: Path) -> None:
        self.tabs: dict[str, FirefoxTab] = {}
        self._containers: list[str] = []
        settings = "".join(
            f"user_pref({json.dumps(key)}, {json.dumps(value)});\n" for key, value in PREFERENCES.items()
        )
        (folder / "user.js").write_text(settings)
        self._process = subprocess.Popen(
            ["firefox-esr", "--headless", "--no-remote", "--profile", str(folder), "--remote-debugging-port=0"],
            env=os.environ | {"HOME": str(folder), "MOZ_CRASHREPORTER_DISABLE": "1"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            url = self._listening()
            # Its pipe must not fill up.
            self._drain = threading.Thread(target=self._process.communicate, daemon=True)
            self._drain.start()
            self.bidi = _BiDi(url, self._on_event)
            self.bidi.call("session.new", capabilities={})
            self.bidi.call("session.subscribe", events=["log.entryAdded"])
        except BaseException:
            self._process.kill()
            self._process.communicate()
            raise

    def _listening(self) -> str:
        assert self._process.stderr is not None
        printed = ""
        for line in self._process.stderr:
            printed += line
            if found := re.search(r"WebDriver BiDi listening on (ws://\S+)", line):
                return found[1]
        raise AssertionError(f"Firefox did not start: {printed}")

    def _on_event(self, method: str, parameters: dict[str, Any]) -> None:
        tab = self.tabs.get(parameters.get("source", {}).get("context"))
        if method == "log.entryAdded" and tab is not None:
            tab.hear(parameters)

    @classmethod
    def programs(cls) -> tuple[str, ...]:
        return ("firefox-esr",)

    def open(self, expected: tuple[str, ...]) -> FirefoxTab:
        container: str = self.bidi.call("browser.createUserContext")["userContext"]
        self._containers.append(container)
        return FirefoxTab(self, container, expected)

    def end_test(self) -> list[Tab]:
        for container in self._containers:
            self.bidi.call("browser.removeUserContext", userContext=container)  # and its tabs
        self._containers.clear()
        tabs: list[Tab] = list(self.tabs.values())
        self.tabs.clear()
        return tabs

    def close(self) -> None:
        try:
            self.bidi.call("browser.close")
            self.bidi.close()
            self._process.wait(PATIENCE_SECONDS)
        finally:
            self._process.kill()
            self._drain.join()
