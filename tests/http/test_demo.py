"""GET /: one page that needs nothing from anywhere else."""

from __future__ import annotations

import re

import pytest
from tornado.web import Application

from qgstream.auth.authenticator import AuthSettings
from qgstream.http.app import admin_app, public_app
from qgstream.service.service import Service
from tests.http.asking import Client
from tests.signing import SECRET

JWT = {"algorithms": ["HS256"], "secret": SECRET}


@pytest.mark.gen_test
async def test_the_page_brings_all_it_needs(client: Client) -> None:
    answer = await client.ask("GET", "/")
    assert answer.code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    page = answer.body.decode()
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#|/)[^"']*""", page) == []
    assert not re.search(r"\s(?:on\w+|style)=[\"']", page)  # the policy would not run them


@pytest.mark.gen_test
async def test_the_page_is_nowhere_else(client: Client) -> None:
    for path in ("/index.html", "/demo", "/web/demo.html", "/static/demo.html"):
        assert (await client.ask("GET", path)).code == 404


async def facts(client: Client, path: str) -> dict[str, str]:
    """What the server tells the page: attributes of its body."""
    page = (await client.ask("GET", path)).body.decode()
    (body,) = re.findall(r"<body[^>]*>", page)
    return dict(re.findall(r'data-(\w+)="([^"]*)"', body))


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("settings", "publishers"),
    [
        ({"auth": {"publish_keys": {"any-name": "dev"}}}, "dev"),
        ({"auth": {"publish_keys": {"dev": "another-key"}}}, "some"),
        ({"auth": {"publish_keys": {}, "admin_keys": {"dev": "dev"}, "jwt": JWT}}, "some"),
        ({"auth": {"publish_keys": {}, "admin_keys": {"dev": "dev"}}}, "none"),
    ],
    ids=["dev", "another key", "tokens", "none"],
)
async def test_the_page_knows_whether_somebody_can_publish(client: Client, publishers: str) -> None:
    assert (await facts(client, "/"))["publishers"] == publishers


@pytest.mark.gen_test
async def test_a_reload_of_the_keys_changes_what_the_page_knows(client: Client) -> None:
    assert (await facts(client, "/"))["publishers"] == "some"
    client.service.reload_auth(AuthSettings())
    assert (await facts(client, "/"))["publishers"] == "none"


@pytest.mark.gen_test
async def test_the_pages_know_each_other(client: Client) -> None:
    assert (await facts(client, "/"))["neighbour"] == "admin"
    for path in ("/admin", "/admin/"):
        assert (await facts(client, path))["neighbour"] == "../"


class TestOnTwoPorts:
    """`admin.port` is set."""

    @pytest.fixture(params=["/", "/admin"])
    def path(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def app(self, service: Service, path: str) -> Application:
        return admin_app(service) if path == "/admin" else public_app(service, with_operator_routes=False)

    @pytest.mark.gen_test
    async def test_no_page_has_a_link_that_leads_nowhere(self, client: Client, path: str) -> None:
        assert (await facts(client, path))["neighbour"] == ""
