"""The claims of a token, and their checks: dates, audience, issuer, subject and grants. Pure: the time is an argument.

PyJWT's own checks read the clock and stop at the first failure, so this module has its own. Source: RFC 7519, section
4.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, field_validator

from qgstream.auth.secrets import SecretSection
from qgstream.errors import InvalidField, Unauthorized
from qgstream.events.topics import check_pattern, check_text

# 9999-12-31T23:59:59Z. RFC 7519 2: a NumericDate is in seconds. A later date was probably meant in milliseconds, and
# such a token would practically never expire.
LAST_DATE = 253_402_300_799

_REGISTERED = frozenset({"iss", "sub", "aud", "exp", "nbf", "iat", "jti"})


class ClaimSettings(SecretSection):
    """The settings of `[auth.jwt]` about claims."""

    audience: str | None = Field(
        None,
        min_length=1,
        description="A value that the token's `aud` must contain. Unset: a token with an `aud` is refused.",
    )
    issuer: str | None = Field(None, min_length=1, description="Required value of the token's `iss`; unset: any value.")
    # RFC 7519 4.1.4: "some small leeway, usually no more than a few minutes, to account for clock skew".
    leeway_seconds: float = Field(
        10, ge=0, le=300, description="How far the clocks of issuer and server may differ: extends `exp` and `nbf`."
    )
    claim: str = Field(
        "qgstream",
        min_length=1,
        description='The claim with the grants: {"publish": [patterns], "subscribe": [patterns]}.',
    )

    @field_validator("claim")
    @classmethod
    def _check_claim(cls, claim: str) -> str:
        if claim in _REGISTERED:
            raise ValueError(f"got {claim!r}, which RFC 7519 defines, expected a name that RFC 7519 does not define")
        return claim


@dataclass(slots=True)
class Claims:
    """A token's claims at `now` (unix seconds); each check stores the values that it found valid.

    `expires_at` (unix seconds) is the time from which the token is refused; None means never.
    """

    values: dict[str, Any] = field(repr=False)
    now: float
    subject: str | None = None
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    expires_at: float | None = None


def check_exp(settings: ClaimSettings, claims: Claims) -> str:
    """Check `exp`: raises `token_expired` from `exp` plus the leeway on."""
    expires = _numeric_date(claims, "exp")
    if expires is None:
        return "none: the token never expires"
    # The stream also ends at this time. If the stream ended at `exp` itself, a browser would reconnect at once with the
    # token, which the leeway still accepts, again and again until the leeway is over.
    claims.expires_at = expires + settings.leeway_seconds
    # RFC 7519 4.1.4: "the current date/time MUST be before the expiration date/time".
    if claims.now >= claims.expires_at:
        raise Unauthorized(f"token: expired {claims.now - expires:.0f} s ago", code="token_expired")
    if claims.now >= expires:
        return f"{claims.now - expires:.0f} s ago, within the leeway of {settings.leeway_seconds:g} s"
    return f"in {expires - claims.now:.0f} s"


def check_nbf(settings: ClaimSettings, claims: Claims) -> str:
    """Check `nbf`: raises `token_not_yet_valid` before `nbf` minus the leeway."""
    begins = _numeric_date(claims, "nbf")
    if begins is None:
        return "none: valid from the start"
    if claims.now < begins - settings.leeway_seconds:
        raise Unauthorized(f"token: becomes valid in {begins - claims.now:.0f} s", code="token_not_yet_valid")
    if claims.now < begins:
        return f"in {begins - claims.now:.0f} s, within the leeway of {settings.leeway_seconds:g} s"
    return f"{claims.now - begins:.0f} s ago"


def check_aud(settings: ClaimSettings, claims: Claims) -> str:
    """Check `aud`: raises `wrong_audience` unless `aud` contains the configured audience."""
    expected = settings.audience
    if expected is None:
        # RFC 7519 4.1.3: "If the principal processing the claim does not identify itself with a value in the "aud"
        # claim when this claim is present, then the JWT MUST be rejected." Many issuers write null for a missing claim.
        if claims.values.get("aud") is not None:
            raise Unauthorized(
                "token: got an audience (aud), expected none: auth.jwt.audience is not set", code="wrong_audience"
            )
        return "none, and none expected"
    audience = claims.values.get("aud")
    if expected not in (audience if isinstance(audience, list) else [audience]):
        raise Unauthorized(f"token: the audience (aud) does not contain {expected!r}", code="wrong_audience")
    return f"names {expected!r}"


def check_iss(settings: ClaimSettings, claims: Claims) -> str:
    """Check `iss`: raises `wrong_issuer` unless `iss` is the configured issuer."""
    expected = settings.issuer
    if expected is None:
        return "any issuer is valid"
    if claims.values.get("iss") != expected:
        raise Unauthorized(f"token: the issuer (iss) is not {expected!r}", code="wrong_issuer")
    return f"is {expected!r}"


def check_sub(settings: ClaimSettings, claims: Claims) -> str:  # noqa: ARG001 - one signature for all checks
    """Check `sub`: raises `invalid_claim` unless `sub` is a short single line, because the log shows `sub`."""
    if claims.values.get("sub") is None:
        return "none"
    try:
        claims.subject = check_text("sub", claims.values["sub"])
    except InvalidField as error:
        raise _invalid(str(error)) from None
    return "the name in the log"


def check_grants(settings: ClaimSettings, claims: Claims) -> str:
    """Check the grants: raises `missing_claim` or `invalid_claim` unless they are an object with lists of topic
    patterns."""
    name = settings.claim
    grants = claims.values.get(name)
    if grants is None:
        raise Unauthorized(f"token: the claim {name!r} with its grants is missing", code="missing_claim")
    if not isinstance(grants, dict):
        raise _invalid(f"{name}: got {type(grants).__name__}, expected an object")
    if grants.keys() - {"publish", "subscribe"}:
        # Ignoring other members is unsafe: a misspelt grant would have no effect, and a restriction of a later version
        # would be ignored.
        raise _invalid(f"{name}: got other members, expected only publish and subscribe")
    claims.publish = _patterns(grants.get("publish"), f"{name}.publish")
    claims.subscribe = _patterns(grants.get("subscribe"), f"{name}.subscribe")
    return f"{len(claims.publish)} to publish, {len(claims.subscribe)} to subscribe"


# The checks are independent, so `explain` can report all of them. A client sees the error of the first check that
# fails.
CLAIM_CHECKS: tuple[tuple[str, Callable[[ClaimSettings, Claims], str]], ...] = (
    ("exp", check_exp),
    ("nbf", check_nbf),
    ("aud", check_aud),
    ("iss", check_iss),
    ("sub", check_sub),
    ("grants", check_grants),
)


def _numeric_date(claims: Claims, name: str) -> float | None:
    if name not in claims.values:
        return None
    value = claims.values[name]
    # Not even null, which elsewhere means a missing claim: a token that should expire must not be valid for ever.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(f"{name}: got {type(value).__name__}, expected a number of seconds since 1970")
    # This comparison also rejects NaN and infinity, which Python's JSON accepts, and integers too large for a float.
    if not 0 <= value <= LAST_DATE:
        raise _invalid(f"{name}: got a date outside 1970 to 9999, expected seconds since 1970, not milliseconds")
    return float(value)


def _patterns(value: object, field: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _invalid(f"{field}: got {type(value).__name__}, expected a list of topic patterns")
    for index, pattern in enumerate(value):
        try:
            check_pattern(pattern)
        except InvalidField:
            raise _invalid(f"{field}[{index}]: not a topic name, nor a prefix that ends in '*'") from None
    return tuple(dict.fromkeys(value))


def _invalid(message: str) -> Unauthorized:
    return Unauthorized(f"token: {message}", code="invalid_claim")
