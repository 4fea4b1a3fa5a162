"""Key material: secrets from text or files, public keys from PEM files and JWK sets. Pure but for `read_file`.

A secret stays inside `SecretStr` from the moment a section sees it, so no validation error, dump or repr shows it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import AfterValidator, Discriminator, Field, SecretStr, Tag, model_validator

from qgstream.addresses import is_loopback
from qgstream.errors import ConfigError
from qgstream.settings import Section

ReadFile = Callable[[str], bytes]

Algorithm = Literal[
    "HS256", "HS384", "HS512",
    "RS256", "RS384", "RS512",
    "PS256", "PS384", "PS512",
    "ES256", "ES384", "ES512",
    "EdDSA",
]  # fmt: skip

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

# RFC 7518 3.2: "A key of the same size as the hash output [...] or larger MUST be used".
MIN_SECRET_BYTES: Mapping[str, int] = {"HS256": 32, "HS384": 48, "HS512": 64}
# RFC 7518 3.3 and 3.5: "A key of size 2048 bits or larger MUST be used".
MIN_RSA_BITS = 2048

# RFC 7518 3.4 ties each ES algorithm to one curve; RFC 8037 3.1 gives EdDSA both of its own.
_KINDS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), frozenset({"RSA"})),
    "ES256": frozenset({"EC secp256r1"}),
    "ES384": frozenset({"EC secp384r1"}),
    "ES512": frozenset({"EC secp521r1"}),
    "EdDSA": frozenset({"Ed25519", "Ed448"}),
}


# The environment has text only. Taken for the secret itself, this would be one that everybody can guess.
_FILE_AS_TEXT = re.compile(r"""\s*\{\s*"?file"?\s*[:=]\s*(["'])(?P<path>[^"'\\]+)\1\s*\}\s*""")


def read_file(path: str) -> bytes:
    """Read a whole file; `OSError` when it cannot be."""
    return Path(path).read_bytes()


class SecretFile(Section):
    """A secret that stands in a file of its own, as systemd credentials and Kubernetes secrets do."""

    file: str = Field(min_length=1, description="Path of the file. One line end at its end is not part of the secret.")


# In brackets, to be told apart from a key in the place that a validation error names.
def _form_of(value: object) -> str:
    return "(file)" if isinstance(value, Mapping | SecretFile) else "(text)"


Secret = Annotated[
    Annotated[SecretStr, Tag("(text)")] | Annotated[SecretFile, Tag("(file)")],
    Discriminator(_form_of),
]


def _check_jwks_url(url: str) -> str:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        # Not repeated: it would be a password, in a setting that is shown.
        raise ValueError("got a user and a password in it, expected none")
    if parts.scheme != "https" and not _is_loopback(parts.hostname or ""):
        # Who can change the answer on its way can sign tokens.
        raise ValueError(f"got {url!r}, expected https:// (http:// is for loopback only)")
    return url


def _is_loopback(host: str) -> bool:
    return host == "localhost" or is_loopback(host)


JwksUrl = Annotated[str, Field(pattern=r"^https?://[^/\s]\S*$"), AfterValidator(_check_jwks_url)]


class SecretSection(Section):
    """A section with secrets: `secret_fields` and unknown keys are veiled before anything is validated.

    Validation errors carry their input. A misspelt `publish_key = "..."` must name the key without showing the value.
    """

    secret_fields: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _veil_secrets(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return _veil(values)
        shown = cls.model_fields.keys() - cls.secret_fields
        return {name: value if name in shown else _veil(value) for name, value in values.items()}


def _veil(value: Any) -> Any:
    if isinstance(value, str):
        table = _FILE_AS_TEXT.fullmatch(value)
        return {"file": table["path"]} if table else SecretStr(value)
    if isinstance(value, list | tuple):
        return [_veil(item) for item in value]
    if isinstance(value, Mapping):
        return {name: item if name == "file" else _veil(item) for name, item in value.items()}
    return value


def load_secret(secret: SecretStr | SecretFile, *, where: str, read_file: ReadFile) -> bytes:
    """The secret's bytes; `ConfigError` that names `where` when its file cannot be read."""
    if isinstance(secret, SecretStr):
        return secret.get_secret_value().encode("utf-8", "surrogatepass")
    content = _load_file(secret.file, where=f"{where}.file", read_file=read_file)
    # An editor or `echo` puts one there, and nobody sees it.
    return content[:-2] if content.endswith(b"\r\n") else content.removesuffix(b"\n")


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """What a token's signature is checked with: an HMAC secret (bytes) or a public key.

    `kid` and `algorithm` are what a JWK says of itself; None does not restrict.
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
        """Whether this key may check a signature of `algorithm`: what keeps a public key from being an HMAC secret."""
        if self.algorithm is not None and self.algorithm != algorithm:
            return False
        if isinstance(self.material, bytes):
            return algorithm in MIN_SECRET_BYTES
        return self.kind in _KINDS.get(algorithm, ())


def check_hmac_secret(secret: bytes, algorithms: tuple[Algorithm, ...], *, where: str) -> bytes:
    """Return the secret if it is long enough for each of the HS algorithms; else `ConfigError`."""
    strongest = max(algorithms, key=MIN_SECRET_BYTES.__getitem__)
    expected = MIN_SECRET_BYTES[strongest]
    if len(secret) < expected:
        raise ConfigError(
            [f"{where}: got {len(secret)} bytes, expected at least {expected} for {strongest} (RFC 7518, 3.2)"]
        )
    try:
        jwt.get_algorithm_by_name(strongest).prepare_key(secret)
    except jwt.InvalidKeyError:
        # What everybody may know would then sign tokens.
        raise ConfigError([f"{where}: got a PEM, SSH or JWK key, expected a shared secret"]) from None
    return secret


def load_pem(path: str, algorithms: tuple[Algorithm, ...], *, where: str, read_file: ReadFile) -> VerifyingKey:
    """The public key of a PEM file, fit for each of the algorithms; else `ConfigError`."""
    content = _load_file(path, where=where, read_file=read_file)
    if b"PRIVATE KEY" in content:
        raise ConfigError([f"{where}: {path} holds a private key, expected the public one"])
    try:
        loaded = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError([f"{where}: {path} is not a PEM public key (-----BEGIN PUBLIC KEY-----)"]) from None
    if not isinstance(loaded, PublicKey):
        raise ConfigError([f"{where}: {path} holds a key of a kind that signs no tokens, expected RSA, EC or Ed25519"])
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
    """The keys of a JWK set's file; see `jwks_keys`."""
    content = _load_file(path, where=where, read_file=read_file)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise ConfigError([f"{where}: {path} is not JSON"]) from None
    return jwks_keys(document, algorithms, where=f"{where}: {path}")


def jwks_keys(document: object, algorithms: tuple[Algorithm, ...], *, where: str) -> list[VerifyingKey]:
    """The keys of a JWK set (RFC 7517, 5) that can check at least one of the algorithms.

    "Implementations SHOULD ignore JWKs within a JWK Set that use "kty" values that are not understood": the others
    are left out; `ConfigError` when none remains.
    """
    listed = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(listed, list):
        raise ConfigError([f'{where}: expected a JWK set, an object with a list "keys"'])
    keys = [key for key in map(_jwk_key, listed) if key is not None and any(map(key.fits, algorithms))]
    if not keys:
        raise ConfigError([f"{where}: none of its {len(listed)} keys can check a signature of {', '.join(algorithms)}"])
    return keys


def _jwk_key(jwk: object) -> VerifyingKey | None:
    if not isinstance(jwk, dict):
        return None
    # Many issuers write null for a member that is not there.
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
        # Its messages show the key, and a set may hold kinds from the future.
        return None
    # Neither secrets (they sign, too) nor private keys (they have leaked) are verified with.
    if not isinstance(material, PublicKey) or _is_short(material):
        return None
    return VerifyingKey(material, kid, algorithm)


def _is_short(key: object) -> bool:
    return isinstance(key, RSAPublicKey) and key.key_size < MIN_RSA_BITS


def _load_file(path: str, *, where: str, read_file: ReadFile) -> bytes:
    try:
        return read_file(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise ConfigError([f"{where}: cannot read {path!r}: {reason}"]) from None
