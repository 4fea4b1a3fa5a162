"""client.js without a browser: how it reads a stream, what it does on a server, and its types."""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.documents import ROOT
from tests.interop.clients import HERE

WEB = ROOT / "qgstream" / "web"
CONNECTED = '{"event": "connected", "timestamp": "2026-11-28T06:00:00.000000+00:00", "replay": "none", "topics": ["*"]}'
CLOSING = '{"event": "closing", "timestamp": "2026-11-28T06:00:00.000000+00:00", "reason": "kicked"}'


def envelope(data: str, event: str = "null") -> str:
    return f'{{"id": "e-7", "topic": "t", "event": {event}, "data": {data}}}'


# WHATWG HTML, 9.2.6, in one stream: a BOM, all three line ends, ids that are none, blocks without data.
TEXT = json.dumps("ä€😀\u2028\x85 b", ensure_ascii=False)
LINES = envelope('{\n\n "a"\n: 1}').split("\n")
STREAM = (
    f"\ufeffretry: 10\r\nid: e-1\r\ndata: {CONNECTED}\r\n\r\n"
    f"event: größe\rid: e-2\rdata: {envelope(TEXT, json.dumps('größe', ensure_ascii=False))}\r\r"
    ": heartbeat\nid: e-3\n\n"
    f"id: e\0-4\ndata:{envelope('1')}\n\n"
    "\r\n\r"
    f"id:e-5\nunknown: x\nretry: soon\ndata: {LINES[0]}\ndata\ndata: {LINES[2]}\r\ndata: {LINES[3]}\n\n"
    "data\n\n"
    f"id: e-6\nevent: created\nevent\ndata: {envelope('2')}\n\n"
    f"data: {CLOSING}\n\nretry: 20\n\n"
    f"id: e-9\ndata: {envelope('3')}\n"
).encode()
CAME = [
    ["connected", None, CONNECTED, "e-1"],
    ["*", "größe", "ä€😀\u2028\x85 b", "e-2"],
    ["*", None, "1", "e-3"],
    ["*", None, '{\n\n "a"\n: 1}', "e-5"],
    ["*", None, "2", "e-6"],
]


@pytest.fixture(scope="module")
def client(require_node: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy by a name that Node takes for a module."""
    return Path(shutil.copy(WEB / "client.js", tmp_path_factory.mktemp("client") / "client.mjs"))


@pytest.fixture(scope="module")
def require_node(require_program: Callable[[str], Path]) -> Path:
    return require_program("node")


def read(client: Path, cases: Iterable[list[bytes]]) -> list[dict[str, Any]]:
    """What client.js reads from each stream."""
    encoded = json.dumps([[base64.b64encode(piece).decode() for piece in case] for case in cases])
    done = subprocess.run(
        ["node", HERE / "format.mjs", client], input=encoded, capture_output=True, text=True, timeout=150, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.strip().split("\n")]


def test_a_stream_is_read_in_whatever_pieces_it_comes(client: Path) -> None:
    chance = random.Random(14)
    cases = [[STREAM], [STREAM[n : n + 1] for n in range(len(STREAM))]]
    cases += [[STREAM[:n], STREAM[n:]] for n in range(len(STREAM))]
    for _ in range(200):
        cuts = sorted(chance.choices(range(len(STREAM)), k=chance.randrange(1, 40)))
        cases.append([STREAM[a:b] for a, b in zip([0, *cuts], [*cuts, len(STREAM)], strict=True)])
    for case, got in zip(cases, read(client, cases), strict=True):
        assert got["came"] == CAME, case
        # It is told to come back, and when: the last `retry:` counts.
        assert (got["why"], got["waitMs"]) == ("closing", 20)


def test_a_long_line_in_many_pieces_is_not_copied_for_each(client: Path) -> None:
    """64 MiB in 64 Ki pieces: copied each time that would be 2 TiB, and the test would end by its time limit."""
    text = "x" * (64 << 20)
    stream = f"data: {CONNECTED}\n\nid: e-2\ndata: {envelope(json.dumps(text))}\n\n".encode()
    (got,) = read(client, [[stream[n : n + 1024] for n in range(0, len(stream), 1024)]])
    assert [(each[0], len(each[2])) for each in got["came"][1:]] == [("*", len(text))]


ANSWERS = {
    "told when": ("503", {"Retry-After": "70"}, (70_000, 70_000)),
    "told when, in an hour": ("429", {"Retry-After": "3600"}, (300_000, 300_000)),
    "a proxy": ("502", {}, (500, 1000)),
    "a timeout": ("408", {}, (500, 1000)),
    "a mistake": ("404", {}, (20_000, 40_000)),
    "a mistake, of credentials": ("403", {}, (20_000, 40_000)),
    "no stream": ("200", {"Content-Type": "text/html"}, (500, 1000)),
    "nothing": ("204", {}, (500, 1000)),
}


@pytest.mark.parametrize(("status", "headers", "bounds"), ANSWERS.values(), ids=ANSWERS.keys())
def test_how_long_it_waits_after_a_refusal(
    client: Path, status: str, headers: dict[str, str], bounds: tuple[int, int]
) -> None:
    script = f"""
        globalThis.location = new URL("https://page.example/");
        globalThis.addEventListener = globalThis.removeEventListener = () => {{}};
        const body = {status} >= 400 ? JSON.stringify({{error: {{code: "a_code", message: "why"}}}}) : null;
        globalThis.fetch = async () => new Response(body, {{status: {status}, headers: {json.dumps(headers)}}});
        const {{Stream}} = await import({json.dumps(str(client))});
        const stream = new Stream("https://api.example/events", {{share: false, backoffMs: [1000, 40_000]}});
        stream.addEventListener("state", (e) => {{
            if (e.state !== "waiting") return;
            console.log(JSON.stringify(e));
            stream.close();
        }});
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script], capture_output=True, text=True, timeout=150, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    state = json.loads(done.stdout)
    assert (state["why"], state["status"], state["failures"]) == ("refused", int(status), 1)
    assert (state["code"], state["message"]) == (("a_code", "why") if int(status) >= 400 else (None, None))
    assert bounds[0] <= state["waitMs"] <= bounds[1]


# What others say of an error, in place of `{"error": {"code": ..., "message": ...}}`.
FOREIGN = {
    "fields of its own": '{"error": {"state": "open", "why": "closing", "waitMs": 0, "failures": -1}}',
    "numbers and objects": '{"error": {"code": 502, "message": {"state": "open"}}}',
    "a text": '{"error": "Bad Gateway"}',
    "null": '{"error": null}',
    "nothing": "null",
    "a list": "[1]",
    "no JSON": "<h1>502 Bad Gateway</h1>",
    "empty": "",
    "broken off": None,
}


@pytest.mark.parametrize("body", FOREIGN.values(), ids=FOREIGN.keys())
def test_an_error_that_is_not_the_servers_own_says_its_status_alone(client: Path, body: str | None) -> None:
    breaks_off = 'new ReadableStream({pull(controller) { controller.error(new TypeError("lost")); }})'
    script = f"""
        globalThis.location = new URL("https://page.example/");
        globalThis.addEventListener = globalThis.removeEventListener = () => {{}};
        const body = {breaks_off if body is None else json.dumps(body)};
        globalThis.fetch = async () => new Response(body, {{status: 502, headers: {{"Retry-After": "70"}}}});
        const {{Stream}} = await import({json.dumps(str(client))});
        const stream = new Stream("https://api.example/events", {{share: false}});
        stream.addEventListener("state", (e) => {{
            if (e.state === "connecting") return;
            console.log(JSON.stringify(e));
            stream.close();
        }});
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script], capture_output=True, text=True, timeout=150, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[0]) | {"isTrusted": False} == {
        "isTrusted": False, "state": "waiting", "why": "refused", "reason": None, "status": 502, "code": None,
        "message": None, "waitMs": 70_000, "failures": 1,
    }  # fmt: skip


SERVERS = {
    "Node": "",
    "without MessageEvent": "delete globalThis.MessageEvent;",
    "without what a page has": (
        "for (const name of ['MessageEvent', 'BroadcastChannel', 'fetch', 'navigator']) delete globalThis[name];"
    ),
}


@pytest.mark.parametrize("before", SERVERS.values(), ids=SERVERS.keys())
def test_on_a_server_it_does_nothing(client: Path, before: str) -> None:
    script = f"""
        {before}
        globalThis.fetch = () => {{ throw new Error("a connection"); }};
        const {{Stream}} = await import({json.dumps(str(client))});
        for (const url of ["/events", "https://api.example/events?topic=a"]) {{
            const stream = new Stream(url, {{topics: ["b"], token: () => {{ throw new Error("asked"); }}}});
            stream.addEventListener("state", () => console.log("a state"));
            stream.setTopics([...stream.topics, "c"]);
            stream.reconnect();
            setTimeout(() => {{
                console.log(stream.state, stream.readyState, stream.topics.join());
                stream.close();
                console.log(stream.state);
            }});
        }}
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script], capture_output=True, text=True, timeout=150, check=False
    )
    # It ends by itself: nothing was left open.
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "connecting 0 b,c", "a state", "closed", "connecting 0 a,b,c", "a state", "closed",
    ]  # fmt: skip


TYPED = """
import { Stream, type StreamEvent, type StateEvent, type Heartbeat } from "./client.js";
interface Order { order: number }
const controller = new AbortController();
const stream = new Stream<{created: Order; message: string}>("/events", {
    topics: ["a"], share: "ann", signal: controller.signal, backoffMs: [1, 2], token: async () => "x",
    isFatal: ({failures, status}) => failures > 5 || status === 403,
});
stream.addEventListener("created", (e) => { const n: number = e.json.order; console.log(n); });
stream.addEventListener("state", (e: StateEvent) => { const ms: number | null = e.waitMs; console.log(ms, e.code); });
stream.addEventListener("heartbeat", (e: StreamEvent<Heartbeat>) => console.log(e.json.timestamp));
stream.addEventListener("another", (e) => { const unknown: unknown = e.json; console.log(unknown); });
stream.addEventListener("*", (e) => console.log(e.event, e.topic));
stream.onmessage = (e) => { const text: string = e.json; console.log(text); };
// @ts-expect-error: an order has no such field
stream.addEventListener("created", (e) => console.log(e.json.nothing));
// @ts-expect-error: there is no such option
console.log(new Stream("/events", {shared: true}));
const untyped = new Stream("/events");
untyped.addEventListener("open", (e: Event) => console.log(e));
for await (const e of untyped) console.log(e.json);
const old: Pick<EventSource, "url" | "readyState" | "withCredentials" | "close"> = untyped;
console.log(old);
"""


def test_the_types_say_what_is_published(node_modules: Path, tmp_path: Path) -> None:
    shutil.copy(WEB / "client.d.ts", tmp_path)
    (tmp_path / "page.ts").write_text(TYPED)
    options = ["--noEmit", "--strict", "--exactOptionalPropertyTypes", "--target", "es2022", "--module", "esnext"]
    done = subprocess.run(
        ["node", node_modules / "node_modules/typescript/bin/tsc", *options, "--moduleResolution", "bundler",
         "--lib", "es2022,dom,dom.iterable", "page.ts"],
        cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
