"""Who asks: by header, query or cookie; bad credentials are told so, and say nothing of themselves."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest

from qgstream.auth.authenticator import AuthSettings
from tests.http.asking import KEY, Client, Stream, document, error_of

SECRET = "a secret of the tests, of at least 32 bytes"
COOKIES: dict[str, Any] = {
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": SECRET, "cookie": "session"}, "private_topics": ["inbox.*"]},
    "cors": {"allow_origins": ["https://app.example.com"], "allow_credentials": True},
}
EVENT = {"topic": "inbox.ann", "data": 1}


def token(seconds: float = 60, **grants: list[str]) -> str:
    return jwt.encode({"sub": "ann", "exp": time.time() + seconds, "qgstream": grants}, SECRET)


@pytest.mark.gen_test
@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY}", f"bEaReR {KEY} "])
async def test_a_key_in_the_header(client: Client, header: str) -> None:
    assert (await client.post({"topic": "a", "data": 1}, headers={"Authorization": header})).code == 200


@pytest.mark.gen_test
async def test_a_key_in_the_query(client: Client) -> None:
    assert (await client.post({"topic": "a", "data": 1}, headers={}, query=f"?access_token={KEY}")).code == 200


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{}, COOKIES])
@pytest.mark.parametrize(
    ("headers", "query", "code"),
    [
        ({}, "", "unauthorized"),
        ({"Authorization": "Bearer wrong"}, "", "unknown_key"),
        ({"Authorization": "Bearer"}, "", "unknown_key"),
        ({"Authorization": f"Bearer {KEY}x"}, "", "unknown_key"),
        ({"Authorization": f"Bearer {KEY} x"}, "", "unknown_key"),
        ({"Authorization": KEY}, "", "wrong_scheme"),
        ({"Authorization": f"Token {KEY}"}, "", "wrong_scheme"),
        ({"Authorization": ""}, "", "unauthorized"),  # an empty one is none
        ({"Authorization": "Bearer \xff\xfe"}, "", "unknown_key"),
        ({"Authorization": "Bearer " + "x" * 500_000}, "", "unknown_key"),
        ({"Authorization": "Basic dGVzdDp0ZXN0"}, "", "unauthorized"),  # a proxy's; there are no others
        ({}, "?access_token=wrong", "unknown_key"),
        ({}, "?access_token=", "unauthorized"),
        ({}, "?access_token=wrong&access_token=", "unknown_key"),
        ({"Authorization": "Bearer wrong"}, f"?access_token={KEY}", "unknown_key"),  # the header counts
    ],
)
async def test_bad_credentials_publish_nothing(client: Client, headers: dict[str, str], query: str, code: str) -> None:
    answer = await client.post({"topic": "a", "data": 1}, headers=headers, query=query)
    assert answer.code == 401
    error = error_of(answer)
    assert error["code"] == code
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="qgstream"'
    assert "wrong" not in error["message"]
    assert client.published == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": {"publish_keys": {}}}])
async def test_without_publish_keys_it_says_to_configure_them(client: Client) -> None:
    """Whatever the client sends: no other key would be taken."""
    for headers in ({}, *({"Authorization": f"Bearer {key}"} for key in (KEY, "wrong", "admin-key"))):
        answer = await client.post({"topic": "a", "data": 1}, headers=headers)
        error = error_of(answer)
        assert (answer.code, error["code"]) == (403, "no_publish_keys")
        assert "auth.publish_keys" in error["message"]
    assert client.published == 0
    client.service.reload_auth(AuthSettings.model_validate({"publish_keys": [KEY]}))
    assert (await client.post({"topic": "a", "data": 1})).code == 200


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [{"auth": {**COOKIES["auth"], "publish_keys": {}}}])
async def test_tokens_publish_without_any_key(client: Client) -> None:
    answer = await client.post({"topic": "a", "data": 1}, headers={})
    assert (answer.code, error_of(answer)["code"]) == (401, "unauthorized")
    headers = {"Authorization": f"Bearer {token(publish=['a'])}"}
    assert (await client.post({"topic": "a", "data": 1}, headers=headers)).code == 200


@pytest.mark.gen_test
@pytest.mark.parametrize("path", ["/events", "/events?topic=a"])
@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
async def test_a_stream_with_bad_credentials_is_a_real_401(client: Client, path: str, accept: str) -> None:
    """An EventSource that was told 200 would come back with the same token for ever."""
    answer = await client.ask("GET", path, headers={"Accept": accept, "Authorization": "Bearer wrong"})
    assert (answer.code, error_of(answer)["code"]) == (401, "unknown_key")
    head = await client.ask("HEAD", path, headers={"Authorization": "Bearer wrong"})
    assert (head.code, head.body) == (401, b"")
    rejected = client.hub.metrics.registry.get_sample_value(
        "qgstream_connections_rejected_total", {"reason": "unauthorized"}
    )
    assert rejected == 1
    assert len(client.hub.registry) == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [COOKIES])
async def test_private_topics_need_a_grant(client: Client) -> None:
    answer = await client.ask("GET", "/events?topic=inbox.ann")
    assert (answer.code, error_of(answer)["code"]) == (401, "missing_credentials")
    bob = {"Authorization": f"Bearer {token(subscribe=['inbox.bob'])}"}
    answer = await client.ask("GET", "/events?topic=inbox.ann", headers=bob)
    assert (answer.code, error_of(answer)["code"]) == (403, "forbidden")
    ann = await client.stream("inbox.ann", access_token=token(subscribe=["inbox.ann"]))
    assert (await client.publish("inbox.ann", "for ann"))["subscribers"] == 1
    assert await ann.data() == "for ann"
    ann.close()


# Grants, what is asked for, whether the event is private, and the topics of the envelope.
MAY_KNOW: list[tuple[list[str] | None, list[str], bool, str | list[str]]] = [
    (None, ["pub"], False, "pub"),
    (None, ["*"], False, "pub"),
    (["inbox.bob"], ["pub", "inbox.bob"], False, ["pub", "inbox.bob"]),
    (["inbox.bob"], ["*"], False, ["pub", "inbox.bob"]),
    (["inbox.bob"], ["pub"], False, "pub"),  # it is not asked for
    (["inbox.*"], ["pub", "inbox.*"], False, ["pub", "inbox.ann", "inbox.bob"]),
    (["inbox.*"], ["pub", "inbox.ann"], False, ["pub", "inbox.ann"]),
    (["inbox.bob"], ["inbox.bob"], False, ["pub", "inbox.bob"]),
    (["pub"], ["pub"], True, "pub"),
    (["pub", "inbox.ann"], ["*"], True, ["pub", "inbox.ann"]),
    (["pub", "inbox.ann"], ["pub"], True, "pub"),
]


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [COOKIES])
@pytest.mark.parametrize("is_replayed", [False, True])
@pytest.mark.parametrize(("grants", "topics", "private", "known"), MAY_KNOW)
async def test_private_topics_are_not_named_to_who_may_not_know_them(
    client: Client, grants: list[str] | None, topics: list[str], private: bool, known: str | list[str],
    is_replayed: bool,
) -> None:  # fmt: skip
    who = {} if grants is None else {"Authorization": f"Bearer {token(subscribe=grants)}"}
    event = (["pub", "inbox.ann", "inbox.bob"], "x")
    if is_replayed:
        await client.publish(*event, private=private)
    stream = await client.stream(*topics, headers=who, envelope="1", last_event_id="earliest")
    if not is_replayed:
        await client.publish(*event, private=private)
    assert (await stream.message())["topic"] == known
    plain = await client.stream(*topics, headers=who, last_event_id="earliest")
    assert await plain.data() == "x"  # as it was published: no topic is named
    for one in (stream, plain):
        one.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [COOKIES])
@pytest.mark.parametrize("envelope", ["0", "1"])
async def test_grants_that_do_not_meet_the_topics_make_no_feed_of_their_own(client: Client, envelope: str) -> None:
    async def open_stream(*topics: str, grants: list[str]) -> Stream:
        return await client.stream(*topics, envelope=envelope, access_token=token(subscribe=grants))

    streams = [
        await open_stream("news", "inbox.ann", grants=[f"inbox.{number}", "inbox.ann", *("*" * (number == 0))])
        for number in range(5)
    ]
    streams += [await open_stream("news", grants=[f"inbox.{number}"]) for number in range(20)]
    streams.append(await client.stream("news", envelope=envelope))
    assert len(client.hub.router) == 3
    assert (await client.publish("news", "for those who are granted it", private=True))["subscribers"] == 1
    for stream in streams:
        stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [COOKIES])
async def test_a_token_publishes_what_it_grants(client: Client) -> None:
    bearer = {"Authorization": f"Bearer {token(publish=['a', 'b.*'])}"}
    assert (await client.post({"topic": "a", "data": 1}, headers=bearer)).code == 200
    assert (await client.post({"topic": ["a", "b.c"], "data": 1}, headers=bearer)).code == 200
    answer = await client.post({"topic": ["a", "c"], "data": 1}, headers=bearer)
    assert answer.code == 403
    assert "'c'" in error_of(answer)["message"]
    batch = b'{"topic":"a","data":1}\n{"topic":"c","data":1}'
    answer = await client.post(batch, headers=bearer, media_type="application/x-ndjson")
    assert answer.code == 403
    assert client.published == 2
    reader = {"Authorization": f"Bearer {token(subscribe=['*'])}"}
    assert (await client.post({"topic": "a", "data": 1}, headers=reader)).code == 403
    expired = {"Authorization": f"Bearer {token(-60, publish=['*'])}"}
    answer = await client.post({"topic": "a", "data": 1}, headers=expired)
    assert (answer.code, error_of(answer)["code"]) == (401, "token_expired")


@pytest.mark.gen_test
async def test_an_admin_key_neither_publishes_nor_sees_private_topics(client: Client) -> None:
    boss = {"Authorization": "Bearer admin-key"}
    answer = await client.post({"topic": "a", "data": 1}, headers=boss)
    assert (answer.code, error_of(answer)["code"]) == (403, "forbidden")
    stream = await client.stream(headers=boss)
    assert (await client.publish("a", 1, private=True))["subscribers"] == 0
    stream.close()


# A cookie comes along with whatever page makes the browser send it.


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [COOKIES])
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://app.example.com", 200),
        ("own", 200),
        ("https://evil.example", 403),
        ("https://app.example.com.evil.example", 403),
        ("null", 403),
        ("", 403),
        (None, 403),
    ],
)
async def test_a_publish_by_cookie_must_come_from_a_page_of_ours(
    client: Client, origin: str | None, status: int
) -> None:
    headers = {"Cookie": f"other=1; session={token(publish=['*'])}"}
    if origin is not None:
        headers["Origin"] = client.base_url if origin == "own" else origin
    answer = await client.post(EVENT, headers=headers)
    assert answer.code == status, answer.body
    if status == 403:
        assert error_of(answer)["message"].startswith("Origin: ")
    assert client.published == (status == 200)


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [COOKIES | {"cors": {"allow_origins": ["*"]}}])
async def test_everybody_may_read_is_not_everybody_may_publish(client: Client) -> None:
    headers = {"Cookie": f"session={token(publish=['*'])}", "Origin": "https://evil.example"}
    assert (await client.post(EVENT, headers=headers)).code == 403
    # A header is not sent by accident, so it needs no origin.
    headers |= {"Authorization": f"Bearer {KEY}"}
    assert (await client.post(EVENT, headers=headers)).code == 200


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [COOKIES])
async def test_a_stream_by_cookie(client: Client) -> None:
    stream = await client.stream(headers={"Cookie": f"session={token(subscribe=['inbox.*'])}"})
    assert (await client.publish("inbox.ann", "x"))["subscribers"] == 1
    assert await stream.data() == "x"
    stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [COOKIES])
@pytest.mark.parametrize("cookie", [f"session={KEY}", "session=x.y.z", "session=\x80", 'session="'])
async def test_a_cookie_holds_a_token_and_no_key(client: Client, cookie: str) -> None:
    answer = await client.post(EVENT, headers={"Cookie": cookie, "Origin": "https://app.example.com"})
    assert answer.code == 401
    assert error_of(answer)["code"].startswith(("token_", "unknown_key", "unauthorized"))


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [COOKIES])
@pytest.mark.parametrize(
    "lines",
    [
        "Cookie: a=b\r\nCookie: session={token}",  # a proxy may have split them
        "Cookie: session={token}; session=",
        "Cookie: session=\r\nCookie: session={token}",
        "Cookie: session={token}; session=another",  # the nearest is first
        'Cookie: session="{token}"',
    ],
)
async def test_a_cookie_is_found_where_it_is(client: Client, lines: str) -> None:
    iostream = await client.connect()
    lines = lines.format(token=token(subscribe=["inbox.*"]))
    await iostream.write(f"GET /events?topic=inbox.ann HTTP/1.1\r\nHost: tests\r\n{lines}\r\n\r\n".encode())
    assert (await iostream.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    iostream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [COOKIES])
async def test_more_cookies_than_any_browser_keeps_are_refused(client: Client) -> None:
    answer = await client.ask("GET", "/events", headers={"Cookie": "a=b; " * 60_000})
    assert (answer.code, error_of(answer)["code"]) == (431, "headers_too_large")


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [COOKIES])
@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"Cookie": "session="}, {}),
        ({"Authorization": ""}, {}),
        ({}, {"access_token": ""}),
        ({"Cookie": "session=", "Authorization": ""}, {"access_token": ""}),
    ],
)
async def test_empty_credentials_are_none(client: Client, headers: dict[str, str], query: dict[str, str]) -> None:
    """That is what logging out leaves of a cookie, and a page of a token that it has not got."""
    stream = await client.stream("a", headers=headers, **query)
    stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("settings", [COOKIES])
async def test_what_stands_behind_empty_credentials_counts(client: Client) -> None:
    headers = {"Authorization": "", "Cookie": f"session={token(subscribe=['inbox.*'])}"}
    stream = await client.stream("inbox.ann", headers=headers, access_token="")
    stream.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "settings", [{"limits": {"publish_rate_per_key": 0.001, "publish_burst_per_key": 1}} | COOKIES]
)
async def test_a_token_with_the_name_of_a_key_does_not_use_up_its_rate(client: Client) -> None:
    named = jwt.encode({"sub": "tests", "exp": time.time() + 60, "qgstream": {"publish": ["*"]}}, SECRET)
    assert (await client.post(EVENT, headers={"Authorization": f"Bearer {named}"})).code == 200
    assert (await client.post(EVENT, headers={"Authorization": f"Bearer {named}"})).code == 429
    answer = await client.post(EVENT)
    assert answer.code == 200
    assert document(answer)["subscribers"] == 0
