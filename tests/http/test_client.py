"""GET /client.js and its relatives: the client for pages of every origin that may read a stream."""

from __future__ import annotations

import gzip

import pytest
from tornado.httpclient import HTTPResponse

from qgstream.http.client import minified_version
from tests.documents import ROOT
from tests.http.asking import Client

WEB = ROOT / "qgstream" / "web"
VERSIONED = f"/client-{minified_version()}.min.js"
SCRIPT = "text/javascript; charset=utf-8"
FILES = {
    "/client.js": (SCRIPT, "client.js"),
    "/client.min.js": (SCRIPT, "client.min.js"),
    VERSIONED: (SCRIPT, "client.min.js"),
    "/client.d.ts": ("text/plain; charset=utf-8", "client.d.ts"),
}
IDS = ["plain", "minified", "versioned", "types"]
PLAIN = [path for path in FILES if path != VERSIONED]
NOT_VERSIONS = ["/client-.min.js", "/client-xyz.min.js", "/client-0.js", f"/client-{'0' * 17}.min.js"]


async def ask(client: Client, method: str, path: str, headers: dict[str, str] | None = None) -> HTTPResponse:
    """The answer as it came. Tornado's client asks for gzip, and decodes it, when it is not told to leave that."""
    return await client.http.fetch(
        client.base_url + path, method=method, headers=headers, raise_error=False, follow_redirects=False,
        decompress_response=False,
    )  # fmt: skip


@pytest.mark.gen_test
@pytest.mark.parametrize("path", FILES, ids=IDS)
async def test_it_can_be_imported_from_another_origin(client: Client, path: str) -> None:
    answer = await ask(client, "GET", path, headers={"Origin": "https://www.example.com"})
    media_type, name = FILES[path]
    assert answer.code == 200
    assert answer.headers["Content-Type"] == media_type
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.body == (WEB / name).read_bytes()
    head = await ask(client, "HEAD", path)
    assert (head.code, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(answer.body))


@pytest.mark.gen_test
@pytest.mark.parametrize("path", PLAIN)
@pytest.mark.parametrize("coding", ["", "gzip"])
async def test_a_browser_that_has_it_is_told_that_it_is_still_the_one(client: Client, path: str, coding: str) -> None:
    accept = {"Accept-Encoding": coding}
    first = await ask(client, "GET", path, headers=accept)
    assert first.headers["Cache-Control"] == "no-cache"
    again = await ask(client, "GET", path, headers=accept | {"If-None-Match": first.headers["Etag"]})
    assert (again.code, again.body, again.headers["Vary"]) == (304, b"", "Accept-Encoding")
    assert (await ask(client, "GET", path, headers=accept | {"If-None-Match": '"another"'})).code == 200


@pytest.mark.gen_test
@pytest.mark.parametrize("path", FILES, ids=IDS)
async def test_it_is_compressed_for_those_who_take_that(client: Client, path: str) -> None:
    plain = await ask(client, "GET", path)
    coded = await ask(client, "GET", path, headers={"Accept-Encoding": "br, gzip"})
    assert "Content-Encoding" not in plain.headers
    assert coded.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(coded.body) == plain.body
    assert coded.headers["Content-Length"] == str(len(coded.body))
    assert plain.headers["Vary"] == coded.headers["Vary"] == "Accept-Encoding"
    assert plain.headers["Etag"] != coded.headers["Etag"]
    # A strong ETag is of one coding.
    wrong = await ask(client, "GET", path, headers={"If-None-Match": coded.headers["Etag"]})
    assert (wrong.code, wrong.body) == (200, plain.body)


@pytest.mark.gen_test
async def test_the_address_with_a_version_may_be_kept_for_ever(client: Client) -> None:
    current = await ask(client, "GET", "/client.min.js")
    assert f"/{current.headers['Content-Location']}" == VERSIONED
    answer = await ask(client, "GET", VERSIONED)
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert "Content-Location" not in answer.headers


@pytest.mark.gen_test
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_page_with_the_address_of_another_version_gets_the_current_one(client: Client, method: str) -> None:
    answer = await ask(client, method, f"/client-{'0' * 16}.min.js", headers={"Origin": "https://www.example.com"})
    assert (answer.code, answer.headers["Location"]) == (307, VERSIONED.removeprefix("/"))
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "path", ["/client-.min.js", "/client-xyz.min.js", "/client-0.js", f"/client-{'0' * 17}.min.js"]
)
async def test_what_is_no_version_is_not_found(client: Client, path: str) -> None:
    assert (await ask(client, "GET", path)).code == 404


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"cors": {"allow_origins": ["https://www.example.com"]}}])
@pytest.mark.parametrize("path", FILES, ids=IDS)
async def test_a_foreign_origin_may_not(client: Client, path: str) -> None:
    answer = await ask(client, "GET", path, headers={"Origin": "https://stranger.example"})
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Vary"] == "Origin,Accept-Encoding"


def test_it_is_small() -> None:
    """What a page loads: under 5.5 KB (5500 bytes)."""
    assert len(gzip.compress((WEB / "client.min.js").read_bytes(), 9)) < 5500
