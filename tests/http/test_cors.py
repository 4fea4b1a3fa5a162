"""CORS is on every answer of every handler, whatever the answer is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from tornado.httpclient import HTTPResponse

from qgstream.net.cors import CorsSettings
from qgstream.service.refused_origins import RefusedOrigins
from tests.http.asking import BEARER, Client

ORIGIN = "https://app.example.com"
LIST = {"cors": {"allow_origins": [ORIGIN, "https://*.example.org"]}}
WITH_COOKIES = {"cors": {"allow_origins": [ORIGIN], "allow_credentials": True, "max_age_seconds": 7}}
NOBODY: dict[str, Any] = {"cors": {"allow_origins": []}}
FULL = {"limits": {"max_connections": 0}}

JSON = {"Content-Type": "application/json"}
EVENT = b'{"topic": "a", "data": 1}'

# Every way to be answered: method, path, headers, body, the status.
ANSWERS = [
    pytest.param("GET", "/health", {}, None, 200, id="health"),
    pytest.param("HEAD", "/health", {}, None, 200, id="health's head"),
    pytest.param("GET", "/ready", {}, None, 200, id="ready"),
    pytest.param("GET", "/metrics", {}, None, 200, id="metrics"),
    pytest.param("GET", "/", {}, None, 200, id="demo"),
    pytest.param("HEAD", "/events", {}, None, 200, id="a stream's head"),
    pytest.param("POST", "/events", BEARER | JSON, EVENT, 200, id="publish"),
    pytest.param("POST", "/events", JSON, EVENT, 401, id="publish without a key"),
    pytest.param("POST", "/events", {"Authorization": "Bearer wrong"} | JSON, EVENT, 401, id="publish, wrong key"),
    pytest.param("POST", "/events", {"Authorization": "Bearer admin-key"} | JSON, EVENT, 403, id="publish, no grant"),
    pytest.param("POST", "/events", BEARER | JSON, b"{", 400, id="publish nonsense"),
    pytest.param("POST", "/events", BEARER | {"Content-Type": "text/plain"}, EVENT, 415, id="publish text"),
    pytest.param("POST", "/events", BEARER | JSON, b'"%b"' % (b"x" * 9_000_000), 413, id="publish too much"),
    pytest.param("GET", "/events?topic=", {}, None, 400, id="an empty topic"),
    pytest.param("GET", "/events", {"Authorization": "Bearer wrong"}, None, 401, id="subscribe, wrong key"),
    pytest.param("GET", "/nowhere", {}, None, 404, id="no such path"),
    pytest.param("POST", "/nowhere", JSON, b"x" * 200_000, 404, id="no such path, with a body"),
    pytest.param("PUT", "/events", {}, b"", 405, id="no such method"),
    pytest.param("DELETE", "/health", {}, None, 405, id="no such method of health"),
    pytest.param("BREW", "/metrics", {}, None, 501, id="no method of HTTP"),
]
PATHS = ["/", "/events", "/health", "/ready", "/metrics", "/nowhere", "/admin/limits", "/events?access_token=wrong"]


def cors(answer: HTTPResponse) -> dict[str, str]:
    return {
        name.removeprefix("Access-Control-"): value
        for name, value in answer.headers.get_all()
        if name.startswith("Access-Control-")
    }


@pytest.mark.gen_test
@pytest.mark.parametrize(("method", "path", "headers", "body", "status"), ANSWERS)
async def test_everybody_may_read_every_answer(
    client: Client, method: str, path: str, headers: Mapping[str, str], body: bytes | None, status: int
) -> None:
    answer = await client.ask(method, path, headers={**headers, "Origin": ORIGIN}, body=body)
    assert answer.code == status
    assert cors(answer) == {"Allow-Origin": "*", "Expose-Headers": "Retry-After"}
    assert "Vary" not in answer.headers


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [LIST])
@pytest.mark.parametrize(("method", "path", "headers", "body", "status"), ANSWERS)
async def test_an_origin_of_the_list_may_read_every_answer(
    client: Client, method: str, path: str, headers: Mapping[str, str], body: bytes | None, status: int
) -> None:
    answer = await client.ask(method, path, headers={**headers, "Origin": ORIGIN}, body=body)
    assert answer.code == status
    assert cors(answer) == {"Allow-Origin": ORIGIN, "Expose-Headers": "Retry-After"}
    assert answer.headers.get_list("Vary") == ["Origin"]


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [LIST])
@pytest.mark.parametrize(("method", "path", "headers", "body", "status"), ANSWERS)
async def test_a_foreign_origin_is_answered_and_may_read_nothing(
    client: Client, method: str, path: str, headers: Mapping[str, str], body: bytes | None, status: int
) -> None:
    answer = await client.ask(method, path, headers={**headers, "Origin": "https://evil.example"}, body=body)
    assert answer.code == status
    assert cors(answer) == {}
    # A shared cache must not give this answer to the origin that may read it.
    assert answer.headers.get_list("Vary") == ["Origin"]


@pytest.mark.gen_test
@pytest.mark.parametrize("path", PATHS)
async def test_a_preflight_needs_no_credentials_on_any_path(client: Client, path: str) -> None:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, last-event-id",
    }
    answer = await client.ask("OPTIONS", path, headers=asked)
    assert answer.code == 204
    assert answer.body == b""
    assert "Content-Length" not in answer.headers
    allowed = cors(answer)
    assert allowed.pop("Allow-Headers").lower().split(", ") == [
        "authorization", "content-type", "last-event-id", "cache-control",
        "traceparent", "tracestate", "baggage", "sentry-trace",
    ]  # fmt: skip
    assert {"GET", "HEAD", "POST", "OPTIONS"} <= set(allowed.pop("Allow-Methods").split(", "))
    assert allowed == {"Allow-Origin": "*", "Max-Age": "600"}


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [WITH_COOKIES])
@pytest.mark.parametrize("path", PATHS)
async def test_a_preflight_of_a_page_with_cookies(client: Client, path: str) -> None:
    answer = await client.ask("OPTIONS", path, headers={"Origin": ORIGIN, "Access-Control-Request-Method": "POST"})
    assert answer.code == 204
    allowed = cors(answer)
    assert allowed["Allow-Origin"] == ORIGIN
    assert allowed["Allow-Credentials"] == "true"
    assert allowed["Max-Age"] == "7"
    assert answer.headers["Vary"] == "Origin"


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [LIST])
async def test_a_preflight_of_a_foreign_origin_allows_nothing(client: Client) -> None:
    answer = await client.ask(
        "OPTIONS", "/events", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert (answer.code, cors(answer), answer.headers["Vary"]) == (204, {}, "Origin")


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [LIST])
@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://shop.example.org", True),
        ("https://a.b.example.org", True),
        ("https://SHOP.example.org", True),
        ("https://example.org", False),
        ("https://evilexample.org", False),
        ("http://shop.example.org", False),
        ("https://shop.example.org:8443", False),
        ("https://shop.example.org.evil.example", False),
        ("https://app.example.com", True),
        ("https://app.example.com.", False),
        ("null", False),
        ("", False),
    ],
)
async def test_a_pattern_covers_its_subdomains_and_nothing_else(client: Client, origin: str, allowed: bool) -> None:
    answer = await client.ask("GET", "/health", headers={"Origin": origin})
    assert cors(answer).get("Allow-Origin") == (origin if allowed else None)


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [NOBODY])
async def test_without_origins_nothing_is_said(client: Client) -> None:
    for method in ("GET", "OPTIONS"):
        answer = await client.ask(method, "/health", headers={"Origin": ORIGIN})
        assert cors(answer) == {}
        assert "Vary" not in answer.headers


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [LIST, WITH_COOKIES])
async def test_a_stream_says_who_may_read_it(client: Client) -> None:
    stream = await client.stream(headers={"Origin": ORIGIN})
    head = stream.head.decode()
    assert f"Access-Control-Allow-Origin: {ORIGIN}\r\n" in head
    assert "Vary: Origin\r\n" in head
    assert ("Access-Control-Allow-Credentials: true\r\n" in head) is client.service.cors.allow_credentials
    stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [FULL])
@pytest.mark.parametrize(("accept", "status"), [("text/event-stream", 200), ("*/*", 503)])
async def test_who_is_refused_may_read_why(client: Client, accept: str, status: int) -> None:
    answer = await client.ask("GET", "/events", headers={"Origin": ORIGIN, "Accept": accept})
    assert answer.code == status
    assert cors(answer) == {"Allow-Origin": "*", "Expose-Headers": "Retry-After"}


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [LIST])
@pytest.mark.parametrize("byte", range(0x80, 0x100, 9))
async def test_no_origin_can_break_the_answer(client: Client, byte: int) -> None:
    """A header that Tornado will not send would cut the connection without an answer."""
    iostream = await client.connect()
    await iostream.write(b"GET /health HTTP/1.1\r\nHost: tests\r\nOrigin: https://a%c.example.org\r\n\r\n" % byte)
    head = await iostream.read_until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    iostream.close()


# An origin that is refused. Its page's console says "blocked by CORS", and whoever runs the server sees the log.


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "qgstream")


def refused(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [vars(record)["origin"] for record in caplog.records if record.getMessage() == "cors.refused"]


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [NOBODY, LIST])
async def test_a_refused_origin_is_said_once(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        (await client.stream(headers={"Origin": "https://other.example"})).close()
        await client.ask("OPTIONS", "/events", headers={"Origin": "https://preflight.example"})
    assert refused(caplog) == ["https://other.example", "https://preflight.example"]
    line = next(record for record in caplog.records if record.getMessage() == "cors.refused")
    assert "cors.allow_origins" in vars(line)["change"]


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [LIST])
async def test_other_origins_are_not_said(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    for origin in (None, ORIGIN, "http://tests", client.base_url):
        headers = {} if origin is None else {"Origin": origin}
        if origin != client.base_url:  # whose name is another one than that of the stream
            (await client.stream(headers=headers)).close()
        if origin != "http://tests":
            await client.ask("OPTIONS", "/events", headers=headers)
    assert refused(caplog) == []


def test_many_origins_make_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    seen = RefusedOrigins(clock=lambda: now)
    for number in range(1000):
        seen.see(f"https://{number}.example\x1b", CorsSettings())
    assert refused(caplog) == [rf"https://{number}.example\x1b" for number in range(RefusedOrigins.MAX_ORIGINS)]
    now = 60.0
    seen.see("https://1.example", CorsSettings())
    assert refused(caplog)[-1] == "https://1.example"
    assert len(seen._said_at) == 1
