from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from qgstream.auth import authenticator as auth
from qgstream.auth.authenticator import ANONYMOUS, Authenticator, AuthSettings, Credentials, Kind, Principal
from qgstream.auth.evidence import MAX_TOKEN_CHARACTERS
from qgstream.auth.secrets import SecretFile
from qgstream.errors import ConfigError, Forbidden, Unauthorized, Unavailable
from qgstream.events.topics import covers, matches, matches_any
from tests.signing import NOW, SECRET, Files, jwk, payload, private_key, public_pem, sign

JWT = {"algorithms": ["HS256"], "secret": SECRET}


def settings(**values: Any) -> AuthSettings:
    return AuthSettings.model_validate(values)


def authenticator(**values: Any) -> Authenticator:
    return Authenticator(settings(**values))


def bearer(token: str) -> Credentials:
    return Credentials(authorization=f"Bearer {token}")


def refused(whom: Authenticator, credentials: Credentials, now: float = NOW) -> tuple[str, str]:
    with pytest.raises(Unauthorized) as caught:
        whom.authenticate(credentials, now)
    assert caught.value.code != "unauthorized"
    return caught.value.code, str(caught.value)


def problems(call: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        call()
    return caught.value.problems


# Settings


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"frontend": "k"}, ["frontend"]),
        (["k", {"file": "f"}], ["key-1", "key-2"]),
        (("k",), ["key-1"]),
        ("k", ["key-1"]),
        (SecretStr("k"), ["key-1"]),
        ([], []),
        ({}, []),
    ],
)
@pytest.mark.parametrize("field", ["publish_keys", "admin_keys"])
def test_keys_have_names(field: str, keys: object, names: list[str]) -> None:
    assert list(getattr(settings(**{field: keys}), field)) == names


def test_keys_are_text_or_files() -> None:
    keys = settings(publish_keys={"a": "k", "b": {"file": "/run/secrets/b"}}).publish_keys
    assert keys == {"a": SecretStr("k"), "b": SecretFile(file="/run/secrets/b")}


@pytest.mark.parametrize("name", ["", "qzj b", "qzj\n", "qzjü", "-qzj", "qzj" * 22, "qzj*"])
def test_a_key_name_that_cannot_be_logged_is_refused_unseen(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(publish_keys={"ok": "k", name: "k"})
    (error,) = caught.value.errors()
    assert "the name of key 2 is not" in error["msg"]
    assert "qzj" not in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [7, None, {"a": 7}, {"a": None}, [7], {"a": {"file": ""}}, {"a": {"path": "x"}}, {"a": []}, {"a": [7]},
     {"a": [["k"]]}],
)  # fmt: skip
def test_keys_of_a_wrong_type_are_refused(keys: object) -> None:
    with pytest.raises(ValidationError):
        settings(publish_keys=keys)


@pytest.mark.parametrize("pattern", ["", "a*b", "**", "a\n", "x" * 257])
def test_private_topics_are_patterns(pattern: str) -> None:
    with pytest.raises(ValidationError, match="pattern: got"):
        settings(private_topics=["fine", pattern])


@pytest.mark.parametrize("values", [{"publish_key": "k"}, {"jwt": {}}, {"jwt": {"algorithm": "HS256"}}])
def test_what_is_misspelt_or_missing_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        settings(**values)


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in AuthSettings.model_fields.values())
    assert settings() == AuthSettings()
    assert settings().jwt is None


@pytest.mark.parametrize(
    "values",
    [
        {"publish_keys": "hunter2"},
        {"publish_keys": {"a": "hunter2"}, "admin_keys": ["hunter2!"], "jwt": JWT | {"secret": "hunter2" * 5}},
    ],
)
def test_no_secret_is_shown_by_what_holds_it(values: dict[str, Any]) -> None:
    its = settings(**values)
    whom = Authenticator(its)
    shown = f"{its} {its!r} {its.model_dump()} {its.model_dump_json()} {whom} {whom!r} {vars(whom)}"
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    "values",
    [
        {"publish_key": "hunter2"},
        {"publish_keys": {"a b": "hunter2"}},
        {"publish_keys": ["hunter2", 7]},
        {"publish_keys": {"a": ["hunter2", 7]}},
        {"publish_keys": {"a": [["hunter2"]]}},
        {"admin_keys": {"a": {"fiel": "hunter2"}}},
        {"jwt": {"secret": "hunter2"}},
        {"jwt": {"algorithms": ["HS256"], "secrett": "hunter2"}},
        {"jwt": JWT | {"secret": {"text": "hunter2"}}},
        {"jwt": "hunter2"},
    ],
)
def test_no_secret_is_shown_by_a_validation_error(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(**values)
    assert "hunter2" not in f"{caught.value} {caught.value.errors()} {caught.value.json()}"


# Construction


def test_all_problems_are_found_at_once() -> None:
    its = settings(
        publish_keys={"a": "same", "b": {"file": "none"}, "c": "", "d": "two words"},
        admin_keys={"a": "same", "b": {"file": "binary"}, "c": "x" * (MAX_TOKEN_CHARACTERS + 1)},
        jwt=JWT | {"secret": "short"},
    )
    assert problems(lambda: Authenticator(its, read_file=Files(binary=b"\xff\xfe"))) == [
        "auth.publish_keys.b.file: cannot read 'none': No such file or directory",
        f"auth.publish_keys.c: got 0 characters, expected 1 to {MAX_TOKEN_CHARACTERS}",
        "auth.publish_keys.d: got white space or a control character, which no header can carry",
        "auth.admin_keys.a: got the same key as auth.publish_keys.a, expected a different key",
        "auth.admin_keys.b: got bytes that are not UTF-8, expected text",
        f"auth.admin_keys.c: got {MAX_TOKEN_CHARACTERS + 1} characters, expected 1 to {MAX_TOKEN_CHARACTERS}",
        "auth.jwt.secret: got 5 bytes, expected at least 32 for HS256 (RFC 7518, 3.2)",
    ]


@pytest.mark.parametrize("key", ["a\tb", "a\0", "a\n", " a", "a\x7f", "a\u00a0b", "a\u2028"])
def test_a_key_that_no_header_carries_is_refused(key: str) -> None:
    (problem,) = problems(lambda: authenticator(publish_keys=[key]))
    assert problem.startswith("auth.publish_keys.key-1: got white space")


def test_a_key_with_a_lone_surrogate_is_refused() -> None:
    assert problems(lambda: authenticator(publish_keys=["a\ud800"])) == [
        "auth.publish_keys.key-1: got bytes that are not UTF-8, expected text"
    ]


def test_files_are_read_once() -> None:
    files = Files(k=b"from-a-file\n")
    whom = Authenticator(settings(publish_keys={"a": {"file": "k"}}), read_file=files)
    files.clear()
    assert whom.authenticate(bearer("from-a-file"), NOW).name == "a"


# Credentials


@pytest.mark.parametrize(
    ("credentials", "source", "token"),
    [
        (Credentials(), "none", None),
        (Credentials("Bearer h", "q", "c"), "header", "h"),
        (Credentials(None, "q", "c"), "query", "q"),
        (Credentials(None, None, "c"), "cookie", "c"),
        (Credentials(None, None, ""), "none", None),
        (Credentials(None, "", "c"), "cookie", "c"),
        (Credentials("", "", ""), "none", None),
        (Credentials("", "q", "c"), "query", "q"),
        (Credentials("bearer h"), "header", "h"),
        (Credentials("BEARER   h "), "header", "h"),
        (Credentials("Bearer"), "header", ""),
        (Credentials("Basic YTpi"), "none", None),
        (Credentials("basic YTpi", "q"), "query", "q"),
        (Credentials("Negotiate x", None, "c"), "cookie", "c"),
    ],
)
def test_the_first_credentials_count(credentials: Credentials, source: str, token: str | None) -> None:
    assert (credentials.source, credentials.token) == (source, token)


@pytest.mark.parametrize("header", ["dev", "Token dev", "Bearer\tdev", "Bearerdev", "JWT dev", "Bearer:dev"])
def test_any_other_scheme_is_refused_unseen(header: str) -> None:
    code, message = refused(authenticator(publish_keys=["dev"]), Credentials(header, access_token="dev"))
    assert (code, message) == ("wrong_scheme", "Authorization: expected 'Bearer' and a key or token")


def test_bad_credentials_are_not_made_up_for_by_later_ones() -> None:
    whom = authenticator(publish_keys=["dev"])
    assert refused(whom, Credentials("Bearer bad", "dev"))[0] == "unknown_key"
    assert refused(whom, Credentials(None, "bad", "dev"))[0] == "unknown_key"


def test_credentials_show_nothing_of_themselves() -> None:
    assert "hunter2" not in repr(Credentials("Bearer hunter2", "hunter2", "hunter2"))


# Keys


def test_no_credentials_are_anonymous() -> None:
    for whom in (authenticator(), authenticator(publish_keys=["dev"], jwt=JWT)):
        assert whom.authenticate(Credentials(), NOW) is ANONYMOUS


@pytest.mark.parametrize("credentials", [bearer("front"), Credentials(access_token="front")])
def test_a_key_tells_who_asks(credentials: Credentials) -> None:
    whom = authenticator(publish_keys={"frontend": "front", "backend": "back"}, admin_keys={"ops": "root"})
    assert whom.authenticate(credentials, NOW) == Principal("frontend", "publish_key", ("*",), ("*",), None)
    assert whom.authenticate(bearer("back"), NOW).name == "backend"
    assert whom.authenticate(bearer("root"), NOW) == Principal("ops", "admin_key", (), (), None)


@pytest.mark.parametrize("token", ["fron", "frontx", "Front", "front\n", "a.b.c", "x" * 2**20, "\ud800"])
def test_an_unknown_key_is_refused(token: str) -> None:
    code, message = refused(authenticator(publish_keys=["front"]), Credentials(access_token=token))
    assert (code, message) == ("unknown_key", "credentials: got an unknown key")


@pytest.mark.parametrize("key", ["schlüssel", "ключ", "鍵🔑", "caf\u00e9"])
def test_a_key_may_have_any_letters(key: str) -> None:
    whom = authenticator(publish_keys=[key])
    # As HTTP servers hand on the bytes of a header.
    on_the_wire = key.encode().decode("latin-1")
    for text in (key, on_the_wire):
        assert whom.authenticate(bearer(text), NOW).name == "key-1"
    assert whom.authenticate(Credentials(access_token=key), NOW).name == "key-1"
    assert refused(whom, Credentials(access_token=on_the_wire))[0] == "unknown_key"


def test_every_key_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    whom = authenticator(publish_keys=["a", "bb", "ccc"], admin_keys=["d" * 1000])
    monkeypatch.setattr(auth, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    for token in ("a", "ccc", "d" * 1000, "none"):
        compared.clear()
        with_token = Credentials(access_token=token)
        if token == "none":
            refused(whom, with_token)
        else:
            whom.authenticate(with_token, NOW)
        assert compared == [(32, 32)] * 4


def test_keys_are_rotated_by_building_another() -> None:
    both = authenticator(publish_keys={"old": "k1", "new": "k2"})
    after = authenticator(publish_keys={"new": "k2"})
    assert both.authenticate(bearer("k1"), NOW).name == "old"
    assert refused(after, bearer("k1"))[0] == "unknown_key"
    assert after.authenticate(bearer("k2"), NOW).name == "new"


def test_while_a_key_is_rotated_two_are_valid_under_one_name() -> None:
    files = Files({"old": b"k1\n"})
    whom = Authenticator(settings(publish_keys={"shop": ["k2", {"file": "old"}], "other": "k3"}), read_file=files)
    principals = [whom.authenticate(bearer(key), NOW) for key in ("k1", "k2", "k3")]
    assert [principal.name for principal in principals] == ["shop", "shop", "other"]
    old, new, other = [principal.namespace for principal in principals]
    assert old == new != other
    assert problems(lambda: authenticator(publish_keys={"shop": ["k1", "k1"], "a": ["", "x y"]})) == [
        "auth.publish_keys.shop[1]: got the same key as auth.publish_keys.shop[0], expected a different key",
        f"auth.publish_keys.a[0]: got 0 characters, expected 1 to {MAX_TOKEN_CHARACTERS}",
        "auth.publish_keys.a[1]: got white space or a control character, which no header can carry",
    ]


# Who is who: what one publisher is told and counted under, nobody else is.


def namespace_of(whom: Authenticator, credentials: Credentials) -> bytes:
    return whom.authenticate(credentials, NOW).namespace


def test_a_key_is_known_by_its_name_and_not_by_its_text() -> None:
    before, after = authenticator(publish_keys={"shop": "k1"}), authenticator(publish_keys={"shop": "k2", "new": "k1"})
    assert namespace_of(before, bearer("k1")) == namespace_of(after, bearer("k2")) != namespace_of(after, bearer("k1"))


def test_a_key_without_a_name_is_known_by_its_text_as_its_place_may_change() -> None:
    before, after = authenticator(publish_keys=["k1", "k2"]), authenticator(publish_keys=["k0", "k1", "k2"])
    for key in ("k1", "k2"):
        assert namespace_of(before, bearer(key)) == namespace_of(after, bearer(key))
    assert len({namespace_of(after, bearer(key)) for key in ("k0", "k1", "k2")}) == 3


def test_a_token_is_known_by_its_issuer_and_subject() -> None:
    whom = authenticator(publish_keys={"ann": "k", "token": "t"}, jwt=JWT)

    def of(**claims: Any) -> bytes:
        return namespace_of(whom, bearer(sign(payload(**claims))))

    ann = of(iss="https://a", sub="ann")
    assert ann == of(iss="https://a", sub="ann", exp=NOW + 9, jti="2"), "a new token of the same one"
    others = [
        of(iss="https://b", sub="ann"), of(iss=None, sub="ann"), of(iss="https://a", sub="bob"),
        of(iss="https://a", sub=None), namespace_of(whom, bearer("k")), namespace_of(whom, bearer("t")),
    ]  # fmt: skip
    assert len({ann, *others}) == len(others) + 1


def test_a_token_without_a_subject_is_known_by_what_is_signed() -> None:
    whom = authenticator(jwt=JWT)
    token = sign(payload(sub=None, jti="1"))
    assert namespace_of(whom, bearer(token)) != namespace_of(whom, bearer(sign(payload(sub=None, jti="2"))))
    padded = f"{token}="  # the same signature, written otherwise
    assert namespace_of(whom, bearer(token)) == namespace_of(whom, bearer(padded))


# Tokens


@pytest.mark.parametrize(
    "make",
    [bearer, lambda token: Credentials(access_token=token), lambda token: Credentials(cookie=token)],
    ids=["header", "query", "cookie"],
)
def test_a_token_tells_who_asks(make: Callable[[str], Credentials]) -> None:
    whom = authenticator(publish_keys=["dev"], jwt=JWT | {"leeway_seconds": 5})
    principal = whom.authenticate(make(sign(payload())), NOW)
    assert principal == Principal("ann", "token", ("a*",), ("b",), NOW + 65)
    assert whom.authenticate(make(sign(payload(sub=None))), NOW).name == "token"


def test_a_token_is_refused_from_the_moment_its_principal_expires() -> None:
    whom = authenticator(jwt=JWT)
    credentials = bearer(sign(payload()))
    expires_at = whom.authenticate(credentials, NOW).expires_at
    assert expires_at is not None
    whom.authenticate(credentials, expires_at - 0.001)
    assert refused(whom, credentials, expires_at) == ("token_expired", "token: expired 10 s ago")


def test_a_key_is_not_taken_from_a_cookie() -> None:
    assert refused(authenticator(publish_keys=["dev"], jwt=JWT), Credentials(cookie="dev"))[0] == "token_malformed"
    assert refused(authenticator(publish_keys=["dev"]), Credentials(cookie="dev"))[0] == "unknown_key"


def test_what_is_neither_key_nor_token_is_told_so() -> None:
    whom = authenticator(publish_keys=["dev"], jwt=JWT)
    assert refused(whom, bearer("deb")) == ("unknown_key", "credentials: got neither a known key nor a JWT")
    assert refused(whom, bearer("a.b.c"))[0] == "token_malformed"


def test_a_key_may_look_like_a_token() -> None:
    assert authenticator(publish_keys=["a.b.c"], jwt=JWT).authenticate(bearer("a.b.c"), NOW).kind == "publish_key"


def test_the_secret_and_the_public_key_are_no_bearer_keys() -> None:
    assert refused(authenticator(jwt=JWT), Credentials(access_token=SECRET))[0] == "unknown_key"


def test_a_token_by_a_public_key_file() -> None:
    its = settings(jwt={"algorithms": ["ES256"], "public_key_file": "pem"})
    whom = Authenticator(its, read_file=Files(pem=public_pem("p256")))
    assert whom.authenticate(bearer(sign(payload(), private_key("p256"), "ES256")), NOW).name == "ann"
    assert refused(whom, bearer(sign(payload())))[0] == "wrong_algorithm"


def test_a_fetched_key_set_is_handed_in() -> None:
    whom = authenticator(jwt={"algorithms": ["EdDSA"], "jwks_url": "https://issuer/keys"})
    credentials = bearer(sign(payload(), private_key("ed25519"), "EdDSA", kid="a"))
    with pytest.raises(Unavailable):
        whom.authenticate(credentials, NOW)
    document = json.loads(json.dumps({"keys": [jwk("ed25519", "EdDSA", kid="a")]}))
    assert whom.replace_jwks(document) == 1
    assert whom.authenticate(credentials, NOW).name == "ann"
    assert problems(lambda: authenticator().replace_jwks(document)) == ["auth.jwt: not set, so no key set is expected"]


TOKENS = st.text() | st.from_regex(r"[A-Za-z0-9_-]{0,20}(\.[A-Za-z0-9_-]{0,20}){0,4}", fullmatch=True)
WHOM = authenticator(publish_keys=["a key that nobody guesses".replace(" ", "-")], jwt=JWT)


@given(
    st.none() | st.text() | TOKENS.map("Bearer {}".format),
    st.none() | TOKENS,
    st.none() | TOKENS,
)
def test_no_garbage_is_anything_but_unauthorized(
    authorization: str | None, access_token: str | None, cookie: str | None
) -> None:
    credentials = Credentials(authorization, access_token, cookie)
    if credentials.source == "none":
        assert WHOM.authenticate(credentials, NOW) is ANONYMOUS
    else:
        refused(WHOM, credentials)


def test_keys_and_tokens_are_explained() -> None:
    whom = authenticator(publish_keys={"frontend": "front"}, admin_keys={"ops": "root"}, jwt=JWT)
    assert whom.explain("front", NOW) == [("key", True, "publish_key 'frontend'")]
    assert whom.explain("root", NOW) == [("key", True, "admin_key 'ops'")]
    assert all(check.ok for check in whom.explain(sign(payload()), NOW))
    assert [check.check for check in whom.explain(sign(payload(exp=1)), NOW) if not check.ok] == ["exp"]
    assert authenticator(publish_keys=["k"]).explain("x", NOW) == [
        ("key", False, "not one of the keys, and auth.jwt is not set")
    ]


# Principals

PRIVATE = ("user/*", "secret")


@pytest.mark.parametrize(
    ("pattern", "grants", "allowed"),
    [
        ("news", [], True),
        ("news*", [], True),
        ("*", [], True),
        ("us*", [], True),
        ("secret", [], False),
        ("secret", ["secret"], True),
        ("secret", ["s*"], True),
        ("secret", ["secret2", "user/*"], False),
        ("secret*", [], True),
        ("user/1", [], False),
        ("user/1", ["user/1"], True),
        ("user/1", ["user/2"], False),
        ("user/1", ["user/*"], True),
        ("user/1*", ["user/12"], True),
        ("user/*", [], False),
        ("user/*", ["user/1"], True),
        ("user/*", ["user/1*"], True),
        ("user/*", ["*"], True),
        ("user/1*", ["user/2*"], False),
        ("user/", [], False),
        ("user", [], True),
    ],
)
def test_what_lies_within_private_topics_needs_a_grant(pattern: str, grants: list[str], allowed: bool) -> None:
    principal = Principal("ann", "token", (), tuple(grants))
    assert principal.may_subscribe(pattern, PRIVATE) is allowed
    if allowed:
        principal.require_subscribe([pattern], PRIVATE)
    else:
        with pytest.raises(Forbidden) as caught:
            principal.require_subscribe(["news", pattern], iter(PRIVATE))
        assert str(caught.value) == f"token 'ann' may not subscribe to {pattern!r}"


NAMES = st.text("ab/", min_size=1, max_size=3)
PATTERNS = st.builds(lambda name, star: name + star, NAMES, st.sampled_from(["", "*"])) | st.just("*")


@given(PATTERNS, st.lists(PATTERNS, max_size=3), st.lists(PATTERNS, max_size=2), NAMES)
def test_a_refused_pattern_could_never_have_delivered(
    pattern: str, private: list[str], grants: list[str], name: str
) -> None:
    principal = Principal("ann", "token", (), tuple(grants))
    if matches(pattern, name) and (matches_any(grants, name) or not matches_any(private, name)):
        assert principal.may_subscribe(pattern, private)


@given(PATTERNS, st.lists(PATTERNS, max_size=3))
def test_without_private_topics_everybody_may_ask_for_everything(pattern: str, private: list[str]) -> None:
    assert ANONYMOUS.may_subscribe(pattern, [])
    assert Principal("k", "publish_key", ("*",), ("*",)).may_subscribe(pattern, private)
    assert ANONYMOUS.may_subscribe(pattern, private) is not any(covers(one, pattern) for one in private)


def test_publishing_needs_a_grant_for_every_topic() -> None:
    principal = Principal("ann", "token", ("orders/*", "news"), ("*",))
    assert principal.may_publish("orders/1")
    assert not principal.may_publish("other")
    principal.require_publish(["orders/1", "news"])
    with pytest.raises(Forbidden) as caught:
        principal.require_publish(["news", "other"])
    assert str(caught.value) == "token 'ann' may not publish to 'other'"
    Principal("k", "publish_key", ("*",), ("*",)).require_publish(["anything"])


@pytest.mark.parametrize("kind", ["publish_key", "token"])
def test_only_admin_keys_administer(kind: Kind) -> None:
    Principal("ops", "admin_key").require_admin()
    with pytest.raises(Forbidden) as caught:
        Principal("x", kind, ("*",), ("*",)).require_admin()
    assert (caught.value.status, str(caught.value)) == (403, f"{kind} 'x' may not use the admin interface")


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda: ANONYMOUS.require_publish(["news"]), "publish to 'news'"),
        (lambda: ANONYMOUS.require_subscribe(["secret"], PRIVATE), "subscribe to 'secret'"),
        (ANONYMOUS.require_admin, "use the admin interface"),
    ],
)
def test_the_anonymous_are_asked_for_credentials(ask: Callable[[], None], what: str) -> None:
    with pytest.raises(Unauthorized) as caught:
        ask()
    assert caught.value.code == "missing_credentials"
    assert str(caught.value) == f"got no credentials, expected credentials that may {what}"


def test_a_principal_never_changes() -> None:
    with pytest.raises(AttributeError):
        ANONYMOUS.publish = ("*",)  # type: ignore[misc]
