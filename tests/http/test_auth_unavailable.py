"""Nobody can tell yet whether a token is good: each kind of client is answered in the way that brings it back."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.conftest import ExpectLog
from tests.http.asking import KEY, Client, error_of
from tests.http.test_events import STREAM, message_of, rejected
from tests.http.test_websocket import refused
from tests.signing import payload, private_key, sign

EVENT = b'{"topic": "a", "data": 1}'


def bearer() -> dict[str, str]:
    token = sign(payload(exp=time.time() + 600), private_key("p256"), "ES256", kid="one")
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(params=["auto", "error"])
def overload(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def settings(expect_log: ExpectLog, overload: str) -> dict[str, Any]:
    expect_log("jwks.failed")
    jwt = {"algorithms": ["ES256"], "jwks_url": "http://127.0.0.1:1/keys", "cookie": "session"}
    return {"auth": {"jwt": jwt}, "limits": {"overload_response": overload}}


@pytest.mark.gen_test
async def test_a_stream(client: Client, overload: str) -> None:
    by_cookie = {"Cookie": "session=" + bearer()["Authorization"].partition(" ")[2]}
    for credentials in (bearer(), by_cookie):
        answer = await client.ask("GET", "/events", headers=STREAM | credentials)
        if overload == "auto":
            # HTML 9.2.3: any other status stops an EventSource for good.
            event, message = message_of(answer)
            assert (message["event"], message["reason"]) == ("rejected", "auth_unavailable")
            assert event.retry_ms is not None
            assert 10_000 <= event.retry_ms <= 20_000
        else:
            assert (answer.code, error_of(answer)["code"]) == (503, "auth_unavailable")
    assert rejected(client, "auth_unavailable") == 2
    assert rejected(client, "unauthorized") == 0


@pytest.mark.gen_test
async def test_everybody_else(client: Client) -> None:
    for method, path, body in (("GET", "/events", None), ("HEAD", "/events", None), ("POST", "/events", EVENT)):
        headers = bearer() | {"Content-Type": "application/json"}
        answer = await client.ask(method, path, headers=headers, body=body)
        assert answer.code == 503
        assert int(answer.headers["Retry-After"]) >= 5
        if method != "HEAD":
            assert error_of(answer)["code"] == "auth_unavailable"
    status, error, answered = await refused(client, headers=bearer())
    assert (status, error["code"]) == (503, "auth_unavailable")
    assert int(answered["Retry-After"]) >= 10


@pytest.mark.gen_test
async def test_who_needs_no_keys_of_an_issuer_is_served(client: Client) -> None:
    (await client.stream()).close()
    key = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    assert (await client.ask("POST", "/events", headers=key, body=EVENT)).code == 200
    answer = await client.ask("GET", "/events", headers=STREAM | {"Authorization": "Bearer of no token"})
    assert answer.code == 401  # it is none, whatever keys come
