"""What every engine can do: open a page, ask it something, go back, and tell what its console said."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.serving import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

# How long a page may take for anything: long enough for a machine that does something else besides. Only a test that
# fails waits for that long.
PATIENCE_SECONDS = 60.0


class PageGone(Exception):
    """The page went away while it was asked."""


class Tab(ABC):
    """A page. `said` has what its console said as errors and warnings.

    A message that contains none of `expected` fails the test. A browser writes failed connections to the console only
    in Chromium, so `expected` may have more than what comes.
    """

    def __init__(self, expected: tuple[str, ...]) -> None:
        self.expected = expected
        self.said: list[str] = []

    @abstractmethod
    def goto(self, url: str) -> None:
        """Load a page, and return after its `load` event."""

    @abstractmethod
    def beside(self) -> Tab:
        """Another tab that shares cookies, caches and workers with this one."""

    @abstractmethod
    def close(self) -> None:
        """Close it, as a user does. Closing it again does nothing."""

    @abstractmethod
    def _run(self, script: str) -> str:
        """The string that the promise `script` gives. Raises AssertionError for a rejection."""

    @abstractmethod
    def _traverse(self, delta: int) -> None:
        """Go `delta` entries of the history forward; it may return before the page is there."""

    def evaluate(self, script: str, argument: object = None) -> Any:
        """The value of `script` as JSON has it: of an expression, or of a function that is called with `argument`.

        A promise is waited for. Several statements need a function: `() => { first(); second(); }`.
        """
        called = f"typeof it === 'function' ? it({json.dumps(argument)}) : it"
        given = f"const it = ({script}\n); return JSON.stringify((await ({called})) ?? null);"
        return json.loads(self._run(f"(async () => {{ {given} }})()"))

    def wait_for(self, script: str, argument: object = None) -> Any:
        """The first value of `script` that is true. The page may be loaded anew meanwhile."""
        value: Any = None

        def is_true() -> bool:
            nonlocal value
            try:
                value = self.evaluate(script, argument)
            except PageGone:
                return False
            return bool(value)

        wait_until(is_true, seconds=PATIENCE_SECONDS, what=f"{script} with {argument!r}")
        return value

    def wait_for_text(self, selector: str, text: str) -> None:
        """Until the first element that `selector` finds has this text."""
        self.wait_for("([s, t]) => document.querySelector(s)?.textContent.trim() === t", [selector, text])

    def back(self) -> None:
        """What the Back button does, until the other page is there: kept by the browser, or loaded anew."""
        self._go(-1)

    def forward(self) -> None:
        """The same with Forward."""
        self._go(1)

    def _go(self, delta: int) -> None:
        before = self.evaluate("location.href")
        self._traverse(delta)

        def is_there() -> bool:
            # While one page goes and the other comes there may be none to ask.
            try:
                ready, address = self.evaluate("[document.readyState, location.href]")
            except PageGone:
                return False
            return bool(ready == "complete" and address != before)

        wait_until(is_there, seconds=PATIENCE_SECONDS, what=f"a way {delta} in the history from {before}")

    def wait_for_said(self, text: str) -> None:
        """Until its console has said this. What it says comes while the page is asked something, and perhaps later."""
        wait_until(
            lambda: self.evaluate("true") and any(text in one for one in self.said),
            seconds=PATIENCE_SECONDS, what=f"{text!r} in the console",
        )  # fmt: skip

    def unexpected(self) -> list[str]:
        """What the console said that the test did not expect."""
        return [text for text in self.said if not any(part in text for part in self.expected)]

    @property
    def page(self) -> Page:
        """Playwright's page, which only Chromium has."""
        raise NotImplementedError


class Engine(ABC):
    """A running browser. It may write to `folder`."""

    name: str

    @abstractmethod
    def __init__(self, folder: Path) -> None: ...

    @classmethod
    @abstractmethod
    def programs(cls) -> tuple[str, ...]:
        """Names of the programs that it needs."""

    @abstractmethod
    def open(self, expected: tuple[str, ...]) -> Tab:
        """An empty tab that shares nothing with earlier ones, where the engine can do that (WebKit cannot)."""

    @abstractmethod
    def end_test(self) -> list[Tab]:
        """Close all tabs, and forget what they shared. Returns the tabs, for what their consoles said."""

    @abstractmethod
    def close(self) -> None:
        """End the browser."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


SAID = (Path(__file__).parent / "said.js").read_text()
