"""One answer to which pages are this server's own, for a POST by cookie and for a WebSocket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qgstream.net.addresses import parse_networks
from tests.http.asking import Client
from tests.http.test_credentials import COOKIES, token
from tests.http.test_websocket import HANDSHAKE

NOBODY = {"auth": COOKIES["auth"]}
HTTPS = "X-Forwarded-Proto: https"


async def post_by_cookie(client: Client, lines: list[str]) -> tuple[int, str]:
    """The status and body of a publish with a visitor's cookie."""
    body = json.dumps({"topic": "inbox.ann", "data": 1})
    head = [
        "POST /events HTTP/1.1", "Content-Type: application/json", f"Content-Length: {len(body)}",
        f"Cookie: session={token(publish=['*'])}", *lines,
    ]  # fmt: skip
    return await said(client, head, body)


async def shake_hands(client: Client, lines: list[str]) -> tuple[int, str]:
    """The status and body of the handshake of a page."""
    head = ["GET /ws HTTP/1.1", *(f"{name}: {value}" for name, value in HANDSHAKE.items()), *lines]
    return await said(client, head, "")


async def said(client: Client, head: list[str], body: str) -> tuple[int, str]:
    iostream = await client.connect()
    await iostream.write(("\r\n".join(head) + "\r\n\r\n" + body).encode())
    answer = (await iostream.read_until(b"\r\n\r\n")).decode()
    status = int(answer.split()[1])
    length = next((line.split()[1] for line in answer.splitlines() if line.startswith("Content-Length:")), "0")
    text = (await iostream.read_bytes(int(length))).decode()
    iostream.close()
    return status, text


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [NOBODY])
@pytest.mark.parametrize(
    ("host", "origins", "forwarded", "is_own"),
    [
        # Spoken to directly.
        ("h.example", ["http://h.example"], [], True),
        ("h.example:8000", ["http://h.example:8000"], [], True),
        ("h.example:80", ["http://h.example"], [], True),
        ("H.Example", ["http://h.example"], [], True),
        ("h.example", ["HTTP://H.EXAMPLE:80"], [], True),
        ("127.0.0.1:8000", ["http://127.0.0.1:8000"], [], True),
        ("[::1]:8000", ["http://[::1]:8000"], [], True),
        ("[0:0::1]", ["http://[::1]"], [], True),
        ("h.example.", ["http://h.example."], [], True),
        ("h.example", ["https://h.example"], [], False),
        ("h.example", ["http://h.example:8000"], [], False),
        ("h.example:8000", ["http://h.example"], [], False),
        ("h.example", ["http://h.example."], [], False),
        ("h.example", ["http://evil.example"], [], False),
        ("h.example", ["http://h.example.evil.example"], [], False),
        ("h.example", ["http://evil.example@h.example"], [], False),
        ("h.example", ["http://h.example/"], [], False),
        ("h.example", ["null"], [], False),
        ("h.example", [""], [], False),
        ("null", ["null"], [], False),
        ("", ["://"], [], False),
        ("h.example", ["http://h.example", "http://h.example"], [], False),
        ("h.example", ["http://h.example", "http://evil.example"], [], False),
        # Behind a proxy that ends TLS.
        ("h.example", ["https://h.example"], [HTTPS], True),
        ("h.example:443", ["https://h.example"], [HTTPS], True),
        ("h.example:8443", ["https://h.example:8443"], [HTTPS], True),
        ("H.example", ["https://h.example"], ["X-Forwarded-Proto: HTTPS"], True),
        ("h.example", ["https://h.example"], ["X-Forwarded-Proto: wss"], True),
        ("h.example", ["https://h.example"], ["X-Forwarded-Proto: http, https"], True),
        ("h.example", ["https://h.example"], [HTTPS, "X-Forwarded-For: 192.0.2.1"], True),
        ("h.example", ["http://h.example"], ["X-Forwarded-Proto: nonsense"], True),
        ("h.example", ["http://h.example"], [HTTPS], False),
        ("h.example", ["https://h.example"], ["X-Forwarded-Proto: https, http"], False),
        ("h.example", ["https://h.example:80"], [HTTPS], False),
        ("h.example:80", ["https://h.example"], [HTTPS], False),
        ("h.example", ["https://evil.example"], [HTTPS, "X-Forwarded-Host: evil.example"], False),
    ],
)
async def test_which_page_is_our_own(
    client: Client, host: str, origins: list[str], forwarded: list[str], is_own: bool
) -> None:
    client.service.cors = client.service.cors.model_copy(update={"allow_origins": ()})
    client.service.trusted_proxies = parse_networks(["127.0.0.1"])
    lines = [f"Host: {host}", *(f"Origin: {origin}" for origin in origins), *forwarded]
    published, body = await post_by_cookie(client, lines)
    opened, refusal = await shake_hands(client, lines)
    assert (published, opened) == ((200, 101) if is_own else (403, 403))
    if not is_own:
        assert json.loads(body) == json.loads(refusal)


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [NOBODY])
@pytest.mark.parametrize("trusted", [[], ["192.0.2.0/24"]])
async def test_a_stranger_does_not_say_what_our_own_origin_is(client: Client, trusted: list[str]) -> None:
    client.service.cors = client.service.cors.model_copy(update={"allow_origins": ()})
    client.service.trusted_proxies = parse_networks(trusted)
    lines = ["Host: h.example", "Origin: https://h.example", HTTPS, "X-Forwarded-For: 192.0.2.1"]
    for status, _ in (await post_by_cookie(client, lines), await shake_hands(client, lines)):
        assert status == 403
    lines[1] = "Origin: http://h.example"
    assert (await post_by_cookie(client, lines))[0] == 200
    assert (await shake_hands(client, lines))[0] == 101


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [NOBODY])
async def test_the_refusal_says_what_was_expected_and_what_a_proxy_must_send(client: Client) -> None:
    client.service.cors = client.service.cors.model_copy(update={"allow_origins": ()})

    async def refusal(origin: str) -> Any:
        status, body = await post_by_cookie(client, ["Host: h.example:8000", f"Origin: {origin}"])
        assert status == 403
        return json.loads(body)["error"]["message"]

    foreign = await refusal("https://evil.example")
    assert foreign == (
        "Origin: got 'https://evil.example', expected 'http://h.example:8000' (this server's own) "
        "or one of cors.allow_origins"
    )
    assert (await refusal("https://h.example:8000")).endswith(
        "; behind a proxy that ends TLS, the proxy must send X-Forwarded-Proto, "
        "and server.trusted_proxies must name the proxy"
    )


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [NOBODY])
async def test_a_cookie_needs_an_origin_to_publish(client: Client) -> None:
    status, body = await post_by_cookie(client, ["Host: h.example"])
    assert status == 403
    assert json.loads(body)["error"]["message"].startswith("Origin: got '', expected 'http://h.example'")
