"""What every handler does: errors are JSON with a stable code, methods are told, bodies do no harm."""

from __future__ import annotations

import pytest
from tornado.web import Application, RequestHandler

from qgstream.errors import ConfigError
from qgstream.http.app import public_app
from qgstream.http.base import BaseHandler
from qgstream.service.service import Service
from tests.conftest import ExpectLog
from tests.http.asking import BEARER, Client, error_of

HEAD_AND_GET = ["/", "/events", "/health", "/ready", "/metrics"]
METHODS = [
    ("/", "GET, HEAD, OPTIONS"),
    ("/events", "GET, HEAD, POST, OPTIONS"),
    ("/health", "GET, HEAD, OPTIONS"),
    ("/ready", "GET, HEAD, OPTIONS"),
    ("/metrics", "GET, HEAD, OPTIONS"),
]


@pytest.mark.gen_test
@pytest.mark.parametrize(("path", "allow"), METHODS)
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "QUERY"])
async def test_a_method_that_is_not_known_is_told_which_are(client: Client, path: str, allow: str, method: str) -> None:
    answer = await client.ask(method, path, headers=BEARER)
    assert answer.code == 405
    assert error_of(answer) == {
        "code": "method_not_allowed",
        "message": f"got {method!r}, expected one of {allow}",
    }
    assert answer.headers["Allow"] == allow


@pytest.mark.gen_test
@pytest.mark.parametrize("path", ["/events", "/health", "/nowhere"])
@pytest.mark.parametrize("method", ["BREW", "get", "X" * 300])
async def test_a_method_that_nobody_knows_is_known_on_no_path(client: Client, path: str, method: str) -> None:
    answer = await client.ask(method, path, headers=BEARER)
    assert answer.code == 501
    assert error_of(answer) == {
        "code": "not_implemented",
        "message": f"got the method {method[:50]!r}, expected one of GET, HEAD, POST, PATCH, DELETE, OPTIONS",
    }


ADMIN = {"Authorization": "Bearer admin-key"}
JSON_ANSWERS = [
    ("GET", "/health"), ("GET", "/ready"), ("GET", "/openapi.json"), ("GET", "/nowhere"), ("PUT", "/health"),
    ("POST", "/events"),
    ("GET", "/events?replay=x"), ("GET", "/ws"), ("GET", "/admin/limits"), ("GET", "/admin/connections"),
    ("GET", "/admin/config"), ("GET", "/admin/overview"), ("GET", "/admin/openapi.json"), ("GET", "/admin/talkers"),
    ("GET", "/admin/nowhere"), ("GET", "/admin/bans"), ("POST", "/admin/bans"),
]  # fmt: skip


@pytest.mark.gen_test
@pytest.mark.parametrize(("method", "path"), JSON_ANSWERS)
async def test_json_ends_with_a_newline(client: Client, method: str, path: str) -> None:
    """After `curl`, the prompt of a shell stands on a line of its own."""
    client.service.effective = lambda: iter([("log.level", "info", "default")])
    answer = await client.ask(method, path, headers=ADMIN if path.startswith("/admin") else {})
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.body.endswith(b"}\n")
    assert answer.headers["Content-Length"] == str(len(answer.body))
    head = await client.ask("HEAD", path, headers=ADMIN if path.startswith("/admin") else {})
    assert head.body == b""


@pytest.mark.gen_test
async def test_json_about_a_malformed_request_ends_with_a_newline(client: Client) -> None:
    iostream = await client.connect()
    await iostream.write(b"nonsense\r\n\r\n")
    head, _, body = (await iostream.read_until_close()).partition(b"\r\n\r\n")
    assert body.endswith(b"}\n")
    assert f"Content-Length: {len(body)}".encode() in head


@pytest.mark.gen_test
@pytest.mark.parametrize(("path", "allow"), METHODS)
async def test_options_says_what_a_path_knows(client: Client, path: str, allow: str) -> None:
    answer = await client.ask("OPTIONS", path)
    assert (answer.code, answer.headers["Allow"], answer.body) == (204, allow, b"")


@pytest.mark.gen_test
@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/health", "/ready", "/metrics"])
async def test_head_is_get_without_its_body(client: Client, path: str) -> None:
    got = await client.ask("GET", path)
    head = await client.ask("HEAD", path)
    assert (head.code, head.body) == (got.code, b"")
    volatile = {"Date", "Content-Length"}  # metrics grow by a digit now and then
    assert {name: value for name, value in head.headers.items() if name not in volatile} == {
        name: value for name, value in got.headers.items() if name not in volatile
    }
    assert int(head.headers["Content-Length"]) > 0


@pytest.mark.gen_test
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "path",
    ["/nowhere", "/events/", "/EVENTS", "//events", "/events%20", "/health/x", "/%00", "/..%2f..%2fetc"],
)
async def test_no_such_path(client: Client, method: str, path: str) -> None:
    answer = await client.ask(method, path, body=b"" if method in ("POST", "PUT", "PATCH") else None)
    assert answer.code == 404
    assert error_of(answer) == {
        "code": "not_found",
        "message": f"got {path!r}, expected one of the paths that /docs describes",
        "docs": "/docs",
    }


@pytest.mark.gen_test
async def test_a_long_path_is_not_repeated_whole(client: Client) -> None:
    answer = await client.ask("GET", "/" + "a" * 900_000)
    assert answer.code == 404
    assert len(error_of(answer)["message"]) < 300


@pytest.mark.gen_test
@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/", "/docs", "/openapi.json"])
@pytest.mark.parametrize("tag", ["*", '"a", *', 'W/"b"'])
async def test_no_answer_is_not_modified(client: Client, path: str, tag: str) -> None:
    """A prober that gets 304 for /ready, or Prometheus for /metrics, has no answer."""
    answer = await client.ask("GET", path, headers={"If-None-Match": tag})
    assert answer.code == 200
    assert "Etag" not in answer.headers
    assert answer.body


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("multipart/form-data; boundary=x", b"--x\r\nnot what it says"),
        ("multipart/form-data", b"a"),
        ("application/x-www-form-urlencoded", b"a=%ff&%zz=\xff;;&&==" + b"&" * 10_000),
        ("application/json", b"\xff" * 60_000),
    ],
)
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_bodies_that_nobody_asked_for_are_not_looked_at(
    client: Client, media_type: str, body: bytes, encoding: str
) -> None:
    headers = {"Content-Type": media_type, "Content-Encoding": encoding}
    answer = await client.ask("POST", "/nowhere", headers=headers, body=body)
    assert (answer.code, error_of(answer)["code"]) == (404, "not_found")


@pytest.mark.gen_test
async def test_a_server_that_leaves_lets_go_of_kept_alive_sockets(client: Client) -> None:
    iostream = await client.connect()
    request = b"GET /health HTTP/1.1\r\nHost: tests\r\n\r\n"
    await iostream.write(request)
    head = await iostream.read_until(b"\r\n\r\n")
    await iostream.read_bytes(len(b'{"status": "ok"}\n'))
    assert b"Connection:" not in head
    client.hub.draining = True
    await iostream.write(request)
    answer = await iostream.read_until_close()
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b'{"status": "ok"}\n')


# A fault of ours: one answer without details, one line with everything.


class Faulty(BaseHandler):
    def get(self) -> None:
        raise ZeroDivisionError("secret detail")


class Odd(BaseHandler):
    """Raises an error of the tree that knows no status of HTTP's."""

    def get(self) -> None:
        raise ConfigError(["nothing fits"])


class TestFaults:
    @pytest.fixture
    def app(self, service: Service) -> Application:
        app = public_app(service)
        handlers: list[tuple[str, type[RequestHandler], dict[str, Service]]] = [
            ("/faulty", Faulty, {"service": service}),
            ("/odd", Odd, {"service": service}),
        ]
        app.add_handlers(".*", handlers)
        return app

    @pytest.mark.gen_test
    async def test_are_logged_once_and_tell_strangers_nothing(self, client: Client, expect_log: ExpectLog) -> None:
        expect_log("request.failed")
        answer = await client.ask("GET", "/faulty", headers={"Origin": "https://a.example"})
        assert answer.code == 500
        assert error_of(answer) == {"code": "server_error", "message": "Internal Server Error"}
        assert answer.headers["Access-Control-Allow-Origin"] == "*"

    @pytest.mark.gen_test
    async def test_of_the_tree_keep_their_code(self, client: Client) -> None:
        answer = await client.ask("GET", "/odd")
        assert (answer.code, error_of(answer)["code"]) == (500, "invalid_configuration")
