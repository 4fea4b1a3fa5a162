"""GET /: one page that needs nothing from anywhere else."""

from __future__ import annotations

import re

import pytest

from tests.http.asking import Client


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
