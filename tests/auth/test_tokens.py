from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qgstream.auth.evidence import MAX_TOKEN_CHARACTERS, looks_like_jwt
from qgstream.auth.jwt_settings import JwtSettings
from qgstream.auth.tokens import TokenVerifier, mint
from qgstream.errors import ConfigError, InvalidField, Unauthorized, Unavailable
from tests.signing import NOW, SECRET, Files, encoded, jwk, payload, private_key, public_pem, sign


def settings(**values: Any) -> JwtSettings:
    return JwtSettings.model_validate({"algorithms": ["HS256"], "secret": SECRET} | values)


def public_settings(*algorithms: str, **values: Any) -> JwtSettings:
    return JwtSettings.model_validate({"algorithms": algorithms, "public_key_file": "pem"} | values)


def jwks_verifier(*keys: object, algorithms: tuple[str, ...] = ("RS256",)) -> TokenVerifier:
    files = Files(set=json.dumps({"keys": keys}).encode())
    return TokenVerifier(JwtSettings.model_validate({"algorithms": algorithms, "jwks_file": "set"}), read_file=files)


def refused(verifier: TokenVerifier, token: str, now: float = NOW) -> str:
    with pytest.raises(Unauthorized) as caught:
        verifier.verify(token, now)
    assert caught.value.code != "unauthorized"
    assert str(caught.value).startswith("token: ")
    assert caught.value.status == 401
    for part in (token, *token.split(".")):
        assert len(part) < 8 or part not in str(caught.value)
    return caught.value.code


def problems(call: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        call()
    return caught.value.problems


HS = TokenVerifier(settings())


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_token_by_the_secret_is_verified(algorithm: str) -> None:
    verifier = TokenVerifier(settings(algorithms=[algorithm]))
    claims, _ = verifier.verify(sign(payload(), algorithm=algorithm), NOW)
    assert (claims.subject, claims.publish, claims.subscribe) == ("ann", ("a*",), ("b",))
    assert claims.expires_at == NOW + 60 + 10


PAIRS = [
    *(("rsa", name) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
    *(("p256", "ES256"), ("p384", "ES384"), ("p521", "ES512"), ("ed25519", "EdDSA"), ("ed448", "EdDSA")),
]


@pytest.mark.parametrize(("pair", "algorithm"), PAIRS)
def test_a_token_by_a_private_key_is_verified_with_the_public_one(pair: str, algorithm: str) -> None:
    token = sign(payload(), private_key(pair), algorithm)
    verifier = TokenVerifier(public_settings(algorithm), read_file=Files(pem=public_pem(pair)))
    assert verifier.verify(token, NOW)[0].subject == "ann"
    head, body, signature = token.split(".")
    assert refused(verifier, f"{head}.{encoded(payload(sub='eve'))}.{signature}") == "bad_signature"
    assert refused(verifier, f"{head}.{body}.") == "bad_signature"
    assert refused(verifier, f"{head}.{body}.{encoded(b'x' * 64)}") == "bad_signature"


def test_a_token_by_another_secret_has_a_bad_signature() -> None:
    assert refused(HS, sign(payload(), SECRET + "!")) == "bad_signature"
    assert refused(HS, sign(payload(), SECRET + "\n")) == "bad_signature"


@pytest.mark.parametrize(
    "alg", ["none", "None", "NONE", "", None, 7, [], ["HS256"], {"HS256": 1}, "hs256", "HS384", "RS256"]
)
@pytest.mark.parametrize("signature", ["", encoded(b"x" * 32)])
def test_no_algorithm_but_those_listed(alg: object, signature: str) -> None:
    token = f"{encoded({'alg': alg, 'typ': 'JWT'})}.{encoded(payload())}.{signature}"
    assert refused(HS, token) == "wrong_algorithm"


def test_a_token_without_an_algorithm_is_refused() -> None:
    assert refused(HS, f"{encoded({'typ': 'JWT'})}.{encoded(payload())}.") == "wrong_algorithm"


def forged(material: bytes, kid: str | None = None) -> str:
    """Signed by HS256 with a public key as its secret; PyJWT itself refuses to make one."""
    header = {"alg": "HS256", "typ": "JWT"} | ({} if kid is None else {"kid": kid})
    signed = f"{encoded(header)}.{encoded(payload())}".encode()
    signature = jwt.get_algorithm_by_name("HS256").sign(signed, material)
    return f"{signed.decode()}.{encoded(signature)}"


def test_the_public_key_is_never_an_hmac_secret() -> None:
    pem = public_pem("rsa")
    verifier = TokenVerifier(public_settings("RS256"), read_file=Files(pem=pem))
    for material in (pem, pem.strip(), base64.b64encode(pem)):
        assert refused(verifier, forged(material)) == "wrong_algorithm"
    with_set = jwks_verifier(jwk("rsa", "RS256", kid="a"))
    assert refused(with_set, forged(json.dumps(jwk("rsa", "RS256", kid="a")).encode(), "a")) == "wrong_algorithm"


def test_a_forged_token_is_one_indeed() -> None:
    assert TokenVerifier(settings()).verify(forged(SECRET.encode()), NOW)[0].subject == "ann"


@pytest.mark.parametrize("algorithms", [["HS256", "RS256"], ["EdDSA", "HS512"]])
def test_hmac_and_public_keys_are_not_mixed(algorithms: list[str]) -> None:
    with pytest.raises(ValidationError, match="an attacker could use a public key as the shared secret"):
        settings(algorithms=algorithms)


@pytest.mark.parametrize("algorithms", [[], ["none"], ["HS1"], ["ES256K"], "HS256", None])
def test_the_algorithms_are_listed(algorithms: object) -> None:
    with pytest.raises(ValidationError):
        settings(algorithms=algorithms)


def test_a_key_is_chosen_by_its_id() -> None:
    verifier = jwks_verifier(jwk("rsa", "RS256", kid="old"), jwk("other rsa", "RS256", kid="new"))
    for pair, kid in (("rsa", "old"), ("other rsa", "new")):
        token = sign(payload(), private_key(pair), "RS256", kid=kid)
        assert verifier.verify(token, NOW)[0].subject == "ann"
    assert refused(verifier, sign(payload(), private_key("rsa"), "RS256", kid="new")) == "bad_signature"
    assert refused(verifier, sign(payload(), private_key("rsa"), "RS256", kid="none such")) == "unknown_key_id"


def test_a_token_without_key_id_is_tried_with_every_key() -> None:
    verifier = jwks_verifier(jwk("rsa", "RS256", kid="old"), jwk("other rsa", "RS256", kid="new"))
    assert verifier.verify(sign(payload(), private_key("other rsa"), "RS256"), NOW)[0].subject == "ann"
    alone = jwks_verifier(jwk("rsa", "RS256", kid="old"))
    assert refused(alone, sign(payload(), private_key("other rsa"), "RS256")) == "bad_signature"


def test_a_key_without_id_is_for_every_token() -> None:
    verifier = jwks_verifier(jwk("rsa", "RS256"))
    assert verifier.verify(sign(payload(), private_key("rsa"), "RS256", kid="any"), NOW)[0].subject == "ann"
    assert HS.verify(sign(payload(), kid="any"), NOW)[0].subject == "ann"


def test_one_key_id_may_stand_for_keys_of_two_kinds() -> None:
    keys = (jwk("p256", "ES256", kid="a"), jwk("rsa", "RS256", kid="a"))
    verifier = jwks_verifier(*keys, algorithms=("RS256", "ES256"))
    for pair, algorithm in (("rsa", "RS256"), ("p256", "ES256")):
        assert verifier.verify(sign(payload(), private_key(pair), algorithm, kid="a"), NOW)[0].subject == "ann"


def test_a_key_for_one_algorithm_is_not_used_for_another() -> None:
    verifier = jwks_verifier(jwk("rsa", "RS256", alg="PS256"), algorithms=("RS256", "PS256"))
    assert verifier.verify(sign(payload(), private_key("rsa"), "PS256"), NOW)[0].subject == "ann"
    with pytest.raises(Unauthorized, match=r"none of the 1 known keys is for RS256$"):
        verifier.verify(sign(payload(), private_key("rsa"), "RS256"), NOW)


def test_a_set_from_a_url_is_handed_in() -> None:
    verifier = TokenVerifier(JwtSettings.model_validate({"algorithms": ["RS256"], "jwks_url": "https://issuer/keys"}))
    token = sign(payload(), private_key("rsa"), "RS256", kid="a")
    with pytest.raises(Unavailable) as caught:
        verifier.verify(token, NOW)
    assert caught.value.code == "auth_unavailable"
    assert [(name, ok) for name, ok, _ in verifier.explain(token, NOW)][:3] == [
        ("form", True), ("algorithm", True), ("key", False)
    ]  # fmt: skip
    assert refused(verifier, "a.b.c") == "token_malformed"

    assert verifier.replace_jwks({"keys": [jwk("rsa", "RS256", kid="a"), {"kty": "future"}]}) == 1
    assert verifier.verify(token, NOW)[0].subject == "ann"
    assert problems(lambda: verifier.replace_jwks({"keys": []})) == [
        "auth.jwt.jwks_url: none of the 0 keys can verify a signature of RS256"
    ]
    assert verifier.verify(token, NOW)[0].subject == "ann"
    assert verifier.replace_jwks({"keys": [jwk("other rsa", "RS256", kid="b")]}) == 1
    assert refused(verifier, token) == "unknown_key_id"


def test_no_set_is_handed_in_where_none_is_expected() -> None:
    document = {"keys": [jwk("rsa", "RS256")]}
    for verifier in (HS, jwks_verifier(jwk("rsa", "RS256"))):
        assert problems(lambda verifier=verifier: verifier.replace_jwks(document)) == [  # type: ignore[misc]
            "auth.jwt.jwks_url: not set, so no key set is expected"
        ]


def by_hand(header: object, claims: object, signature: str = "AA") -> str:
    return f"{encoded(header)}.{encoded(claims)}.{signature}"


MALFORMED = {
    "nothing": "",
    "two parts": "a.b",
    "four parts": "a.b.c.d",
    "not base64": "a.b.c",
    "not ASCII": by_hand({"alg": "HS256"}, {}, "ü"),
    "a lone surrogate": "\ud800.b.c",
    "white space": f" {sign(payload())}",
    "a line end": f"{sign(payload())}\n",
    "header no JSON": by_hand(b"{", {}),
    "header no object": by_hand([], {}),
    "header not UTF-8": by_hand(b"{}\xff", {}),
    "claims no JSON": by_hand({"alg": "HS256"}, b"{"),
    "claims no object": by_hand({"alg": "HS256"}, ["a"]),
    "claims with a huge number": by_hand({"alg": "HS256"}, b'{"exp":%b}' % (b"9" * 5000)),
    "kid no string": by_hand({"alg": "HS256", "kid": 7}, {}),
    "critical extension": sign(payload(), crit=["exp"], exp=1),
    "critical extension that PyJWT knows": by_hand({"alg": "HS256", "crit": ["b64"], "b64": True}, {}),
    "detached": by_hand({"alg": "HS256", "b64": False, "crit": ["b64"]}, b""),
    "a deep header": by_hand(b"[" * 6000, {}),
    "deep claims": by_hand({"alg": "HS256"}, b"[" * 6000),
    "a megabyte": "a." + "b" * 2**20 + ".c",
}


@pytest.mark.parametrize("token", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_token_is_refused(token: str) -> None:
    assert refused(HS, token) == "token_malformed"
    (check,) = HS.explain(token, NOW)
    assert (check.check, check.ok) == ("form", False)


@pytest.mark.parametrize("name", ["nothing", "two parts", "four parts", "not ASCII", "white space", "a line end"])
def test_what_has_not_the_form_of_a_token_is_told_so(name: str) -> None:
    assert HS.explain(MALFORMED[name], NOW) == [
        ("form", False, "token: got another form, expected three base64url parts with dots between them")
    ]


def test_a_megabyte_costs_nothing() -> None:
    started = time.thread_time()
    for _ in range(100):
        refused(HS, MALFORMED["a megabyte"])
    assert time.thread_time() - started < 1


def test_the_longest_token_is_verified_and_a_longer_one_refused() -> None:
    # Base64 grows by one or two characters a byte: of eight sizes, some meet the bound and the one above it.
    near = (MAX_TOKEN_CHARACTERS - len(sign(payload(padding="")))) * 3 // 4
    tokens = {len(token): token for token in (sign(payload(padding="x" * (near + n))) for n in range(-4, 4))}
    assert {MAX_TOKEN_CHARACTERS, MAX_TOKEN_CHARACTERS + 1} <= tokens.keys()
    assert HS.verify(tokens[MAX_TOKEN_CHARACTERS], NOW)[0].subject == "ann"
    longer = tokens[MAX_TOKEN_CHARACTERS + 1]
    assert refused(HS, longer) == "token_malformed"
    assert HS.explain(longer, NOW) == [("form", False, "token: got 16385 characters, expected at most 16384")]


PARTS = st.binary(max_size=40) | st.dictionaries(
    st.sampled_from(["alg", "kid", "crit", "b64", "typ", "exp", "qgstream"]),
    st.none()
    | st.integers()
    | st.text(max_size=5)
    | st.lists(st.text(max_size=3))
    | st.sampled_from(["HS256", "none"]),
)


@given(st.text() | st.lists(PARTS, min_size=3, max_size=3).map(lambda parts: ".".join(map(encoded, parts))))
def test_no_garbage_is_anything_but_unauthorized(token: str) -> None:
    refused(HS, token)
    assert not all(check.ok for check in HS.explain(token, NOW))


@given(st.data())
def test_no_changed_token_is_accepted(data: st.DataObject) -> None:
    token = sign(payload())
    place = data.draw(st.integers(0, len(token) - 1))
    changed = token[:place] + data.draw(st.sampled_from("AZaz09-_.=!")) + token[place + 1 :]
    if changed != token:
        refused(HS, changed)


def test_claims_count_only_after_the_signature() -> None:
    assert refused(HS, sign(payload(exp=NOW - 60), SECRET + "!")) == "bad_signature"
    assert refused(HS, sign(payload(exp=NOW - 60))) == "token_expired"
    assert refused(HS, sign(payload(qgstream=None))) == "missing_claim"


CHECKS = ["form", "algorithm", "key", "signature", "exp", "nbf", "aud", "iss", "sub", "grants"]


def test_a_good_token_is_explained() -> None:
    verifier = TokenVerifier(settings(audience="events", issuer="me"))
    token = sign(payload(nbf=NOW - 5, aud="events", iss="me"))
    assert [tuple(check) for check in verifier.explain(token, NOW)] == [
        ("form", True, f"a JWT of {len(token)} characters"),
        ("algorithm", True, "HS256"),
        ("key", True, "1 of the 1 known keys fit"),
        ("signature", True, "by a known key"),
        ("exp", True, "in 60 s"),
        ("nbf", True, "5 s ago"),
        ("aud", True, "names 'events'"),
        ("iss", True, "is 'me'"),
        ("sub", True, "the name in the log"),
        ("grants", True, "1 to publish, 1 to subscribe"),
    ]


def test_absent_claims_are_explained() -> None:
    checks = {check.check: check.detail for check in HS.explain(sign(payload(exp=None, sub=None)), NOW)}
    assert checks["exp"] == "none: the token never expires"
    assert checks["nbf"] == "none: valid from the start"
    assert checks["aud"] == "none, and none expected"
    assert checks["iss"] == "any issuer is valid"
    assert checks["sub"] == "none"


def test_every_fault_is_explained_at_once() -> None:
    checks = HS.explain(sign(payload(exp=NOW - 60, nbf=NOW + 60, aud="x", sub=7, qgstream=[]), SECRET + "!"), NOW)
    assert [check.check for check in checks] == CHECKS
    assert [check.check for check in checks if check.ok] == ["form", "algorithm", "key", "iss"]
    assert checks[3].detail == "token: the signature does not match a known key"


def test_a_wrong_algorithm_does_not_hide_what_is_wrong_with_the_claims() -> None:
    checks = HS.explain(sign(payload(exp=NOW - 60), algorithm="HS384"), NOW)
    assert [check.check for check in checks] == ["form", "algorithm", *CHECKS[4:]]
    assert not checks[1].ok
    assert not checks[2].ok


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("named", [{}, {"audience": "events", "issuer": "me", "claim": "x"}])
def test_a_minted_token_is_verified(algorithm: str, named: dict[str, str]) -> None:
    its = settings(algorithms=[algorithm], leeway_seconds=0, **named)
    token = mint(its, "bob", ["a*"], ["b", "c"], 60, NOW + 0.25)
    claims, _ = TokenVerifier(its).verify(token, NOW + 60.25)
    assert (claims.subject, claims.publish, claims.subscribe) == ("bob", ("a*",), ("b", "c"))
    assert claims.expires_at == NOW + 61
    assert refused(TokenVerifier(its), token, NOW + 61) == "token_expired"


def test_a_token_is_minted_with_a_secret_from_a_file() -> None:
    files = Files(s=SECRET.encode() + b"\n")
    token = mint(settings(secret={"file": "s"}), "bob", [], ["*"], 60, NOW, read_file=files)
    assert HS.verify(token, NOW)[0].subscribe == ("*",)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"subject": ""}, "subject"),
        ({"subject": "a\nb"}, "subject"),
        ({"publish": ["*a"]}, "publish"),
        ({"subscribe": [""]}, "subscribe"),
        ({"ttl_seconds": 0}, "ttl_seconds"),
        ({"ttl_seconds": float("nan")}, "ttl_seconds"),
        ({"ttl_seconds": float("inf")}, "ttl_seconds"),
        ({"subscribe": ["x" * 250] * 100}, "token"),
    ],
)
def test_nothing_is_minted_that_would_be_refused(values: dict[str, Any], field: str) -> None:
    good: dict[str, Any] = {"subject": "bob", "publish": [], "subscribe": [], "ttl_seconds": 60, "now": NOW}
    with pytest.raises(InvalidField) as caught:
        mint(settings(), **good | values)
    assert caught.value.field == field


def test_only_a_shared_secret_mints() -> None:
    assert problems(lambda: mint(public_settings("RS256"), "bob", [], [], 60, NOW)) == [
        "auth.jwt.algorithms: got RS256, expected HS256, HS384 or HS512 to mint a token"
    ]


SOURCES = {"secret": SECRET, "public_key_file": "pem", "jwks_file": "set", "jwks_url": "https://issuer/keys"}


@pytest.mark.parametrize(
    ("algorithm", "names", "message"),
    [
        ("HS256", [], "auth.jwt: got no key for HS256, expected only secret"),
        ("HS256", ["public_key_file"], "auth.jwt: got public_key_file for HS256, expected only secret"),
        ("HS256", ["secret", "jwks_url"], "auth.jwt: got secret and jwks_url for HS256, expected only secret"),
        ("RS256", [], "auth.jwt: got no key for RS256, expected one of public_key_file, jwks_file and jwks_url"),
        ("RS256", ["secret"], "auth.jwt: got secret for RS256, expected one of public_key_file, jwks_file"),
        ("RS256", ["secret", "jwks_file"], "auth.jwt: got secret and jwks_file for RS256, expected one of"),
        ("RS256", ["jwks_file", "jwks_url"], "auth.jwt: got jwks_file and jwks_url for RS256, expected one of"),
        ("RS256", ["public_key_file"], "auth.jwt.public_key_file: cannot read 'pem': No such file or directory"),
        ("RS256", ["jwks_file"], "auth.jwt.jwks_file: cannot read 'set': No such file or directory"),
    ],
)
def test_the_key_fits_the_algorithms(algorithm: str, names: list[str], message: str) -> None:
    its = JwtSettings.model_validate({"algorithms": [algorithm]} | {name: SOURCES[name] for name in names})
    (problem,) = problems(lambda: TokenVerifier(its, read_file=Files()))
    assert problem.startswith(message)
    assert SECRET not in problem


def test_a_short_secret_is_refused_without_being_shown() -> None:
    (problem,) = problems(lambda: TokenVerifier(settings(secret="hunter2")))
    assert problem == "auth.jwt.secret: got 7 bytes, expected at least 32 for HS256 (RFC 7518, 3.2)"


@pytest.mark.parametrize("url", ["issuer/keys", "file:///etc/passwd", "https://", "https:///keys", "https://a b", ""])
def test_a_url_is_one_of_http(url: str) -> None:
    with pytest.raises(ValidationError):
        public_settings("RS256", jwks_url=url)


@pytest.mark.parametrize("cookie", ["", "a b", "a=b", "a;b", "a\n", "ü"])
def test_a_cookie_name_is_a_token_of_http(cookie: str) -> None:
    with pytest.raises(ValidationError):
        settings(cookie=cookie)
    assert settings(cookie="__Host-sse").cookie == "__Host-sse"


def test_the_secret_is_shown_nowhere() -> None:
    its = settings()
    token = sign(payload())
    assert (
        SECRET not in f"{its!r} {its} {its.model_dump()} {its.model_dump_json()} {vars(HS)!r} {HS.explain(token, NOW)}"
    )
    with pytest.raises(ValidationError) as caught:
        JwtSettings.model_validate({"secret": SECRET})
    assert SECRET not in f"{caught.value} {caught.value.errors()}"


def test_the_form_of_a_jwt_is_recognised() -> None:
    assert looks_like_jwt(sign(payload()))
    assert not looks_like_jwt("dev")
    assert not looks_like_jwt("a.b.c\n")


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in JwtSettings.model_fields.values())
