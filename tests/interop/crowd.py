"""Every client that people use, each on several streams at once, and what all of them received."""

from __future__ import annotations

import json
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
from urllib.parse import parse_qs, quote, urlsplit

from qgstream.wire.sse import Parser
from tests.browser.engines.base import Engine, PageGone, Tab
from tests.browser.engines.chromium import Chromium
from tests.browser.engines.firefox import Firefox
from tests.browser.engines.webkit import WebKit
from tests.browser.relay import Relay
from tests.documents import ROOT

HERE = Path(__file__).parent
# Long, for a machine that does something else besides: whoever is slow is not called unable.
PATIENCE_SECONDS = 60.0

# In a page: open streams, and keep what comes until it is fetched.
_IN_THE_PAGE = """async ({urls, name}) => {
  window.received = [];
  const {Stream} = await import("/client.js");
  for (const [scenario, url] of Object.entries(urls)) {
    const keep = (client, event, e) =>
      window.received.push({client, scenario, kind: "event", event, data: e.data, id: e.lastEventId});
    const source = new EventSource(`${url}&client=${name}`);
    const ours = `/client.js in ${name}`;
    const stream = new Stream(`${url}&client=${encodeURIComponent(ours)}`, {share: false});
    for (const type of ["message", "created"]) {
      source.addEventListener(type, (e) => keep(name, type, e));
      stream.addEventListener(type, (e) => keep(ours, type, e));
    }
    for (const own of ["connected", "closing", "rejected"])
      stream.addEventListener(own, (e) => keep(ours, "message", e));
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return;
      window.received.push({client: name, scenario, kind: "stopped"});
    };
  }
}"""
BROWSERS: dict[str, type[Engine]] = {"Chromium": Chromium, "Firefox": Firefox, "WebKit": WebKit}


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
        targets = [head.split(" ", 2)[1] for head in list(self.requests)]
        return sum(parse_qs(urlsplit(target).query).get("client") == [client] for target in targets)


class Crowd:
    """All clients, each with one stream for each of the `urls`. `records` has what they received, in its order."""

    def __init__(self, urls: Mapping[str, str], *, modules: Path, folder: Path, page: str) -> None:
        self.records: list[Record] = []
        self._lock = threading.Lock()
        self.urls = dict(urls)
        self._modules = modules
        self._folder = folder
        self._page_url = page
        self._stack = ExitStack()
        self._tabs: list[Tab] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack, [sys.executable, "-m", "tests.interop.listen", json.dumps(self.urls)])
            self._start(stack, ["node", str(HERE / "listen.mjs"), str(self._modules), json.dumps(self.urls)])
            for scenario, url in self.urls.items():
                self._start(stack, ["curl", "-sN", f"{url}&client={quote('curl -N', safe='')}"], scenario=scenario)
            for name, kind in BROWSERS.items():
                profile = self._folder / name
                profile.mkdir()
                tab = stack.enter_context(kind(profile)).open(())
                tab.goto(self._page_url)
                tab.evaluate(_IN_THE_PAGE, {"urls": self.urls, "name": name})
                self._tabs.append(tab)
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

    def _look_at_the_pages(self) -> None:
        for tab in self._tabs:
            with suppress(PageGone):  # what it had is known
                for found in tab.evaluate("received.splice(0)"):
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
            self._look_at_the_pages()
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
