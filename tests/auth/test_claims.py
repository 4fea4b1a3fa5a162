from __future__ import annotations

from math import inf, nan, nextafter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qgstream.auth.claims import CLAIM_CHECKS, LAST_DATE, Claims, ClaimSettings, check_exp, check_nbf
from qgstream.errors import Unauthorized
from tests.signing import NOW, payload


def judge(values: dict[str, Any], now: float = NOW, **settings: Any) -> Claims:
    claims = Claims(values, now)
    for _, check in CLAIM_CHECKS:
        check(ClaimSettings(**settings), claims)
    return claims


def refused(values: dict[str, Any], now: float = NOW, **settings: Any) -> tuple[str, str]:
    with pytest.raises(Unauthorized) as caught:
        judge(values, now, **settings)
    return caught.value.code, str(caught.value)


def test_good_claims_give_subject_grants_and_expiry() -> None:
    claims = judge(payload(qgstream={"publish": ["a*", "c", "a*"], "subscribe": ["*"]}), leeway_seconds=5)
    assert claims.subject == "ann"
    assert claims.publish == ("a*", "c")
    assert claims.subscribe == ("*",)
    assert claims.expires_at == NOW + 65
    assert "ann" not in repr(Claims({"sub": "ann"}, NOW))


@pytest.mark.parametrize("leeway", [0, 0.5, 10, 300])
def test_a_token_is_refused_from_exp_and_leeway_on(leeway: float) -> None:
    exp = NOW - 1000
    expires_at = judge(payload(exp=exp), exp, leeway_seconds=leeway or 1).expires_at
    assert expires_at == exp + (leeway or 1)
    judge(payload(exp=exp), nextafter(exp + leeway, 0), leeway_seconds=leeway)
    code, message = refused(payload(exp=exp), exp + leeway, leeway_seconds=leeway)
    assert (code, message) == ("token_expired", f"token: expired {leeway:.0f} s ago")


@pytest.mark.parametrize("leeway", [0, 0.5, 10, 300])
def test_a_token_is_refused_until_nbf_less_leeway(leeway: float) -> None:
    judge(payload(nbf=NOW), NOW - leeway, leeway_seconds=leeway)
    code, _ = refused(payload(nbf=NOW), nextafter(NOW - leeway, 0), leeway_seconds=leeway)
    assert code == "token_not_yet_valid"


def test_the_message_says_how_long_until_it_is_valid() -> None:
    assert refused(payload(nbf=NOW + 90))[1] == "token: becomes valid in 90 s"


def test_within_the_leeway_the_explanation_says_so() -> None:
    settings = ClaimSettings(leeway_seconds=10)
    assert check_exp(settings, Claims({"exp": NOW - 5}, NOW)) == "5 s ago, within the leeway of 10 s"
    assert check_exp(settings, Claims({"exp": NOW + 5}, NOW)) == "in 5 s"
    assert check_nbf(settings, Claims({"nbf": NOW + 5}, NOW)) == "in 5 s, within the leeway of 10 s"
    assert check_nbf(settings, Claims({"nbf": NOW - 5}, NOW)) == "5 s ago"


@pytest.mark.parametrize("now", [0.0, NOW, 1e12])
def test_without_exp_and_nbf_it_is_always_valid(now: float) -> None:
    assert judge(payload(exp=None), now).expires_at is None


def str_of(value: object) -> str:
    return repr(value)[:12]


@pytest.mark.parametrize("name", ["exp", "nbf"])
@pytest.mark.parametrize(
    "value", ["1900000000", True, None, [], {}, nan, inf, -inf, -1, LAST_DATE + 1, 10**400], ids=str_of
)
def test_a_date_is_a_number_of_seconds(name: str, value: object) -> None:
    code, message = refused({**payload(), name: value})
    assert code == "invalid_claim"
    assert message.startswith(f"token: {name}: ")


def test_a_date_in_milliseconds_is_named_as_such() -> None:
    assert "not milliseconds" in refused(payload(exp=int(NOW * 1000)))[1]


@pytest.mark.parametrize("aud", ["events", ["events"], ["other", "events"], ["events", 7, None]])
def test_an_audience_names_the_one_configured(aud: object) -> None:
    judge(payload(aud=aud), audience="events")


@pytest.mark.parametrize("aud", [None, "Events", "events2", [], ["other"], {"events": 1}, 7, [["events"]]])
def test_any_other_audience_is_wrong(aud: object) -> None:
    code, message = refused(payload(aud=aud), audience="events")
    assert (code, message) == ("wrong_audience", "token: the audience (aud) does not contain 'events'")


@pytest.mark.parametrize("aud", ["events", [], ""])
def test_a_token_for_an_audience_is_not_for_a_server_without_a_name(aud: object) -> None:
    assert refused({**payload(), "aud": aud})[0] == "wrong_audience"


def test_the_issuer_is_the_one_configured() -> None:
    judge(payload(iss="https://issuer"), issuer="https://issuer")
    judge(payload(iss="anybody"))
    judge(payload())


@pytest.mark.parametrize("iss", [None, "https://issuer/", "", 7, ["https://issuer"]])
def test_any_other_issuer_is_wrong(iss: object) -> None:
    code, message = refused(payload(iss=iss), issuer="https://issuer")
    assert (code, message) == ("wrong_issuer", "token: the issuer (iss) is not 'https://issuer'")


def test_a_subject_is_optional() -> None:
    assert judge(payload(sub=None)).subject is None


@pytest.mark.parametrize("sub", [7, "", "a\nb", "x" * 257, "\ud800", ["ann"]])
def test_a_subject_fits_a_line_of_the_log(sub: object) -> None:
    code, message = refused({**payload(), "sub": sub})
    assert code == "invalid_claim"
    assert message.startswith("token: sub: ")


def test_the_grants_are_in_the_claim_configured() -> None:
    claims = judge(
        payload(qgstream=None) | {"https://example.com/sse": {"subscribe": ["x"]}}, claim="https://example.com/sse"
    )
    assert (claims.publish, claims.subscribe) == ((), ("x",))


def test_grants_may_be_empty() -> None:
    assert judge(payload(qgstream={})).publish == ()


# Issuers that are written in Java, C# or Go often say null for what is not there.


@pytest.mark.parametrize("name", ["aud", "iss", "sub"])
def test_a_claim_that_is_null_is_not_there(name: str) -> None:
    claims = judge({**payload(), name: None})
    assert claims.subject == (None if name == "sub" else judge(payload()).subject)


def test_grants_that_are_null_grant_nothing() -> None:
    assert judge({**payload(), "qgstream": {"publish": None, "subscribe": None}}).publish == ()


@pytest.mark.parametrize("name", ["exp", "nbf"])
def test_a_date_that_is_null_is_no_date(name: str) -> None:
    """A token that should expire must not live for ever because its issuer could not say when."""
    assert refused({**payload(), name: None})[0] == "invalid_claim"


@pytest.mark.parametrize("claims", [payload(qgstream=None), {**payload(), "qgstream": None}])
def test_missing_grants_are_named(claims: dict[str, Any]) -> None:
    code, message = refused(claims)
    assert (code, message) == ("missing_claim", "token: the claim 'qgstream' with its grants is missing")


@pytest.mark.parametrize(
    ("grants", "message"),
    [
        (["a"], "qgstream: got list, expected an object"),
        ({"publish": "a"}, "qgstream.publish: got str, expected a list of topic patterns"),
        ({"subscribe": {"a": 1}}, "qgstream.subscribe: got dict, expected a list of topic patterns"),
        ({"publish": ["a", "*b"]}, "qgstream.publish[1]: not a topic name, nor a prefix that ends in '*'"),
        ({"subscribe": [7]}, "qgstream.subscribe[0]: not a topic name, nor a prefix that ends in '*'"),
        ({"subscribe": [["a"]]}, "qgstream.subscribe[0]: not a topic name, nor a prefix that ends in '*'"),
        ({"publish": [""]}, "qgstream.publish[0]: not a topic name, nor a prefix that ends in '*'"),
        ({"publish": [], "deny": ["a"]}, "qgstream: got other members, expected only publish and subscribe"),
    ],
)
def test_ill_typed_grants_are_named(grants: object, message: str) -> None:
    assert refused({**payload(), "qgstream": grants}) == ("invalid_claim", f"token: {message}")


@pytest.mark.parametrize(
    "settings",
    [
        {"claim": "exp"},
        {"claim": ""},
        {"leeway_seconds": -1},
        {"leeway_seconds": 301},
        {"issuer": ""},
        {"audience": ""},
    ],
)
def test_settings_that_would_undo_a_check_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ClaimSettings(**settings)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
PATTERNS = st.lists(st.text() | JSON, max_size=3)
GRANTS = st.fixed_dictionaries({}, optional={"publish": PATTERNS, "subscribe": PATTERNS})


@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("exp", "nbf", "aud", "iss", "sub"), JSON) | {"qgstream": GRANTS | JSON}
    )
)
def test_no_claims_raise_anything_but_unauthorized(values: dict[str, Any]) -> None:
    for _, check in CLAIM_CHECKS:
        claims = Claims(values, NOW)
        try:
            detail = check(ClaimSettings(audience="events", issuer="me"), claims)
        except Unauthorized as error:
            detail = str(error)
        assert detail
