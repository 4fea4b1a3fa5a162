"""Keys that verify a token's signature: shared secrets, and public keys from PEM files and JWK sets.

PyJWT and cryptography are slow imports: `auth` imports this module only if tokens are configured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from qgstream.auth.jwt_settings import MIN_SECRET_BYTES, Algorithm
from qgstream.auth.secrets import ReadFile, load_file
from qgstream.errors import ConfigError

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

# RFC 7518 3.3 and 3.5: "A key of size 2048 bits or larger MUST be used".
MIN_RSA_BITS = 2048

# RFC 7518 3.4 ties each ES algorithm to one curve; RFC 8037 3.1 allows both of its curves for EdDSA.
_KINDS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), frozenset({"RSA"})),
    "ES256": frozenset({"EC secp256r1"}),
    "ES384": frozenset({"EC secp384r1"}),
    "ES512": frozenset({"EC secp521r1"}),
    "EdDSA": frozenset({"Ed25519", "Ed448"}),
}


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A key that verifies the signature of a token: an HMAC secret (bytes) or a public key.

    `kid` and `algorithm` are members of a JWK; None means no restriction.
    """

    material: bytes | PublicKey = field(repr=False)
    kid: str | None = None
    algorithm: str | None = None

    @property
    def kind(self) -> str:
        if isinstance(self.material, bytes):
            return "secret"
        if isinstance(self.material, EllipticCurvePublicKey):
            return f"EC {self.material.curve.name}"
        if isinstance(self.material, RSAPublicKey):
            return "RSA"
        return "Ed25519" if isinstance(self.material, Ed25519PublicKey) else "Ed448"

    def fits(self, algorithm: str) -> bool:
        """Whether this key may verify a signature of `algorithm`. This check prevents a public key from serving as an
        HMAC secret."""
        if self.algorithm is not None and self.algorithm != algorithm:
            return False
        if isinstance(self.material, bytes):
            return algorithm in MIN_SECRET_BYTES
        return self.kind in _KINDS.get(algorithm, ())


def check_hmac_secret(secret: bytes, algorithms: tuple[Algorithm, ...], *, where: str) -> bytes:
    """Return the secret if it is long enough for each of the HS algorithms; otherwise raise `ConfigError`."""
    strongest = max(algorithms, key=MIN_SECRET_BYTES.__getitem__)
    expected = MIN_SECRET_BYTES[strongest]
    if len(secret) < expected:
        raise ConfigError(
            [f"{where}: got {len(secret)} bytes, expected at least {expected} for {strongest} (RFC 7518, 3.2)"]
        )
    try:
        jwt.get_algorithm_by_name(strongest).prepare_key(secret)
    except jwt.InvalidKeyError:
        # Such a key may be public, and everybody who knows the key could then sign tokens.
        raise ConfigError([f"{where}: got a PEM, SSH or JWK key, expected a shared secret"]) from None
    return secret


def load_pem(path: str, algorithms: tuple[Algorithm, ...], *, where: str, read_file: ReadFile) -> VerifyingKey:
    """Load the public key of a PEM file. Raises `ConfigError` unless the key fits each of the algorithms."""
    content = load_file(path, where=where, read_file=read_file)
    if b"PRIVATE KEY" in content:
        raise ConfigError([f"{where}: {path} holds a private key, expected the public one"])
    try:
        loaded = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError([f"{where}: {path} is not a PEM public key (-----BEGIN PUBLIC KEY-----)"]) from None
    if not isinstance(loaded, PublicKey):
        raise ConfigError([f"{where}: {path} holds a key of another kind, expected RSA, EC or Ed25519"])
    key = VerifyingKey(loaded)
    problems = [
        f"{where}: {path} holds a key of kind {key.kind}, algorithm {algorithm} expects "
        f"{' or '.join(sorted(_KINDS[algorithm]))}"
        for algorithm in algorithms
        if not key.fits(algorithm)
    ]
    if _is_short(loaded):
        problems.append(f"{where}: {path} holds an RSA key of fewer than {MIN_RSA_BITS} bits (RFC 7518, 3.3)")
    if problems:
        raise ConfigError(problems)
    return key


def load_jwks(path: str, algorithms: tuple[Algorithm, ...], *, where: str, read_file: ReadFile) -> list[VerifyingKey]:
    """Load the keys of a JWK set from a file; see `jwks_keys`."""
    content = load_file(path, where=where, read_file=read_file)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise ConfigError([f"{where}: {path} is not JSON"]) from None
    return jwks_keys(document, algorithms, where=f"{where}: {path}")


def jwks_keys(document: object, algorithms: tuple[Algorithm, ...], *, where: str) -> list[VerifyingKey]:
    """Return the keys of a JWK set (RFC 7517, 5) that can verify at least one of the algorithms.

    "Implementations SHOULD ignore JWKs within a JWK Set that use "kty" values that are not understood": other keys are
    ignored. Raises `ConfigError` if no key remains.
    """
    listed = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(listed, list):
        raise ConfigError([f'{where}: expected a JWK set, an object with a list "keys"'])
    keys = [key for key in map(_jwk_key, listed) if key is not None and any(map(key.fits, algorithms))]
    if not keys:
        raise ConfigError(
            [f"{where}: none of the {len(listed)} keys can verify a signature of {', '.join(algorithms)}"]
        )
    return keys


def _jwk_key(jwk: object) -> VerifyingKey | None:
    if not isinstance(jwk, dict):
        return None
    # Many issuers write null for a missing member.
    jwk = {name: value for name, value in jwk.items() if value is not None}
    if jwk.get("use", "sig") != "sig":
        return None
    operations = jwk.get("key_ops", ["verify"])
    kid, algorithm = jwk.get("kid"), jwk.get("alg")
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    if not isinstance(kid, str | None) or not isinstance(algorithm, str | None):
        return None
    try:
        material = jwt.PyJWK(jwk).key
    except (jwt.PyJWTError, ValueError, TypeError, LookupError, AttributeError, UnsupportedAlgorithm):
        # Not reported: the library's messages show the key, and a set may hold kinds of keys that are not known yet.
        return None
    # Secrets can also sign, and a published private key has leaked. Neither verifies tokens.
    if not isinstance(material, PublicKey) or _is_short(material):
        return None
    return VerifyingKey(material, kid, algorithm)


def _is_short(key: object) -> bool:
    return isinstance(key, RSAPublicKey) and key.key_size < MIN_RSA_BITS
