"""docs/recipes.md: its programs with the real frameworks, and what somebody who moves here sees before and after."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

import qgstream
from qgstream.process.config import load
from qgstream.wire.sse import Event, Parser
from tests.deploy.programs import free_port
from tests.documents import ROOT, blocks_of
from tests.hostile.observing import body_of
from tests.process.test_server import FromFile
from tests.serving import KEY, RawClient, ServerProcess, wait_until
from tests.test_docs import is_open

PAGE = ROOT / "docs" / "recipes.md"
RECIPES = ROOT / "docs" / "examples" / "recipes"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One for the programs that publish; who may see what is as private.toml has it."""
    with ServerProcess(tmp_path_factory.mktemp("recipes"), config=str(RECIPES / "private.toml")) as server:
        yield server


def shown(word: str, *, language: str = "sh") -> str:
    """The one command of the page with this word."""
    (found,) = [block.text for block in blocks_of(PAGE) if block.language == language and word in block.text]
    return found


@contextmanager
def program(name: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> Iterator[int]:
    """A program of the page, started by the command of the page, on a port of its own."""
    port = free_port()
    words = shlex.split(re.sub(r"\b800\d\b", str(port), shown(name)))
    assert words[0] in (".venv/bin/python", ".venv/bin/uvicorn")
    module = ["-m", "uvicorn"] if words[0].endswith("uvicorn") else []
    paths = [str(ROOT / word) if (ROOT / word).exists() else word for word in words[1:]]
    process = subprocess.Popen(
        [sys.executable, *module, *paths, *arguments],
        cwd=cwd, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    said = ""
    try:
        wait_until(lambda: is_open(port) or process.poll() is not None, what="the program to listen")
        yield port
    finally:
        process.terminate()
        said = process.communicate(timeout=60)[0]
    assert "Traceback" not in said, said


def order_as_shown(word: str, port: int) -> None:
    """The page's curl with this word, and its answer is no error."""
    command = re.sub(r"localhost:800\d", f"127.0.0.1:{port}", shown(word))
    subprocess.run([*shlex.split(command), "--fail", "--silent"], check=True, capture_output=True, timeout=60)


UVICORN = ("--timeout-graceful-shutdown", "1")


def published(server: ServerProcess, topic: str, count: int) -> list[Event]:
    """The first events of a topic."""
    client = RawClient(server.port).get(f"/events?topic={topic}&last_event_id=earliest")
    try:
        while len(events := [event for event in events_of(client) if '"event": "' not in event.data]) < count:
            client.received += client.socket.recv(65536)
        return events
    finally:
        client.close()


def events_of(client: RawClient) -> list[Event]:
    """What an EventSource has dispatched so far."""
    return list(Parser().feed(body_of(client)))


def post(port: int, target: str, **content: Any) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{port}{target}", timeout=60, **content)


# Publishing.


def test_fastapi_publishes(server: ServerProcess, require_program: Callable[[str], Path]) -> None:
    require_program("curl")
    with program("fastapi_app:app", *UVICORN, EVENTS_URL=server.url, EVENTS_KEY=KEY) as port:
        answer = post(port, "/orders", json={"item": "tea"})
        assert answer.status_code == 200, answer.text
        (event,) = published(server, "orders", 1)
        assert (event.event, json.loads(event.data)) == ("created", {"order": 1, "item": "tea"})
        assert answer.json() == {"order": 1, "item": "tea", "id": event.id}
        assert post(port, "/orders", json={}).status_code == 422
        order_as_shown('{"item": "tea"}', port)


def test_django_publishes_what_is_committed(
    server: ServerProcess, tmp_path: Path, require_program: Callable[[str], Path]
) -> None:
    require_program("curl")
    environment = {"EVENTS_URL": server.url, "EVENTS_KEY": KEY}
    before = len(published(server, "orders", 0))
    with program("django_app.py", "--noreload", cwd=tmp_path, **environment) as port:
        assert post(port, "/orders", data={"item": "coffee"}).status_code == 409
        answer = post(port, "/orders", data={"item": "milk"})
        assert (answer.status_code, answer.json()["item"]) == (200, "milk")
        wait_until(lambda: "milk" in published(server, "orders", 1)[-1].data)
        order_as_shown("item=tea", port)
        # Each request has its own thread, and all of them one database.
        assert post(port, "/orders", data={"item": "sugar"}).json()["order"] == answer.json()["order"] + 2
    items = [json.loads(event.data)["item"] for event in published(server, "orders", before + 1)]
    assert "coffee" not in items
    assert list(tmp_path.iterdir()) == [], "it leaves files behind"


def test_tokens_of_a_model_go_on_after_a_break_in_the_middle(server: ServerProcess) -> None:
    async def read(topic: str, last_event_id: str, count: int) -> list[Any]:
        """So many events, or all until the end."""
        found: list[Any] = []
        stream = qgstream.connect(server.url, topics=[topic], last_event_id=last_event_id)
        async for event in stream:
            found.append(event)
            if event.event == "end" or len(found) == count:
                break
        return found

    with program("llm_tokens:app", *UVICORN, EVENTS_URL=server.url, EVENTS_KEY=KEY) as port:
        topic = post(port, "/questions", json={"prompt": "Why?"}).json()["topic"]
        first = asyncio.run(read(topic, "earliest", 3))
        rest = asyncio.run(read(topic, first[-1].id, 1000))
    assert rest[-1].data == {"reason": "complete"}
    tokens = [event.data["token"] for event in (first + rest)[:-1]]
    assert "".join(tokens) == "You ask: Why? I do not know, and I say it slowly. "


# Topics of one's own.


def test_a_private_topic_is_for_whom_the_token_grants_it(server: ServerProcess) -> None:
    (block,) = [block for block in blocks_of(PAGE) if "def token_for" in block.text]
    names: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), names)
    secret = tomllib.loads((RECIPES / "private.toml").read_text())["auth"]["jwt"]["secret"]
    mine, other = (names["token_for"](user, secret) for user in (12, 13))
    assert jwt.decode(mine, options={"verify_signature": False})["sub"] == "user-12"

    def stream(query: str) -> RawClient:
        client = RawClient(server.port).get(f"/events?{query}")
        client.until(b'"connected"')
        return client

    to_me = [stream(f"topic=users/12/*&access_token={mine}"), stream(f"topic=users/12/messages&access_token={mine}")]
    others = [stream(f"topic=users/13/*&access_token={other}"), stream("topic=*"), stream(f"access_token={other}")]
    with qgstream.Publisher(server.url, key=KEY) as publisher:
        publisher.publish("users/12/messages", "for you")
        publisher.publish("for-all", "for everybody")
        publisher.publish("users/13/messages", "for the other one")
    for client in to_me:
        client.until(b"data: for you\n")
    for client in others[1:]:
        client.until(b"data: for everybody\n")
    others[0].until(b"data: for the other one\n")
    for client in others:
        assert b"for you" not in client.received
    for client in (*to_me, *others):
        client.close()
    # Nobody takes what is not granted.
    for query, status in (("topic=users/12/messages", 401), (f"topic=users/12/messages&access_token={other}", 403)):
        answer = httpx.get(f"{server.url}/events?{query}", timeout=60)
        assert answer.status_code == status, answer.text


def test_the_configuration_on_the_page_is_the_one_in_the_file() -> None:
    (block,) = [block for block in blocks_of(PAGE) if block.language == "toml"]
    assert block.text in (RECIPES / "private.toml").read_text()


def test_the_excerpts_on_the_page_are_of_the_programs() -> None:
    programs = "\n".join(path.read_text() for path in RECIPES.glob("*.py"))
    excerpts = [block for block in blocks_of(PAGE) if block.language == "python" and "def token_for" not in block.text]
    assert len(excerpts) == 2
    for block in excerpts:
        lines = {line.strip() for line in programs.splitlines()}
        assert {line.strip() for line in block.text.splitlines()} <= lines, f"{block} is not what the program says"


def test_what_the_page_installs_is_what_these_tests_have() -> None:
    named = shown("bin/pip install").removeprefix(".venv/bin/pip install ").split()
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["test"]
    assert set(named) <= {re.split(r"[<>=]", requirement)[0].lower() for requirement in group}


# Before and after.


def listen(port: int, target: str, count: int) -> tuple[bytes, list[Event]]:
    """The headers and the first events of a stream, as an EventSource of a page on localhost:3000 gets them."""
    client = RawClient(port).get(target, "Origin: http://localhost:3000", "Accept: text/event-stream")
    try:
        deadline = time.monotonic() + 30
        while len(events := events_of(client)) < count:
            assert time.monotonic() < deadline
            client.received += client.socket.recv(65536)
        head = client.received.partition(b"\r\n\r\n")[0].lower()
        assert b"\r\ncontent-type: text/event-stream" in head
        assert b"\r\naccess-control-allow-origin: http://localhost:3000" in head
        return head, events[:count]
    finally:
        client.close()


def of_its_own(event: Event) -> bool:
    return event.event == "message" and event.data.startswith('{"event": ')


def test_sse_starlette_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with program("sse_starlette_before:app", *UVICORN) as port:
        _, before = listen(port, "/events", 10)
    path, command = shown("sse_starlette_after.toml").split(" .venv/bin/qgstream serve --config ")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / path.removeprefix("PYTHONPATH=")))
    with FromFile(tmp_path, config=str(ROOT / command)) as server:
        _, after = listen(server.port, "/events?topic=prices&last_event_id=earliest", 11)
    theirs = [(event.event, json.loads(event.data)) for event in before]
    ours = [(event.event, json.loads(event.data)) for event in after if not of_its_own(event)]
    assert ours == theirs
    assert all(event.id for event in after), "and now they have ids"
    numbers = [data["number"] for _, data in ours]
    assert all(later - earlier == 1 for earlier, later in pairwise(numbers))


def test_an_endpoint_of_fastapi_before_and_after(tmp_path: Path) -> None:
    def messages(port: int, publish: Any) -> tuple[list[dict[str, Any]], int, int]:
        """What `onmessage` gets: connected, an event, heartbeats; and the answer to one client too many."""
        client = RawClient(port).get("/events", "Origin: http://localhost:3000")
        client.until(b'"connected"')
        status = publish(port)
        while len(events := events_of(client)) < 4:
            client.received += client.socket.recv(65536)
        refused = httpx.get(f"http://127.0.0.1:{port}/events", timeout=60).status_code
        client.close()
        assert all(event.event == "message" for event in events)
        return [json.loads(event.data) for event in events[:4]], status, refused

    def broadcast(port: int) -> int:
        return post(port, "/broadcast", json={"order": 7}).status_code

    def publish(port: int) -> int:
        body = {"topic": "any", "data": {"order": 7}}
        key = {"Authorization": "Bearer a-long-random-string"}
        return post(port, "/events", json=body, headers=key).status_code

    with program("fastapi_before:app", *UVICORN, HEARTBEAT_SECONDS="0.5", MAX_CONNECTIONS="1") as port:
        before, *statuses_before = messages(port, broadcast)
    config = tmp_path / "after.toml"
    text = (ROOT / shown("fastapi_after.toml").removeprefix(".venv/bin/qgstream serve --config ")).read_text()
    config.write_text(
        text.replace("interval_seconds = 5", "interval_seconds = 0.5")
        .replace("max_connections = 100", "max_connections = 1") + "\n[drain]\nseconds = 0\n"
    )  # fmt: skip
    assert config.read_text().count("= 0.5") == config.read_text().count("connections = 1\n") == 1
    with FromFile(tmp_path, config=str(config)) as server:
        after, *statuses_after = messages(server.port, publish)

    def told(documents: list[dict[str, Any]]) -> list[str]:
        # Where the event falls among the heartbeats is a matter of time.
        return sorted(str(document.get("event", document)) for document in documents)

    assert told(after) == told(before) == ["connected", "heartbeat", "heartbeat", "{'order': 7}"]
    assert (after[0]["event"], before[0]["event"]) == ("connected", "connected")
    for theirs, ours in zip(before, after, strict=True):
        if "timestamp" in theirs:
            assert theirs.keys() <= ours.keys()
    assert statuses_before == statuses_after == [200, 503]


def test_the_configurations_of_the_recipes_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in RECIPES.glob("*.toml"):
        assert load(path).warnings == ()
