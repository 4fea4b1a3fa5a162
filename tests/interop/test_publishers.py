"""The publishers of docs/publishing.md in other languages: each event once, through whatever happens to a request.

Go is tried where it is. Debian's has 474 MB: half a minute of each run of continuous integration is too much for it.
"""

from __future__ import annotations

import http.client
import http.server
import json
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import qgstream
from qgstream import ReceivedEvent
from tests.documents import ROOT, blocks_of
from tests.serving import KEY, ServerProcess

(SHOWN,) = [block for block in blocks_of(ROOT / "docs" / "publishing.md") if "publish.mjs" in block.text]
COMMANDS = {command.split()[0]: command for command in SHOWN.text.splitlines()}
LANGUAGES = [program for program in COMMANDS if program != "go" or shutil.which("go")]

in_each_language = pytest.mark.parametrize("language", LANGUAGES)


def run(language: str, url: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        shlex.split(COMMANDS[language]), cwd=ROOT, env=os.environ | {"EVENTS_URL": url, "EVENTS_KEY": key},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("publishers")) as server:
        yield server


@contextmanager
def front(server: ServerProcess, *, is_bad: bool = True) -> Iterator[tuple[str, list[bytes]]]:
    """A proxy, and the bodies that it got. A bad one loses an answer, refuses twice, and then is a good one."""
    bodies: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            tries = len(bodies) if is_bad else 4
            if tries in (2, 3):
                self._answer(503 if tries == 2 else 429, b'{"error": {"code": "busy"}}')
                return
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            headers = {name: self.headers[name] for name in ("Authorization", "Content-Type")}
            connection.request("POST", self.path, bodies[-1], headers)
            answer = connection.getresponse()
            text = answer.read()
            connection.close()
            if tries == 1:
                self.close_connection = True  # without a word
            else:
                self._answer(answer.status, text)

        def _answer(self, status: int, text: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}", bodies
        finally:
            proxy.shutdown()
            thread.join()


async def events_of(server: ServerProcess) -> list[ReceivedEvent]:
    """Everything that was published so far, and a last event that ends it."""
    async with qgstream.AsyncPublisher(server.url, key=KEY) as publisher:
        last = await publisher.publish("last", "")
    found = []
    async for event in qgstream.connect(server.url, last_event_id="earliest"):
        if event.id == last.id:
            break
        found.append(event)
    return [event for event in found if event.topic == "orders"]


@in_each_language
@pytest.mark.gen_test
async def test_an_event_is_published_once_through_lost_answers_and_refusals(
    server: ServerProcess, language: str, require_program: Callable[[str], Path]
) -> None:
    require_program(language)
    before = len(await events_of(server))
    with front(server) as (url, bodies):
        done = run(language, url)
        assert (done.returncode, done.stderr) == (0, "")
    assert len(bodies) == 4
    assert len(set(bodies)) == 1, "another key, or other data"
    assert json.loads(bodies[0])["idempotency_key"]
    (event,) = (await events_of(server))[before:]
    assert (event.id, event.event, event.data) == (done.stdout.strip(), "created", {"order": 7})


@in_each_language
def test_a_refusal_is_said_at_once(
    server: ServerProcess, language: str, require_program: Callable[[str], Path]
) -> None:
    require_program(language)
    with front(server, is_bad=False) as (url, bodies):
        done = run(language, url, key="wrong")
    assert (done.returncode != 0, len(bodies)) == (True, 1)
    assert "unknown_key" in done.stderr + done.stdout
