"""A reload changes who may hear what: open streams lose what they would not be let in for now, and no others do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from qgstream.auth.authenticator import AuthSettings
from qgstream.events.subscription import Subscription
from qgstream.hub import Hub
from qgstream.net.cors import CorsSettings
from qgstream.service.service import Service
from qgstream.wire.framing import Framing
from tests.fakes import ManualSlices, connect, turns
from tests.http.asking import KEY, Client, error_of, until
from tests.signing import SECRET, payload, sign

HANDSHAKE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
             "Sec-WebSocket-Key": "A" * 22 + "=="}  # fmt: skip
JWT: dict[str, Any] = {"algorithms": ["HS256"], "secret": SECRET}
BEFORE: dict[str, Any] = {
    "publish_keys": {"tests": KEY, "other": "other-key"}, "admin_keys": {"boss": "admin-key"}, "jwt": JWT,
    "private_topics": ["secret*"],
}  # fmt: skip
PAGES: dict[str, Any] = {"allow_origins": ["https://a.example", "https://*.b.example"], "allow_credentials": True}


def token(**claims: Any) -> str:
    return sign(payload(exp=time.time() + 86_400, **claims))  # some are made long before their tests run


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def granted(*topics: str, **claims: Any) -> dict[str, str]:
    return bearer(token(qgstream={"subscribe": list(topics)}, **claims))


def jwt(**changes: Any) -> dict[str, Any]:
    return {"jwt": JWT | changes}


NOBODY: dict[str, str] = {}
OTHER = bearer("other-key")
REMOVED = {"publish_keys": {"tests": KEY}}
ORDERS = {"private_topics": ["secret*", "orders"]}

# Who asked, for which topics; the changes of [auth]; what becomes of the stream.
HEARS, IS_DEAF, ENDS = "hears orders", "hears only what is public", "ends"
OF_KEYS_AND_TOPICS: dict[str, tuple[dict[str, str], str, dict[str, Any], str]] = {
    "a private topic": (NOBODY, "?topic=orders", ORDERS, ENDS),
    "a private topic beside a public one": (NOBODY, "?topic=orders&topic=public", ORDERS, ENDS),
    "a private topic among all": (NOBODY, "", ORDERS, IS_DEAF),
    "a private topic below a prefix": (NOBODY, "?topic=o*&topic=public", ORDERS, IS_DEAF),
    "everything private": (NOBODY, "", {"private_topics": ["*"]}, ENDS),
    "a private topic for a key": (OTHER, "?topic=orders", ORDERS, HEARS),
    "a private topic for a grant": (granted("ord*"), "?topic=orders", ORDERS, HEARS),
    "a private topic for another grant": (granted("public"), "?topic=orders", ORDERS, ENDS),
    "a private topic for another grant, among all": (granted("public"), "", ORDERS, IS_DEAF),
    "another private topic": (NOBODY, "?topic=orders", {"private_topics": ["elsewhere"]}, HEARS),
    "nothing": (OTHER, "?topic=orders", {}, HEARS),
    "a key": (OTHER, "?topic=orders", REMOVED, ENDS),
    "another key": (bearer(KEY), "?topic=orders", REMOVED, HEARS),
    "the name of a key": (OTHER, "?topic=orders", {"publish_keys": {"tests": KEY, "new": "other-key"}}, HEARS),
    "what a key is for": (
        OTHER, "?topic=orders", REMOVED | {"admin_keys": {"boss": "admin-key", "other": "other-key"}}, ENDS,
    ),
    "a key that grants nothing": (bearer("admin-key"), "?topic=orders", {"admin_keys": {}}, HEARS),
    "the secret of tokens": (granted("orders"), "?topic=orders", jwt(secret=SECRET + "!"), ENDS),
    "tokens": (granted("orders"), "?topic=orders", {"jwt": None}, ENDS),
    "the secret of a token that grants nothing": (granted(), "?topic=orders", jwt(secret=SECRET + "!"), HEARS),
    "the algorithm": (granted("orders"), "?topic=orders", jwt(algorithms=["HS384"]), ENDS),
    "another algorithm": (granted("orders"), "?topic=orders", jwt(algorithms=["HS384", "HS256"]), HEARS),
    "the audience": (granted("orders"), "?topic=orders", jwt(audience="here"), ENDS),
    "the issuer": (granted("orders", iss="me"), "?topic=orders", jwt(issuer="you"), ENDS),
    "an issuer that it has": (granted("orders", iss="me"), "?topic=orders", jwt(issuer="me"), HEARS),
    "the claim": (granted("orders"), "?topic=orders", jwt(claim="acl"), ENDS),
    "the leeway": (granted("orders"), "?topic=orders", jwt(leeway_seconds=0), HEARS),
}  # fmt: skip


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": BEFORE}])
@pytest.mark.parametrize("case", OF_KEYS_AND_TOPICS)
async def test_what_a_reload_of_keys_and_topics_does(client: Client, case: str) -> None:
    who, query, changes, expected = OF_KEYS_AND_TOPICS[case]
    await becomes(client, who, query, AuthSettings.model_validate(BEFORE | changes), None, expected)


def page(origin: str, **more: str) -> dict[str, str]:
    return {"Origin": origin, **more}


A, B = "https://a.example", "https://x.b.example"
OF_ORIGINS: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "its origin": (page(A), {"allow_origins": ["https://*.b.example"]}, ENDS),
    "its origin by a pattern": (page(B), {"allow_origins": [A]}, ENDS),
    "another origin": (page(B), {"allow_origins": ["https://*.b.example"]}, HEARS),
    "all origins": (page(A), {"allow_origins": []}, ENDS),
    "to everybody": (page(A), {"allow_origins": ["*"], "allow_credentials": False}, HEARS),
    "no page": (NOBODY, {"allow_origins": []}, HEARS),
    "its own origin": (page("http://tests"), {"allow_origins": []}, HEARS),
    "cookies": (page(A), {"allow_credentials": False}, HEARS),
    "the cookie that it used": (page(A, Cookie=f"t={token()}"), {"allow_credentials": False}, ENDS),
    "a cookie that grants nothing": (
        page(A, Cookie=f"t={token(qgstream={'subscribe': []})}"), {"allow_credentials": False}, HEARS,
    ),
    "the cookie that its own page used": (
        page("http://tests", Cookie=f"t={token()}"), {"allow_credentials": False}, HEARS,
    ),
    "the cookie beside a token": (
        page(A, Cookie=f"t={token()}", **granted("orders")), {"allow_credentials": False}, HEARS,
    ),
    "for how long": (page(A), {"max_age_seconds": 5}, HEARS),
}  # fmt: skip


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": BEFORE | jwt(cookie="t"), "cors": PAGES}])
@pytest.mark.parametrize("path", ["/events", "/ws"])
@pytest.mark.parametrize("case", OF_ORIGINS)
async def test_what_a_reload_of_origins_does(client: Client, case: str, path: str) -> None:
    who, changes, expected = OF_ORIGINS[case]
    await becomes(client, who, "?topic=orders", None, CorsSettings.model_validate(PAGES | changes), expected, path)


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": BEFORE, "cors": PAGES}])
async def test_who_is_no_page_keeps_its_stream_whatever_it_says(client: Client) -> None:
    """No browser would have let a page of this origin read the stream."""
    await becomes(client, page("https://c.example"), "?topic=orders", None, CorsSettings(), HEARS)


async def becomes(
    client: Client, who: Mapping[str, str], query: str, auth: AuthSettings | None, cors: CorsSettings | None,
    expected: str, path: str = "/events",
) -> None:  # fmt: skip
    iostream = await client.connect()
    headers = dict(who) | (HANDSHAKE if path == "/ws" else {})
    lines = [f"GET {path}{query} HTTP/1.1", "Host: tests", *(f"{name}: {value}" for name, value in headers.items())]
    await iostream.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    await iostream.read_until(b'"connected"')
    await client.publish("orders", "before")
    await iostream.read_until(b"before")
    if auth is not None:
        client.service.reload_auth(auth)
    if cors is not None:
        client.service.cors = cors
    # In the same turn, before a stream has been ended. What the credentials gave until then may still come.
    await client.hub.publish("orders", "after")
    await client.hub.publish("public", "for everybody")
    if expected == ENDS:
        heard = await iostream.read_until(b'"access_changed"}')
        assert b'"closing"' in heard
        if who == NOBODY:
            assert b"after" not in heard
        if path == "/events":
            assert await iostream.read_until_close() == b"\n\n\r\n0\r\n\r\n"
        iostream.close()
    else:
        heard = await iostream.read_until(b"for everybody" if expected == IS_DEAF else b"after")
        assert (b"after" in heard) is (expected == HEARS)
        assert b"closing" not in heard
        await until(lambda: not client.hub.slices)
        await client.hub.publish("public" if expected == IS_DEAF else "orders", "still open")
        await iostream.read_until(b"still open")
        iostream.close()
    await until(lambda: len(client.hub.registry) == 0)
    reason = "access_changed" if expected == ENDS else "client"
    closed = client.hub.metrics.registry.get_sample_value("qgstream_connections_closed_total", {"reason": reason})
    assert closed == 1
    assert len(client.service.access) == 0


# What is on its way at the reload.


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": BEFORE}])
async def test_a_replay_gives_nothing_that_has_become_private(client: Client) -> None:
    """Neither the replay under way, nor a later one, which finds the pages that the first one has left."""
    for number in range(600):
        await client.hub.publish("orders" if number % 2 else "public", f"{number} ".ljust(2000))
    slow, fast = await client.connect(), await client.connect()
    for iostream in (slow, fast):
        await iostream.write(b"GET /events?last_event_id=earliest HTTP/1.1\r\nHost: tests\r\n\r\n")
    await fast.read_until(b"data: 599 ")
    assert any(connection.replay is not None for connection in client.hub.registry), "its socket took it all"
    client.service.reload_auth(AuthSettings.model_validate(BEFORE | ORDERS))
    late = await client.connect()
    await late.write(b"GET /events?last_event_id=earliest HTTP/1.1\r\nHost: tests\r\n\r\n")
    heard = {name: await iostream.read_until(b"data: 598 ") for name, iostream in (("slow", slow), ("late", late))}
    assert b"data: 599 " not in heard["slow"]
    assert [number for number in range(1, 600, 2) if b"data: %d " % number in heard["late"]] == []
    assert all(b"data: %d " % number in heard["late"] for number in range(0, 600, 2))
    for iostream in (slow, fast, late):
        iostream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": BEFORE}])
@pytest.mark.parametrize("path", ["/events", "/ws"])
@pytest.mark.parametrize(
    ("who", "changes", "refused"),
    [
        (NOBODY, ORDERS, (401, "missing_credentials")),
        (OTHER, REMOVED | {"jwt": None}, (401, "unknown_key")),
    ],
    ids=["a private topic", "a key"],
)
async def test_who_waits_for_the_broker_is_judged_anew(
    client: Client, monkeypatch: pytest.MonkeyPatch, path: str, who: dict[str, str], changes: dict[str, Any],
    refused: tuple[int, str],
) -> None:  # fmt: skip
    asking = await asked_for_later(client, monkeypatch, path, who)
    client.service.reload_auth(AuthSettings.model_validate(BEFORE | changes))
    assert await asking() == refused
    assert len(client.hub.registry) == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": BEFORE, "cors": PAGES}])
async def test_a_page_that_waits_for_the_broker_is_judged_anew(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = await asked_for_later(client, monkeypatch, "/ws", page(A))
    client.service.cors = CorsSettings()
    assert await asking() == (403, "forbidden")


async def asked_for_later(
    client: Client, monkeypatch: pytest.MonkeyPatch, path: str, who: Mapping[str, str]
) -> Callable[[], Awaitable[tuple[int, str]]]:
    """A request for a stream that waits until the broker answers; that is, until its own answer is asked for."""
    is_asked, answers = asyncio.Event(), asyncio.Event()

    async def reach(_offset: int) -> bool:
        is_asked.set()
        await answers.wait()
        return False

    monkeypatch.setattr(client.hub.broker, "reach", reach)
    ahead = f"{client.hub.window.epoch}-99"
    headers = dict(who) | {"Last-Event-ID": ahead} | (HANDSHAKE if path == "/ws" else {})
    asking = asyncio.ensure_future(client.ask("GET", f"{path}?topic=orders", headers=headers))
    await is_asked.wait()

    async def answered() -> tuple[int, str]:
        answers.set()
        answer = await asking
        return answer.code, error_of(answer)["code"]

    return answered


@pytest.mark.gen_test
async def test_what_a_slow_reader_had_waiting_still_comes() -> None:
    """It was published when the topic was public, and is on its way; what is published from then on is not."""
    hub = Hub(slices=ManualSlices())
    service = Service(hub)
    await service.start()
    try:
        _, stream = connect(hub, Subscription(framing=Framing.RAW, private_topics=service.private_topics), room=200)
        run(hub)
        for data in ("first", "second"):
            await hub.publish("orders", data.ljust(100))
        run(hub)
        assert b"first" in stream.socket.received or stream.pending
        service.reload_auth(AuthSettings(private_topics=("orders",)))
        await hub.publish("orders", "third")
        await hub.publish("public", "fourth")
        run(hub)
        stream.give_room(10_000)
        await turns()
        run(hub)
        heard = [word for word in ("first", "second", "third", "fourth") if word.encode() in stream.socket.received]
        assert heard == ["first", "second", "fourth"]
    finally:
        await service.stop()


def run(hub: Hub) -> None:
    assert isinstance(hub.slices, ManualSlices)
    hub.slices.run()


# Thousands.


@pytest.mark.gen_test
@pytest.mark.parametrize("has_key", [False, True])
async def test_a_turn_of_the_loop_ends_one_stream_at_most_between_two_looks_at_the_clock(has_key: bool) -> None:
    hub = Hub(slices=ManualSlices())
    service = Service(hub, auth=AuthSettings.model_validate(BEFORE))
    await service.start()
    try:
        await ends_one_by_one(service, has_key=has_key)
    finally:
        await service.stop()


async def ends_one_by_one(service: Service, *, has_key: bool) -> None:
    hub, slices = service.hub, service.hub.slices
    assert isinstance(slices, ManualSlices)
    key = service.auth._match("other-key")
    assert key is not None
    grants, topic = (frozenset(key.subscribe), "public") if has_key else (frozenset(), "orders")
    streams = []
    for number in range(200):
        # Half of them share a feed.
        own = frozenset({topic} | ({f"{topic}/{number}"} if number % 2 else set()))
        subscription = Subscription(own, framing=Framing.RAW, grants=grants, private_topics=service.private_topics)
        connection, stream = connect(hub, subscription, room=0 if number % 3 == 0 else 10_000)
        streams.append(stream)
        if has_key:
            service.access.remember(connection, key, None, service.cors)
    _, untouched = connect(hub, Subscription(frozenset({"else"}), framing=Framing.RAW))
    run(hub)
    service.reload_auth(AuthSettings.model_validate(BEFORE | (REMOVED if has_key else ORDERS)))
    told = 0
    while len(slices):
        slices.step()
        now = sum(connection.reason is not None for connection in hub.registry)
        assert now - told <= 1
        told = now
    assert told == 200
    for stream in streams:
        stream.give_room(10_000)
    await turns()
    assert len(hub.registry) == 1
    assert b"closing" not in untouched.socket.received
    retries = {bytes(stream.socket.received).rpartition(b"retry: ")[2].partition(b"\n")[0] for stream in streams}
    assert len(retries) > 150
    assert all(10_000 <= int(retry) <= 20_000 for retry in retries)


@pytest.mark.gen_test
async def test_a_reload_without_streams_has_nothing_to_do() -> None:
    hub = Hub(slices=ManualSlices())
    service = Service(hub)
    service.reload_auth(AuthSettings(private_topics=("a",)))
    service.cors = CorsSettings(allow_origins=("https://a.example",))
    assert len(hub.slices) == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": BEFORE, "cors": PAGES}])
async def test_the_same_origins_again_judge_nobody(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = await client.stream(headers=page(A))
    jobs: list[object] = []
    monkeypatch.setattr(client.hub.slices, "add", jobs.append)
    client.service.cors = CorsSettings.model_validate(PAGES)
    assert jobs == []
    client.service.cors = CorsSettings()
    assert len(jobs) == 1
    stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": BEFORE, "cors": PAGES}])
async def test_nothing_is_kept_of_who_left(client: Client) -> None:
    streams = [await client.stream(headers=headers) for headers in (OTHER, page(A), page(B), granted("a"), NOBODY)]
    assert len(client.service.access) == 4
    for stream in streams:
        stream.close()
    await until(lambda: len(client.hub.registry) == 0)
    assert len(client.service.access) == 0
