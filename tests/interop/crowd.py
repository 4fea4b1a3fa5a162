"""Every client that people use, each on several streams at once, and what all of them received."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from playwright.sync_api import Error, Page, sync_playwright

from qgstream.sse import Parser
from tests.browser.engines.chromium import FLAGS
from tests.browser.relay import Relay
from tests.documents import ROOT

HERE = Path(__file__).parent
# Long, for a machine that does something else besides: whoever is slow is not called unable.
PATIENCE_SECONDS = 30.0

# In a page: open streams, and keep what comes until it is fetched.
_IN_THE_PAGE = """async urls => {
  window.received = [];
  const {Stream} = await import("/client.js");
  for (const [scenario, url] of Object.entries(urls)) {
    const keep = (client, event, e) =>
      window.received.push({client, scenario, kind: "event", event, data: e.data, id: e.lastEventId});
    const source = new EventSource(`${url}&client=Chromium`);
    const stream = new Stream(`${url}&client=%2Fclient.js`, {shared: false});
    for (const type of ["message", "created"]) {
      source.addEventListener(type, (e) => keep("Chromium", type, e));
      stream.addEventListener(type, (e) => keep("/client.js", type, e));
    }
    for (const own of ["connected", "closing", "rejected"])
      stream.addEventListener(own, (e) => keep("/client.js", "message", e));
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return;
      window.received.push({client: "Chromium", scenario, kind: "stopped"});
    };
  }
}"""


@dataclass(frozen=True)
class Record:
    """Something that a client received (`event`), or that it gave up (`stopped`)."""

    client: str
    scenario: str
    kind: str
    event: str = ""
    data: str = ""
    id: str = ""
    why: str = ""


class Switch(Relay):
    """A relay that can lead to another server, as a balancer does."""

    def lead_to(self, port: int) -> None:
        self._target = ("127.0.0.1", port)

    def answer_new(self, answer: bytes) -> None:
        """What is open stays; new connections get this alone, until `restore`."""
        with self._lock:
            self._answer = answer

    def visits(self, client: str) -> int:
        """How often the client has asked for a stream."""
        mark = re.compile(rf"[?&]client={re.escape(quote(client, safe=''))}[& ]")
        return sum(mark.search(head) is not None for head in list(self.requests))


class Crowd:
    """All clients, each with one stream for each of the `urls`. `records` has what they received, in its order."""

    def __init__(self, urls: Mapping[str, str], *, modules: Path, chromium: Path, page: str) -> None:
        self.records: list[Record] = []
        self._lock = threading.Lock()
        self.urls = dict(urls)
        self._modules = modules
        self._chromium = chromium
        self._page_url = page
        self._stack = ExitStack()
        self._page: Page | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack, [sys.executable, "-m", "tests.interop.listen", json.dumps(self.urls)])
            self._start(stack, ["node", str(HERE / "listen.mjs"), str(self._modules), json.dumps(self.urls)])
            for scenario, url in self.urls.items():
                self._start(stack, ["curl", "-sN", f"{url}&client={quote('curl -N', safe='')}"], scenario=scenario)
            browser = stack.enter_context(sync_playwright()).chromium.launch(executable_path=self._chromium, args=FLAGS)
            stack.callback(browser.close)
            self._page = browser.new_page()
            self._page.goto(self._page_url)
            self._page.evaluate(_IN_THE_PAGE, self.urls)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack, command: list[str], *, scenario: str = "") -> None:
        # Libraries write their complaints to standard error: what they make of each is in the records.
        process = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
        )
        thread = threading.Thread(target=self._read_curl if scenario else self._read, args=(process, scenario))
        thread.start()
        stack.callback(thread.join)
        stack.callback(process.kill)

    def _add(self, record: Record) -> None:
        with self._lock:
            self.records.append(record)

    def _read(self, process: subprocess.Popen[bytes], _scenario: str) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with suppress(ValueError):  # cut by the end
                self._add(Record(**json.loads(line)))

    def _read_curl(self, process: subprocess.Popen[bytes], scenario: str) -> None:
        assert process.stdout is not None
        parser = Parser()
        while received := process.stdout.read1(65536):  # type: ignore[attr-defined]  # a BufferedReader has it
            for event in parser.feed(received):
                self._add(Record("curl -N", scenario, "event", event.event, event.data, event.id))
        self._add(Record("curl -N", scenario, "stopped", why="it ended"))

    def _look_at_the_page(self) -> None:
        assert self._page is not None
        with suppress(Error):  # the page is gone: what it had is known
            for found in self._page.evaluate("() => window.received.splice(0)"):
                self._add(Record(**found))

    def received(self, client: str, scenario: str) -> list[Record]:
        """What came on one stream, without heartbeats."""
        with self._lock:
            found = [x for x in self.records if (x.client, x.scenario) == (client, scenario)]
        return [x for x in found if own(x).get("event") != "heartbeat"]

    def wait(self, what: str, is_true: Callable[[str], bool], clients: list[str]) -> None:
        """Until it is true of all these clients, or time is up: who does not do what the table says is found later."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self._look_at_the_page()
            missing = [client for client in clients if not is_true(client)]
            if not missing or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        if missing:
            print(f"{what} ({PATIENCE_SECONDS:g} s): not so with {', '.join(missing)}")


def own(record: Record) -> dict[str, Any]:
    """The server's own message, or nothing."""
    if record.kind != "event" or record.event != "message" or not record.data.startswith('{"event": '):
        return {}
    message: dict[str, Any] = json.loads(record.data)
    return message
