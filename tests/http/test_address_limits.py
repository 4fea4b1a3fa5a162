"""What one address may publish, and how often it may be wrong about a key."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt
import pytest
from tornado.httpclient import HTTPResponse

from qgstream.auth.authenticator import Authenticator
from qgstream.net.addresses import parse_networks
from qgstream.service.service import Service
from tests.http.asking import BEARER, Client, document, error_of
from tests.signing import SECRET

ADMIN = {"Authorization": "Bearer admin-key"}
GUESSING: dict[str, Any] = {
    "limits": {"auth_failure_rate_per_ip": 0.001, "auth_failure_burst_per_ip": 3},
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": SECRET}},
}


@pytest.fixture
def service(service: Service) -> Service:
    service.trusted_proxies = parse_networks(["127.0.0.1"])
    return service


def from_(address: str, headers: dict[str, str]) -> dict[str, str]:
    return {"X-Forwarded-For": address, **headers}


async def publish(client: Client, address: str, events: int = 1) -> HTTPResponse:
    lines = "\n".join([json.dumps({"topic": "a", "data": n}) for n in range(events)]).encode()
    return await client.post(lines, headers=from_(address, BEARER), media_type="application/x-ndjson")


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"publish_rate_per_ip": 0.001, "publish_burst_per_ip": 5}}])
async def test_an_address_publishes_so_much(client: Client) -> None:
    assert (await publish(client, "203.0.113.7", 4)).code == 200
    answer = await publish(client, "203.0.113.7", 2)
    assert (answer.code, error_of(answer)["code"]) == (429, "publish_rate_per_ip")
    assert int(answer.headers["Retry-After"]) > 0
    assert (await publish(client, "203.0.113.8", 5)).code == 200
    assert (await publish(client, "2001:db8::1", 5)).code == 200
    assert (await publish(client, "2001:db8::ffff", 1)).code == 429  # of the same /64
    assert client.published == 14
    client.service.trusted_proxies = ()
    assert (await publish(client, "203.0.113.9", 5)).code == 200
    assert (await publish(client, "203.0.113.10", 1)).code == 429  # only a trusted proxy is believed


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"limits": {"per_key": {"tests": {"publish_rate": 0.001, "publish_burst": 2}}}}])
async def test_one_key_has_a_limit_of_its_own(client: Client) -> None:
    assert (await publish(client, "203.0.113.7", 2)).code == 200
    answer = await publish(client, "203.0.113.7")
    assert (answer.code, error_of(answer)["code"]) == (429, "publish_rate_per_key")


# Guessing.


async def wrong(client: Client, address: str, number: int = 1) -> list[int]:
    headers = from_(address, {"Authorization": "Bearer guess"})
    return [(await client.ask("GET", "/events", headers=headers)).code for _ in range(number)]


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [GUESSING])
async def test_beyond_the_limit_no_key_is_looked_at(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await wrong(client, "203.0.113.7", 3) == [401, 401, 401]
    monkeypatch.setattr(Authenticator, "authenticate", None)
    right = from_("203.0.113.7", BEARER)
    for answer in (
        await client.ask("GET", "/events", headers=right),
        await client.ask("HEAD", "/events", headers=right),
        await client.ask("GET", "/events?access_token=test-key", headers=from_("203.0.113.7", {})),
        await client.post({"topic": "a", "data": 1}, headers=right),
    ):
        assert answer.code == 429
        assert int(answer.headers["Retry-After"]) > 0
    assert error_of(answer)["code"] == "auth_failure_rate_per_ip"
    answer = await client.ask("GET", "/events", headers=right | {"Accept": "text/event-stream"})
    assert answer.code == 200
    assert b'"reason": "auth_failure_rate_per_ip"' in answer.body
    rejected = client.hub.metrics.totals.rejected
    assert (rejected["auth_failure_rate_per_ip"], rejected["unauthorized"]) == (3, 3)


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [GUESSING])
async def test_others_and_those_without_credentials_are_not_touched(client: Client) -> None:
    await wrong(client, "203.0.113.7", 5)
    (await client.stream(headers=from_("203.0.113.8", BEARER))).close()
    (await client.stream(headers=from_("203.0.113.7", {}))).close()
    assert await wrong(client, "203.0.113.8") == [401]
    await wrong(client, "2001:db8::1", 3)
    assert await wrong(client, "2001:db8::2") == [429]
    client.service.trusted_proxies = ()
    assert await wrong(client, "203.0.113.7") == [401]  # it is the proxy's address now


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [GUESSING])
async def test_right_credentials_and_old_tokens_are_no_guesses(client: Client) -> None:
    old = jwt.encode({"sub": "ann", "exp": time.time() - 60, "qgstream": {"subscribe": ["*"]}}, SECRET)
    for _ in range(5):
        (await client.stream(headers=from_("203.0.113.7", BEARER))).close()
        answer = await client.ask("GET", "/events", headers=from_("203.0.113.7", {"Authorization": f"Bearer {old}"}))
        assert error_of(answer)["code"] == "token_expired"
    assert await wrong(client, "203.0.113.7", 4) == [401, 401, 401, 429]


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [GUESSING])
async def test_guessing_an_admin_key_is_bounded_apart(client: Client) -> None:
    await wrong(client, "203.0.113.7", 5)
    assert (await client.ask("GET", "/admin/limits", headers=from_("203.0.113.7", ADMIN))).code == 200
    guess = from_("203.0.113.7", {"Authorization": "Bearer guess"})
    codes = [(await client.ask("GET", "/admin/limits", headers=guess)).code for _ in range(4)]
    assert codes == [401, 401, 401, 429]
    answer = await client.ask("GET", "/admin/limits", headers=from_("203.0.113.7", ADMIN))
    assert (answer.code, error_of(answer)["code"]) == (429, "auth_failure_rate_per_ip")
    assert (await client.ask("GET", "/admin/limits", headers=ADMIN)).code == 200


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [GUESSING])
async def test_an_address_that_waited_is_forgotten(client: Client) -> None:
    await wrong(client, "203.0.113.7")
    client.service._sweep()
    assert len(client.service._guesses._rates) == 1
    client.service.hub.limits = client.service.limits.model_copy(update={"auth_failure_rate_per_ip": 1e9})
    client.service._sweep()
    assert len(client.service._guesses._rates) == 0


@pytest.mark.gen_test
async def test_without_the_limit_everybody_may_be_wrong(client: Client) -> None:
    assert set(await wrong(client, "203.0.113.7", 50)) == {401}


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [GUESSING])
async def test_it_can_be_changed_while_it_runs(client: Client) -> None:
    await wrong(client, "203.0.113.7", 3)
    headers = ADMIN | {"Content-Type": "application/json"}
    body = json.dumps({"auth_failure_rate_per_ip": 0}).encode()
    answer = await client.ask("PATCH", "/admin/limits", headers=headers, body=body)
    assert document(answer)["limits"]["auth_failure_rate_per_ip"] == 0
    assert await wrong(client, "203.0.113.7") == [401]
