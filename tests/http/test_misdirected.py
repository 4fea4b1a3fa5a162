"""A request for another host is refused whatever it asks for, and everything else goes on as without the check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tornado.web import Application, RequestHandler

from qgstream.http.app import admin_app, operator_routes, public_app, routes
from qgstream.hub import Hub
from qgstream.service.service import Service
from tests.http.asking import BEARER, Client, Stream, document, error_of
from tests.http.test_websocket import HANDSHAKE

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"]
LISTED: dict[str, Any] = {"cors": {"allow_origins": ["http://localhost:3000"]}}
EVENT = b'{"topic": "a", "data": 1}'
JSON = {"Content-Type": "application/json"}


@pytest.fixture(params=["public", "public without the operator's routes", "admin"])
def app(request: pytest.FixtureRequest, service: Service) -> Application:
    """Each of the applications, on a socket of the loopback."""
    if request.param == "admin":
        return admin_app(service, on_loopback=True)
    return public_app(service, with_operator_routes=request.param == "public", on_loopback=True)


def paths(app: Application) -> list[str]:
    """A path for every rule of the table, and some that no rule has."""
    patterns = [rule.matcher.regex.pattern for rule in app.wildcard_router.rules if hasattr(rule.matcher, "regex")]
    found = [pattern.replace("([0-9]{1,18})", "7").replace("/?", "").replace("\\", "") for pattern in patterns]
    return sorted({path.removesuffix("$") for path in found} | {"/nowhere", "/events/", "//"})


@pytest.mark.gen_test
async def test_every_path_and_method_is_refused(client: Client, app: Application) -> None:
    assert len(paths(app)) > 6
    for path in paths(app):
        for method in METHODS:
            body = EVENT if method in ("POST", "PUT", "PATCH") else None
            answer = await client.ask(method, path, headers=BEARER | JSON | {"Host": "evil.example"}, body=body)
            assert answer.code == 421, (method, path)
            if method == "HEAD":
                continue
            error = error_of(answer)
            assert error["code"] == "unknown_host"
            assert error["message"] == (
                "Host: got 'evil.example', expected localhost or a name in server.allowed_hosts; "
                "if clients reach this server by that name, add the name to server.allowed_hosts"
            )
    assert client.published == 0
    assert len(client.hub.registry) == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("app", ["public"], indirect=True)
@pytest.mark.parametrize("body", [b"x" * 300_000, b"x" * 9_000_000], ids=["large", "too large"])
async def test_a_body_is_not_read(client: Client, body: bytes) -> None:
    answer = await client.ask("POST", "/events", headers={"Host": "evil.example"}, body=body)
    assert (answer.code, error_of(answer)["code"]) == (421, "unknown_host")


@pytest.mark.gen_test
@pytest.mark.parametrize("app", ["public"], indirect=True)
async def test_a_websocket_is_refused(client: Client) -> None:
    headers = {name: str(value) for name, value in HANDSHAKE.items()}
    headers |= {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
    answer = await client.ask("GET", "/ws", headers=headers)
    assert (answer.code, error_of(answer)["code"]) == (421, "unknown_host")
    assert len(client.hub.registry) == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("app", ["public"], indirect=True)
async def test_the_answer_does_not_grow_with_the_host(client: Client) -> None:
    answer = await client.ask("GET", "/events", headers={"Host": "a" * 1024})
    assert answer.code == 421
    assert len(answer.body) < 600


@pytest.mark.gen_test
@pytest.mark.parametrize("app", ["public"], indirect=True)
@pytest.mark.parametrize("settings", [LISTED])
async def test_a_page_of_another_port_goes_on_as_before(client: Client) -> None:
    """What a frontend developer has: the page on http://localhost:3000, and the server on http://localhost:8000."""
    page = {"Host": "localhost:8000", "Origin": "http://localhost:3000"}
    preflight = await client.ask("OPTIONS", "/events", headers=page | {"Access-Control-Request-Method": "POST"})
    assert (preflight.code, preflight.headers["Access-Control-Allow-Origin"]) == (204, "http://localhost:3000")
    answer = await client.ask("POST", "/events", headers=BEARER | JSON | page, body=EVENT)
    assert answer.code == 200
    stream = Stream(await client.connect())
    await stream.iostream.write(
        b"GET /events HTTP/1.1\r\nHost: localhost:8000\r\nOrigin: http://localhost:3000\r\n\r\n"
    )
    assert b"Access-Control-Allow-Origin: http://localhost:3000\r\n" in await stream.iostream.read_until(b"\r\n\r\n")
    stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("app", ["public"], indirect=True)
@pytest.mark.parametrize("settings", [LISTED])
async def test_an_allowed_page_may_read_why(client: Client) -> None:
    page = {"Host": "host.docker.internal:8000", "Origin": "http://localhost:3000"}
    answer = await client.ask("GET", "/events", headers=page)
    assert (answer.code, answer.headers["Access-Control-Allow-Origin"]) == (421, "http://localhost:3000")
    client.service.allowed_hosts = ("host.docker.internal",)
    assert (await client.ask("GET", "/health", headers=page)).code == 200


@pytest.mark.gen_test
@pytest.mark.parametrize("app", ["public"], indirect=True)
async def test_who_names_no_host_is_no_browser(client: Client) -> None:
    iostream = await client.connect()
    await iostream.write(b"GET /ready HTTP/1.0\r\n\r\n")  # HAProxy's check
    assert (await iostream.read_until(b"\r\n")).startswith(b"HTTP/1.1 200 ")
    iostream.close()


# In another's application the option of the service counts.


class OwnHandler(RequestHandler):
    def get(self) -> None:
        self.write("its own")


class TestInAnApplication:
    @pytest.fixture
    def allowed_hosts(self) -> Sequence[str]:
        return ()

    @pytest.fixture
    def app(self, service: Service, allowed_hosts: Sequence[str]) -> Application:
        service.allowed_hosts = Service(Hub(), allowed_hosts=allowed_hosts).allowed_hosts
        rules = [*routes(service, prefix="/live"), *operator_routes(service)]
        return Application(
            [*rules, ("/own", OwnHandler), ("/live/own", OwnHandler)], log_function=lambda _handler: None
        )

    @pytest.mark.gen_test
    async def test_every_host_is_answered_without_it(self, client: Client) -> None:
        for path in ("/health", "/live/events", "/own"):
            method = "HEAD" if path == "/live/events" else "GET"
            assert (await client.ask(method, path, headers={"Host": "evil.example"})).code == 200

    @pytest.mark.gen_test
    @pytest.mark.parametrize("allowed_hosts", [("Events.example.com:443", "*.example.org")])
    async def test_with_it_our_paths_are_refused_and_the_others_are_not_ours(self, client: Client) -> None:
        foreign = {"Host": "evil.example"}
        for method in METHODS:
            for path in ("/live/events", "/live/ws", "/metrics", "/admin/connections/7"):
                body = EVENT if method in ("POST", "PUT", "PATCH") else None
                assert (await client.ask(method, path, headers=foreign, body=body)).code == 421, (method, path)
        for path in ("/own", "/live/own"):
            assert (await client.ask("GET", path, headers=foreign)).body == b"its own"
        assert (await client.ask("GET", "/nowhere", headers=foreign)).code == 404
        for host in ("events.example.com", "a.example.org:81", "localhost", "10.1.2.3:9000"):
            answer = await client.ask("GET", "/health", headers={"Host": host})
            assert document(answer) == {"status": "ok"}

    def test_what_is_no_name_is_refused(self) -> None:
        with pytest.raises(ValueError, match="expected a host name"):
            Service(Hub(), allowed_hosts=["http://example.com"])
