"""JSON Web Tokens: verify, explain, mint. Pure: the time and a key set from a URL are arguments.

PyJWT does the cryptography. Sources: RFC 7515 (JWS), RFC 7517 (JWK), RFC 8725 (best current practices).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jwt

from qgstream.auth.claims import CLAIM_CHECKS, LAST_DATE, Claims, check_aud, check_iss
from qgstream.auth.evidence import MAX_TOKEN_CHARACTERS, Check, Evidence, looks_like_jwt
from qgstream.auth.jwt_settings import JwtSettings
from qgstream.auth.secrets import ReadFile, load_secret, read_file
from qgstream.auth.signing_keys import VerifyingKey, check_hmac_secret, jwks_keys, load_jwks, load_pem
from qgstream.errors import ConfigError, InvalidField, QgstreamError, Unauthorized, Unavailable, UnknownKeyId
from qgstream.events.topics import check_pattern, check_text

_JWS = jwt.PyJWS()


@dataclass(slots=True)
class _Proof:
    """A token during the first four checks; each check stores the values that later checks need."""

    token: str = field(repr=False)
    settings: JwtSettings
    known: tuple[VerifyingKey, ...] | None
    header: dict[str, Any] = field(default_factory=dict, repr=False)
    claims: dict[str, Any] = field(default_factory=dict, repr=False)
    algorithm: str = ""
    keys: list[VerifyingKey] = field(default_factory=list)


def jti_of(token: str) -> object:
    """Return the unverified `jti` of a token; None without one. Raises `Unauthorized` if the text is not a JWT."""
    return _decode(token)[1].get("jti")


def _check_form(proof: _Proof) -> str:
    proof.header, proof.claims = _decode(proof.token)
    # RFC 7515 4.1.11: a recipient must refuse critical extensions that it does not understand. This server understands
    # none.
    if "crit" in proof.header:
        raise _malformed("got critical extensions (crit) in the header, expected none")
    return f"a JWT of {len(proof.token)} characters"


def _decode(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Decode header and claims without trusting them: no claim counts before the signature is verified."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise _malformed(f"got {len(token)} characters, expected at most {MAX_TOKEN_CHARACTERS}")
    if not looks_like_jwt(token):
        raise _malformed("got another form, expected three base64url parts with dots between them")
    try:
        parts = _JWS.decode_complete(token, options={"verify_signature": False})
        claims = json.loads(parts["payload"])
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise _malformed("the header or the claims cannot be decoded") from None
    if not isinstance(claims, dict):
        raise _malformed(f"the claims are {type(claims).__name__}, expected a JSON object")
    return parts["header"], claims


def _check_algorithm(proof: _Proof) -> str:
    accepted = proof.settings.algorithms
    for algorithm in accepted:
        if algorithm == proof.header.get("alg"):
            proof.algorithm = algorithm
            return algorithm
    raise Unauthorized(f"token: the algorithm (alg) is not one of {', '.join(accepted)}", code="wrong_algorithm")


def _check_key(proof: _Proof) -> str:
    if proof.known is None:
        raise Unavailable(
            "token: the issuer's keys have not been fetched yet", retry_after_seconds=5, code="auth_unavailable"
        )
    kid = proof.header.get("kid")
    # A key without a `kid` (a secret, a PEM file) fits every token, and a token without a `kid` fits every key.
    proof.keys = [
        key for key in proof.known if key.fits(proof.algorithm) and (kid is None or key.kid is None or key.kid == kid)
    ]
    if not proof.keys:
        wanted = f"is for {proof.algorithm}" + ("" if kid is None else " and has the token's key id (kid)")
        said = f"token: none of the {len(proof.known)} known keys {wanted}"
        raise UnknownKeyId(said, issued_at=_issued_at(proof.claims))
    return f"{len(proof.keys)} of the {len(proof.known)} known keys fit"


def _issued_at(claims: dict[str, Any]) -> float | None:
    # RFC 7519 4.1.6. The claim is not verified: it decides only whether the client is told to reconnect.
    issued_at = claims.get("iat")
    if not isinstance(issued_at, int | float) or isinstance(issued_at, bool):
        return None
    return issued_at if 0 <= issued_at <= LAST_DATE else None


def _check_signature(proof: _Proof) -> str:
    for key in proof.keys:
        try:
            _JWS.decode_complete(proof.token, key.material, algorithms=[proof.algorithm])
        except (jwt.PyJWTError, ValueError):
            continue
        proof.keys = [key]
        return "by a known key"
    raise Unauthorized("token: the signature does not match a known key", code="bad_signature")


# The checks that prove a token genuine; each check needs the results of the check before.
_PROOF_CHECKS: tuple[tuple[str, Callable[[_Proof], str]], ...] = (
    ("form", _check_form),
    ("algorithm", _check_algorithm),
    ("key", _check_key),
    ("signature", _check_signature),
)


class TokenVerifier:
    """Verifies tokens with one `[auth.jwt]`. Raises one `ConfigError` with all problems of the settings."""

    def __init__(self, settings: JwtSettings, *, read_file: ReadFile = read_file) -> None:
        self.settings = settings
        self._keys = _load_keys(settings, read_file)

    @property
    def keys(self) -> tuple[VerifyingKey, ...] | None:
        """The keys in use; None until the set from `jwks_url` has arrived."""
        return self._keys

    def replace_jwks(self, document: object) -> int:
        """Use the keys of a newly fetched JWK set, and return their number. On `ConfigError` the old keys stay in
        use."""
        if self.settings.jwks_url is None:
            raise ConfigError(["auth.jwt.jwks_url: not set, so no key set is expected"])
        keys = jwks_keys(document, self.settings.algorithms, where="auth.jwt.jwks_url")
        self._keys = tuple(keys)
        return len(keys)

    def verify(self, token: str, now: float) -> tuple[Claims, Evidence]:
        """Return the claims of a genuine token that is valid at `now` (unix seconds), and what `still_accepts` needs.

        Raises `Unauthorized` with the code of the check that failed, and `Unavailable` until the set from `jwks_url`
        has arrived. After `UnknownKeyId` the caller should fetch the set again: the issuer may have rotated its keys.
        """
        proof = _Proof(token, self.settings, self._keys)
        for _, check in _PROOF_CHECKS:
            check(proof)
        claims = Claims(proof.claims, now)
        for _, check_claim in CLAIM_CHECKS:
            check_claim(self.settings, claims)
        named = {name: value for name, value in claims.values.items() if name in ("aud", "iss")}
        return claims, Evidence(proof.keys[0], proof.algorithm, named, self.settings.claim)

    def still_accepts(self, evidence: Evidence) -> bool:
        """Whether a token accepted with this evidence would be accepted now. The dates of the token are not checked.

        While the key set is missing (the set of a new `jwks_url` has not arrived), the key counts as valid.
        """
        settings = self.settings
        if evidence.algorithm not in settings.algorithms or evidence.claim != settings.claim:
            return False
        claims = Claims(evidence.named, now=0.0)
        try:
            check_aud(settings, claims)
            check_iss(settings, claims)
        except Unauthorized:
            return False
        key = evidence.key
        return self._keys is None or any(
            known is key or (known.material == key.material and known.fits(evidence.algorithm)) for known in self._keys
        )

    def explain(self, token: str, now: float) -> list[Check]:
        """Return every check with its outcome. The claims are also checked after a bad signature: two faults give two
        lines."""
        proof = _Proof(token, self.settings, self._keys)
        checks: list[Check] = []
        for name, check in _PROOF_CHECKS:
            checks.append(_attempt(name, check, proof))
            if not checks[-1].ok:
                break
        if checks[0].ok:
            claims = Claims(proof.claims, now)
            checks += [_attempt(name, check_claim, self.settings, claims) for name, check_claim in CLAIM_CHECKS]
        return checks


def mint(
    settings: JwtSettings,
    subject: str,
    publish: Iterable[str],
    subscribe: Iterable[str],
    ttl_seconds: float,
    now: float,
    *,
    read_file: ReadFile = read_file,
) -> str:
    """Sign a token that these settings accept from `now` (unix seconds) on for `ttl_seconds`.

    Works only with the secret of HS algorithms, because only the issuer has the private key of a public key. Raises
    `ConfigError` without a secret, and `InvalidField` for a subject, a pattern or a lifetime that verification would
    refuse.
    """
    algorithm = settings.algorithms[0]
    if not settings.symmetric:
        raise ConfigError([f"auth.jwt.algorithms: got {algorithm}, expected HS256, HS384 or HS512 to mint a token"])
    if not (ttl_seconds > 0 and now + ttl_seconds <= LAST_DATE):
        raise InvalidField("ttl_seconds", f"got {ttl_seconds}, expected more than 0 and an end before the year 10000")
    secret = _load_secret(settings, read_file)
    claims: dict[str, Any] = {
        "sub": check_text("subject", subject),
        # Whole seconds: some libraries reject the fractions that RFC 7519 allows.
        "iat": math.floor(now),
        "exp": math.ceil(now + ttl_seconds),
        settings.claim: {
            "publish": [check_pattern(pattern, field="publish") for pattern in publish],
            "subscribe": [check_pattern(pattern, field="subscribe") for pattern in subscribe],
        },
    }
    if settings.audience is not None:
        claims["aud"] = settings.audience
    if settings.issuer is not None:
        claims["iss"] = settings.issuer
    token = jwt.encode(claims, secret, algorithm)
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise InvalidField("token", f"got {len(token)} characters, expected at most {MAX_TOKEN_CHARACTERS}")
    return token


def _load_keys(settings: JwtSettings, read_file: ReadFile) -> tuple[VerifyingKey, ...] | None:
    """Load the keys that the settings name; None if they must be fetched first. `ConfigError` lists every problem."""
    if settings.symmetric:
        return (VerifyingKey(_load_secret(settings, read_file)),)
    algorithms = settings.algorithms
    if len(settings.given) != 1 or settings.secret is not None:
        raise _wrong_sources(settings, "one of public_key_file, jwks_file and jwks_url")
    if settings.public_key_file is not None:
        where = "auth.jwt.public_key_file"
        return (load_pem(settings.public_key_file, algorithms, where=where, read_file=read_file),)
    if settings.jwks_file is not None:
        return tuple(load_jwks(settings.jwks_file, algorithms, where="auth.jwt.jwks_file", read_file=read_file))
    return None


def _load_secret(settings: JwtSettings, read_file: ReadFile) -> bytes:
    if settings.secret is None or len(settings.given) > 1:
        raise _wrong_sources(settings, "only secret")
    where = "auth.jwt.secret"
    secret = load_secret(settings.secret, where=where, read_file=read_file)
    return check_hmac_secret(secret, settings.algorithms, where=where)


def _wrong_sources(settings: JwtSettings, expected: str) -> ConfigError:
    got = " and ".join(settings.given) or "no key"
    return ConfigError([f"auth.jwt: got {got} for {settings.algorithms[0]}, expected {expected}"])


def _attempt(name: str, check: Callable[..., str], *arguments: object) -> Check:
    try:
        return Check(name, True, check(*arguments))
    except QgstreamError as error:
        return Check(name, False, str(error))


def _malformed(message: str) -> Unauthorized:
    return Unauthorized(f"token: {message}", code="token_malformed")
