"""GET /client.js: the client for pages of every origin that may read a stream."""

from __future__ import annotations

import pytest

from tests.handlers.asking import Client

FILES = {"/client.js": "text/javascript; charset=utf-8", "/client.d.ts": "text/plain; charset=utf-8"}


@pytest.mark.gen_test
@pytest.mark.parametrize("path", FILES)
async def test_it_can_be_imported_from_another_origin(client: Client, path: str) -> None:
    answer = await client.ask("GET", path, headers={"Origin": "https://www.example.com"})
    assert answer.code == 200
    assert answer.headers["Content-Type"] == FILES[path]
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "export class Stream extends EventTarget" in answer.body.decode()
    head = await client.ask("HEAD", path)
    assert (head.code, head.body) == (200, b"")


@pytest.mark.gen_test
@pytest.mark.parametrize("path", FILES)
async def test_a_browser_that_has_it_is_told_that_it_is_still_the_one(client: Client, path: str) -> None:
    first = await client.ask("GET", path)
    assert first.headers["Cache-Control"] == "no-cache"
    again = await client.ask("GET", path, headers={"If-None-Match": first.headers["Etag"]})
    assert (again.code, again.body) == (304, b"")
    assert (await client.ask("GET", path, headers={"If-None-Match": '"another"'})).code == 200


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"cors": {"allow_origins": ["https://www.example.com"]}}])
async def test_a_foreign_origin_may_not(client: Client) -> None:
    answer = await client.ask("GET", "/client.js", headers={"Origin": "https://stranger.example"})
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Vary"] == "Origin"
