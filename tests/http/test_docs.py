"""GET /docs and GET /openapi.json: the public paths, for people and for programs."""

from __future__ import annotations

import html
import json
import re

import pytest
from tornado.httpclient import HTTPResponse
from tornado.web import Application

from qgstream.http import api_reference, openapi
from qgstream.http.app import admin_app, public_app
from qgstream.service.service import Service
from tests.http.asking import Client


@pytest.mark.gen_test
async def test_the_description_is_served(client: Client) -> None:
    answer = await client.ask("GET", "/openapi.json")
    assert answer.code == 200
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"  # a viewer on another origin may read it
    assert json.loads(answer.body) == openapi.public_document()


def page_of(answer: HTTPResponse) -> str:
    assert answer.code == 200
    page: str = answer.body.decode()
    return page


@pytest.mark.gen_test
async def test_the_page_has_everything_of_the_description(client: Client) -> None:
    page = page_of(await client.ask("GET", "/docs"))
    described = api_reference.read(openapi.public_document())
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "two things have one anchor"
    titles = [operation.title for group in described.groups for operation in group.operations]
    titles += [schema.title for schema in described.schemas]
    assert {api_reference.anchor(title) for title in titles} - set(ids) == set()
    assert set(re.findall(r'href="#([^"]+)"', page)) - set(ids) == set()
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())
    for group in described.groups:
        for operation in group.operations:
            said = [operation.summary, operation.description, operation.body]
            said += [parameter.description for parameter in operation.parameters]
            said += [response.description for response in operation.responses]
            said += [f"`{code}`" for response in operation.responses for code in response.codes]
            missing = [words for words in said if words and words.replace("`", "") not in text]
            assert missing == [], operation.title


@pytest.mark.gen_test
async def test_the_page_runs_nothing_and_loads_nothing(client: Client) -> None:
    answer = await client.ask("GET", "/docs")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert (policy["default-src"], policy["script-src"], policy["connect-src"]) == ("'none'", "'none'", "'none'")
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    page = page_of(answer)
    assert "<script" not in page
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#|/)[^"']*""", page) == []
    assert not re.search(r"\s(?:on\w+|style)=[\"']", page)  # the policy would not run them


class TestWithAPortForOperators:
    """`admin.port` is set: the public port serves neither /ready nor /metrics."""

    @pytest.fixture
    def app(self, service: Service) -> Application:
        return public_app(service, with_operator_routes=False)

    @pytest.mark.gen_test
    async def test_what_the_port_does_not_serve_is_not_described(self, client: Client) -> None:
        described = json.loads((await client.ask("GET", "/openapi.json")).body)
        assert described == openapi.public_document(with_operator_paths=False)
        page = page_of(await client.ask("GET", "/docs"))
        assert 'id="get-health"' in page
        assert 'id="get-ready"' not in page


class TestOnThatPort:
    """The port of the operators has no page: its description needs a key."""

    @pytest.fixture
    def app(self, service: Service) -> Application:
        return admin_app(service)

    @pytest.mark.gen_test
    async def test_no_page_is_promised(self, client: Client) -> None:
        for path in ("/docs", "/openapi.json", "/nowhere"):
            answer = await client.ask("GET", path)
            assert answer.code == 404
            message = f"got {path!r}, expected one of the paths in the documentation"
            assert json.loads(answer.body) == {"error": {"code": "not_found", "message": message}}
